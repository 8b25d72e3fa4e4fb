"""Pairs from Scenes, as tokens.

    synth2 tokenize --config=configs/scenes/tokenize.py --workdir=WORKDIR/pairs \\
        --config.tokenizer=WORKDIR/tokenizer

Hardware: 2 CPU cores.
Time: a few seconds.
Score: none; more than 1,000 pictures a second.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"tokenizer": "", "splits": ("real", "validation", "test")})
