"""The whole of Synth² on one machine; `launch/demo.sh` runs it.

    synth2 demo --config=configs/scenes/demo.py --workdir=workdir/demo

Hardware: 2 CPU cores, 6 GiB of memory.
Time: 11 to 20 minutes, the first installation included.
Score: see docs/science.md, which holds the last measured run.
"""

import ml_collections

from configs.scenes import (
    captions,
    evaluate,
    generator,
    language_model,
    synthesize,
    tokenize,
    tokenizer,
    vlm,
)

CURVE_POINTS = 12
REAL_PAIRS = 500  # so few that synthetic pairs help by far more than what seeds differ
GENERATOR_STEPS = 1200


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:tiny` runs every stage for a few steps; its numbers mean nothing."""
    vlm_config = vlm.get_config(arg)
    vlm_config.train.eval_every = max(1, vlm_config.train.steps // CURVE_POINTS)
    vlm_config.validation = {
        "captions": {
            "folder": "",
            "max_images": 16 if arg == "tiny" else 256,
            "decode": {"method": "greedy", "max_length": 24},
            "scenes_split": "test",
        }
    }
    tokenize_config = tokenize.get_config()
    # The curve is on test pictures, too: `validation` is drawn as `real` is and shows none of the
    # combinations that the arms are compared on. Nothing is chosen by the curve.
    tokenize_config.splits = ("real", "test")
    config = ml_collections.ConfigDict(
        {
            "tiny": arg == "tiny",
            "seed": 0,
            "real_pairs": 0 if arg == "tiny" else REAL_PAIRS,
            "tokenizer": tokenizer.get_config(arg),
            "language_model": language_model.get_config(arg),
            "tokenize": tokenize_config,
            "captions": captions.get_config(arg),
            "generator": generator.get_config(arg),
            "synthesize": synthesize.get_config(),
            "vlm": vlm_config,
            "evaluate": evaluate.get_config(),
        }
    )
    if arg != "tiny":
        config.generator.train.steps = GENERATOR_STEPS
    else:
        config.tokenize.max_images = 64
        config.captions.max_rounds = 1
    return config
