"""A VLM on a Gemma 3 that is frozen, at the paper's scale in all else.

Not a config of a stage; the other configs share these sections. Layers between two blocks of
gated cross-attention are few: the language model has never seen an image (chosen; Flamingo has 1, 4
and 7 by size).
"""

import dataclasses

from configs.paper import models as paper
from synth2_jax.models.gemma import RELEASED

EVERY = {"270m": 3, "1b": 2, "4b": 2}
TEXT_LENGTH = 96  # 64 of a caption, as at the paper's scale, behind its prompt in two turns


def vlm(size: str) -> dict:
    """Trained are the resampler, 171M parameters, and the cross-attention: 43M, 279M or 1.2B."""
    paper_vlm = paper.vlm(remat="full")
    return {
        **paper_vlm,
        "language_model": {**dataclasses.asdict(RELEASED[size]), "remat": "full"},
        "cross_attention_every": EVERY[size],
    }
