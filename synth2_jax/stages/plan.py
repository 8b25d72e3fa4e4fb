"""`synth2 plan`: compiles a training step, or the sampler, for chips that need not be there.

    synth2 plan --config=configs/paper/generator.py --topology=v5e:16x16
    synth2 plan --config=configs/paper/vlm.py --topology=h200 --mesh=data=1 --batch=128
    synth2 plan --config=configs/paper/generator.py --topology=v5e:4x4 --batch=auto \\
        --sample=configs/paper/synthesize.py --pairs=711e6

It is the very step that `synth2 train` runs, lowered for the mesh and compiled by libtpu or XLA's
compiler for GPUs, so that memory, FLOPs and collectives are the compiler's own; nothing is
allocated. libtpu gets the flags that launch/tpu_run.sh gives it (planning/libtpu_flags.txt), or
LIBTPU_INIT_ARGS. Prints a table and writes WORKDIR/NAME-TOPOLOGY-train.json (or -sample.json),
workdir/plan by default, where NAME is --name or the config file's. If a config does not fit, the
error says by how much and which settings to change.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import environment, sharding
from synth2_jax.config import load_config
from synth2_jax.errors import UserError
from synth2_jax.files import write_json
from synth2_jax.planning import hlo, model_flops, schedule, topologies
from synth2_jax.planning.chips import Chip, chip_of
from synth2_jax.planning.estimate import Estimate
from synth2_jax.planning.network import Network
from synth2_jax.planning.plan_table import CAPTION_BYTES, table
from synth2_jax.planning.programs import (
    Program,
    bytes_per_chip,
    compile_program,
    gathered,
    largest_batch,
)
from synth2_jax.stages import train
from synth2_jax.synthesis.token_generator import SynthesizeConfig, make_generate_numbered
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import make_optimizer
from synth2_jax.training.tasks import GeneratorTask
from synth2_jax.training.train_state import Objective
from synth2_jax.training.train_step import compile_train_step

Compiled = tuple[Program, jax.stages.Compiled, float]
PAIRS = 711e6  # the paper's largest synthetic set (second hand)


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
        raise UserError("--topology: not given. Give chips, such as --topology=v5e:16x16 or h200")
    jax.config.update("jax_platforms", "cpu")  # a TPU of this machine is not to be taken
    chip, _ = chip_of(topology)
    cfg, objective = train.build(config)
    sampling = config_lib.build(SynthesizeConfig, load_config(sample)) if sample else None
    if sampling and not isinstance(objective.task, GeneratorTask):
        raise UserError(f"--sample: found a {cfg.model_name} to sample from, expected a generator")
    if sampling:  # new captions need the encoder, wherever the training had its features from
        task = dataclasses.replace(objective.task, stored_text_features=False)
        objective = type(objective)(task)
    devices = topologies.devices(topology, slices)
    mesh_config = _mesh_config(mesh, cfg.mesh)
    pod = sharding.make_mesh(mesh_config, devices)
    rules = sharding.axis_rules(mesh_config)
    compiled = compiler(cfg, objective, sampling, chip, pod, rules)
    if batch == "auto":  # at least a row a device in each microbatch
        least_rows = pod.shape["data"] * pod.shape["fsdp"] * _microbatches(cfg, sampling)
        size, found = largest_batch(compiled, least_rows)
    else:
        size = batch or (sampling or cfg.data).batch_size
        found = compiled(size)

    plan = {
        "model": name or cfg.model_name,
        "what": "sample" if sampling else "train",
        "topology": topology,
        "slices": slices,
        "chips": pod.size,
        "mesh": dict(pod.shape),
        "batch": size,
        **_figures(*found, Network.of(chip, pod.devices.ravel())),
        "versions": environment.versions(),
    }
    if sampling:
        seconds = plan["estimate"]["seconds"]
        plan["pairs"] = _pairs(pairs, size, seconds, pod.size, objective.task)
    file = f"{plan['model']}-{re.sub('[^a-z0-9]+', '-', topology)}-{plan['what']}.json"
    write_json(pathlib.Path(workdir) / file, plan)
    print(table(plan))
    print(pathlib.Path(workdir) / file)
    return plan


def compiler(
    cfg: train.TrainConfig,
    objective: Objective,
    sampling: SynthesizeConfig | None,
    chip: Chip,
    mesh: Mesh,
    rules: sharding.AxisRules,
) -> Callable[[int], Compiled]:
    """Returns batch size -> (program, executable, seconds it took) of the training step.

    Of the sampler if there is `sampling`. UserError on a batch that the mesh cannot split, or that
    does not fit.
    """
    microbatches = _microbatches(cfg, sampling)
    tx = make_optimizer(cfg.optimizer, cfg.train.steps)
    has_average = cfg.train.ema_decay > 0
    layout = train_state.state_layout(objective, tx, mesh, rules, with_average=has_average)
    parameters = {"parameters": bytes_per_chip(layout.params)}
    where = sharding.batch_sharding(mesh)
    options = topologies.compiler_options(mesh.devices.flat[0].platform)

    def train_step(batch_size: int) -> Program:
        batch = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
            for name, leaf in objective.batch_spec(batch_size).items()
        }
        settings = (microbatches, cfg.train.ema_decay)
        step = compile_train_step(objective, tx, layout, mesh, rules, *settings)
        flops = model_flops.train_step(objective.task, batch_size)
        arguments = {**parameters, "optimizer": bytes_per_chip(layout.opt_state)}
        if has_average:
            arguments["moving average"] = bytes_per_chip(layout.average)
        return Program(step.lower(layout, batch), arguments, flops and flops.total)

    def sampler(batch_size: int) -> Program:
        task = objective.task
        generate = make_generate_numbered(task, sampling)

        def sample(params, text_tokens_BT, numbers_B):
            with sharding.constraints(mesh, rules):
                return generate(params, text_tokens_BT, numbers_B)

        text = jax.ShapeDtypeStruct((batch_size, task.text_length), jnp.int32, sharding=where)
        numbers = jax.ShapeDtypeStruct((batch_size,), jnp.uint32, sharding=where)
        lowered = jax.jit(sample, out_shardings=where).lower(layout.params, text, numbers)
        flops = model_flops.sample(task, batch_size, sampling.sampler, sampling.guidance)
        return Program(lowered, parameters, flops.total)

    def compiled(batch_size: int) -> Compiled:
        sharding.check_rows(batch_size, mesh, "batch", microbatches)
        program = sampler(batch_size) if sampling else train_step(batch_size)
        start = time.monotonic()
        executable = compile_program(program, batch_size, chip, options)
        return program, executable, time.monotonic() - start

    return compiled


def _microbatches(cfg: train.TrainConfig, sampling: SynthesizeConfig | None) -> int:
    return 1 if sampling else cfg.train.microbatches


def _figures(
    program: Program,
    executable: jax.stages.Compiled,
    seconds: float,
    network: Network,
) -> dict[str, Any]:
    """Returns the compiler's figures of a program, and the estimate of its time."""
    text, chip = executable.as_text(), network.chip
    cost = hlo.cost(text)
    sent = sum(collective.num_bytes for collective in cost.collectives.values())
    overlapped = sum(collective.overlapped_bytes for collective in cost.collectives.values())
    guess = Estimate(
        cost.flops / chip.flops,
        cost.hbm_bytes / chip.hbm_bandwidth,
        sum(call.count * network.seconds(call) for call in cost.calls),
        schedule.seconds_by_kind(text, chip, network.seconds),
    )
    share = program.model_flops / len(network.coords) if program.model_flops else None
    return {
        "memory_bytes_per_chip": program.memory(executable),
        "hbm_bytes_per_chip": chip.hbm_bytes,
        "flops_per_chip": cost.flops,
        "traffic_bytes_per_chip": cost.hbm_bytes,
        "model_flops_per_chip": share,
        "flops_ratio": cost.flops / share if share else None,
        "unknown_loops": cost.unknown_loops,
        "collectives_per_chip": {
            kind: dataclasses.asdict(collective) for kind, collective in cost.collectives.items()
        },
        "collective_bytes_per_chip": sent,
        "overlapped_share": overlapped / sent if sent else None,
        "gathered_bytes_per_chip": gathered(text, cost),
        "instructions": hlo.num_instructions(text),
        "loops": hlo.loops(text),
        "compile_seconds": seconds,
        "estimate": {
            **dataclasses.asdict(guess),
            "at_best": guess.at_best,
            "seconds": guess.seconds,
            "bound_by": guess.bound_by,
            "mfu": guess.mfu(share, chip) if share else None,
        },
    }


def _mesh_config(text: str, default: sharding.MeshConfig) -> sharding.MeshConfig:
    """Reads data=16,fsdp=16; axes that are left out are 1."""
    if not text:
        return default
    sizes = dict.fromkeys(sharding.MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(
                f"--mesh={text}: found {part!r}, expected sizes of {', '.join(sizes)} as in "
                "data=16,fsdp=16"
            )
        sizes[axis] = int(size)
    return config_lib.build(sharding.MeshConfig, {**sizes, "rules": default.rules}, "--mesh")


def _pairs(
    pairs: float, batch: int, seconds: float, chips: int, task: GeneratorTask
) -> dict[str, float]:
    each = 2 * task.tokenizer.num_tokens + CAPTION_BYTES
    return {
        "pairs": pairs,
        "pairs_per_second": batch / seconds,
        "chip_hours": pairs * seconds / batch * chips / 3600,
        "days": pairs * seconds / batch / 86400,
        "bytes_per_pair": each,
        "stored_bytes": pairs * each,
    }
