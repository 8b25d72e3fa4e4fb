"""CLIPScore of captions by the user's CLIP, of pictures as the tokenizer decodes their tokens.

Legend: B images, D feature width.
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
from synth2_jax.scoring.captions import as_printed, span
from synth2_jax.scoring.clip_score import PREFIX, clip_score, ref_clip_score


def clip_results(
    model: str,
    trained: Trained,
    images: Sequence[ReferencedImage],
    captions: Sequence[str],
    batch_size: int,
) -> dict[str, float | str]:
    """{"clip_score", "ref_clip_score"} times 100, and how they came.

    `model` names the user's function, see `feature_model.load`; the tokenizer of `trained` decodes
    the images, `batch_size` at once.
    """
    features = feature_model.load(model)
    decode = functools.partial(
        jax.jit(make_decode(trained.objective.task.tokenizer)), trained.params["tokenizer"]
    )

    def of_texts(texts: Sequence[str]) -> np.ndarray:
        prefixed = [f"{PREFIX}{text}" for text in texts]
        starts = range(0, len(prefixed), batch_size)
        return np.concatenate([features(prefixed[start : start + batch_size]) for start in starts])

    tokens = [image.image_tokens for image in images]
    image_features_BD = [features(pixels) for pixels in in_batches(decode, tokens, batch_size)]
    references = [image.references for image in images]
    reference_features = of_texts([text for group in references for text in group])
    ends = np.cumsum([len(group) for group in references])
    caption_features_BD = of_texts(captions)
    scores_B = clip_score(np.concatenate(image_features_BD), caption_features_BD)
    ref_scores_B = ref_clip_score(
        scores_B, caption_features_BD, np.split(reference_features, ends[:-1])
    )
    found = as_printed(
        f"features={model}, images={len(images)} as the tokenizer decodes them, references per "
        f"image={span(references)}, tokenizer=the model's own, df=none",
        clip_score=float(scores_B.mean()),
        ref_clip_score=float(ref_scores_B.mean()),
    )
    return found | {"provenance of clip_score": found.pop("provenance")}
