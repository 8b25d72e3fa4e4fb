"""The visual language model of Scenes, on real pairs alone or mixed with synthetic ones.

    synth2 train --config=configs/scenes/vlm.py --workdir=WORKDIR/vlm_real \\
        --config.pretrained.tokenizer=WORKDIR/tokenizer \\
        --config.pretrained.language_model=WORKDIR/language_model \\
        --config.data.folders.real=WORKDIR/pairs/real

`vlm.py:mixture` takes `--config.data.folders.synthetic=WORKDIR/pairs/synthetic` besides, and draws
half of each batch from either. `vlm.py:interleaved` puts three pairs into one text, which prepares
the VLM for few-shot evaluation; `vlm.py:mixture,interleaved` does both. `vlm.py:two_stages` takes
the folders of `vlm.py:mixture`, and trains on real pairs alone for the first half of the steps,
then on the mixture; the learning rate warms up for both. `vlm.py:modules` reads no folders but a
mixture of yours: `--config.data.modules=my_tasks --config.data.mixture=my_mixture`. `vlm.py:lora`
adapts the frozen language model by LoRA; `vlm.py:whole` trains it too, at a tenth of the learning
rate.

Hardware: 2 CPU cores.
Time: 1 to 1.5 minutes, curve included.
Score: CIDEr 230 on the 1,500 real pictures (one seed); on 500 of them 202, and 222 with synthetic
pairs of a generator of 1,200 steps (means of five and four seeds).
"""

import ml_collections

from configs.arguments import words
from configs.scenes import models

STEPS = 1600
BATCH_SIZE = 32  # more updates of fewer pairs: 7 CIDEr more than 800 updates of 64
SYNTHETIC_SHARE = 0.5
REAL_STEPS = 800  # of the first of two stages
IMAGES_PER_TEXT = 3  # when interleaved: the last caption follows two examples


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:mixture` for real and synthetic pairs, `:two_stages` for real pairs, then both; `:modules`
    for a mixture of your own; `:interleaved` for several images a text; `:lora` or `:whole` for the
    language model; `:tiny` trains a few steps only; several as `:mixture,tiny`."""
    known = ("mixture", "two_stages", "modules", "interleaved", "lora", "whole", "tiny")
    given = words(arg, known)
    steps, real_steps = (20, 10) if "tiny" in given else (STEPS, REAL_STEPS)
    data = {**models.pairs_data(), "batch_size": BATCH_SIZE}
    optimizer = models.optimizer(1e-3, steps, weight_decay=0.03)
    # A gate starts at 0 and moves by the learning rate a step: in so few steps it would stay shut.
    optimizer["groups"] = ({"pattern": "_gate$", "learning_rate_factor": 10.0},)
    if "modules" in given:
        data |= {"folders": {}, "modules": "", "mixture": ""}
    elif "mixture" in given or "two_stages" in given:
        data["folders"]["synthetic"] = ""
        data["mixture"] = "real_synthetic"
        data["rates"] = {"real": 1 - SYNTHETIC_SHARE, "synthetic": SYNTHETIC_SHARE}
    if "two_stages" in given:
        data["rates"]["synthetic"] = ((real_steps, 0.0), (real_steps, SYNTHETIC_SHARE))
        optimizer |= {"restarts": (real_steps,), "warmup_steps": min(50, real_steps // 2)}
    if "interleaved" in given:  # about as many pairs a step
        data["images_per_text"] = IMAGES_PER_TEXT
        data["batch_size"] = BATCH_SIZE // IMAGES_PER_TEXT + 1
    model = {"tokenizer": models.tokenizer(), "vlm": models.vlm()}
    if "lora" in given:
        model["vlm"]["lora"] = {"rank": 8}
    if "whole" in given:
        model["freeze"] = ("^tokenizer/",)
        slow = {"pattern": "^vlm/language_model/", "learning_rate_factor": 0.1}
        optimizer["groups"] += (slow,)
    return ml_collections.ConfigDict(
        {
            "model_name": "vlm",
            "model": model,
            "pretrained": {"tokenizer": "", "language_model": ""},
            "data": data,
            "optimizer": optimizer,
            "train": models.train(steps, microbatches=1),
        }
    )
