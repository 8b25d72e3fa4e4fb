"""Synthetic captions with pictures other than the generator's, for the controls of a study."""

from collections.abc import Sequence

import jax
import numpy as np

from synth2_jax.data import pair_writer, records
from synth2_jax.data.records import Pair, Provenance
from synth2_jax.domains.scenes import language, renderer
from synth2_jax.experiments.text_only import tokens_from_text
from synth2_jax.loading import tokenizing
from synth2_jax.loading.run import Trained
from synth2_jax.models.vq_tokenizer import VQTokenizer


def repair(
    name: str, synthetic: str, folder: str, tokenizer: Trained, seed: int, real: str
) -> None:
    """Writes the captions of the pairs in `synthetic`, with other pictures, to `folder`.

    Args:
      name: "shuffled", the same pictures in another order; "blank", an empty picture to each;
        "rendered", a true picture of each caption, which bounds what a generator can reach;
        "text_only", tokens made from the caption's words, see `text_only`.
      seed: of the order and the rendering.
      real: the real pairs, which "text_only" learns from.
    """
    pairs = list(records.read_pairs(synthetic))
    rng = np.random.default_rng(seed)
    if name == "shuffled":
        tokens = [pairs[i].image_tokens for i in rng.permutation(len(pairs))]
    elif name == "blank":
        blank = renderer.render(renderer.Scene((), "white"))
        tokens = [_encode(tokenizer, blank[None])[0]] * len(pairs)
    elif name == "text_only":
        tokens = _from_text(list(records.read_pairs(real)), pairs, tokenizer)
    else:
        scenes = [language.imagine(language.parse(pair.caption), rng) for pair in pairs]
        kept = [i for i, scene in enumerate(scenes) if scene]  # others contradict themselves
        pairs = [pairs[i] for i in kept]
        tokens = _encode(tokenizer, np.stack([renderer.render(scenes[i]) for i in kept]))
    provenance = records.read_manifest(synthetic).provenance
    pair_writer.write_pairs(
        folder,
        [
            Pair(f"{name}-{i:09d}-0", ids, pair.caption, "synthetic")
            for i, (pair, ids) in enumerate(zip(pairs, tokens, strict=True))
        ],
        Provenance(
            tokenizer=provenance.tokenizer,
            num_image_tokens=provenance.num_image_tokens,
            codebook_size=provenance.codebook_size,
            captions={**dict(provenance.captions or {}), "pictures": name},
        ),
        num_shards=4,
    )


def _encode(tokenizer: Trained, images: np.ndarray) -> np.ndarray:
    return tokenizing.encode_images(tokenizer, images, 256, "tokenize")


def _from_text(real: Sequence[Pair], pairs: Sequence[Pair], tokenizer: Trained) -> np.ndarray:
    model, params = VQTokenizer(tokenizer.objective.task.tokenizer), tokenizer.params["tokenizer"]
    codes_KC = np.asarray(jax.device_get(model.apply({"params": params}, method="codes")))
    return tokens_from_text(
        [pair.caption for pair in real],
        np.stack([pair.image_tokens for pair in real]),
        [pair.caption for pair in pairs],
        codes_KC,
    )
