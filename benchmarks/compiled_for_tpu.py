"""What the TPU's compiler makes of the paper's training steps and sampler, without a TPU.

    python benchmarks/compiled_for_tpu.py
    python benchmarks/compiled_for_tpu.py --only=vlm,sampler

The steps of `synth2 train` and the sampler of `synth2 synthesize` at the paper's sizes, compiled as
`synth2 plan` compiles them, in the layouts data, fsdp and both. Read off the compiled program:
- compiled FLOPs over those by formula; without rematerialization 1.00 is nothing done twice
- what a chip sends to gather activations; rows are split, so that only parameters need gathering
- the share of a chip's traffic that runs beside a matrix product
- that the sampler is one loop over its steps, whose program is as long for 24 steps as for 8

Rows a chip are those of the configs on 256 chips. Takes some minutes, all of them the compiler's.
Writes benchmarks/results/TPU_compiler/compiled_for_tpu.json.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import Figure, chosen, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax import sharding  # noqa: E402
from synth2_jax.planning import hlo, topologies  # noqa: E402
from synth2_jax.planning.chips import chip_of  # noqa: E402
from synth2_jax.stages import plan, train  # noqa: E402
from synth2_jax.synthesis.token_generator import SynthesizeConfig  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step of configs/paper/NAME.py, with its words; `batch` is of all chips."""

    name: str
    topology: str
    mesh: str
    batch: int
    words: str = ""

    @property
    def config(self) -> str:
        return f"configs/paper/{self.name}.py" + (f":{self.words}" if self.words else "")


# With T5 and whole on each chip, as the data layout has it, the generator fits neither of the two.
CASES = (
    Case("vlm", "v5e:4x4", "data=16", 64),
    Case("vlm", "v5e:4x4", "fsdp=16", 64),
    Case("vlm", "v5e:16x16", "data=16,fsdp=16", 1024),
    Case("generator", "v6e:4x4", "data=16", 32, "stored"),
    Case("generator", "v6e:4x4", "fsdp=16", 32),
    Case("generator", "v6e:16x16", "data=16,fsdp=16", 512),
)
SAMPLER = "sampler"
STEPS = (8, 24)


def measure(config: Any, topology: str, mesh: str, batch: int) -> dict[str, Any]:
    """What `synth2 plan` finds of a training step."""
    table = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, table:
        return plan.run(config, folder, topology=topology, mesh=mesh, batch=batch)


def measure_sampler(
    config: Any,
    sample_config: Any,
    topology: str,
    mesh: sharding.MeshConfig,
    batch: int,
    steps: Sequence[int],
) -> list[dict[str, Any]]:
    """For each number of steps: rounds of the program's loops, and how long it is."""
    jax.config.update("jax_platforms", "cpu")
    cfg, objective = train.build(config)
    sampling = config_lib.build(SynthesizeConfig, sample_config)
    device_mesh = sharding.make_mesh(mesh, topologies.devices(topology))
    found = []
    for num_steps in steps:
        sampler = dataclasses.replace(sampling.sampler, num_steps=num_steps)
        one = dataclasses.replace(sampling, sampler=sampler)
        chip, _ = chip_of(topology)
        compiled = plan.compiler(cfg, objective, one, chip, device_mesh, sharding.axis_rules(mesh))
        _, executable, seconds = compiled(batch)
        text = executable.as_text()
        found.append(
            {
                "num_steps": num_steps,
                "loops": hlo.loops(text),
                "instructions": hlo.num_instructions(text),
                "compile_seconds": seconds,
            }
        )
    return found


def step_figures(case: Case, found: Mapping[str, Any]) -> list[Figure]:
    """Of what `measure` returned."""
    model = f"{case.name} {case.words}".strip()
    name = f"{model}, {case.topology}, {case.mesh.replace('=', ' ').replace(',', ' ')}"
    sent = found["collective_bytes_per_chip"]
    gathered = found["gathered_bytes_per_chip"]
    return [
        Figure(f"compiled / model FLOPs, {name}", found["flops_ratio"], "x", note="asked: <= 1.05"),
        Figure(
            f"gathers of activations, {name}",
            gathered["activations"] / 1e6,
            "MB",
            note=f"of {sent / 1e6:.0f} MB a chip sends, {gathered['ids'] / 1e6:.3f} MB for ids of "
            "tokens; asked: 0",
        ),
        Figure(
            f"collectives beside matrix products, {name}",
            100 * (found["overlapped_share"] or 0),
            "%",
            note=f"of {sent / 1e6:.0f} MB a chip sends",
        ),
    ]


def sampler_figure(topology: str, found: Sequence[Mapping[str, Any]]) -> Figure:
    """Of what `measure_sampler` returned: one loop's rounds change with the steps, nothing else."""
    few, many = found[0], found[-1]
    rounds = zip(few["loops"], many["loops"], strict=False)
    changed = [f"{before} -> {after}" for before, after in rounds if before != after]
    return Figure(
        f"sampler's program, {many['num_steps']} over {few['num_steps']} steps, {topology}",
        many["instructions"] / few["instructions"],
        "x",
        note=f"{many['instructions']} instructions; rounds of loops: "
        f"{', '.join(changed) or 'none change'}",
    )


def main() -> None:
    names = sorted({*(case.name for case in CASES), SAMPLER})
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(names), help=f"of {', '.join(names)}")
    wanted = chosen("--only", parser.parse_args().only, names)
    # Where launch/test.sh has put the compiler.
    for library in (ROOT / ".venv").glob("libtpu-*/libtpu/libtpu.so"):
        os.environ.setdefault("TPU_LIBRARY_PATH", str(library))
    figures: list[Figure] = []
    flags = topologies.compiler_options("tpu") or os.environ["LIBTPU_INIT_ARGS"]
    result: dict[str, Any] = {"flags": flags, "steps": []}
    for case in CASES:
        if case.name in wanted:
            print(case.config, case.topology, case.mesh, flush=True)
            config = config_lib.load_config(case.config)
            found = measure(config, case.topology, case.mesh, case.batch)
            result["steps"].append({**found, "config": case.config})
            figures += step_figures(case, found)
    if SAMPLER in wanted:
        config = config_lib.load_config("configs/paper/generator.py")
        sample_config = config_lib.load_config("configs/paper/synthesize.py")
        mesh = sharding.MeshConfig(data=1, fsdp=16)
        found = measure_sampler(config, sample_config, "v6e:4x4", mesh, 64, STEPS)
        result["sampler"] = found
        figures.append(sampler_figure("v6e:4x4", found))
    print(write_result("compiled_for_tpu", result, figures, device="TPU compiler"))


if __name__ == "__main__":
    run_as_command(main)
