"""The VQ tokenizer of LlamaGen (Sun et al. 2024; VQ-16 and VQ-8), from its checkpoint.

The network is taming-transformers' (`interop.taming`) with attention at the last level, and codes
are compared by their direction. A file that its training wrote holds the trained and the averaged
parameters; the averaged are taken, as in its own code.
"""

from synth2_jax.interop.taming import ARCHITECTURE, FIXED, TamingLayout

LLAMAGEN = TamingLayout(
    "llamagen",
    ARCHITECTURE,
    {**FIXED, "l2_normalize_codes": True},
    pixel_range=(-1.0, 1.0),
    renames=(
        (r"\.mid\.block_(\d)\.", lambda found: f".mid.{2 * int(found[1]) - 2}."),
        (r"\.mid\.attn_1\.", ".mid.1."),
        (r"\.(down|up)\.(\d+)\.", r".conv_blocks.\2."),
        (r"\.block\.", ".res."),
    ),
    ups_in_order_of_use=True,
    ignored=(r"^quantize\.codebook_used$",),
)
