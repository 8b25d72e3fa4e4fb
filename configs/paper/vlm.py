"""The visual language model at the paper's scale: 634M parameters; 237M are trained.

    synth2 train --config=configs/paper/vlm.py --workdir=WORKDIR/vlm \\
        --config.pretrained.tokenizer=WORKDIR/tokenizer \\
        --config.pretrained.language_model=WORKDIR/language_model \\
        --config.data.folders.real=WORKDIR/pairs/real \\
        --config.data.folders.synthetic=WORKDIR/pairs/synthetic --config.data.vocabulary=FILE

FILE is T5's SentencePiece model. `--config.data.source=fake` runs without data, vocabulary and
pretrained parts, and `synth2 plan` says what a pod makes of it. `:two_stages` trains on real pairs
alone for the first half of the steps and then on the mixture, as the paper does (2nd).

Hardware: 256 TPU v5e chips or more.
Time: not run at this size; `synth2 plan` estimates it.
Score: not run at this size. The paper: zero-shot CIDEr on COCO 22.1 from 10.1M real pairs alone,
33.4 with synthetic ones (2nd).

From Flamingo: resampler of 6 layers, width 1536, 16 heads of 96 and 64 latents, tanh gates from 0,
AdamW with clipping at 1, weight decay 0.1 (none on the resampler), warm-up of 5,000 steps to 1e-4,
then constant, 500,000 steps. Norms and gates do not decay either (chosen).

Left open by the paper, and chosen:
- the language model: a decoder of 24 layers and width 1024
- gated cross-attention before every fourth layer
- one mixture from the start, half real, half synthetic (the paper trains on real pairs first (2nd))
- of `:two_stages`: their lengths, and a warm-up for each
- captions of up to 64 tokens, a batch of 1024
- mesh: fsdp over 16 chips
"""

import ml_collections

from configs.arguments import words
from configs.paper import models

STEPS = 500_000
REAL_STEPS = 250_000  # of the first of two stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:two_stages` for real pairs, then both; `:remat` computes activations again in the backward
    pass."""
    given = words(arg, ("two_stages", "remat"))
    rates, optimizer = {"real": 0.5, "synthetic": 0.5}, models.adamw()
    if "two_stages" in given:
        rates["synthetic"] = ((REAL_STEPS, 0.0), (REAL_STEPS, 0.5))
        optimizer |= {"restarts": (REAL_STEPS,)}
    return ml_collections.ConfigDict(
        {
            "model_name": "vlm",
            "model": {
                "tokenizer": models.tokenizer(),
                "vlm": models.vlm("full" if "remat" in given else "none"),
            },
            "pretrained": {"tokenizer": "", "language_model": ""},
            "data": {
                **models.pairs_data(1024),
                "folders": {"real": "", "synthetic": ""},
                "mixture": "real_synthetic",
                "rates": rates,
            },
            "optimizer": {
                **optimizer,
                "groups": ({"pattern": "^vlm/resampler/", "weight_decay": 0.0},),
            },
            "train": models.train(STEPS),
            "mesh": models.MESH,
        }
    )
