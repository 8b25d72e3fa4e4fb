"""Synthetic pairs at the paper's scale: Muse's 24 steps with guidance.

    synth2 synthesize --config=configs/paper/synthesize.py --workdir=WORKDIR/pairs/synthetic \\
        --config.generator=WORKDIR/generator --config.captions=WORKDIR/captions

Hardware: TPU v5e or newer.
Time: not run at this size; `synth2 plan --sample=configs/paper/synthesize.py` estimates it.
Score: the generator's.

From Muse: 24 steps, cosine schedule, guidance that rises with the steps. From MaskGIT: choice
temperature 4.5. Left open by the paper, and chosen: a guidance scale of 3.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "generator": "",
            "captions": "",
            "sampler": {"num_steps": 24, "schedule": "cosine", "choice_temperature": 4.5},
            "guidance": {"scale": 3.0, "ramp": "linear"},
            "batch_size": 1024,
            "num_shards": 1024,
        }
    )
