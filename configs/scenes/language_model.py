"""The language model of Scenes, on captions alone; it writes captions and stays frozen in the VLM.

    synth2 train --config=configs/scenes/language_model.py --workdir=WORKDIR/language_model

Hardware: 2 CPU cores.
Time: half a minute.
Score: a loss of 1.05 nats a token, near the entropy of the paraphrases.
"""

import ml_collections

from configs.scenes import models

STEPS = 500


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:tiny` trains a few steps only."""
    steps = 20 if models.is_tiny(arg) else STEPS
    return ml_collections.ConfigDict(
        {
            "model_name": "language_model",
            "model": {"language_model": models.language_model()},
            "data": {
                "mixture": "scenes_text",
                "split": "train",
                "batch_size": 64,
                "text_length": models.TEXT_LENGTH + 6,  # the class prompt is the longer one
            },
            "optimizer": models.optimizer(3e-3, steps, weight_decay=0.01),
            "train": models.train(steps, 2 * models.MICROBATCHES),  # 1.5x by four, 1.4x by two
        }
    )
