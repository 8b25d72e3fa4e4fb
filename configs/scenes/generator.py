"""The text-to-image generator of Scenes, on the few real pairs that the VLM has too.

    synth2 train --config=configs/scenes/generator.py --workdir=WORKDIR/generator \\
        --config.pretrained.tokenizer=WORKDIR/tokenizer \\
        --config.data.folders.real=WORKDIR/pairs/real

Hardware: 2 CPU cores.
Time: 4.5 to 7 minutes.
Score: two thirds of the objects right on captions of all combinations.
"""

import ml_collections

from configs.scenes import models

STEPS = 2000


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:tiny` trains a few steps only."""
    steps = 20 if models.is_tiny(arg) else STEPS
    return ml_collections.ConfigDict(
        {
            "model_name": "generator",
            "model": {
                "tokenizer": models.tokenizer(),
                "generator": models.generator(),
                # A fifth of the combinations is in no pair; their codes must not be unlearned.
                "absent_code_weight": 0.1,
            },
            "pretrained": {"tokenizer": ""},
            "data": models.pairs_data(),
            "optimizer": models.optimizer(1e-3, steps, 100, weight_decay=0.03, beta2=0.98),
            "train": models.train(steps),
        }
    )
