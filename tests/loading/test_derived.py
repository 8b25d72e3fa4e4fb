"""What a config leaves out follows from the parts that are loaded, the vocabulary and the data."""

import pytest

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.loading import derived
from synth2_jax.loading.derived import fill_in, part_config
from synth2_jax.stages import train
from synth2_jax.testing.untrained_runs import MODELS, write_untrained_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("tokenizer", "language_model", "generator"):
        write_untrained_run(folder / name, name)
    return folder


def scenes(name, **changes):
    config = config_lib.load_config(f"configs/scenes/{name}.py")
    for key, value in changes.items():
        config_lib.override(config, key.replace("__", "."), str(value))
    return config


def filled(name, **changes):
    return fill_in(scenes(name, **changes))


def warnings_of(monkeypatch):
    """The list that warnings will be added to."""
    lines = []
    monkeypatch.setattr(
        derived.logging, "warning", lambda text, *values: lines.append(text % values)
    )
    return lines


def test_sizes_come_from_the_tokenizer_of_the_config():
    vlm, maskgit = (
        filled("vlm")["model"]["vlm"],
        filled("generator")["model"]["generator"]["maskgit"],
    )
    assert (vlm["num_image_tokens"], vlm["image_embedding_dim"]) == (16, 32)
    assert (maskgit["num_tokens"], maskgit["codebook_size"]) == (16, 512)


@pytest.mark.parametrize("name", ["language_model", "generator", "vlm"])
def test_the_text_comes_from_the_data(name):
    found = filled(name, validation__data__folders__real="pairs", data__prompt="Say:")
    length = found["data"]["text_length"]
    assert found["model"]["text_length"] == length
    expected = {"text_length": length, "vocabulary": "scenes", "prompt": "Say:"}
    assert expected.items() <= found["validation"]["data"].items()
    assert fill_in(found) == found


def test_a_vocabulary_gives_the_rows_of_a_new_table(tmp_path):
    from synth2_jax.text.vocabulary import train_vocabulary

    file = tmp_path / "own.model"
    file.write_bytes(train_vocabulary(["a red bird", "two blue dogs"] * 9, 290))
    found = filled("language_model", data__vocabulary=file)
    assert found["model"]["language_model"]["vocab_size"] == 384  # 290, up to a multiple of 128
    with pytest.raises(UserError, match=r"--config\.data\.vocabulary=lost: "):
        filled("language_model", data__vocabulary="lost")


def test_a_part_is_what_its_run_says(runs):
    """Only the path is typed: sizes, and what follows from them, are those of the checkpoint."""
    config = scenes(
        "vlm",
        pretrained__tokenizer=runs / "tokenizer",
        pretrained__language_model=runs / "language_model",
        model__tokenizer__dtype="bfloat16",
        model__vlm__resampler__embed_dim=16,
        data__text_length=12,
    )
    task = train.build(config)[1].task
    expected = dict(MODELS["tokenizer"]["tokenizer"]) | {"dtype": "bfloat16"}
    assert expected.items() <= vars(task.tokenizer).items()
    assert (
        vars(task.vlm.language_model).items() >= MODELS["language_model"]["language_model"].items()
    )
    assert (task.vlm.num_image_tokens, task.vlm.image_embedding_dim) == (4, 4)


def test_what_no_checkpoint_decides_is_the_configs(runs, tmp_path):
    """A language model that was trained with dropout has none where it is frozen."""
    section = {**MODELS["language_model"]["language_model"], "dropout_rate": 0.1, "remat": "full"}
    model = {**MODELS["language_model"], "language_model": section}
    write_untrained_run(tmp_path, "language_model", config={"model": model})
    found = part_config("language_model", str(tmp_path), {"dtype": "bfloat16"})
    assert found == {**MODELS["language_model"]["language_model"], "dtype": "bfloat16"}
    with pytest.raises(UserError, match="holds a language_model, expected a tokenizer"):
        part_config("tokenizer", str(tmp_path), {})


@pytest.mark.parametrize("source", ["lost", "other"])
def test_a_config_that_describes_the_part_needs_no_files(tmp_path, monkeypatch, source):
    """To plan, or to train on the stored features of an encoder that is elsewhere."""
    (tmp_path / "other").mkdir()
    lines = warnings_of(monkeypatch)
    found = filled("vlm", pretrained__tokenizer=tmp_path / source)["model"]["tokenizer"]
    assert found == scenes("vlm").model.tokenizer.to_dict()
    assert lines[0].startswith(f"model.tokenizer: as in the config; {tmp_path / source}: ")


def test_a_different_setting_of_the_config_is_said(runs, monkeypatch):
    lines = warnings_of(monkeypatch)
    changes = {"model__tokenizer__codebook_size": 5, "model__tokenizer__code_choice": "dot_product"}
    filled("vlm", pretrained__tokenizer=runs / "tokenizer", **changes)
    for text in ("codebook_size: 64 as in", "code_choice: distance as in"):
        assert any(line.startswith(f"model.tokenizer.{text}") for line in lines)


def test_a_text_encoder_is_the_generators(runs):
    source = {"pretrained__text_encoder": runs / "generator", "model__freeze_text_encoder": True}
    found = filled("generator", **source)["model"]["generator"]["text_encoder"]
    assert found == MODELS["generator"]["generator"]["text_encoder"]


@pytest.mark.parametrize(
    "name, changes, text",
    [
        (
            "vlm",
            {"model__vlm__image_embedding_dim": 4},
            "--config.model.vlm.image_embedding_dim: found 4, expected 32 as in "
            "--config.model.tokenizer.embedding_dim",
        ),
        (
            "generator",
            {"model__generator__maskgit__codebook_size": 9},
            "--config.model.generator.maskgit.codebook_size: found 9, expected 512 as in "
            "--config.model.tokenizer.codebook_size",
        ),
        (
            "vlm",
            {"pretrained__tokenizer": "lost", "model__tokenizer__filtres": 8},
            "--config.model.tokenizer.filtres: unknown key; did you mean 'filters'?",
        ),
        ("vlm", {"model_name": "vml"}, "--config.model_name: 'vml' unknown; did you mean 'vlm'?"),
    ],
)
def test_what_is_typed_must_agree(name, changes, text):
    with pytest.raises(UserError) as caught:
        train.build(scenes(name, **changes))
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"tokenizer": None}, "--config.pretrained.tokenizer=lost: "),
        ({"tokenizer": "abc"}, "--config.model.tokenizer: found 'abc', expected a section"),
        ({"tokenizer": 3}, "--config.model.tokenizer: found 3, expected a section"),
        ({"vlm": "abc"}, "--config.model.vlm: found 'abc', expected a section"),
    ],
)
def test_sections_of_another_form_are_one_line(changes, text):
    config = scenes("vlm", pretrained__tokenizer="lost").to_dict()
    with pytest.raises(UserError) as caught:
        train.build({**config, "model": {**config["model"], **changes}})
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("section", [None, "x", 3, {}, {"model_name": "vlm", "model": 3}])
def test_what_is_no_section_is_one_line(section):
    with pytest.raises(UserError, match=r"^--config"):
        train.build(section)


@pytest.mark.parametrize("vocabulary", [3, ("a",)])
def test_a_vocabulary_is_a_text(vocabulary):
    config = scenes("language_model").to_dict()
    with pytest.raises(UserError, match=r"^--config\.(data\.vocabulary|model)"):
        train.build({**config, "data": {**config["data"], "vocabulary": vocabulary}})
