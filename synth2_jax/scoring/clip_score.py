"""CLIPScore and RefCLIPScore (Hessel et al., arXiv 2104.08718) from features of the user's CLIP.

Legend: B images, D feature width, R references of an image.
"""

from collections.abc import Sequence

import numpy as np

PREFIX = "A photo depicts "  # before each text, candidates and references (section 3)
WEIGHT = 2.5


def clip_score(image_features_BD: np.ndarray, caption_features_BD: np.ndarray) -> np.ndarray:
    """f64[B]: 2.5 max(cos(image, caption), 0) (eq. 1)."""
    return WEIGHT * np.maximum(_cosine(image_features_BD, caption_features_BD), 0)


def ref_clip_score(
    clip_scores_B: np.ndarray,
    caption_features_BD: np.ndarray,
    reference_features_BRD: Sequence[np.ndarray],
) -> np.ndarray:
    """f64[B]: harmonic mean of CLIPScore and max(max_r cos(caption, r), 0) (eq. 2).

    `reference_features_BRD` holds [R, D] of each image, whose numbers of references may differ.
    """
    groups = zip(caption_features_BD, reference_features_BRD, strict=True)
    nearest_B = np.array([max(0.0, _cosine(text_D, of_RD).max()) for text_D, of_RD in groups])
    return _ratio(2 * clip_scores_B * nearest_B, clip_scores_B + nearest_B)


def _cosine(a_BD: np.ndarray, b_BD: np.ndarray) -> np.ndarray:
    """f64[B]; 0 where one has no length."""
    a_BD, b_BD = np.asarray(a_BD, np.float64), np.asarray(b_BD, np.float64)
    norms_B = np.linalg.norm(a_BD, axis=-1) * np.linalg.norm(b_BD, axis=-1)
    return _ratio(np.sum(a_BD * b_BD, axis=-1), norms_B)


def _ratio(a_B: np.ndarray, b_B: np.ndarray) -> np.ndarray:
    return np.divide(a_B, b_B, out=np.zeros_like(b_B), where=b_B > 0)
