"""A visual language model on a frozen Gemma 3 of 270M, 1B or 4B parameters.

    synth2 train --config=configs/gemma/vlm.py --workdir=WORKDIR/vlm \\
        --config.pretrained.tokenizer=WORKDIR/tokenizer \\
        --config.pretrained.language_model=GEMMA --config.data.vocabulary=FILE \\
        --config.data.folders.real=WORKDIR/pairs/real \\
        --config.data.folders.synthetic=WORKDIR/pairs/synthetic

`vlm.py:1b` and `vlm.py:4b` take the larger ones. GEMMA is the folder of an instruction-tuned
Gemma 3 (gemma-3-270m-it), of the package gemma or of Hugging Face; FILE its SentencePiece model.
The prompt is a user's turn in Gemma's chat format, and the caption is the model's.
`vlm.py:lora`, or `vlm.py:1b,lora`, adapts the Gemma by LoRA of rank 16 (chosen).
`--config.data.source=fake` runs without any of them. Needs `pip install 'synth2-jax[gemma]'`.

Hardware: not run; parameters, gradients and Adam take 4 GB (`:270m`), 10 GB (`:1b`) and 30 GB
(`:4b`), over 1, 4 and 16 chips of a mesh's fsdp.
Time: not run at these sizes.
Score: not run at these sizes.

All else is as in configs/paper/vlm.py, where it says what was chosen. Chosen besides: a batch of
256 for 100,000 steps, cross-attention before every third layer (`:270m`) or every second.
"""

import ml_collections

from configs.arguments import words
from configs.gemma import models
from configs.paper import vlm as paper
from synth2_jax.text.prompts import CHAT_CAPTION_PROMPT

FSDP = {"270m": 1, "1b": 4, "4b": 16}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:270m`, as without a word, `:1b` or `:4b` is the size of the Gemma; `:lora` adapts it."""
    given = words(arg, (*models.EVERY, "lora"))
    size = next((word for word in given if word != "lora"), "270m")
    config = paper.get_config()
    config.model.vlm = models.vlm(size)
    if "lora" in given:
        config.model.vlm.lora = {"rank": 16}
    config.data.text_length = models.TEXT_LENGTH
    config.data.prompt = CHAT_CAPTION_PROMPT
    config.data.batch_size = 256
    config.train.steps = 100_000
    config.mesh.fsdp = FSDP[size]
    return config
