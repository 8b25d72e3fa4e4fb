"""Tests of the border between configs and dataclasses."""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import ml_collections
import pytest

from synth2_jax import config
from synth2_jax.errors import UserError, nearest


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

    def __post_init__(self):
        if self.name == "bad":
            raise ValueError("name must not be bad")


def test_sections_become_nested_dataclasses_and_lists_tuples():
    section = ml_collections.ConfigDict(
        {"name": "x", "inner": {"depth": 3}, "sizes": [1, 2], "pair": [0, 2]}
    )
    built = config.build(Outer, section, "--config.model")
    assert built == Outer("x", Inner(depth=3), None, (1, 2), (), (0.0, 2.0))
    assert isinstance(built.pair[0], float)


def test_optional_and_repeated_sections_are_built():
    built = config.build(Outer, {"name": "x", "extra": {"depth": 1}, "parts": [{"rate": 1}]})
    assert built.extra == Inner(depth=1) and built.parts == (Inner(rate=1.0),)
    assert config.build(Outer, {"name": "x", "extra": None}).extra is None


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
    with pytest.raises(UserError, match="--config.depth: found 'none', expected int"):
        config.build(Settings, {"depth": "none"})
    with pytest.raises(UserError, match="--config.remat: found None, expected str"):
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
    with pytest.raises(UserError) as error:
        config.build(Either, {"part": section})
    assert message in str(error.value)


def test_values_under_any_keys_are_built_too():
    section = ml_collections.ConfigDict({"name": "x", "rates": {"y": 1, "z": 0.5}})
    rates = config.build(Outer, section).rates
    assert rates == {"y": 1.0, "z": 0.5} and isinstance(rates["y"], float)


def test_counts_are_1_or_more_or_none():
    config.check_counts(Inner(depth=1), "depth")
    config.check_counts(Inner(depth=None), "depth")
    with pytest.raises(UserError, match=r"\Adepth: found 0, expected at least 1\Z"):
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
        ({"part": {"depth": 0}}, "--config.model.part.depth: found 0, expected at least 1"),
        (
            {"parts": [{}, {"depth": 0}]},
            "--config.model.parts[1].depth: found 0, expected at least 1",
        ),
        ({"part": {"says": "says.x: no"}}, "--config.model.part.says.x: no"),
        ({"part": {"says": "says nothing"}}, "--config.model.part: says nothing"),
        ({"part": {"says": "other: no"}}, "--config.model.part: other: no"),
        (
            {"part": {"says": "says: needs `depth` or `depth.x`, not `other`"}},
            "--config.model.part.says: needs --config.model.part.depth or "
            "--config.model.part.depth.x, not `other`",
        ),
    ],
)
def test_what_a_dataclass_raises_gets_the_full_path(section, message):
    with pytest.raises(UserError) as error:
        config.build(Around, section, "--config.model")
    assert str(error.value) == message


def test_no_dataclass_guesses_the_path_to_its_fields():
    """`build` knows the path; what a `__post_init__` writes in its place may be no key at all."""
    guessed = []
    for path in pathlib.Path(config.__file__).parent.rglob("*.py"):
        for cls in (
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)
        ):
            fields = {n.target.id for n in cls.body if isinstance(n, ast.AnnAssign)}
            checks = (n for n in cls.body if getattr(n, "name", "") == "__post_init__")
            texts = (
                n.value for check in checks for n in ast.walk(check) if isinstance(n, ast.Constant)
            )
            heads = (
                re.match(r"(?!config\.)(\w+)\.\S*:", text)
                for text in texts
                if isinstance(text, str)
            )
            guessed += [
                f"{cls.name}: {head[0]}" for head in heads if head and head[1] not in fields
            ]
    assert guessed == []


def test_no_section_is_the_defaults_and_an_instance_is_itself():
    assert config.build(Inner, None) == Inner()
    inner = Inner(7)
    assert config.build(Inner, inner) is inner


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "x", "inner": {"dpeth": 3}},
            "--config.model.inner.dpeth: unknown key; did you mean 'depth'? one of: depth, rate",
        ),
        ({}, "--config.model.name: missing, and Outer has no default for it"),
        ({"name": 3.5}, "--config.model.name: found 3.5, expected str"),
        ({"name": True}, "--config.model.name: found True, expected str"),
        ({"name": "a\0b"}, r"--config.model.name: found 'a\x00b', expected a text without NUL"),
        ({"name": "x" * 999, "sizes": "y" * 999}, f"sizes: found '{'y' * 199}..., expected a list"),
        ({"name": "x", "rates": {1: 2}}, "--config.model.rates: found the key 1, expected a text"),
        ({"name": "x", "sizes": ["a"]}, "--config.model.sizes[0]: found 'a', expected int"),
        ({"name": "x", "sizes": "12"}, "--config.model.sizes: found '12', expected a list"),
        ({"name": "x", "pair": [1]}, "--config.model.pair: found 1 values, expected 2"),
        ({"name": "x", "inner": 3}, "--config.model.inner: found 3, expected a section"),
        ({"name": "x", "inner": {"depth": True}}, "depth: found True, expected int"),
        ({"name": "x", "mode": "c"}, "--config.model.mode: unknown value 'c'; one of: a, b"),
        ({"name": "x", "rates": {"y": "z"}}, "--config.model.rates.y: found 'z', expected float"),
        ({"name": "x", "rates": 3}, "--config.model.rates: found 3, expected a section"),
        ({"name": "bad"}, "--config.model: name must not be bad"),
    ],
)
def test_a_mistake_is_one_line_with_the_place_the_found_and_the_expected(section, message):
    with pytest.raises(UserError) as error:
        config.build(Outer, section, "--config.model")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_number_is_a_text_that_a_person_typed_but_no_text_of_a_program():
    section = {"name": 2017, "sizes": [1]}
    assert config.build(Outer, section) == Outer("2017", sizes=(1,))
    with pytest.raises(UserError, match="--config.name: found 2017, expected str"):
        config.build(Outer, section, exact=True)


def test_nearest_says_so_when_nothing_is_near():
    assert nearest("zzz", ["b", "a"]) == "one of: a, b"
    assert nearest("x", []) == "one of: (none)"
    assert nearest("zz", [f"a{i:02}" for i in range(30)]).endswith("a18, a19, ...")


def test_dtype_names():
    assert config.dtype("bfloat16") == jnp.bfloat16
    with pytest.raises(UserError, match="did you mean 'float32'"):
        config.dtype("float23")


def test_json_round_trip_builds_the_same_dataclass():
    outer = Outer("x", Inner(3, 0.1), Inner(), (1, 2), (Inner(),), (0.0, 2.0), "b")
    text = config.to_json(ml_collections.ConfigDict({"model": dataclasses.asdict(outer)}))
    assert config.build(Outer, config.from_json(text).model) == outer
    assert config.to_json({"model": outer}) == text


def test_json_refuses_what_it_cannot_hold():
    with pytest.raises(UserError, match=r"--config.a\[1\]: found <object"):
        config.to_json({"a": [1, object()]})
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"--config.a: found {value}, expected a finite number"):
            config.to_json({"a": value})
