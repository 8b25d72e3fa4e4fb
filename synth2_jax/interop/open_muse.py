"""The tokenizers of open-muse: VQGANModel and MaskGitVQGAN, from what `save_pretrained` writes.

A folder has config.json, which names the class, and pytorch_model.bin. VQGANModel has the network
and the names of taming-transformers (`interop.taming`), MaskGitVQGAN the network of
google-research/maskgit under names like those. Both take pixels in [0, 1].
"""

import os
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.interop.taming import ARCHITECTURE, FIXED, TamingLayout
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig


class _VQGANModel(TamingLayout):
    def tokenizer_config(self, path: str | os.PathLike[str], **changes: Any) -> VQTokenizerConfig:
        """Returns what TamingLayout's does; UserError also where open-muse's code differs."""
        config = super().tokenizer_config(path, **changes)
        if config.num_res_blocks == 1 and config.attention_levels:
            raise UserError(
                f"{path}: has one residual block a level and attention at levels "
                f"{config.attention_levels}, which open-muse leaves out in the encoder; expected 2 "
                "blocks or more"
            )
        return config


VQGAN = _VQGANModel("open_muse_vqgan", ARCHITECTURE, FIXED, pixel_range=(0.0, 1.0))
MASKGIT = TamingLayout(
    "open_muse_maskgit",
    {},
    {**FIXED, "shortcut_from_input": False},
    pixel_range=(0.0, 1.0),
    renames=(
        (r"\.mid\.block_(\d+)", lambda found: f".mid.{int(found[1]) - 1}"),
        (r"\.upsample\.conv\.", ".upsample_conv."),
    ),
)
