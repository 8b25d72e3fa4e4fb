"""The VQ-GAN tokenizer of Scenes, on unlabelled pictures.

    synth2 train --config=configs/scenes/tokenizer.py --workdir=WORKDIR/tokenizer

Hardware: 2 CPU cores.
Time: 2.6 minutes.
Score: 96 % of the objects of the test pictures are read right after decoding.
"""

import ml_collections

from configs.scenes import models

STEPS = 1000


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:tiny` trains a few steps only."""
    steps = 20 if models.is_tiny(arg) else STEPS
    return ml_collections.ConfigDict(
        {
            "model_name": "tokenizer",
            "model": {
                "tokenizer": models.tokenizer(),
                # Without adversary and perceptual net: flat colours need neither.
                "loss": {"entropy_weight": 0.0},
                # Codes are drawn from an encoder that has learned something: far fewer steps.
                "quantize_start": 3 * steps // 8,
            },
            "data": {"mixture": "scenes_images", "split": "train", "batch_size": 64},
            "optimizer": models.optimizer(4e-3, steps),
            "train": models.train(steps, 1),
        }
    )
