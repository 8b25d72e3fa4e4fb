"""The tokenizer of IBQ (Shi et al. 2024; TencentARC/SEED-Voken), from its checkpoint.

Network and names are taming-transformers' (`interop.taming`), so that names do not tell them apart.
But a vector's code is the one with the largest dot product, not the nearest. Its files also hold a
moving average of every parameter, "model_ema." and the name without its dots, which its own
evaluation uses and so do we. Ids are stored in 16 bits here: tokenizers of 262,144 codes are
refused.
"""

import os

from absl import logging

from synth2_jax.interop.recognise import split_prefix
from synth2_jax.interop.taming import ARCHITECTURE, AVERAGES, FIXED, TamingLayout
from synth2_jax.interop.tensor_files import Tensors, open_weights


def _open(path: str | os.PathLike[str]) -> Tensors:
    """The averages, by the parameters' names; the parameters themselves if there are none."""
    tensors = open_weights(split_prefix(path)[1])
    if not any(name.startswith(AVERAGES) for name in tensors):
        return tensors
    logging.info("%s: taking the averaged parameters (%s*), as IBQ does", path, AVERAGES)
    return {
        name: tensors[average]
        for name in tensors
        if (average := AVERAGES + name.replace(".", "")) in tensors
    }


IBQ = TamingLayout(
    "ibq",
    ARCHITECTURE,
    {**FIXED, "code_choice": "dot_product"},
    pixel_range=(-1.0, 1.0),
    ignored=(r"^loss\.",),
    open=_open,
)
