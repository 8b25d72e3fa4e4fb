"""Pairs from Scenes, as tokens.

    synth2 tokenize --config=configs/scenes/tokenize.py --workdir=WORKDIR/pairs \\
        --config.tokenizer=WORKDIR/tokenizer
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"tokenizer": "", "splits": ("real", "validation", "test")})
