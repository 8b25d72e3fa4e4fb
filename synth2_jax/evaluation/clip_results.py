"""CLIPScore of captions by the user's CLIP, of pictures as the tokenizer decodes their tokens.

Legend: B images, N image tokens, D feature width.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from synth2_jax.data.references import ReferencedImage
from synth2_jax.loading.run import Trained
from synth2_jax.sampling.batches import in_batches
from synth2_jax.sampling.pixels import make_decode
from synth2_jax.scoring import feature_model
from synth2_jax.scoring.captions import PAPER_SCALE
from synth2_jax.scoring.clip_score import PREFIX, clip_score, ref_clip_score


def clip_results(
    model: str,
    trained: Trained,
    images: Sequence[ReferencedImage],
    captions: Sequence[str],
    batch_size: int,
) -> dict[str, float | str]:
    """{"clip_score", "ref_clip_score"} times 100, and how they came.

    Args:
      model: the name of the user's function, see `feature_model.load`.
      trained: any model with a tokenizer in it.
      images: whose tokens are decoded.
      captions: one for each.
      batch_size: images at once.
    """
    features = feature_model.load(model)
    decode = functools.partial(
        jax.jit(make_decode(trained.objective.task.tokenizer)), trained.params["tokenizer"]
    )
    tokens = [image.image_tokens for image in images]
    image_features_BD = [features(p) for p in in_batches(decode, tokens, batch_size)]
    caption_features_BD = _of_texts(features, captions, batch_size)
    references = [reference for image in images for reference in image.references]
    ends = np.cumsum([len(image.references) for image in images])
    scores_B = clip_score(np.concatenate(image_features_BD), caption_features_BD)
    ref_scores_B = ref_clip_score(
        scores_B,
        caption_features_BD,
        np.split(_of_texts(features, references, batch_size), ends[:-1]),
    )
    sizes = sorted({len(image.references) for image in images})
    return {
        "clip_score": PAPER_SCALE * float(scores_B.mean()),
        "ref_clip_score": PAPER_SCALE * float(ref_scores_B.mean()),
        "provenance of clip_score": f"features={model}, images={len(images)} as the tokenizer "
        f"decodes them, references per image={'-'.join(map(str, sorted({sizes[0], sizes[-1]})))}, "
        f"tokenizer=the model's own, df=none, scale=x{PAPER_SCALE:g}",
    }


def _of_texts(
    features: feature_model.FeatureModel, texts: Sequence[str], batch_size: int
) -> np.ndarray:
    prefixed = [f"{PREFIX}{text}" for text in texts]
    starts = range(0, len(prefixed), batch_size)
    return np.concatenate([features(prefixed[start : start + batch_size]) for start in starts])
