"""The border between config files and dataclasses, and overrides of keys."""

import ast
import dataclasses
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import ml_collections
import pytest

from synth2_jax import config
from synth2_jax.errors import UserError
from synth2_jax.testing.user_errors import raises_line, user_error


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 2
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    extra: Inner | None = None
    sizes: tuple[int, ...] = ()
    parts: tuple[Inner, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    mode: Literal["a", "b"] = "a"
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)


def test_sections_become_nested_dataclasses_and_lists_tuples():
    section = {"name": "x", "inner": {"depth": 3}, "sizes": [1, 2], "pair": [0, 2]}
    built = config.build(Outer, ml_collections.ConfigDict(section), "--config.model")
    assert built == Outer("x", Inner(depth=3), None, (1, 2), (), (0.0, 2.0))
    assert isinstance(built.pair[0], float)
    section = {"name": "x", "extra": {"depth": 1}, "parts": [{"rate": 1}], "rates": {"y": 1}}
    built = config.build(Outer, section)
    assert built == Outer("x", extra=Inner(1), parts=(Inner(rate=1.0),), rates={"y": 1.0})
    assert isinstance(built.rates["y"], float)
    assert config.build(Outer, {"name": "x", "extra": None}).extra is None
    assert config.build(Inner, None) == Inner()
    assert config.build(Outer, built) is built


@dataclasses.dataclass(frozen=True)
class Settings:
    remat: str = "full"
    limit: int | None = 3
    inner: Inner | None = Inner()
    depth: int = 1


def test_none_is_none_where_there_may_be_none_and_text_where_there_may_be_text():
    """As `--config.KEY=none` leaves it for a key that the config file lacks."""
    section = {"remat": "none", "limit": "none", "inner": "None"}
    assert config.build(Settings, section) == Settings("none", None, None)
    with raises_line("--config.depth: found 'none', expected int"):
        config.build(Settings, {"depth": "none"})
    with raises_line("--config.remat: found None, expected str"):
        config.build(Settings, {"remat": None})


@dataclasses.dataclass(frozen=True)
class Other:
    depth: int
    width: int = 1
    height: int = 1


@dataclasses.dataclass(frozen=True)
class Either:
    part: Inner | Other


def test_of_two_kinds_the_section_is_the_one_with_most_of_its_keys():
    def part(**section):
        return config.build(Either, ml_collections.ConfigDict({"part": section})).part

    assert part(depth=1) == Inner(1) and part(depth=1, rate=0.1) == Inner(1, 0.1)
    assert part(depth=1, width=2) == Other(1, 2)
    assert config.build(Either, {"part": Other(3)}).part == Other(3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"depth": 1, "width": 2, "hieght": 3}, "part.hieght: unknown key; did you mean 'height'?"),
        ({"width": 2}, "--config.part.depth: missing, and Other has no default for it"),
        ({"depth": "x"}, "--config.part.depth: found 'x', expected int"),
        (3, "--config.part: found 3, expected Inner or Other"),
    ],
)
def test_a_mistake_in_a_section_of_two_kinds_is_told(section, message):
    with raises_line(message):
        config.build(Either, {"part": section})


def test_counts_are_1_or_more_or_none():
    config.check_counts(Inner(depth=1), "depth")
    config.check_counts(Inner(depth=None), "depth")
    with user_error("depth: found 0, expected at least 1"):
        config.check_counts(Inner(depth=0), "depth")


@dataclasses.dataclass(frozen=True)
class Checked:
    depth: int = 1
    says: str = ""

    def __post_init__(self):
        config.check_counts(self, "depth")
        if self.says:
            raise ValueError(self.says)


@dataclasses.dataclass(frozen=True)
class Around:
    part: Checked = Checked()
    parts: tuple[Checked, ...] = ()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"part": {"depth": 0}}, ".part.depth: found 0, expected at least 1"),
        ({"parts": [{}, {"depth": 0}]}, ".parts[1].depth: found 0, expected at least 1"),
        ({"part": {"says": "says.x: no"}}, ".part.says.x: no"),
        ({"part": {"says": "says nothing"}}, ".part: says nothing"),
        ({"part": {"says": "other: no"}}, ".part: other: no"),
        (
            {"part": {"says": "says: needs `depth` or `depth.x`, not `other`"}},
            ".part.says: needs --config.part.depth or --config.part.depth.x, not `other`",
        ),
    ],
)
def test_what_a_dataclass_raises_gets_the_full_path(section, message):
    with pytest.raises(UserError) as error:
        config.build(Around, section)
    assert str(error.value) == f"--config{message}"


def test_no_dataclass_guesses_the_path_to_its_fields():
    """`build` knows the path; what a `__post_init__` writes in its place may be no key at all."""
    guessed = []
    for path in pathlib.Path(config.__file__).parent.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        for cls in (node for node in nodes if isinstance(node, ast.ClassDef)):
            fields = {node.target.id for node in cls.body if isinstance(node, ast.AnnAssign)}
            checks = [node for node in cls.body if getattr(node, "name", "") == "__post_init__"]
            for node in (node for check in checks for node in ast.walk(check)):
                text = str(node.value) if isinstance(node, ast.Constant) else ""
                head = re.match(r"(?!config\.)(\w+)\.\S*:", text)
                if head and head[1] not in fields:
                    guessed.append(f"{cls.name}: {head[0]}")
    assert guessed == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "x", "inner": {"dpeth": 3}}, "inner.dpeth: unknown key; did you mean 'depth'?"),
        ({}, "name: missing, and Outer has no default for it"),
        ({"name": 3.5}, "name: found 3.5, expected str"),
        ({"name": True}, "name: found True, expected str"),
        ({"name": "a\0b"}, r"name: found 'a\x00b', expected a text without NUL"),
        ({"name": "x" * 999, "sizes": "y" * 999}, f"sizes: found '{'y' * 199}..., expected a list"),
        ({"name": "x", "rates": {1: 2}}, "rates: found the key 1, expected a text"),
        ({"name": "x", "sizes": ["a"]}, "sizes[0]: found 'a', expected int"),
        ({"name": "x", "sizes": "12"}, "sizes: found '12', expected a list"),
        ({"name": "x", "pair": [1]}, "pair: found 1 values, expected 2"),
        ({"name": "x", "inner": 3}, "inner: found 3, expected a section"),
        ({"name": "x", "inner": {"depth": True}}, "inner.depth: found True, expected int"),
        ({"name": "x", "mode": "c"}, "mode: unknown value 'c'; one of: a, b"),
        ({"name": "x", "rates": {"y": "z"}}, "rates.y: found 'z', expected float"),
        ({"name": "x", "rates": 3}, "rates: found 3, expected a section"),
    ],
)
def test_a_mistake_names_the_key_the_found_and_the_expected(section, message):
    with raises_line(f"--config.model.{message}"):
        config.build(Outer, section, "--config.model")


def test_a_number_is_a_text_that_a_person_typed_but_no_text_of_a_program():
    section = {"name": 2017, "sizes": [1]}
    assert config.build(Outer, section) == Outer("2017", sizes=(1,))
    with raises_line("--config.name: found 2017, expected str"):
        config.build(Outer, section, exact=True)


def test_dtype_names():
    assert config.dtype("bfloat16") == jnp.bfloat16
    with raises_line("did you mean 'float32'"):
        config.dtype("float23")


def test_json_round_trip_builds_the_same_dataclass():
    outer = Outer("x", Inner(3, 0.1), Inner(), (1, 2), (Inner(),), (0.0, 2.0), "b")
    text = config.to_json(ml_collections.ConfigDict({"model": dataclasses.asdict(outer)}))
    assert config.build(Outer, config.from_json(text).model) == outer
    assert config.to_json({"model": outer}) == text


@pytest.mark.parametrize(
    "value, found", [(object(), "<object"), (float("nan"), "nan"), (1e999, "inf")]
)
def test_json_refuses_what_it_cannot_hold(value, found):
    with raises_line(f"--config.a[1]: found {found}"):
        config.to_json({"a": [1, value]})


# --- config files and overrides of their keys ---


def test_config_files_find_their_siblings_from_any_folder(monkeypatch, tmp_path):
    file = pathlib.Path("configs/scenes/vlm.py").resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(file.parents[2]))])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert config.load_config(str(file)).model_name == "vlm"
    assert config.load_config(f"{file}:mixture").data.mixture == "real_synthetic"


def test_keys_that_a_file_leaves_out_can_be_set():
    from synth2_jax.stages import train

    given = {
        "mesh.fsdp": "2",
        "data.source": "fake",
        "optimizer.clip_norm": "2",
        "data.folders.other": "/data/1",
        "data.modules": "mine,yours",
        "optimizer.weight_decay_skip": "('norm', 'bias')",
        "validation.captions.folder": "f",
        "validation.captions.decode.method": "greedy",
        "data.num_epochs": "none",
        "model.vlm.language_model.dtype": "bfloat16",
        "model.vlm.language_model.remat": "none",  # a word there, and nothing for num_epochs
        "model.vlm.language_model.tie_embeddings": "false",
    }
    loaded = config.load_config("configs/scenes/vlm.py")
    for key, text in given.items():
        config.override(loaded, key, text)
    cfg, objective = train.build(loaded)
    assert cfg.mesh.fsdp == 2 and cfg.data.source == "fake" and cfg.optimizer.clip_norm == 2.0
    assert dict(cfg.data.folders) == {"real": "", "other": "/data/1"}
    assert cfg.data.module_names == ("mine", "yours") and cfg.data.num_epochs is None
    assert cfg.optimizer.weight_decay_skip == ("norm", "bias")
    assert cfg.validation.captions.decode.method == "greedy"
    language_model = objective.task.vlm.language_model
    assert (language_model.dtype, language_model.remat) == ("bfloat16", "none")
    assert language_model.tie_embeddings is False


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
    before = {"count": 1, "rate": 0.5, "name": "x", "flag": True, "empty": None, "items": ("i",)}
    before["section"] = {"key": 1}
    changed = ml_collections.ConfigDict(before).lock()
    config.override(changed, key, text)
    found = changed
    for name in key.split("."):
        found = found[name]
    assert found == expected and type(found) is type(expected)
    for name in before.keys() - {key.split(".")[0]}:
        assert changed.to_dict()[name] == before[name]
    with pytest.raises(AttributeError):
        changed.another = 1  # locked again


def test_a_reference_to_an_overridden_key_follows_it():
    changed = ml_collections.ConfigDict({"steps": 10})
    changed.total = changed.get_ref("steps") * 2
    config.override(changed, "steps", "7")
    assert changed.total == 14


@pytest.mark.parametrize(
    "key, text, line",
    [
        ("a", "3", "--config.a: a section, expected one of its keys; it has b"),
        ("a.b.c", "3", "--config.a.b: found 1, which has no keys such as 'c'"),
        ("rate", "1" * 400, "--config.rate: int too large to convert to float"),
    ],
)
def test_a_section_cannot_be_overwritten_nor_a_value_entered(key, text, line):
    with raises_line(line):
        config.override(ml_collections.ConfigDict({"a": {"b": 1}, "rate": 0.5}), key, text)
