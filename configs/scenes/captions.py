"""Captions by the language model, the same number for each colour and shape.

    synth2 captions --config=configs/scenes/captions.py --workdir=WORKDIR/captions \\
        --config.language_model=WORKDIR/language_model

Hardware: 2 CPU cores.
Time: 35 seconds for 4,500 captions.
Score: none; drafts that are dropped are counted in the manifest.
"""

import ml_collections

from configs.scenes import models


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:tiny` writes a few captions only."""
    tiny = models.is_tiny(arg)
    return ml_collections.ConfigDict(
        {
            "language_model": "",
            "captions_per_class": 2 if tiny else 150,
            "decode": {"method": "nucleus", "max_length": 24, "temperature": 1.0, "top_p": 0.95},
        }
    )
