"""The demo's comparison over three seeds and six arms, with a generator trained for longer.

    synth2 study --config=configs/scenes/study.py --workdir=workdir/study

`--config.study.share_generator=True` trains one generator for all seeds; `--config.study.arms` and
`--config.study.seeds` choose, and what is there already is kept.

Hardware: 2 CPU cores.
Time: 15 minutes a generator, 5 minutes an arm and seed.
Score: see docs/science.md.
"""

import ml_collections

from configs.scenes import demo

GENERATOR_STEPS = 4000
VLM_STEPS = 2000  # by then real-only reads the combinations it was shown as well as any arm


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:tiny` runs every arm for a few steps; its numbers mean nothing."""
    config = demo.get_config(arg)
    if arg != "tiny":
        config.generator.train.steps = GENERATOR_STEPS
        config.vlm.train.steps = VLM_STEPS
        config.vlm.train.eval_every = VLM_STEPS // demo.CURVE_POINTS
    config.study = {
        "seeds": (0, 1) if arg == "tiny" else (0, 1, 2),
        "arms": (
            "real",
            "real_synthetic",
            "synthetic",
            "captions_only",
            "shuffled",
            "rendered",
        ),
        "share_generator": False,
    }
    return config
