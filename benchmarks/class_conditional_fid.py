"""Our sampler on google-research/maskgit's weights: images a second, a picture, and FID.

    python benchmarks/class_conditional_fid.py \\
        --tokenizer=tokenizer_imagenet256_checkpoint --transformer=maskgit_imagenet256_checkpoint \\
        --features=FILE.py:FUNCTION --reference=STATISTICS.npz --images=50000

The published FID, of 50,000 images, is 6.06 at 256 pixels, and 7.32 at 512 with --steps=12.
The feature model and the statistics of ImageNet's images under it are the user's
(`synth2_jax.scoring.feature_model`, `frechet`); without them there is no FID. Image i is of class
i modulo their number, and its random numbers depend on --seed and i alone. Writes the first images
to --picture, and benchmarks/results/DEVICE/class_conditional_fid.json.

Legend: B batch, N image tokens, H W pixels, D feature width.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import write_result  # noqa: E402
from synth2_jax import sharding  # noqa: E402
from synth2_jax.data.images import encode_png  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.files import write_bytes  # noqa: E402
from synth2_jax.interop import maskgit_weights  # noqa: E402
from synth2_jax.models.class_conditional_maskgit import (  # noqa: E402
    ClassConditionalMaskGIT,
    ClassConditionalMaskGITConfig,
)
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig  # noqa: E402
from synth2_jax.sampling.batches import in_batches  # noqa: E402
from synth2_jax.sampling.parallel_decode import (  # noqa: E402
    ParallelDecodeConfig,
    parallel_decode,
)
from synth2_jax.sampling.pixels import make_decode  # noqa: E402
from synth2_jax.scoring import feature_model  # noqa: E402
from synth2_jax.scoring.frechet import FeatureStatistics, frechet_distance  # noqa: E402

COLUMNS, ROWS = 8, 8  # of the picture


def load(tokenizer: str, transformer: str, dtype: str) -> tuple[Any, Any, dict[str, Any]]:
    """(the tokenizer's config, the transformer's, parameters of both by name).

    Raises:
      UserError: files of other models, or a transformer whose tokens the tokenizer does not have.
    """
    config = maskgit_weights.tokenizer_config(tokenizer)
    model = maskgit_weights.class_conditional_config(
        transformer, codebook_size=config.codebook_size, dtype=dtype
    )
    side = round(model.num_tokens**0.5)
    if side**2 != model.num_tokens:
        raise UserError(
            f"{transformer}: found {model.num_tokens} tokens, expected a square of them"
        )
    size = side * config.image_size // config.grid_size
    config = maskgit_weights.tokenizer_config(tokenizer, image_size=size, dtype=dtype)
    params = {
        "tokenizer": maskgit_weights.load_tokenizer(tokenizer, config),
        "transformer": maskgit_weights.load_class_conditional(transformer, model),
    }
    return config, model, jax.tree.map(np.asarray, params)


def make_sample(
    tokenizer: VQTokenizerConfig,
    transformer: ClassConditionalMaskGITConfig,
    sampler: ParallelDecodeConfig,
    seed: int,
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns `(params, numbers i32[B]) -> images u8[B,H,W,3]`, to be jitted."""
    model, decode = ClassConditionalMaskGIT(transformer), make_decode(tokenizer)

    def sample(params: Any, number_B: jax.Array) -> jax.Array:
        class_B = number_B % transformer.num_classes
        variables = {"params": params["transformer"]}
        ids_BN = parallel_decode(
            lambda ids_BN, step: model.apply(variables, ids_BN, class_B),
            jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), number_B),
            num_tokens=transformer.num_tokens,
            mask_id=transformer.mask_id,
            config=sampler,
        )
        return decode(params["tokenizer"], ids_BN)

    return sample


def picture(images: Sequence[np.ndarray]) -> np.ndarray:
    """u8[H,W,3] of images side by side, in rows of COLUMNS; the last row is filled up in black."""
    height, width, _ = images[0].shape
    missing = [np.zeros_like(images[0])] * (-len(images) % COLUMNS)
    grid = np.stack([*images, *missing]).reshape(-1, COLUMNS, height, width, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * width, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True, help="Flax msgpack file")
    parser.add_argument("--transformer", required=True, help="Flax msgpack file")
    parser.add_argument("--features", help="MODULE:FUNCTION or FILE.py:FUNCTION")
    parser.add_argument("--reference", help=".npz of mu and sigma")
    for name, default in (("images", 50_000), ("batch", 64), ("steps", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--choice-temperature", type=float, default=4.5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--picture", type=pathlib.Path, default="class_conditional_samples.png")
    given = parser.parse_args()
    if bool(given.features) != bool(given.reference):
        parser.error("--features and --reference: expected both or neither")
    features = feature_model.load(given.features) if given.features else None
    reference = FeatureStatistics.load(given.reference) if given.reference else None
    mesh = sharding.make_mesh(sharding.MeshConfig())
    sharding.check_rows(given.batch, mesh, "--batch")
    tokenizer, transformer, params = load(given.tokenizer, given.transformer, given.dtype)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    sampler = ParallelDecodeConfig(
        num_steps=given.steps, choice_temperature=given.choice_temperature
    )
    sample = jax.jit(make_sample(tokenizer, transformer, sampler, given.seed))

    def numbered(number_B: np.ndarray) -> jax.Array:
        return sample(params, sharding.put_batch({"number": number_B}, mesh)["number"])

    jax.block_until_ready(numbered(np.arange(given.batch, dtype=np.int32)))  # compiles
    start = time.perf_counter()
    statistics, first = FeatureStatistics(), []
    numbers = np.arange(given.images, dtype=np.int32)
    for images in in_batches(numbered, numbers, given.batch):
        first.extend(images[: COLUMNS * ROWS - len(first)])
        if features:
            statistics.update(features(images))
    seconds = time.perf_counter() - start
    write_bytes(given.picture, encode_png(picture(first)))
    result = {
        **{**vars(given), "picture": str(given.picture)},
        "image_size": tokenizer.image_size,
        "seconds": seconds,
        "images_per_second": given.images / seconds,
    }
    included = ", the feature model's time included" if features else ""
    print(f"{given.images / seconds:.4g} images/s{included}; the first: {given.picture}")
    if features:
        result["fid"] = frechet_distance(
            statistics.mean, statistics.covariance, reference.mean, reference.covariance
        )
        print(f"FID {result['fid']:.4f} of {given.images:,} images under {given.features}")
    print(write_result("class_conditional_fid", result))


if __name__ == "__main__":
    main()
