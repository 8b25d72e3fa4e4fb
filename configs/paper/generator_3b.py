"""Muse's 3B base model as the generator: 48 layers of width 2048 behind a frozen T5 1.1 XXL.

    synth2 train --config=configs/paper/generator_3b.py --workdir=WORKDIR/generator_3b \\
        --config.pretrained.tokenizer=WORKDIR/tokenizer \\
        --config.data.folders.real=WORKDIR/pairs/real --config.data.vocabulary=FILE

All but the size is as in generator.py, whose docstring tells the sources.

Hardware: 256 TPU v5e chips or more; Muse had 512 cores of TPU v4 for about a week.
Time: not run at this size; `synth2 plan` estimates it.
Score: not run at this size; Muse's 3B has a zero-shot COCO FID of 7.88.

From Muse: 48 layers, width 2048, MLP 8192. Left open and chosen: 16 heads of 128.
"""

import ml_collections

from configs.paper import generator


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:remat` computes activations again in the backward pass."""
    return generator.with_size(48, 2048, arg)
