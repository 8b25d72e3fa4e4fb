"""Tests of the mesh and of the one table from logical to mesh axes."""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from synth2_jax import sharding
from synth2_jax.sharding import MeshConfig
from synth2_jax.testing.user_errors import user_error

CONTRACT_NAMES = {
    *("batch", "length", "embed", "mlp", "heads", "kv", "joined_kv", "vocab", "layers"),
    *("image_tokens", "latents", "codebook", "relpos_buckets", "conv_in", "conv_out"),
    "lora_rank",
}
# Eight devices in two, two and two.
CUBE = AbstractMesh((2, 2, 2), sharding.MESH_AXES)


def abstract(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.fixture
def mesh():
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def test_the_table_has_every_name_once_and_known_mesh_axes():
    names = [name for name, _ in sharding.AXIS_RULES]
    assert len(names) == len(set(names)) and set(names) == CONTRACT_NAMES
    assert {axis for _, axes in sharding.AXIS_RULES for axis in axes} <= set(sharding.MESH_AXES)


@pytest.mark.parametrize(
    "names, shape, expected",
    [
        (("vocab", "embed"), (8, 8), P("tensor", "fsdp")),
        (("vocab", "embed"), (9, 8), P(None, "fsdp")),  # 2 does not divide 9
        (("embed", "embed"), (8, 8), P("fsdp", None)),  # an axis is used once
        (("mlp", "heads"), (8, 8), P("tensor", None)),
        (("batch", "embed"), (8, 8), P(("data", "fsdp"), None)),
        (("layers", None, "kv"), (3, 3, 3), P(None, None, None)),
    ],
)
def test_specs_on_eight_devices(names, shape, expected):
    assert sharding.partition_spec(names, shape, CUBE) == expected


@pytest.mark.parametrize("shape", [(2, 2), (2,)])  # also where the rank differs
def test_an_unknown_name_raises_with_the_nearest(mesh, shape):
    with pytest.raises(ValueError, match="unknown logical axis 'embde'; did you mean 'embed'"):
        sharding.state_shardings({"w": abstract(shape, ("embde", "mlp"))}, mesh)


def test_leaves_without_names_or_of_another_rank_are_whole(mesh):
    tree = {"step": jax.ShapeDtypeStruct((), jnp.int32), "row": abstract((2,), ("embed", "mlp"))}
    shardings = sharding.state_shardings(tree, mesh)
    assert shardings["step"].spec == P() and shardings["row"].spec == P()


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.ShapeDtypeStruct((2,), jnp.float32), "a/b has no logical axis names"),
        (abstract((2, 2), ("embed",)), r"a/b: axes \('embed',\) of shape \(2, 2\)"),
    ],
)
def test_every_parameter_must_be_named(leaf, message):
    with pytest.raises(ValueError, match=message):
        sharding.check_named({"a": {"b": leaf}})


def test_batches_are_split_by_rows_and_keep_their_values(mesh):
    assert sharding.batch_sharding(mesh).spec == P(("data", "fsdp"))
    batch = {"x": np.arange(6).reshape(3, 2)}
    np.testing.assert_array_equal(sharding.put_batch(batch, mesh)["x"], batch["x"])


def test_a_mesh_takes_all_devices_or_says_that_they_do_not_fit(mesh):
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    chips = [FakeChip(index, 8) for index in range(8)]
    assert sharding.make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2), chips).shape == CUBE.shape
    with user_error("data=-1 fsdp=3 tensor=1 does not fit 1 devices"):
        sharding.make_mesh(MeshConfig(fsdp=3), jax.devices()[:1])
    with pytest.raises(ValueError, match="fsdp: found -1, expected at least 1, as `data` is -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_constrain_does_nothing_without_a_mesh_or_on_one_device(mesh):
    x = jnp.zeros((2, 3))
    assert sharding.constrain(x, "batch", "nonsense") is x
    with sharding.constraints(mesh):
        assert sharding.constrain(x, "batch", "nonsense") is x


def test_t5x_without_t5x_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "t5x", None)
    with user_error(r"--config.mesh.rules: found 't5x'.*pip install .\[t5x\]"):
        sharding.axis_rules(MeshConfig(rules="t5x"))


def test_the_table_of_t5x_takes_the_place_of_ours(monkeypatch):
    """As its standard_logical_axis_rules() has them, of which the first for a name holds."""
    theirs = [("batch", "data"), ("mlp", "model"), ("embed", None), ("embed", "data")]
    module = types.SimpleNamespace(standard_logical_axis_rules=lambda: theirs)
    monkeypatch.setitem(sys.modules, "t5x", types.SimpleNamespace(partitioning=module))
    monkeypatch.setitem(sys.modules, "t5x.partitioning", module)
    rules = dict(sharding.axis_rules(MeshConfig(rules="t5x")))
    assert rules["batch"] == ("data", "fsdp") and rules["mlp"] == ("tensor",)
    assert rules["embed"] == ()
    assert rules["codebook"] == dict(sharding.AXIS_RULES)["codebook"]  # t5x has no such name
    assert dict(sharding.axis_rules(MeshConfig())) == dict(sharding.AXIS_RULES)
    spec = sharding.partition_spec(("embed", "mlp"), (8, 8), CUBE, tuple(rules.items()))
    assert spec == P(None, "tensor")


class FakeChip:
    """What mesh_utils and a mesh ask of a device, by default of one of several slices."""

    platform, device_kind = "cpu", "fake"

    def __init__(self, index, num_in_slice, process_index=None):
        self.id, self.slice_index = index, index // num_in_slice
        self.process_index = index if process_index is None else process_index

    def __repr__(self):
        return f"chip {self.id} of slice {self.slice_index}"


def test_slices_lie_along_data():
    chips = [FakeChip(index, 4) for index in range(8)]
    mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2), chips)
    assert mesh.shape == CUBE.shape
    assert [{chip.slice_index for chip in row.flat} for row in mesh.devices] == [{0}, {1}]
    with user_error("--config.mesh.data: found 1, expected a multiple of the 2"):
        sharding.make_mesh(MeshConfig(data=1, fsdp=8), chips)


# (data, fsdp, tensor), the process of each device in the mesh's order, and of each process: its
# parts of the batch, its data shard of how many, and whether it is the first that reads it.
LAYOUTS = {
    "one process": ((2, 2, 1), "0000", [((0, 1, 2, 3), 0, 1, True)]),
    "rows each": ((2, 1, 1), "01", [((0,), 0, 2, True), ((1,), 1, 2, True)]),
    "a tensor group over two": ((1, 1, 2), "01", [((0,), 0, 1, True), ((0,), 0, 1, False)]),
    "two tensor groups over two each": (
        (1, 2, 2),
        "0123",
        [((0,), 0, 2, True), ((0,), 0, 2, False), ((1,), 1, 2, True), ((1,), 1, 2, False)],
    ),
    "several rows each": ((2, 2, 1), "0011", [((0, 1), 0, 2, True), ((2, 3), 1, 2, True)]),
    "rows with gaps": ((2, 2, 1), "0101", [((0, 2), 0, 2, True), ((1, 3), 1, 2, True)]),
    "half of two groups": ((2, 1, 2), "0101", [((0, 1), 0, 1, True), ((0, 1), 0, 1, False)]),
    "processes turned round": ((2, 1, 1), "10", [((1,), 1, 2, True), ((0,), 0, 2, True)]),
}


def mesh_of(sizes, processes):
    chips = [FakeChip(index, 64, int(process)) for index, process in enumerate(processes)]
    return Mesh(np.array(chips).reshape(sizes), sharding.MESH_AXES)


@pytest.mark.parametrize("sizes, processes, expected", LAYOUTS.values(), ids=LAYOUTS)
def test_each_process_reads_the_rows_of_its_devices(sizes, processes, expected):
    mesh = mesh_of(sizes, processes)
    layouts = [sharding.data_layout(mesh, process) for process in range(len(expected))]
    found = [(one.parts, one.shard, one.num_shards, one.is_first) for one in layouts]
    assert found == expected
    assert not any(layout.overlaps for layout in layouts)
    # Of every batch, the processes that are the first of their shards read each row once.
    rows = np.concatenate([one.rows(8) for one in layouts if one.is_first])
    assert sorted(rows) == list(range(8))
    # What is read is what the batch's sharding puts on the process's devices.
    places = sharding.batch_sharding(mesh).devices_indices_map((8,))
    for process, layout in enumerate(layouts):
        mine = {
            row
            for device, (index,) in places.items()
            for row in range(*index.indices(8))
            if device.process_index == process
        }
        assert layout.rows(8).tolist() == sorted(mine)
        assert layout.batch_size(len(mine)) == 8


def test_processes_that_share_only_some_rows_are_known():
    """Three of two devices each, in two tensor groups of three."""
    mesh = mesh_of((2, 1, 3), "001122")
    layouts = [sharding.data_layout(mesh, process) for process in range(3)]
    assert [layout.parts for layout in layouts] == [(0,), (0, 1), (1,)]
    assert all(layout.overlaps for layout in layouts)


def test_rows_that_the_parts_do_not_share_evenly():
    with pytest.raises(ValueError, match="6 rows cannot be cut into 4 equal parts"):
        sharding.DataLayout((0,), 4).rows(6)


def test_parameters_that_stay_whole_are_named_with_their_bytes(caplog):
    mesh = AbstractMesh((1, 2, 4), sharding.MESH_AXES)
    heads, mlp = ("embed", "heads", "kv"), ("embed", "mlp")
    params = {
        "a": {"query": abstract((8, 10, 2), heads), "key": abstract((8, 10, 1), heads)},
        "b": abstract((8, 128), mlp),
    }
    with caplog.at_level("WARNING", logger="absl"):
        sharding.check_split({"b": params["b"]}, mesh)
        assert caplog.text == ""
        sharding.check_split(params, mesh)
    (record,) = caplog.records
    assert record.getMessage() == (
        "--config.mesh: tensor=4 does not divide heads=10, so these parameters stay whole: a/query "
        "(640 bytes), a/key (320 bytes)"
    )
    params["b"] = abstract((8, 64), mlp)
    with user_error("Found 960 of 3,008 bytes .32%., expected at most 25%"):
        sharding.check_split(params, mesh)
    # On a mesh that asks for no such split nothing is whole.
    sharding.check_split(params, AbstractMesh((4, 2, 2), sharding.MESH_AXES))
