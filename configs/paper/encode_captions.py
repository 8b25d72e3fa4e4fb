"""Captions at the paper's scale, encoded once by T5 1.1 XXL.

    synth2 encode_captions --config=configs/paper/encode_captions.py --workdir=WORKDIR/encoded \\
        --config.pairs=WORKDIR/pairs/real --config.text_encoder=T5 --config.vocabulary=FILE

T5 is the folder of its checkpoint, FILE its SentencePiece model. What is written, 8 KB a token, is
what `configs/paper/generator.py:stored` is trained on.

Hardware: TPU v5e or newer, 4 chips a process or more.
Time: not run at this size.
Score: none.
"""

import ml_collections

from configs.paper import models


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "pairs": "",
            "text_encoder": "",
            "model": models.text_encoder(),
            "vocabulary": "",
            "text_length": models.TEXT_LENGTH,
            "batch_size": 1024,
            "mesh": {"data": 1, "fsdp": -1},  # 18 GB of float32 parameters
        }
    )
