"""Synthetic pairs: tokens for each caption, by parallel decoding with guidance.

    synth2 synthesize --config=configs/scenes/synthesize.py --workdir=WORKDIR/pairs/synthetic \\
        --config.generator=WORKDIR/generator --config.captions=WORKDIR/captions

Hardware: 2 CPU cores.
Time: 1 minute for 4,500 pairs.
Score: the generator's.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "generator": "",
            "captions": "",
            "sampler": {"num_steps": 12, "choice_temperature": 1.0, "sample_temperature": 0.5},
            "guidance": {"scale": 1.5, "ramp": "linear"},
        }
    )
