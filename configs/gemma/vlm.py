"""A visual language model on a frozen Gemma 3 of 270M, 1B or 4B parameters.

    synth2 train --config=configs/gemma/vlm.py --workdir=WORKDIR/vlm \\
        --config.pretrained.tokenizer=WORKDIR/tokenizer \\
        --config.pretrained.language_model=GEMMA --config.data.vocabulary=FILE \\
        --config.data.folders.real=WORKDIR/pairs/real \\
        --config.data.folders.synthetic=WORKDIR/pairs/synthetic

`vlm.py:1b` and `vlm.py:4b` take the larger ones. GEMMA is the folder of an instruction-tuned
Gemma 3 (gemma-3-270m-it), of the package gemma or of Hugging Face; FILE its SentencePiece model.
The prompt is a user's turn in Gemma's chat format, and the caption is the model's.
`--config.data.source=fake` runs without any of them. Needs `pip install 'synth2-jax[gemma]'`.

Hardware: not run; parameters, gradients and Adam take 4 GB (`:270m`), 10 GB (`:1b`) and 30 GB
(`:4b`), over 1, 4 and 16 chips of a mesh's fsdp.
Time: not run at these sizes.
Score: not run at these sizes.

All else is as in configs/paper/vlm.py, where it says what was chosen. Chosen besides: a batch of
256 for 100,000 steps, cross-attention before every third layer (`:270m`) or every second.
"""

import ml_collections

from configs.gemma import models
from configs.paper import models as paper
from synth2_jax.captioners.prompts import CHAT_CAPTION_PROMPT

FSDP = {"270m": 1, "1b": 4, "4b": 16}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:270m`, as without a word, `:1b` or `:4b` is the size of the Gemma."""
    size = models.size(arg)
    return ml_collections.ConfigDict(
        {
            "model_name": "vlm",
            "model": {
                "tokenizer": paper.tokenizer(),
                "vlm": models.vlm(size),
                "text_length": models.TEXT_LENGTH,
            },
            "pretrained": {"tokenizer": "", "language_model": ""},
            "data": {
                "folders": {"real": "", "synthetic": ""},
                "mixture": "real_synthetic",
                "rates": {"real": 0.5, "synthetic": 0.5},
                "split": "train",
                "batch_size": 256,
                "vocabulary": "",
                "prompt": CHAT_CAPTION_PROMPT,
                "text_length": models.TEXT_LENGTH,
                "deal": "shards",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "schedule": "constant",
                "warmup_steps": 5000,
                "weight_decay": 0.1,
                "weight_decay_skip": ("^vlm/resampler/",),
                "clip_norm": 1.0,
            },
            "train": {"steps": 100_000, "log_every": 100, "checkpoint_every": 1000},
            "mesh": {"data": -1, "fsdp": FSDP[size]},
        }
    )
