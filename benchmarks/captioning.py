"""Captions by the VLM, a token at a time: tokens a second at several batch sizes.

    python benchmarks/captioning.py
    python benchmarks/captioning.py --config=configs/paper/vlm.py
    python benchmarks/captioning.py --beams=3 --batches=64

From image embeddings, prompt included; greedy, or the best of a beam search. Weights are random,
and no caption ends before its full length: tokens are counted in what comes out. Each token reads
all weights again, so the limit is mostly the copy rate; it is measured on as many bytes as a token
reads, since those of a small model stay in a CPU's cache. Writes
benchmarks/results/DEVICE/captioning_NAME.json, of a beam search captioning_NAME_beam.json.
"""

import argparse
import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import device_limits  # noqa: E402
from benchmarks.result import names_of, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.models.vlm import VLM, VLMConfig  # noqa: E402
from synth2_jax.planning import model_flops  # noqa: E402
from synth2_jax.sampling.captions import make_caption  # noqa: E402
from synth2_jax.sampling.text_decode import TextDecodeConfig  # noqa: E402
from synth2_jax.stages import train  # noqa: E402
from synth2_jax.text.vocabulary import PAD_ID  # noqa: E402
from synth2_jax.training.train_state import flatten  # noqa: E402

SCENES = "configs/scenes/vlm.py"
NEVER = -1  # an id that no token has: nothing ends a caption
PROMPT = (3, 4)  # ids; "Output:" has two


def measure(
    config: VLMConfig, batch_sizes: list[int], decode: TextDecodeConfig, repeats: int
) -> list[dict]:
    """One row for each batch size."""
    model = VLM(config)
    image = (config.num_image_tokens, config.image_embedding_dim)

    @jax.jit
    def init(key):
        text = jnp.zeros((1, 1), jnp.int32)
        return nn.unbox(model.init(key, jnp.zeros((1, *image)), text, deterministic=True)["params"])

    params = init(jax.random.key(0))
    caption = jax.jit(make_caption(model, list(PROMPT), decode, NEVER))
    rows = []
    for batch_size in batch_sizes:
        images = jax.random.normal(jax.random.key(1), (batch_size, *image))
        num_tokens = int(np.sum(np.asarray(caption(params, images)[0]) != PAD_ID))
        flops = model_flops.caption(config, batch_size, len(PROMPT), decode).total
        num_bytes = least_bytes(params, config, batch_size, decode)
        run = functools.partial(caption, params, images)
        row = device_limits.row(run, "tokens", num_tokens, flops, num_bytes, repeats)
        rows.append({"batch_size": batch_size, "tokens": num_tokens, **row})
    return rows


def least_bytes(
    params: dict, config: VLMConfig, batch_size: int, decode: TextDecodeConfig
) -> float:
    """What must pass through memory: all weights once, those that each token needs again for each,
    and for each token the image's keys and values and those of the tokens before it.

    Numbers are of the model's dtype, in which a better program would keep the weights, and the
    beams of an image share what they have in common: that is counted once.
    """
    lm = config.language_model
    sizes = {path: leaf.size for path, leaf in flatten(params).items()}
    again = sum(size for path, size in sizes.items() if not _once(path))
    steps, first = decode.max_length - 1, len(PROMPT) + 1
    held = steps * first + steps * (steps + 1) // 2  # tokens in the cache, summed over the steps
    num_blocks = lm.num_layers // config.cross_attention_every
    image = config.resampler.num_latents * lm.num_heads * num_blocks
    cached = steps * image + held * lm.num_kv_heads * lm.num_layers
    numbers = sum(sizes.values()) + steps * again + batch_size * 2 * lm.head_dim * cached
    return numbers * jnp.dtype(lm.dtype).itemsize


def _once(path: str) -> bool:
    """Whether a weight is for what is read of the image once."""
    keys_values = path.startswith("cross_attention/") and path.split("/")[-2] in ("key", "value")
    return path.startswith("resampler/") or keys_values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=SCENES, help="of `synth2 train`, of a VLM")
    parser.add_argument("--batches", default="1,64", help="images at a time")
    parser.add_argument("--beams", type=int, default=1, help="1 is greedy")
    parser.add_argument(
        "--length", type=int, help="of a caption; else what the config has room for"
    )
    parser.add_argument("--repeats", type=int, default=9, help="runs, of which the median counts")
    given = parser.parse_args()
    _, objective = train.build(config_lib.load_config(given.config))
    decode = TextDecodeConfig(
        method="beam" if given.beams > 1 else "greedy",
        num_beams=given.beams,
        max_length=given.length or objective.task.text_length - len(PROMPT),
    )
    config = objective.task.vlm
    batch_sizes = [int(number) for number in given.batches.split(",")]
    rows = measure(config, batch_sizes, decode, given.repeats)
    limits = device_limits.measure(jnp.dtype(config.language_model.dtype))
    for row in rows:
        row["copy_bytes_per_second"] = device_limits.copy_rate(row["bytes"] / decode.max_length)
    folder, model = names_of(given.config)
    how = f"{given.beams} beams" if given.beams > 1 else "greedy"
    figures = [
        device_limits.limited(
            f"captions, {folder} {model}, batch {row['batch_size']}, {how}",
            row["tokens_per_second"],
            "tokens/s",
            row,
            limits | {"copy_bytes_per_second": row["copy_bytes_per_second"]},
        )
        for row in rows
    ]
    result = {"config": given.config, "max_length": decode.max_length, "num_beams": given.beams}
    result |= {"rows": rows, "limits": limits}
    name = f"captioning_{folder}_{model}{'_beam' * (given.beams > 1)}"
    print(write_result(name, result, figures))


if __name__ == "__main__":
    run_as_command(main)
