"""The VQ tokenizer of LlamaGen (Sun et al. 2024; VQ-16 and VQ-8), from its checkpoint.

The network is taming-transformers' (`interop.taming`) with attention at the last level, and codes
are compared by their direction. Its names differ in

    encoder.conv_blocks.I.{res.J, attn.J, downsample}    for down.I.{block.J, attn.J, downsample}
    decoder.conv_blocks.I.{res.J, attn.J, upsample}      the same of up, numbered in order of use
    {encoder,decoder}.mid.{0,1,2}                        for block_1, attn_1, block_2

A file that its training wrote holds the trained and the averaged parameters; the averaged are
taken, as in its own code.
"""

import re

from synth2_jax.interop.taming import ARCHITECTURE, FIXED, TamingLayout

_MIDDLE = {"mid.block_1.": "mid.0.", "mid.attn_1.": "mid.1.", "mid.block_2.": "mid.2."}


def _rename(name: str, num_levels: int) -> str:
    for theirs, ours in _MIDDLE.items():
        name = name.replace(theirs, ours)
    name = re.sub(
        r"^decoder\.up\.(\d+)", lambda up: f"decoder.up.{num_levels - 1 - int(up[1])}", name
    )
    return re.sub(r"\.(down|up)\.(\d+)\.", r".conv_blocks.\2.", name).replace(".block.", ".res.")


LLAMAGEN = TamingLayout(
    "llamagen",
    ARCHITECTURE,
    {**FIXED, "l2_normalize_codes": True},
    pixel_range=(-1.0, 1.0),
    rename=_rename,
    ignored=(r"^quantize\.codebook_used$",),
)
