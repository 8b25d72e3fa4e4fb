"""The device mesh, and the one table that maps logical axis names to its axes.

Layers name the axes of their parameters (`nn.with_logical_partitioning`) and know no mesh;
AXIS_RULES says where each name goes. Another layout is another table (`axis_rules`). The mesh has
three axes: `data` copies the parameters, `fsdp` splits parameters and batch, `tensor` splits
parameters and activations.
"""

import contextlib
import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from synth2_jax.errors import UserError, nearest

MESH_AXES = ("data", "fsdp", "tensor")

AxisRules = tuple[tuple[str, tuple[str, ...]], ...]

# Logical axis -> mesh axes. () is "on every device". Within one array each mesh axis is used once:
# the leftmost dimension that asks for it gets it.
AXIS_RULES: AxisRules = (
    # t5x's names.
    ("batch", ("data", "fsdp")),
    ("length", ()),
    ("embed", ("fsdp",)),
    ("mlp", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv", ()),
    ("joined_kv", ("tensor",)),
    ("vocab", ("tensor",)),
    ("layers", ()),
    ("relpos_buckets", ()),
    # Ours.
    ("image_tokens", ()),
    ("latents", ()),
    ("codebook", ("tensor",)),
    ("conv_in", ("fsdp",)),
    ("conv_out", ("tensor",)),
    ("lora_rank", ()),
)


# Of the bytes of all parameters; more is no layout that anyone means.
MAX_WHOLE_SHARE = 0.25
_PARAMETERS_NAMED = 4

# t5x's mesh has two axes; its rows lie over both of ours that split a batch.
_T5X_MESH_AXES = {"data": ("data", "fsdp"), "model": ("tensor",)}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; at most one of them is -1, "all that are left".

    Attributes:
      data: devices that share a copy of the parameters' part and split the batch.
      fsdp: devices that split both batch and parameters.
      tensor: devices that split the parameters, and work on the same rows.
      rules: the table in use: "synth2" is AXIS_RULES, "t5x" its standard_logical_axis_rules.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: Literal["synth2", "t5x"] = "synth2"

    def __post_init__(self):
        open_axes = [axis for axis in MESH_AXES if getattr(self, axis) == -1]
        for axis in MESH_AXES:
            if (size := getattr(self, axis)) == 0 or size < -1:
                raise ValueError(f"{axis}: found {size}, expected at least 1, or -1 for the rest")
        if len(open_axes) > 1:
            first, second, *_ = open_axes
            raise ValueError(f"{second}: found -1, expected at least 1, as `{first}` is -1")


def axis_rules(config: MeshConfig) -> AxisRules:
    """Returns the table that `config.rules` names; names that t5x lacks keep their own place.

    Raises:
      UserError: t5x is asked for and is not installed.
    """
    if config.rules == "synth2":
        return AXIS_RULES
    try:
        partitioning = importlib.import_module("t5x.partitioning")
    except ImportError as error:
        raise UserError(
            f"--config.mesh.rules: found 't5x', which cannot be imported ({error}); "
            "install it by `pip install .[t5x]`"
        ) from error
    rules = partitioning.standard_logical_axis_rules()
    # The first rule for a name holds.
    theirs = {name: _T5X_MESH_AXES[axis] if axis else () for name, axis in reversed(rules)}
    return tuple((dict(AXIS_RULES) | theirs).items())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the axes MESH_AXES over `devices` (default: all, of every process).

    Devices of several slices are laid along `data`: it talks least, once a step, and the network
    between slices is the slowest.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `data` is no multiple of the
        slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"--config.mesh: data={config.data} fsdp={config.fsdp} tensor={config.tensor} "
            f"does not fit {len(devices)} devices"
        )
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    split = {"allow_split_physical_axes": True}
    if num_slices == 1:
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, **split), MESH_AXES)
    if sizes[0] % num_slices:
        raise UserError(
            f"--config.mesh.data: found {sizes[0]}, expected a multiple of the {num_slices} slices"
        )
    inner, outer = (sizes[0] // num_slices, *sizes[1:]), (num_slices, 1, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **split), MESH_AXES)


def partition_spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: AxisRules = AXIS_RULES,
    undivided: list[str] | None = None,
) -> PartitionSpec:
    """Returns where an array with these logical axis names and this shape goes on `mesh`.

    A dimension that its mesh axes do not divide (a vocabulary of 8193 rows) stays whole; the list
    `undivided` gets each in words.

    Raises:
      ValueError: a name that the table lacks, or not one name a dimension.
    """
    table = {None: (), **dict(rules)}
    if len(names) != len(shape):
        raise ValueError(f"axes {tuple(names)} do not fit shape {tuple(shape)}")
    taken: set[str] = set()
    spec: list[tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=True):
        if name not in table:
            raise ValueError(f"unknown logical axis {name!r}; {nearest(name, dict(rules))}")
        axes = tuple(axis for axis in table[name] if axis not in taken)
        if size % math.prod(mesh.shape[axis] for axis in axes):
            by = " times ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            if undivided is not None:
                undivided.append(f"{by} does not divide {name}={size}")
            axes = ()
        taken.update(axes)
        spec.append(axes or None)
    return PartitionSpec(*spec)


def state_shardings(abstract_boxed: Any, mesh: Mesh, rules: AxisRules = AXIS_RULES) -> Any:
    """Returns the tree of NamedShardings for a tree of shapes.

    Args:
      abstract_boxed: ShapeDtypeStructs, those of parameters in flax's LogicallyPartitioned boxes,
        as `jax.eval_shape` of an init returns them. A leaf without a box is kept on every device,
        and so is one whose rank is not its box's (the factored moments of adafactor).

    Raises:
      ValueError: a box holds a name that the table lacks.
    """

    def sharding(leaf: Any) -> NamedSharding:
        spec = PartitionSpec()
        if _is_box(leaf):
            names, shape = leaf.names, leaf.value.shape
            fits = len(names) == len(shape)
            named = partition_spec(names, shape if fits else (1,) * len(names), mesh, rules)
            spec = named if fits else spec
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, abstract_boxed, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _boxes(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, box) of each parameter."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_box):
        yield jax.tree_util.keystr(key_path, simple=True, separator="/"), leaf


def check_named(params: Mapping[str, Any]) -> None:
    """Raises ValueError unless every parameter carries one logical name a dimension."""
    for path, leaf in _boxes(params):
        if not _is_box(leaf):
            raise ValueError(f"parameter {path} has no logical axis names")
        if len(leaf.names) != len(leaf.value.shape):
            raise ValueError(f"parameter {path}: axes {leaf.names} of shape {leaf.value.shape}")


def check_split(
    params: Mapping[str, Any], mesh: Mesh | AbstractMesh, rules: AxisRules = AXIS_RULES
) -> None:
    """Warns of parameters that the mesh cannot split as the table asks, so that they stay whole.

    `params` are ShapeDtypeStructs in boxes, as in `state_shardings`; each has its names.

    Raises:
      UserError: they are more than MAX_WHOLE_SHARE of the bytes of all parameters.
    """
    found: dict[str, dict[str, int]] = {}
    total = 0
    for path, box in _boxes(params):
        num_bytes = math.prod(box.value.shape) * box.value.dtype.itemsize
        total += num_bytes
        undivided: list[str] = []
        partition_spec(box.names, box.value.shape, mesh, rules, undivided)
        if undivided:
            found.setdefault(", ".join(undivided), {})[path] = num_bytes
    lines = []
    for reason, sizes in found.items():
        largest = sorted(sizes, key=sizes.get, reverse=True)[:_PARAMETERS_NAMED]
        named = ", ".join(f"{path} ({sizes[path]:,} bytes)" for path in largest)
        more = f" and {len(sizes) - len(largest)} more" if len(sizes) > len(largest) else ""
        lines.append(f"{reason}, so these parameters stay whole: {named}{more}")
    whole = sum(sum(sizes.values()) for sizes in found.values())
    if whole > MAX_WHOLE_SHARE * total:
        raise UserError(
            f"--config.mesh: {'; '.join(lines)}. Found {whole:,} of {total:,} bytes "
            f"({whole / total:.0%}), expected at most {MAX_WHOLE_SHARE:.0%}. Choose sizes of the "
            "mesh that divide those of the model."
        )
    for line in lines:
        logging.warning("--config.mesh: %s", line)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's arrays: the first dimension is split, the others whole."""
    return NamedSharding(mesh, PartitionSpec(dict(AXIS_RULES)["batch"]))


@dataclasses.dataclass(frozen=True)
class DataLayout:
    """Which rows of every global batch this process reads: those of its own devices.

    A mesh cuts a batch into equal parts, one after the other. Processes whose devices hold the same
    parts (as those of one `tensor` group do) form one data shard: they read the same rows.

    Attributes:
      parts: numbers of this process's parts, rising; there may be gaps between them.
      num_parts: parts of a batch: `data` times `fsdp` of the mesh.
      shard: number of this process's data shard, below `num_shards`.
      num_shards: different sets of parts that processes have.
      is_first: whether this process is the first of its data shard.
      overlaps: whether two data shards have some of their parts in common, but not all.
    """

    parts: tuple[int, ...] = (0,)
    num_parts: int = 1
    shard: int = 0
    num_shards: int = 1
    is_first: bool = True
    overlaps: bool = False

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the numbers i64[B] of this process's rows in a batch of `batch_size`, rising."""
        size, rest = divmod(batch_size, self.num_parts)
        if rest:
            raise ValueError(f"{batch_size} rows cannot be cut into {self.num_parts} equal parts")
        return (np.array(self.parts)[:, None] * size + np.arange(size)).reshape(-1)

    def batch_size(self, num_rows: int) -> int:
        """Returns the rows of the whole batch in which this process has `num_rows`."""
        return num_rows * self.num_parts // len(self.parts)


ALL_ROWS = DataLayout()


@functools.lru_cache(maxsize=8)
def data_layout(mesh: Mesh, process_index: int | None = None) -> DataLayout:
    """Returns the rows of a process with devices in `mesh` (default: of this process)."""
    process_index = jax.process_index() if process_index is None else process_index
    num_parts = mesh.shape["data"] * mesh.shape["fsdp"]
    parts: dict[int, set[int]] = {}
    for device, (index,) in batch_sharding(mesh).devices_indices_map((num_parts,)).items():
        parts.setdefault(device.process_index, set()).add(index.start or 0)
    of_process = {process: tuple(sorted(found)) for process, found in parts.items()}
    mine = of_process[process_index]
    shards = sorted(set(of_process.values()))
    return DataLayout(
        parts=mine,
        num_parts=num_parts,
        shard=shards.index(mine),
        num_shards=len(shards),
        is_first=process_index == min(p for p, found in of_process.items() if found == mine),
        overlaps=sum(map(len, shards)) > num_parts,
    )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves this process's rows, those of `data_layout(mesh)`, into their places in the batch."""
    where, layout = batch_sharding(mesh), data_layout(mesh)
    if where.is_fully_addressable:
        return jax.device_put(dict(batch), where)

    def put(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(layout.parts)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start = layout.parts.index((index[0].start or 0) // size) * size
            return rows[start : start + size]

        shape = (layout.batch_size(len(rows)), *rows.shape[1:])
        return jax.make_array_from_callback(shape, where, part)

    return {name: put(np.asarray(rows)) for name, rows in batch.items()}


def check_rows(num_rows: int, mesh: Mesh, where: str, microbatches: int = 1) -> None:
    """Raises UserError unless a batch of so many rows, over all processes, splits over `mesh`."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if num_rows % (parts * microbatches):
        each = f" in each of {microbatches} microbatches (--config.train.microbatches)"
        each *= microbatches > 1
        raise UserError(
            f"{where}: found {num_rows} rows, which cannot be split over {parts} devices "
            f"(data={mesh.shape['data']} times fsdp={mesh.shape['fsdp']}){each}"
        )


@contextlib.contextmanager
def constraints(mesh: Mesh, rules: AxisRules = AXIS_RULES) -> Iterator[None]:
    """Inside, while a function is traced for `mesh`, `constrain` pins what it is given."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        yield


def traced_platform() -> str:
    """Returns "cpu", "gpu" or "tpu": that of `constraints`' mesh, otherwise this process's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = device.platform if device else jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Says where an activation lies, by one logical name (or None: whole) a dimension.

    Left to itself the compiler may gather activations where it should gather weights. Outside of
    `constraints`, and on a single device, x is returned as it is.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if not rules or mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh, rules))


def over_devices(reduce: Callable[[jax.Array], jax.Array], value: np.generic) -> jax.Array:
    """Starts `reduce` over an array of one value a device, each process giving its own.

    Every process must call it, and then has the result; none waits until it is looked at.
    """
    devices = Mesh(np.array(jax.devices()), ("devices",))
    split, whole = (NamedSharding(devices, PartitionSpec(*a)) for a in (["devices"], []))
    values = jax.make_array_from_callback((devices.size,), split, lambda _: np.array([value]))
    return jax.jit(reduce, out_shardings=whole)(values)
