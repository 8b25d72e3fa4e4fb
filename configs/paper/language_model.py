"""The language model inside the paper-scale VLM, trained on captions alone; 341M parameters.

    synth2 train --config=configs/paper/language_model.py --workdir=WORKDIR/language_model \\
        --config.data.modules=MODULE --config.data.mixture=MIXTURE --config.data.vocabulary=FILE

MODULE registers a SeqIO mixture of texts, FILE is T5's SentencePiece model.

Hardware: 16 TPU v5e chips or more.
Time: not run at this size; `synth2 plan` estimates it.
Score: not run at this size.

The paper's VLM has a pretrained language model of a size that is not known. Left open and chosen:
all of it; optimizer and batch are those of configs/paper/vlm.py without its exceptions.
"""

import ml_collections

from configs.paper import models


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:remat` computes activations again in the backward pass."""
    return ml_collections.ConfigDict(
        {
            "model_name": "language_model",
            "model": {"language_model": models.language_model(models.remat(arg))},
            "data": {
                "mixture": "",
                "split": "train",
                "batch_size": 1024,
                "vocabulary": "",
                "text_length": models.TEXT_LENGTH,
            },
            "optimizer": models.adamw(),
            "train": models.train(200_000),
            "mesh": models.MESH,
        }
    )
