"""The generator's sampler: image tokens of captions, pairs a second at several numbers of steps.

    python benchmarks/parallel_decoding.py --config=configs/scenes/generator.py
    python benchmarks/parallel_decoding.py --config=configs/paper/generator.py --batch=64

With guidance at every step. Captions are encoded once a sample. Weights are random: speed does not
depend on them. Writes benchmarks/results/DEVICE/parallel_decoding_NAME.json.
"""

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import device_limits  # noqa: E402
from benchmarks.bare_steps import random_params  # noqa: E402
from benchmarks.result import names_of, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.models.maskgit import Generator  # noqa: E402
from synth2_jax.models.vq_tokenizer import VQTokenizer  # noqa: E402
from synth2_jax.planning import model_flops  # noqa: E402
from synth2_jax.sampling.guidance import GuidanceConfig  # noqa: E402
from synth2_jax.sampling.image_tokens import make_generate  # noqa: E402
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, row_keys  # noqa: E402
from synth2_jax.stages import train  # noqa: E402


def measure(config, batch_size: int, numbers_of_steps: list[int], scale: float) -> list[dict]:
    """One row for each number of steps."""
    objective = train.build(config)[1]
    params = random_params(objective)
    tokenizer = VQTokenizer(objective.task.tokenizer)
    batch = next(FakeBatches(objective.batch_spec(batch_size)))
    keys_B = row_keys(jax.random.key(1), batch_size)
    guidance = GuidanceConfig(scale=scale)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params["generator"]["maskgit"]))
    rows = []
    for num_steps in numbers_of_steps:
        sampler = ParallelDecodeConfig(num_steps=num_steps)
        generate = jax.jit(make_generate(Generator(objective.task.generator), sampler, guidance))
        codes = tokenizer.apply({"params": params["tokenizer"]}, method="codes")
        captions = (batch["text_tokens"], batch["text_mask"])
        run = functools.partial(generate, params["generator"], codes, *captions, keys_B)
        flops = model_flops.sample(objective.task, batch_size, sampler, guidance).total
        row = device_limits.row(run, "pairs", batch_size, flops, num_steps * weights)
        rows.append({"num_steps": num_steps, **row})
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
    folder, model = names_of(given.config)
    name = f"decoding, {folder} {model}, batch {given.batch}"
    figures = [
        device_limits.limited(
            f"{name}, {row['num_steps']} steps", row["pairs_per_second"], "pairs/s", row, limits
        )
        for row in rows
    ]
    result = {"config": given.config, "batch_size": given.batch, "guidance_scale": given.scale}
    result |= {"rows": rows, "limits": limits}
    print(write_result(f"parallel_decoding_{folder}_{model}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
