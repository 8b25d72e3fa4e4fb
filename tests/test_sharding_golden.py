"""Where every parameter of the paper's models lies, as files, so that a change shows in review.

`python tests/test_sharding_golden.py` writes them anew.
"""

import functools
import math
import pathlib
import re

import flax.linen as nn
import jax
import pytest
from jax.sharding import AbstractMesh

from synth2_jax import sharding
from synth2_jax.config import load_config
from synth2_jax.stages import train
from synth2_jax.training.train_state import flatten

FOLDER = pathlib.Path(__file__).parent / "data" / "sharding"
CONFIGS = ("tokenizer", "language_model", "generator", "generator_3b", "vlm")
MESH = AbstractMesh((16, 8, 2), sharding.MESH_AXES)  # 256 chips


@functools.cache
def params_of(name):
    _, objective = train.build(load_config(f"configs/paper/{name}.py"))
    return jax.eval_shape(objective.init, jax.random.key(0))["params"]


def table(name):
    """Path, shape, logical names and mesh axes of every parameter."""
    rows = []
    for path, box in sorted(flatten(params_of(name)).items()):
        if name != "tokenizer" and path.startswith("tokenizer/"):
            continue  # frozen in it, and laid out as the file of the tokenizer tells
        assert isinstance(box, nn.LogicallyPartitioned)
        spec = sharding.partition_spec(box.names, box.value.shape, MESH)
        axes = ["-" if a is None else a if isinstance(a, str) else "+".join(a) for a in spec]
        names = [axis or "-" for axis in box.names]
        rows.append((path, "x".join(map(str, box.value.shape)), ",".join(names), ",".join(axes)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)) for row in rows]
    mesh = " ".join(f"{axis}={size}" for axis, size in MESH.shape.items())
    return "\n".join([f"mesh {mesh}", *(line.rstrip() for line in lines)]) + "\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_lie_where_the_file_says_and_what_is_large_is_split(name):
    expected = (FOLDER / f"{name}.txt").read_text()
    assert table(name) == expected, "meant? python tests/test_sharding_golden.py"
    for line in expected.splitlines()[1:]:
        path, shape, _, axes = line.split(maxsplit=3)
        size = 4 * math.prod(int(dimension) for dimension in shape.split("x"))
        assert size < 2**20 or set(axes) - set("-,"), f"{path} {shape} is whole"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tensor_group_of_eight_splits_all_that_the_table_asks(name, caplog):
    """But the 3 channels of an image: what stays whole is as good as nothing."""
    with caplog.at_level("WARNING", logger="absl"):
        sharding.check_split(params_of(name), AbstractMesh((8, 4, 8), sharding.MESH_AXES))
    sizes = re.findall(r"([\d,]+) bytes", caplog.text)
    assert sum(int(size.replace(",", "")) for size in sizes) < 2**20, caplog.text
    assert "heads" not in caplog.text and " more" not in caplog.text


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for config in CONFIGS:
        (FOLDER / f"{config}.txt").write_text(table(config))
