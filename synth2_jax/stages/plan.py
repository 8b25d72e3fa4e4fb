"""`synth2 plan`: compiles a training step, or the sampler, for a TPU pod that need not be there.

    synth2 plan --config=configs/paper/generator.py --topology=v5e:16x16
    synth2 plan --config=configs/paper/generator.py --topology=v5e:4x4 --batch=auto \\
        --sample=configs/paper/synthesize.py --pairs=711e6

It is the very step that `synth2 train` runs, lowered for the pod's mesh and compiled by libtpu, so
that memory, FLOPs and collectives are the compiler's own; nothing is allocated. The compiler gets
the flags that launch/tpu_run.sh gives it (planning/libtpu_flags.txt), or LIBTPU_INIT_ARGS. Prints a
table and writes WORKDIR/NAME-TOPOLOGY-train.json (or -sample.json), workdir/plan by default, where
NAME is --name or the config file's. What does not fit is the user's to mend: one line says by how
much and what could be turned, code 2.
"""

import dataclasses
import math
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import environment, sharding
from synth2_jax.config import load_config
from synth2_jax.errors import UserError
from synth2_jax.files import write_json
from synth2_jax.planning import dataflow, hlo, model_flops, topologies
from synth2_jax.planning.estimate import estimate
from synth2_jax.stages import train
from synth2_jax.synthesis.token_generator import SynthesizeConfig, make_generate_numbered
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import make_optimizer
from synth2_jax.training.tasks import GeneratorTask
from synth2_jax.training.train_state import Objective
from synth2_jax.training.train_step import compile_train_step

GIB = 2**30
# Arguments of what is compiled: of the training step and of the sampler.
PARAMETERS, OPTIMIZER = {"state.params", "params"}, "state.opt_state"
PAIRS = 711e6  # the paper's largest synthetic set (second hand)
CAPTION_BYTES = 200  # assumed, of 30 to 40 words, with key and framing of a record


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: its arguments by kind of memory, and its model FLOPs for all chips."""

    lowered: jax.stages.Lowered
    arguments: Mapping[str, float]
    model_flops: float | None


def run(
    config: Any,
    workdir: str,
    topology: str = "",
    slices: int = 1,
    mesh: str = "",
    batch: int | str = "",
    sample: str = "",
    pairs: float = PAIRS,
    name: str = "",
) -> dict[str, Any]:
    """Plans, prints and writes; returns what it wrote. Without a name the model's is taken."""
    if not topology:
        raise UserError("--topology: not given. Give a pod, such as --topology=v5e:16x16")
    jax.config.update("jax_platforms", "cpu")  # a TPU of this machine is not to be taken
    chip = topologies.chip(topology)
    cfg, objective = train.build(config)
    sampling = config_lib.build(SynthesizeConfig, load_config(sample)) if sample else None
    if sampling and not isinstance(objective.task, GeneratorTask):
        raise UserError(f"--sample: found a {cfg.model_name} to sample from, expected a generator")
    if sampling:  # new captions need the encoder, wherever the training had its features from
        task = dataclasses.replace(objective.task, stored_text_features=False)
        objective = type(objective)(task)
    devices = topologies.devices(topology, slices)
    mesh_config = _mesh_config(mesh, cfg.mesh)
    device_mesh = sharding.make_mesh(mesh_config, devices)
    planner = Planner(cfg, objective, sampling, device_mesh, mesh_config)
    if batch == "auto":
        size, compiled = largest_batch(planner)
    else:
        default = sampling.batch_size if sampling else cfg.data.batch_size
        size = batch or default
        compiled = planner.compile(size)

    program, executable, seconds = compiled
    memory = _memory(program, executable)
    text = executable.as_text()
    cost = hlo.cost(text)
    sent = sum(collective.num_bytes for collective in cost.collectives.values())
    overlapped = sum(collective.overlapped_bytes for collective in cost.collectives.values())
    roofline = estimate(chip, cost.flops, cost.hbm_bytes, sent)
    share = program.model_flops / device_mesh.size if program.model_flops else None
    plan = {
        "model": name or cfg.model_name,
        "what": "sample" if sampling else "train",
        "topology": topology,
        "slices": slices,
        "chips": device_mesh.size,
        "mesh": dict(device_mesh.shape),
        "batch": size,
        "memory_bytes_per_chip": memory,
        "hbm_bytes_per_chip": chip.hbm_bytes,
        "flops_per_chip": cost.flops,
        "model_flops_per_chip": share,
        "flops_ratio": cost.flops / share if share else None,
        "unknown_loops": cost.unknown_loops,
        "collectives_per_chip": {
            kind: dataclasses.asdict(found) for kind, found in cost.collectives.items()
        },
        "collective_bytes_per_chip": sent,
        "overlapped_share": overlapped / sent if sent else None,
        "gathered_bytes_per_chip": gathered(text, cost),
        "instructions": hlo.num_instructions(text),
        "loops": hlo.loops(text),
        "compile_seconds": seconds,
        "estimate": {
            **dataclasses.asdict(roofline),
            "seconds": roofline.seconds,
            "bound_by": roofline.bound_by,
            "mfu": roofline.mfu(share, chip) if share else None,
        },
        "versions": environment.versions(),
    }
    if sampling:
        plan["pairs"] = _pairs(pairs, size, roofline.seconds, device_mesh.size, objective.task)
    file = f"{plan['model']}-{re.sub('[^a-z0-9]+', '-', topology)}-{plan['what']}.json"
    write_json(pathlib.Path(workdir) / file, plan)
    print(table(plan))
    print(pathlib.Path(workdir) / file)
    return plan


class Planner:
    """Lowers and compiles for one mesh, at any batch size."""

    def __init__(
        self,
        cfg: train.TrainConfig,
        objective: Objective,
        sampling: SynthesizeConfig | None,
        mesh: Mesh,
        mesh_config: sharding.MeshConfig,
    ):
        self._objective, self._sampling, self._mesh = objective, sampling, mesh
        self._rules = sharding.axis_rules(mesh_config)
        self._tx = make_optimizer(cfg.optimizer, cfg.train.steps)
        self._microbatches = 1 if sampling else cfg.train.microbatches
        self._layout = train_state.state_layout(objective, self._tx, mesh, self._rules)

    @property
    def least_rows(self) -> int:
        """The smallest batch: a row a device in each microbatch."""
        return self._mesh.shape["data"] * self._mesh.shape["fsdp"] * self._microbatches

    def compile(self, batch_size: int) -> tuple[Program, jax.stages.Compiled, float]:
        """(what was compiled, the executable, seconds it took).

        Raises:
          UserError: it needs more memory than a chip has.
        """
        sharding.check_rows(batch_size, self._mesh, "batch", self._microbatches)
        lower = self._sampler if self._sampling else self._train_step
        program = lower(batch_size)
        start = time.monotonic()
        try:
            executable = program.lowered.compile(topologies.compiler_options())
        except jax.errors.JaxRuntimeError as error:
            raise _does_not_fit(error, batch_size) from error
        return program, executable, time.monotonic() - start

    def _train_step(self, batch_size: int) -> Program:
        where = sharding.batch_sharding(self._mesh)
        batch = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
            for name, leaf in self._objective.batch_spec(batch_size).items()
        }
        step = compile_train_step(
            *(self._objective, self._tx, self._layout, self._mesh, self._rules),
            self._microbatches,
        )
        flops = model_flops.train_step(self._objective.task, batch_size)
        arguments = {
            "parameters": _bytes_per_chip(self._layout.params),
            "optimizer": _bytes_per_chip(self._layout.opt_state),
        }
        return Program(step.lower(self._layout, batch), arguments, flops and flops.total)

    def _sampler(self, batch_size: int) -> Program:
        task, where = self._objective.task, sharding.batch_sharding(self._mesh)
        generate = make_generate_numbered(task, self._sampling)

        def sample(params, text_tokens_BT, numbers_B):
            with sharding.constraints(self._mesh, self._rules):
                return generate(params, text_tokens_BT, numbers_B)

        text = jax.ShapeDtypeStruct((batch_size, task.text_length), jnp.int32, sharding=where)
        numbers = jax.ShapeDtypeStruct((batch_size,), jnp.uint32, sharding=where)
        params = self._layout.params
        step = jax.jit(sample, out_shardings=where)
        flops = model_flops.sample(
            task, batch_size, self._sampling.sampler, self._sampling.guidance
        )
        return Program(
            step.lower(params, text, numbers),
            {"parameters": _bytes_per_chip(params)},
            flops.total,
        )


def gathered(text: str, cost: hlo.Cost) -> dict[str, float]:
    """Bytes that a chip sends in all-gathers, by what is gathered.

    "parameters" are computed from nothing but the trained or frozen parameters, "optimizer" has
    something of the optimizer's state in it, which no activation has. Of the rest, "ids" are whole
    numbers, and "activations" all others, gradients among them. Where each chip has whole rows
    (data, fsdp) no activation has to be gathered.
    """
    sources = dataflow.sources(text)
    total = dict.fromkeys(("parameters", "optimizer", "ids", "activations"), 0.0)
    for call in cost.calls:
        if call.kind == "all-gather":
            found = frozenset().union(*(sources[operand] for operand in call.line.operands))
            if found <= PARAMETERS:
                what = "parameters"
            elif OPTIMIZER in found:
                what = "optimizer"
            else:
                what = "ids" if re.match(r"\(?[su]\d+\[", call.line.shape) else "activations"
            total[what] += call.count * call.num_bytes
    return total


def largest_batch(planner: Planner) -> tuple[int, tuple[Program, jax.stages.Compiled, float]]:
    """Doubles the rows of a chip until they do not fit, then halves the gap to an eighth.

    Raises:
      UserError: not even one row a chip, in each microbatch, fits.
    """
    parts = planner.least_rows
    rows, fits, fails = 1, 0, math.inf
    best = None
    while fails - fits > max(1, fits // 8):
        try:
            best = planner.compile(rows * parts)
            fits = rows
            print(f"batch {rows * parts}: fits", flush=True)
        except UserError as error:
            print(f"batch {rows * parts}: {error}", flush=True)
            if rows == 1:
                raise
            fails = rows
        rows = 2 * rows if fails == math.inf else (fits + fails) // 2
    return fits * parts, best


def table(plan: Mapping[str, Any]) -> str:
    """The plan in lines for a terminal."""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    memory, hbm = plan["memory_bytes_per_chip"], plan["hbm_bytes_per_chip"]
    guess = plan["estimate"]
    lines = [
        f"{plan['what']} {plan['model']} on {plan['chips']} chips of {plan['topology']}, {mesh}, "
        f"batch {plan['batch']}",
        "memory a chip",
        *(f"  {kind:<20} {size / GIB:8.2f} GiB" for kind, size in memory.items()),
        f"  {'of HBM':<20} {hbm / GIB:8.2f} GiB ({memory['total'] / hbm:.0%})",
        f"compiled FLOPs a chip   {plan['flops_per_chip']:.3e}",
    ]
    if plan["model_flops_per_chip"]:
        lines += [
            f"model FLOPs a chip      {plan['model_flops_per_chip']:.3e}  (by formula; compiled / "
            f"model {plan['flops_ratio']:.3f})"
        ]
    lines += ["collectives a chip, bytes sent"]
    for kind, found in plan["collectives_per_chip"].items():
        lines.append(f"  {kind:<20} {found['num_bytes'] / GIB:8.3f} GiB in {found['count']} calls")
    if plan["collective_bytes_per_chip"]:
        activations = plan["gathered_bytes_per_chip"]["activations"]
        lines += [
            f"  {plan['overlapped_share']:.0%} of it beside matrix products; gathers of "
            f"activations: {activations / GIB:.3f} GiB"
        ]
    lines += [
        f"compiled in {plan['compile_seconds']:.0f} s",
        f"compiler/roofline estimate, no measurement: {guess['seconds'] * 1e3:.1f} ms, bound by "
        f"{guess['bound_by']}",
        f"  (compute {guess['compute'] * 1e3:.1f}, memory {guess['memory'] * 1e3:.1f}, network "
        f"{guess['network'] * 1e3:.1f} ms)",
    ]
    if guess["mfu"]:
        lines.append(f"  MFU {guess['mfu']:.1%} = model FLOPs / (those ms x peak bfloat16 FLOP/s)")
    if "pairs" in plan:
        found = plan["pairs"]
        lines += [
            f"{found['pairs']:.4g} pairs at {found['pairs_per_second']:.4g} a second: "
            f"{found['chip_hours']:.4g} chip-hours, {found['days']:.3g} days",
            f"  stored in {found['stored_bytes'] / 1e9:.4g} GB ({found['bytes_per_pair']} bytes a "
            f"pair: 2 a token, {CAPTION_BYTES} assumed for caption, key and framing)",
        ]
    return "\n".join(lines)


def _memory(program: Program, executable: jax.stages.Compiled) -> dict[str, float]:
    """Bytes of a chip by kind; "total" is what it needs at once."""
    found = executable.memory_analysis()
    known = sum(program.arguments.values())
    kinds = {
        **program.arguments,
        "batch and others": max(0.0, found.argument_size_in_bytes - known),
        "temporaries": float(found.temp_size_in_bytes),
        "outputs": float(found.output_size_in_bytes - found.alias_size_in_bytes),
        "program": float(found.generated_code_size_in_bytes),
    }
    return {**kinds, "total": sum(kinds.values())}


def _bytes_per_chip(tree: Any) -> float:
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _does_not_fit(error: jax.errors.JaxRuntimeError, batch_size: int) -> Exception:
    """The one line for a program that is too large; any other error as it is."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text:
        return error
    sizes = re.findall(r"\(?([\d.]+[KMGT])\)?", text)
    needs = f"needs {sizes[0]} where {sizes[1]} is free" if len(sizes) > 1 else text[:200]
    return UserError(
        f"plan: does not fit a chip's memory: a batch of {batch_size} {needs}; less is needed with "
        "a smaller --batch, --config.train.microbatches, --config=FILE:remat, more fsdp in --mesh, "
        "or more chips"
    )


def _mesh_config(text: str, default: sharding.MeshConfig) -> sharding.MeshConfig:
    """Reads data=16,fsdp=16; axes that are left out are 1."""
    if not text:
        return default
    sizes = {axis: 1 for axis in sharding.MESH_AXES}
    for part in text.split(","):
        axis, equals, size = part.partition("=")
        if axis not in sizes or not equals or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(
                f"--mesh={text}: found {part!r}, expected sizes of {', '.join(sizes)} as in "
                "data=16,fsdp=16"
            )
        sizes[axis] = int(size)
    return config_lib.build(sharding.MeshConfig, {**sizes, "rules": default.rules}, "--mesh")


def _pairs(
    pairs: float, batch: int, seconds: float, chips: int, task: GeneratorTask
) -> dict[str, float]:
    rate = batch / seconds
    each = 2 * task.tokenizer.num_tokens + CAPTION_BYTES
    return {
        "pairs": pairs,
        "pairs_per_second": rate,
        "chip_hours": pairs / rate * chips / 3600,
        "days": pairs / rate / 86400,
        "bytes_per_pair": each,
        "stored_bytes": pairs * each,
    }
