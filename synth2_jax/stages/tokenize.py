"""`synth2 tokenize`: images with captions -> folders of pairs, by a trained tokenizer.

Writes WORKDIR/SPLIT for each split of Scenes that the config names.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.data.records import Manifest, Pair, PairWriter, Provenance
from synth2_jax.data.references import pair_key
from synth2_jax.models.vq_tokenizer import VQTokenizer
from synth2_jax.progress import Progress
from synth2_jax.scenes import dataset
from synth2_jax.training.trained import Trained, load_trained


@dataclasses.dataclass(frozen=True)
class TokenizeConfig:
    """Attributes:

    tokenizer: workdir of the tokenizer's training run.
    splits: of Scenes.
    max_images: of each split, the first so many; None for all.
    batch_size: images a batch.
    num_shards: files a folder.
    """

    tokenizer: str
    splits: tuple[str, ...] = ("real", "validation", "test")
    max_images: int | None = None
    batch_size: int = 256
    num_shards: int = 4

    def __post_init__(self):
        config_lib.check_counts(self, "tokenize", "max_images", "batch_size", "num_shards")


def run(config: Any, workdir: str) -> dict[str, Manifest]:
    """Tokenizes every split; returns the manifests. A split that is already there is left alone."""
    cfg = config_lib.build(TokenizeConfig, config)
    trained = load_trained(cfg.tokenizer, "tokenizer")
    return {
        split: _tokenize(split, trained, cfg, pathlib.Path(workdir) / split) for split in cfg.splits
    }


def _tokenize(split: str, trained: Trained, cfg: TokenizeConfig, folder: pathlib.Path) -> Manifest:
    examples = dataset.examples(split, cfg.max_images)
    tokenizer = trained.objective.task.tokenizer
    writer = PairWriter(
        folder,
        Provenance(
            tokenizer=trained.fingerprint("tokenizer"),
            num_image_tokens=tokenizer.num_tokens,
            codebook_size=tokenizer.codebook_size,
            # The number is part of what the shards are: with another one they hold other images.
            captions={"source": f"scenes/{split}", "images": len(examples)},
            config=dataclasses.asdict(cfg),
        ),
        num_shards=cfg.num_shards,
    )
    if writer.missing():
        images = np.stack([example.image for example in examples])
        tokens = encode_images(trained, images, cfg.batch_size, f"tokenize {split}")
        pairs = [
            Pair(pair_key(example.key, i), ids, caption, "real")
            for example, ids in zip(examples, tokens, strict=True)
            for i, caption in enumerate(example.captions)
        ]
        for index in writer.missing():
            # Whole images to a shard: an image's captions stay together.
            bounds = np.linspace(0, len(examples), cfg.num_shards + 1).astype(int)
            bounds = bounds * dataset.REFERENCES
            writer.write_shard(index, pairs[bounds[index] : bounds[index + 1]])
    return writer.finish()


def encode_images(trained: Trained, images: np.ndarray, batch_size: int, label: str) -> np.ndarray:
    """Token ids i32[num, N] of images u8[num, H, W, 3]."""
    model = VQTokenizer(trained.objective.task.tokenizer)
    variables = {"params": jax.device_put(trained.params["tokenizer"])}
    encode = jax.jit(lambda image: model.apply(variables, image, method="encode"))
    return _in_batches(encode, _to_float(images), batch_size, label)


def decode_images(trained: Trained, ids: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Pictures u8[num, H, W, 3] of token ids; `trained` is any model with a tokenizer in it."""
    model = VQTokenizer(trained.objective.task.tokenizer)
    variables = {"params": jax.device_put(trained.params["tokenizer"])}
    decode = jax.jit(lambda ids: model.apply(variables, ids, method="decode"))
    pixels = _in_batches(decode, np.asarray(ids, np.int32), batch_size, "decode")
    return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)


def _to_float(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 127.5 - 1


def _in_batches(function, rows: np.ndarray, batch_size: int, label: str) -> np.ndarray:
    """Applies a jitted function in batches of one shape, so that it is compiled once."""
    parts = []
    with Progress(label, len(rows), "images") as progress:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            filled = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
            parts.append(np.asarray(function(filled))[: len(part)])
            progress.add(len(part))
    return np.concatenate(parts)
