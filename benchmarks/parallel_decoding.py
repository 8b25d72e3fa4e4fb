"""The generator's sampler: image tokens of captions, pairs a second at several numbers of steps.

    python benchmarks/parallel_decoding.py --config=configs/scenes/generator.py
    python benchmarks/parallel_decoding.py --config=configs/paper/generator.py --batch=64

With guidance at every step. Captions are encoded once a sample. Weights are random: speed does not
depend on them. Writes benchmarks/results/DEVICE/parallel_decoding_NAME.json.
"""

import argparse
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import device_limits  # noqa: E402
from benchmarks.result import run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.models.maskgit import Generator  # noqa: E402
from synth2_jax.models.vq_tokenizer import VQTokenizer  # noqa: E402
from synth2_jax.planning import model_flops  # noqa: E402
from synth2_jax.sampling.guidance import GuidanceConfig  # noqa: E402
from synth2_jax.sampling.image_tokens import make_generate  # noqa: E402
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, row_keys  # noqa: E402
from synth2_jax.training.objectives import make_objective  # noqa: E402


def measure(config, batch_size: int, numbers_of_steps: list[int], scale: float) -> list[dict]:
    """One row for each number of steps."""
    objective = make_objective("generator", config.model.to_dict())
    params = jax.jit(lambda key: nn.unbox(objective.init(key)["params"]))(jax.random.key(0))
    tokenizer = VQTokenizer(objective.task.tokenizer)
    batch = next(FakeBatches(objective.batch_spec(batch_size)))
    keys_B = row_keys(jax.random.key(1), batch_size)
    guidance = GuidanceConfig(scale=scale)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params["generator"]["maskgit"]))
    rows = []
    for num_steps in numbers_of_steps:
        sampler = ParallelDecodeConfig(num_steps=num_steps)
        generate = jax.jit(make_generate(Generator(objective.task.generator), sampler, guidance))
        arguments = (
            params["generator"],
            tokenizer.apply({"params": params["tokenizer"]}, method="codes"),
            batch["text_tokens"],
            batch["text_mask"],
            keys_B,
        )
        seconds = device_limits.seconds(lambda: generate(*arguments))  # noqa: B023
        flops = model_flops.sample(objective.task, batch_size, sampler, guidance).total
        rows.append(
            {
                "num_steps": num_steps,
                "seconds": seconds,
                "pairs_per_second": batch_size / seconds,
                "flops": flops,
                "flops_per_second": flops / seconds,
                "bytes": num_steps * weights,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="of `synth2 train`, of a generator")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", default="8,12,24")
    parser.add_argument("--scale", type=float, default=3.0, help="of guidance; 0 for none")
    given = parser.parse_args()
    config = config_lib.load_config(given.config)
    steps = [int(number) for number in given.steps.split(",")]
    rows = measure(config, given.batch, steps, given.scale)
    dtype = config.model.generator.maskgit.get("dtype", "float32")
    limits = device_limits.measure(jnp.dtype(dtype))
    path = pathlib.Path(given.config.partition(":")[0])
    figures = [
        device_limits.limited(
            f"decoding, {path.parent.name} {path.stem}, batch {given.batch}, "
            f"{row['num_steps']} steps",
            row["pairs_per_second"],
            "pairs/s",
            seconds=row["seconds"],
            flops=row["flops"],
            num_bytes=row["bytes"],
            limits=limits,
        )
        for row in rows
    ]
    result = {"config": given.config, "batch_size": given.batch, "guidance_scale": given.scale}
    result |= {"rows": rows, "limits": limits}
    print(write_result(f"parallel_decoding_{path.parent.name}_{path.stem}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
