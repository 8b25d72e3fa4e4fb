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
    steps = 20 if "tiny" in models.words(arg) else STEPS
    text_length = models.TEXT_LENGTH + 6  # the class prompt is longer than the caption prompt
    return ml_collections.ConfigDict(
        {
            "model_name": "language_model",
            "model": {"language_model": models.language_model(), "text_length": text_length},
            "data": {
                "mixture": "scenes_text",
                "split": "train",
                "batch_size": 64,
                "vocabulary": models.VOCABULARY,
                "text_length": text_length,
            },
            "optimizer": {
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup_steps": min(50, steps // 2),
                "weight_decay": 0.01,
            },
            "train": {
                "steps": steps,
                "log_every": 50,
                "checkpoint_every": 500,
                "microbatches": 2 * models.MICROBATCHES,  # 1.5x by four, 1.4x by two
            },
        }
    )
