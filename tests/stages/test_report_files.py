"""Damaged results and material of a demo: `synth2 report` refuses them in one line."""

import json
import pathlib
import shutil

import pytest

REPORT = pathlib.Path(__file__).parents[1] / "data" / "fuzz" / "report"


@pytest.fixture
def report(tmp_path, mistake):
    """report(file, change) -> the line about a file whose JSON value `change` has changed."""
    folder = shutil.copytree(REPORT, tmp_path / "report")

    def line(name, change):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))
        said = mistake(["synth2", "report", f"--workdir={tmp_path}"])
        assert said.startswith(f"{folder / name}: ") and not (folder / "index.html").exists()
        return said

    return line


@pytest.mark.parametrize(
    "name, path, value, message",
    [
        ("material.json", ("scenes",), {"a": 1}, "scenes: found {'a': 1}, expected a list"),
        ("material.json", ("scenes", 0), [], "scenes[0]: found [], expected a section"),
        ("material.json", ("scenes", 0, "captions"), "x", "captions: found 'x'"),
        ("material.json", ("synthetic", 0, "verdict", "objects"), [1], "found 1 values"),
        ("material.json", ("test", 0, "captions", "real"), 3, "captions.real: found 3"),
        ("material.json", ("curves", "real", 0), [1, "x"], "curves.real[0][1]: found 'x'"),
        ("material.json", ("losses",), [1], "losses: found [1]"),
        ("material.json", ("scenes", 0, "picture"), "http://x/a.png", "expected a data:image/"),
        ("results.json", ("arms", "real"), "x", "arms.real: found 'x'"),
        ("results.json", ("seconds_by_stage",), 3, "seconds_by_stage: found 3"),
        ("results.json", ("versions", "jax"), {}, "versions.jax: found {}, expected str"),
        ("results.json", ("seconds",), float("inf"), "not JSON (found Infinity"),
    ],
)
def test_a_value_of_another_type_is_named(report, name, path, value, message):
    def change(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    assert message in report(name, change)
