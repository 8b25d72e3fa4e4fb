"""A new run starts from the parameters of a run, an export or a third-party checkpoint."""

import json
import pathlib
import re

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import pytest

from synth2_jax import sharding
from synth2_jax.errors import UserError
from synth2_jax.fingerprint import by_part
from synth2_jax.interop import maskgit_weights
from synth2_jax.layers.lora import is_adapter
from synth2_jax.loading import init_from
from synth2_jax.loading.init_from import interpolated
from synth2_jax.loading.trained import load_tokenizer, load_trained
from synth2_jax.models.vq_tokenizer import initial_model_state
from synth2_jax.stages import export, train
from synth2_jax.testing.toy_objective import one_device_mesh
from synth2_jax.testing.untrained_runs import MODELS, STEP, write_untrained_run
from synth2_jax.text.vocabulary import train_vocabulary
from synth2_jax.training.checkpoint_reader import restore_params
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_state import create_train_state, flatten, state_layout, unflatten

VQ_GAN = pathlib.Path(__file__).parents[1] / "data" / "maskgit" / "tokenizer_checkpoint"
SMALL = {"image_size": 16, "channel_multipliers": (1,)}
NARROW = {**MODELS["vlm"]["vlm"]["resampler"], "embed_dim": 8}
GEMMA_SIZES = ("vocab_size", "num_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim")
ADAPTED = {**MODELS["vlm"], "vlm": {**MODELS["vlm"]["vlm"], "lora": {"rank": 2}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with an untrained run of each model, and with NAME_export of each."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(MODELS):
        config = {"data": {"source": "fake", "prompt": "Say:", "text_length": 12}}
        write_untrained_run(folder / name, name, seed, config)
        sampler = {"sampler": {"num_steps": 2}} if name == "generator" else None
        settings = sampler and ml_collections.ConfigDict(sampler)
        export.run(settings, str(folder / name), output=f"{folder / name}_export")
    return folder


def config_of(name, source, *, model=None, **sections):
    """A train section; what `init` has besides the path is in `include` and `exclude`."""
    init = {"from": str(source)}
    init |= {key: sections.pop(key) for key in ("include", "exclude") if key in sections}
    return {
        "model_name": name,
        **({"model": model} if model else {}),
        "data": {"source": "fake", "batch_size": 8, **sections.pop("data", {})},
        "optimizer": {"learning_rate": 0.1},
        "train": {"steps": 1},
        "init": init,
        **sections,
    }


def started(config, workdir=""):
    """(Start, objective) of a training on one device."""
    cfg, objective = train.build(config, workdir=workdir)
    given = {name for name in objective.parts if getattr(cfg.pretrained, name)}
    place = (workdir, one_device_mesh(), sharding.AXIS_RULES)
    model = cfg.model_name, cfg.model, objective
    return init_from.start(cfg.init, *model, given, *place), objective


def first_state(config):
    """TrainState at step 0."""
    start, objective = started(config)
    tx = make_optimizer(OptimizerConfig())
    layout = state_layout(objective, tx, one_device_mesh())
    return create_train_state(objective, tx, layout, 0, start.params)


def arrays(params):
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, path)


@pytest.mark.parametrize("form", ["", f"/checkpoints/{STEP}", "_export"])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_starts_with_every_parameter_of_its_source(runs, name, form):
    """With nothing else said: the model, the text length and the prompt are the source's too."""
    start, objective = started(config_of(name, f"{runs / name}{form}"))
    source = restore_params(runs / name)
    assert_equal(arrays(start.params), arrays(source))
    tokenizer = getattr(objective.task, "tokenizer", None)
    parts = by_part(sorted(flatten(source).items()), tokenizer)
    expected = {"path": f"{runs / name}{form}", "step": STEP, "fingerprints": parts}
    assert start.origin == expected
    # All that the run is built on, so that later stages can compare it.
    assert start.fingerprints.keys() == objective.parts.keys()
    assert start.fingerprints.get("tokenizer") == (parts["tokenizer"] if objective.parts else None)


def test_what_is_left_out_is_as_without_a_source(runs):
    name, path = "language_model", "/norm/|mlp"
    source = arrays(restore_params(runs / name))
    excluded = first_state(config_of(name, runs / name, exclude=path))
    fresh = config_of(name, "", model=MODELS[name], data={"text_length": 12})
    fresh = arrays(first_state(fresh).params)
    is_fresh = {found for found in source if re.search(path, found)}
    assert 0 < len(is_fresh) < len(source)
    expected = {p: (fresh if p in is_fresh else source)[p] for p in source}
    assert_equal(arrays(excluded.params), expected)
    assert int(excluded.step) == 0
    included, _ = started(config_of(name, runs / name, include=[path, "attention"]))
    assert included.params.keys() == {p for p in source if p in is_fresh or "attention" in p}


def test_a_loaded_codebook_is_not_replaced_by_the_first_batch(runs):
    """Fresh codes that the first batch does not use are dead at once; loaded ones are not."""
    config = config_of("tokenizer", runs / "tokenizer", model={"quantize_start": 5})
    start, objective = started(config)
    assert objective.task.quantize_start == 0  # else it would train as an autoencoder first
    params = unflatten(start.params)
    before = np.asarray(params["tokenizer"]["quantizer"]["codebook"])
    counts_PK = np.eye(1, len(before), dtype=np.float32)  # all of one code
    seen = {"counts_K": counts_PK, "vectors_XC": np.ones((1, 4, before.shape[1]), np.float32)}
    fresh = nn.unbox(initial_model_state(objective.task.tokenizer))

    @jax.jit
    def codebook_after_a_batch(model_state):
        after, _ = objective.after_update(params, model_state, seen, jax.random.key(0))
        return after["tokenizer"]["quantizer"]["codebook"]

    loaded = objective.loaded_state(fresh, start.params.keys())
    np.testing.assert_array_equal(codebook_after_a_batch(loaded), before)
    assert (np.asarray(codebook_after_a_batch(fresh))[1:] != before[1:]).any(axis=1).all()


def test_a_third_party_tokenizer_is_trained_further():
    """Its files do not say how large its images are, so the config does."""
    start, objective = started(
        config_of("tokenizer", VQ_GAN, model={"tokenizer": {"image_size": 16}})
    )
    config = maskgit_weights.tokenizer_config(VQ_GAN, image_size=16)
    assert objective.task.tokenizer == config
    expected = {"tokenizer": maskgit_weights.load_tokenizer(VQ_GAN, config)}
    assert_equal(arrays(start.params), arrays(expected))
    assert (start.origin["path"], start.origin["step"]) == (str(VQ_GAN), 0)


def test_new_adapters_may_be_missing(runs):
    start, objective = started(config_of("vlm", runs / "vlm", model={"vlm": {"lora": {"rank": 2}}}))
    assert start.params.keys() == flatten(restore_params(runs / "vlm")).keys()
    new = objective.boxed_shapes.keys() - start.params.keys()
    assert new and all(is_adapter(path) for path in new)
    assert start.fingerprints.keys() == {"tokenizer", "language_model"}


@pytest.mark.parametrize("freeze", [None, ("^tokenizer/", "^vlm/(language_model|resampler)/")])
def test_what_is_frozen_is_the_configs(tmp_path, freeze, caplog):
    """A checkpoint of a language model that was trained whole does not say how to train further."""
    whole = {"model": {**MODELS["vlm"], "freeze": ("^tokenizer/",)}}
    write_untrained_run(tmp_path / "whole", "vlm", config=whole)
    config = config_of("vlm", tmp_path / "whole", model={"freeze": freeze} if freeze else None)
    start, objective = started(config)
    assert objective.task.freeze == freeze and objective.is_frozen("language_model")
    assert start.fingerprints.keys() == {"tokenizer", "language_model"}
    assert ("model.freeze: the default, not ['^tokenizer/'] as in" in caplog.text) == (
        freeze is None
    )
    # A run that resumes is its own checkpoint, also one that took it over.
    workdir = str(tmp_path / "whole")
    assert train.build(config_of("vlm", workdir), workdir=workdir)[1].task.freeze == (
        "^tokenizer/",
    )


def of_adapters(folder, held):
    """Writes a run with adapters to a folder; returns it."""
    model = {**MODELS["vlm"], "vlm": {**MODELS["vlm"]["vlm"], "lora": held}}
    write_untrained_run(folder, "vlm", config={"model": model})
    return folder


@pytest.mark.parametrize(
    "held, told, expected",
    [
        ({"rank": 2, "alpha": 32.0}, {"rank": 2, "alpha": 16}, 32),
        ({"rank": 2}, {"rank": 2, "alpha": 32.0}, 16),
        ({"rank": 2, "alpha": 32.0}, {"rank": 2}, 32),
        ({"rank": 2}, {"rank": 2, "alpha": 16}, 16),
    ],
)
def test_the_factor_of_loaded_adapters_is_the_checkpoints(tmp_path, held, told, expected, caplog):
    config = config_of("vlm", of_adapters(tmp_path, held), model={"vlm": {"lora": told}})
    _, objective = started(config)
    assert objective.task.vlm.lora.alpha == expected
    line = f"vlm.lora.alpha={held.get('alpha', 16.0)} (not {told.get('alpha')})"
    assert (line in caplog.text) == (told.get("alpha", expected) != expected)
    # Adapters that are left behind have no say.
    _, objective = started({**config, "init": {**config["init"], "exclude": ("_lora_",)}})
    assert objective.task.vlm.lora.alpha == told.get("alpha", expected)


@pytest.mark.parametrize("told", ["none", {"rank": 4}])
def test_adapters_that_do_not_fit_are_to_be_merged(tmp_path, told):
    config = config_of("vlm", of_adapters(tmp_path, {"rank": 2}), model={"vlm": {"lora": told}})
    with pytest.raises(UserError) as caught:
        started(config)
    assert str(caught.value).endswith(
        f"). Merge its adapters: synth2 export {tmp_path} --output=MERGED, then start with "
        "--config.init.from=MERGED. --config.init.exclude='_lora_' drops what they learned"
    )


@pytest.mark.parametrize(
    "source, workdir, parts, random",
    [
        ("", "new", ["tokenizer"], True),
        ("vlm", "new", [], False),
        ("", "new", ["tokenizer", "language_model"], False),
        ("", "vlm", ["tokenizer"], False),  # resumes
    ],
)
def test_a_trained_part_that_starts_at_random_is_a_line(
    runs, source, workdir, parts, random, caplog
):
    config = config_of(
        *("vlm", source and runs / source),
        model={**MODELS["vlm"], "freeze": ("^tokenizer/",)},
        data={"source": "seqio", "text_length": 12},
        pretrained={name: str(runs / name) for name in parts},
    )
    workdir, mesh = str(runs / workdir), one_device_mesh()
    cfg, objective = train.build(config, workdir=workdir)
    train._initial_params(cfg, objective, mesh, sharding.AXIS_RULES, workdir)
    line = "--config.pretrained.language_model: empty, so that part starts at random"
    assert (line in caplog.text) == random


@pytest.mark.interop
@pytest.mark.parametrize("rounded, own", [("", "bfloat16"), ("bfloat16", "float32")])
def test_an_export_starts_a_model_of_another_dtype(tmp_path, rounded, own):
    """Its fingerprints are of the dtypes that its own model has."""
    sizes = {key: MODELS["vlm"]["vlm"]["language_model"][key] for key in GEMMA_SIZES}
    gemma = {**sizes, "num_kv_heads": 1, "sliding_window": 3}
    other = {"bfloat16": "float32", "float32": "bfloat16"}[own]
    vlm = lambda dtype: {  # noqa: E731
        **MODELS["vlm"],
        "vlm": {**MODELS["vlm"]["vlm"], "language_model": {**gemma, "dtype": dtype}},
    }
    write_untrained_run(tmp_path / "run", "vlm", config={"model": vlm(own)})
    folder = tmp_path / "out"
    export.run(None, str(tmp_path / "run"), output=str(folder), dtype=rounded)
    start, _ = started(config_of("vlm", folder, model=vlm(other)))
    inside = (path for path in start.params if path.startswith("vlm/language_model/"))
    assert {start.params[path].dtype.name for path in inside} == {other}
    file = folder / "model.safetensors"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    with pytest.raises(UserError, match="changed since the export: model.safetensors"):
        started(config_of("vlm", folder, model=vlm(other)))


def test_a_run_that_resumes_without_its_source_keeps_the_record(runs, tmp_path):
    origin = {"path": "source", "step": 3, "fingerprints": {}}
    config = {"data": {"source": "fake", "text_length": 12}, "started_from": origin}
    workdir = tmp_path / "run"
    write_untrained_run(workdir, "vlm", config=config)
    for source in ("", runs / "vlm"):
        resumed = config_of("vlm", source, model=MODELS["vlm"], data={"text_length": 12})
        start, _ = started(resumed, str(workdir))
        built_on = dict.fromkeys(("tokenizer", "language_model"), "0" * 16)
        assert start == init_from.Start({}, built_on, origin)


@pytest.mark.parametrize("form", ["", "_export"])
def test_a_vlm_has_a_tokenizer_to_make_pairs_with(runs, form):
    found = load_tokenizer(f"{runs / 'vlm'}{form}")
    assert found.params.keys() == {"tokenizer"}
    assert found.fingerprint("tokenizer") == load_trained(runs / "vlm", "vlm").fingerprint(
        "tokenizer"
    )
    with pytest.raises(UserError, match="holds a language_model, expected a tokenizer"):
        load_tokenizer(f"{runs / 'language_model'}{form}")


def test_the_encoder_of_stored_features_is_found_again(runs, tmp_path):
    stored = {"freeze_text_encoder": True, "stored_text_features": True}
    encoder = {"text_encoder": str(runs / "generator")}
    config = {"model": {**MODELS["generator"], **stored}, "pretrained": encoder}
    write_untrained_run(tmp_path / "stored", "generator", config=config)
    cfg, _ = train.build(config_of("generator", tmp_path / "stored", data={"text_length": 12}))
    assert cfg.pretrained.text_encoder == encoder["text_encoder"]


# --- positions ---


@pytest.mark.parametrize("form", ["", "_export"])
def test_larger_images_have_more_positions(runs, form, caplog):
    name = "vlm"
    source = f"{runs / name}{form}"
    start, _ = started(config_of(name, source, model={"tokenizer": {"image_size": 32}}))
    held, found = arrays(restore_params(runs / name)), arrays(start.params)
    path = "vlm/resampler/positions/embedding"
    assert found[path].shape == (16, held[path].shape[1])
    expected = interpolated(held.pop(path), 16)
    np.testing.assert_array_equal(found.pop(path), expected)
    assert_equal(found, held)
    assert f"{path}: interpolated from 4 to 16 positions" in caplog.text


# --- what does not fit ---


@pytest.mark.parametrize(
    "name, source, sections, message",
    [
        ("vlm", "lost", {}, "lost: no such file or folder, expected a model"),
        ("vlm", "generator", {}, "generator: holds a generator, expected a vlm"),
        ("vlm", "generator_export", {}, "generator_export: holds a generator, expected a vlm"),
        ("vlm", "empty", {}, "empty: looks like a folder with nothing in it; expected a vlm: "),
        ("vlm", "begun", {}, "begun: "),
        (
            "language_model",
            "language_model",
            {"data": {"vocabulary": "OTHER"}},
            "--config.data.vocabulary: found '",
        ),
        ("vlm", "vlm", {"exclude": "resampelr"}, "init.exclude: 'resampelr' matches no parameter"),
        ("vlm", "vlm", {"include": ("^vlm", "^vml")}, "init.include: '^vml' matches no parameter"),
        ("vlm", "vlm", {"exclude": "^("}, "init.exclude: '^(' is not a regular expression"),
        (
            "vlm",
            "",
            {"exclude": "^vlm"},
            "--config.init.exclude: only works with --config.init.from",
        ),
        ("vlm", "vlm", {"exclude": "."}, "--config.init: leaves no parameter to take."),
        (
            "vlm",
            "vlm_export",
            {"include": "_lora_", "model": ADAPTED},
            "--config.init.include: selects LoRA adapters alone, and it holds none (an export",
        ),
        (
            "tokenizer",
            "tokenizer",
            {"model": {"loss": {"adversarial_weight": 0.1}, "discriminator": SMALL}},
            "missing (discriminator/",
        ),
        (
            "generator",
            "generator",
            {"model": {"freeze_text_encoder": True, "stored_text_features": True}},
            "unknown (generator/text_encoder/",
        ),
        (
            "vlm",
            "vlm",
            {"exclude": "^vlm/resampler/", "model": {"vlm": {"resampler": NARROW}}},
            "[16, 2, 8], the model has [8, 2, 8]). --config.init.exclude='PATTERN' starts",
        ),
        (
            "vlm",
            "vlm",
            {"pretrained": {"tokenizer": "tokenizer"}},
            "as in --config.init.from. Leave it out to take that part, or replace the part by "
            "--config.init.exclude=^tokenizer/",
        ),
        (
            "vlm",
            "vlm",
            {"exclude": "^tokenizer/", "data": {"source": "seqio"}},
            "--config.pretrained.tokenizer: empty, expected a trained tokenizer or",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(runs, tmp_path, name, source, sections, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other.model").write_bytes(train_vocabulary(["a red bird", "two dogs"] * 9, 290))
    for run in runs.iterdir():
        (tmp_path / run.name).symlink_to(run)
    sections = json.loads(json.dumps(sections).replace("OTHER", str(tmp_path / "other.model")))
    parts = sections.pop("pretrained", {})
    sections["pretrained"] = {key: str(tmp_path / path) for key, path in parts.items()}
    config = config_of(name, source and tmp_path / source, **sections)
    with pytest.raises(UserError) as caught:
        train.run(ml_collections.ConfigDict(config), str(tmp_path / "new"))
    line = str(caught.value)
    assert message in line and line.startswith("--config.") and "\n" not in line
