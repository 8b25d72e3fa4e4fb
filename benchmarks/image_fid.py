"""rFID of a tokenizer, or FID of the images of synthetic pairs, under a feature model of yours.

    python benchmarks/image_fid.py --tokenizer=PATH --images='/data/coco/val2017/*.jpg' \\
        --features=FILE.py:FUNCTION                                    # rFID: reconstructions
    python benchmarks/image_fid.py --tokenizer=PATH --pairs=workdir/pairs/synthetic \\
        --features=FILE.py:FUNCTION --reference=STATISTICS.npz         # FID: of generated tokens

Real images are cut to their middle square and scaled to the tokenizer's size. Without --reference
they are what is compared with; --write-reference keeps their statistics. PATH is a run, an export
or a third-party VQ-GAN (`--image-size`, where its files do not tell). Writes
benchmarks/results/DEVICE/image_fid.json. FID depends on the features, the number of images and how
they were scaled: numbers compare only where these are the same.

Legend: B batch, H W pixels, D feature width.
"""

import argparse
import functools
import glob
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import write_result  # noqa: E402
from synth2_jax.data import records  # noqa: E402
from synth2_jax.data.images import decode_image  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.loading.run import Trained  # noqa: E402
from synth2_jax.loading.trained import load_tokenizer  # noqa: E402
from synth2_jax.sampling.batches import in_batches  # noqa: E402
from synth2_jax.sampling.pixels import make_decode, make_encode  # noqa: E402
from synth2_jax.scoring import feature_model  # noqa: E402
from synth2_jax.scoring.frechet import FeatureStatistics, frechet_distance  # noqa: E402


def real_images(pattern: str, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """u8[B,H,W,3] of the files; the last batch may be smaller. UserError where there is none."""
    files = sorted(glob.glob(pattern))
    if not files:
        raise UserError(f"--images={pattern}: no such files")
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        yield np.stack([decode_image(pathlib.Path(file).read_bytes(), size) for file in part])


def images_of_pairs(trained: Trained, folder: str, batch_size: int) -> Iterator[np.ndarray]:
    """u8[B,H,W,3] of the tokens of each pair.

    Raises:
      UserError: no pairs there, or those of another tokenizer.
    """
    records.check_tokenizer(records.read_manifest(folder), trained.fingerprint("tokenizer"), folder)
    decode = _jitted(make_decode, trained)
    tokens = [pair.image_tokens for pair in records.read_pairs(folder)]
    yield from in_batches(decode, tokens, batch_size)


def measure(
    trained: Trained,
    features: str,
    images: str = "",
    pairs: str = "",
    reference: FeatureStatistics | None = None,
    batch_size: int = 64,
) -> tuple[float, FeatureStatistics, int]:
    """(the distance, statistics of what is compared with, how many images were scored)."""
    model = feature_model.load(features)
    size = trained.objective.task.tokenizer.image_size
    real, scored = FeatureStatistics(), FeatureStatistics()
    if images:
        encode, decode = _jitted(make_encode, trained), _jitted(make_decode, trained)
        for batch in real_images(images, size, batch_size):
            if reference is None:
                real.update(model(batch))
            if not pairs:
                (rebuilt,) = in_batches(lambda x: decode(encode(x)), batch, batch_size)
                scored.update(model(rebuilt))
    for batch in images_of_pairs(trained, pairs, batch_size) if pairs else ():
        scored.update(model(batch))
    known = reference or real
    distance = frechet_distance(scored.mean, scored.covariance, known.mean, known.covariance)
    return distance, known, scored.num_images


def _jitted(make, trained: Trained):
    function = jax.jit(make(trained.objective.task.tokenizer))
    return functools.partial(function, jax.device_put(trained.params["tokenizer"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True, help="run, export or a third-party VQ-GAN")
    parser.add_argument("--features", required=True, help="MODULE:FUNCTION or FILE.py:FUNCTION")
    parser.add_argument("--images", default="", help="pattern of real images' files")
    parser.add_argument("--pairs", default="", help="folder of pairs, whose images are scored")
    parser.add_argument("--reference", help=".npz of mu and sigma, in place of real images")
    parser.add_argument("--write-reference", type=pathlib.Path, help="where to keep them")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    if not given.images and not (given.pairs and given.reference):
        parser.error("expected --images, or --pairs with --reference")
    trained = load_tokenizer(given.tokenizer, image_size=given.image_size)
    reference = FeatureStatistics.load(given.reference) if given.reference else None
    distance, known, count = measure(
        trained, given.features, given.images, given.pairs, reference, given.batch
    )
    if given.write_reference:
        known.save(given.write_reference)
    name = "FID" if given.pairs else "rFID"
    print(f"{name} {distance:.4f} of {count:,} images under {given.features}")
    settings = {key: value for key, value in vars(given).items() if key != "write_reference"}
    print(write_result("image_fid", {**settings, name.lower(): distance, "num_images": count}))


if __name__ == "__main__":
    main()
