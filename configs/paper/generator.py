"""The text-to-image generator at the paper's scale: 645M parameters behind a frozen T5 1.1 XXL.

    synth2 train --config=configs/paper/generator.py --workdir=WORKDIR/generator \\
        --config.pretrained.tokenizer=WORKDIR/tokenizer \\
        --config.data.folders.real=WORKDIR/pairs/real --config.data.vocabulary=FILE

FILE is T5's SentencePiece model. `--config.data.source=fake` runs without data, vocabulary and
pretrained parts, and `synth2 plan` says what a pod makes of it. `:stored` reads what T5 makes of
the captions from the pairs (configs/paper/encode_captions.py), and holds no T5.

Hardware: 256 TPU v5e chips or more.
Time: not run at this size; `synth2 plan` estimates it.
Score: not run at this size.

From Muse: frozen T5-XXL, text dropped for 10 %, cosine mask schedule, Adafactor at 1e-4, weight
decay 0.045, cosine decay, warm-up of 5,000 steps, batch 512, a million steps. Its rate is an
absolute step size, as MaskGIT's Adam at 1e-4 has it, so it is not multiplied by the parameter's
RMS (about 0.03, which would make steps 36 times as small and leave decay as it is). From MaskGIT:
MLP of 4 widths, dropout 0.1, label smoothing 0.1.

Left open by the paper, and chosen:
- layers and width of the 632M model (2nd): 24 and 1280, counted without T5 and tokenizer
- self- and cross-attention in every layer, 16 heads
- captions of up to 64 tokens
- a moving average of the parameters of 0.9999, as other masked generators evaluate with
- Adafactor with optax's rising decay of second moments, and a momentum of 0.9 (Muse's beta1)
- mesh: fsdp over 16 chips, which leaves 1.2 GB of T5's float32 parameters on each
"""

import ml_collections

from configs.arguments import words
from configs.paper import models

NUM_LAYERS, EMBED_DIM = 24, 1280


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:remat` computes activations again in the backward pass, `:stored` reads T5's features."""
    return with_size(NUM_LAYERS, EMBED_DIM, arg)


def with_size(num_layers: int, embed_dim: int, arg: str) -> ml_collections.ConfigDict:
    """The config of a generator of this depth and width."""
    given = words(arg, ("remat", "stored"))
    stored = "stored" in given
    return ml_collections.ConfigDict(
        {
            "model_name": "generator",
            "model": {
                "tokenizer": models.tokenizer(),
                "generator": {
                    "text_encoder": models.text_encoder(),
                    "maskgit": models.maskgit(
                        num_layers, embed_dim, "full" if "remat" in given else "none"
                    ),
                },
                "freeze_text_encoder": True,
                "stored_text_features": stored,
                "mask_schedule": "cosine",
                "caption_dropout": 0.1,
                "label_smoothing": 0.1,
            },
            "pretrained": {"tokenizer": ""},
            "data": {
                **models.pairs_data(512),
                # Stored features are 160 KB a caption of 20 tokens, here and in saved positions.
                "shuffle_buffer": 512 if stored else 2048,
            },
            "optimizer": {
                "name": "adafactor",
                "learning_rate": 1e-4,
                "schedule": "cosine",
                "warmup_steps": 5000,
                "weight_decay": 0.045,
                "momentum": 0.9,
                "multiply_by_parameter_scale": False,
            },
            "train": {**models.train(1_000_000), "ema_decay": 0.9999},
            "mesh": models.MESH,
        }
    )
