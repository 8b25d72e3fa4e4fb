"""Config files, and overrides of their keys."""

import pathlib
import sys

import ml_collections
import pytest

from synth2_jax import config as config_lib
from synth2_jax.config import load_config
from synth2_jax.errors import UserError


def test_config_files_find_their_siblings_from_any_folder(monkeypatch, tmp_path):
    file = pathlib.Path("configs/scenes/vlm.py").resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(file.parents[2]))])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert load_config(str(file)).model_name == "vlm"
    assert load_config(f"{file}:mixture").data.mixture == "real_synthetic"


def test_keys_that_a_file_leaves_out_can_be_set():
    given = {
        "mesh.fsdp": "2",
        "data.source": "fake",
        "optimizer.clip_norm": "2",
        "data.folders.other": "/data/1",
        "data.modules": "mine,yours",
        "optimizer.weight_decay_skip": "('norm', 'bias')",
        "validation.captions.folder": "f",
        "validation.captions.decode.method": "greedy",
        "data.num_epochs": "3",
        "model.vlm.language_model.dtype": "bfloat16",
        "model.vlm.language_model.tie_embeddings": "false",
    }
    config = load_config("configs/scenes/vlm.py")
    for key, text in given.items():
        config_lib.override(config, key, text)
    from synth2_jax.stages import train

    cfg, objective = train.build(config)
    assert cfg.mesh.fsdp == 2 and cfg.data.source == "fake" and cfg.optimizer.clip_norm == 2.0
    assert dict(cfg.data.folders) == {"real": "", "other": "/data/1"}
    assert cfg.data.module_names == ("mine", "yours") and cfg.data.num_epochs == 3
    assert cfg.optimizer.weight_decay_skip == ("norm", "bias")
    assert cfg.validation.captions.decode.method == "greedy"
    assert objective.task.vlm.language_model.dtype == "bfloat16"
    assert objective.task.vlm.language_model.tie_embeddings is False


@pytest.mark.parametrize(
    "key, text, expected",
    [
        ("count", "4", 4),
        ("count", "1e-3", 1e-3),
        ("count", "none", None),
        ("rate", "3", 3.0),
        ("name", "12", "12"),  # a string stays one
        ("name", "None", "None"),
        ("name", "", ""),
        ("flag", "true", True),
        ("flag", "False", False),
        ("empty", "a b", "a b"),
        ("empty", "none", None),
        ("items", "a,b", ("a", "b")),
        ("items", "a", ("a",)),
        ("items", "('x', 'y')", ("x", "y")),
        ("items", "[1, 2]", (1, 2)),
        ("items", "3", (3,)),
        ("items", "none", None),
        ("section.key", "-1", -1),
        ("section.deeper.key", "x", "x"),
        ("new.section.key", "0.5", 0.5),
        ("new", "/a/path-1", "/a/path-1"),
        ("new", "none", "none"),  # `build` knows what it means there
        ("new.key", "None", "None"),
    ],
)
def test_values_are_read_in_the_light_of_what_they_replace(key, text, expected):
    config = ml_collections.ConfigDict(
        {
            "count": 1,
            "rate": 0.5,
            "name": "x",
            "flag": True,
            "empty": None,
            "items": ("i",),
            "section": {"key": 1},
        }
    ).lock()
    before = config.to_dict()
    config_lib.override(config, key, text)
    found = config
    for name in key.split("."):
        found = found[name]
    assert found == expected and type(found) is type(expected)
    after = config.to_dict()
    for name in before.keys() - {key.split(".")[0]}:
        assert after[name] == before[name]
    with pytest.raises(AttributeError):
        config.another = 1  # locked again


def test_none_is_a_word_or_nothing_by_the_key_that_it_is_given_for():
    """Of keys that the file leaves to their defaults."""
    config = load_config("configs/scenes/language_model.py:tiny")
    for key in ("model.language_model.remat", "data.num_epochs"):
        config_lib.override(config, key, "none")
    from synth2_jax.stages import train

    cfg, objective = train.build(config)
    assert objective.task.language_model.remat == "none" and cfg.data.num_epochs is None


def test_a_reference_to_an_overridden_key_follows_it():
    config = ml_collections.ConfigDict({"steps": 10})
    config.total = config.get_ref("steps") * 2
    config_lib.override(config, "steps", "7")
    assert config.total == 14


def test_a_section_cannot_be_overwritten_nor_a_value_entered():
    config = ml_collections.ConfigDict({"a": {"b": 1}})
    with pytest.raises(
        UserError, match="--config.a: a section, expected one of its keys; it has b"
    ):
        config_lib.override(config, "a", "3")
    with pytest.raises(UserError, match=r"--config.a.b: found 1, which has no keys such as 'c'"):
        config_lib.override(config, "a.b.c", "3")
    with pytest.raises(UserError, match="--config.rate: int too large to convert to float"):
        config_lib.override(ml_collections.ConfigDict({"rate": 0.5}), "rate", "1" * 400)
