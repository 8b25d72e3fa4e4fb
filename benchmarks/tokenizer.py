"""The VQ tokenizer: images a second, encoded to ids and decoded from ids.

    python benchmarks/tokenizer.py
    python benchmarks/tokenizer.py --config=configs/paper/tokenizer.py --batch=128

As `synth2 tokenize` encodes and as a generator's tokens are shown: 8-bit pixels in and out. Weights
are random: speed does not depend on them. Writes benchmarks/results/DEVICE/tokenizer_NAME.json.
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
from synth2_jax.planning import model_flops  # noqa: E402
from synth2_jax.sampling.pixels import make_decode, make_encode  # noqa: E402
from synth2_jax.stages import train  # noqa: E402

SCENES = "configs/scenes/tokenizer.py"


def measure(config, batch_size: int, repeats: int) -> dict[str, dict]:
    """{"encode", "decode"}: medians of `repeats` runs of one batch each."""
    objective = train.build(config)[1]
    tokenizer = objective.task.tokenizer
    params = random_params(objective)["tokenizer"]
    pixels = (batch_size, tokenizer.image_size, tokenizer.image_size, 3)
    spec = {
        "images": jax.ShapeDtypeStruct(pixels, jnp.uint8),
        "ids": jax.ShapeDtypeStruct((batch_size, tokenizer.num_tokens), jnp.int32),
    }
    batch = next(FakeBatches(spec, limits={"images": 256, "ids": tokenizer.codebook_size}))
    batch = jax.device_put(batch)
    moved = sum(leaf.nbytes for leaf in batch.values())
    ways = {
        "encode": (make_encode, "images", model_flops.encode_images, ("encoder", "quantizer")),
        "decode": (make_decode, "ids", model_flops.decode_images, ("decoder", "quantizer")),
    }
    found = {}
    for name, (make, argument, flops_of, parts) in ways.items():
        run = functools.partial(jax.jit(make(tokenizer)), params, batch[argument])
        flops = flops_of(tokenizer, batch_size).total
        weights = sum(leaf.nbytes for part in parts for leaf in jax.tree.leaves(params[part]))
        num_bytes = weights + moved
        found[name] = device_limits.row(run, "images", batch_size, flops, num_bytes, repeats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=SCENES, help="of `synth2 train`, of a tokenizer")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--repeats", type=int, default=9, help="runs, of which the median counts")
    given = parser.parse_args()
    config = config_lib.load_config(given.config)
    found = measure(config, given.batch, given.repeats)
    limits = device_limits.measure(jnp.dtype(config.model.tokenizer.get("dtype", "float32")))
    name, _ = names_of(given.config)
    figures = [
        device_limits.limited(
            f"tokenizer, {name}, batch {given.batch}, {what}",
            found[way]["images_per_second"],
            "images/s",
            found[way],
            limits,
        )
        for way, what in (("encode", "pixels to ids"), ("decode", "ids to pixels"))
    ]
    result = {"config": given.config, "batch_size": given.batch, **found, "limits": limits}
    print(write_result(f"tokenizer_{name}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
