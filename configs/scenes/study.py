"""The demo's comparison over three seeds and more arms, on all 1,500 real pictures, with longer
training.

    synth2 study --config=configs/scenes/study.py --workdir=workdir/study

Without a word it is the main comparison and its controls. Words behind the file's name choose what
is compared, as `--config=configs/scenes/study.py:curve`, or several with commas:

    curve     real pairs alone, and real + synthetic, over numbers of real pictures
    captions  caption sets: balanced, classes as often as in the real pairs, and theirs alone
    stages    real pairs first, then real + synthetic, in one run and in two
    tuning    the language model frozen, adapted by LoRA, and trained too
    all       every arm, and the curve
    tiny      a few steps of each; the numbers mean nothing

`--config.study.arms`, `--config.study.seeds` and `--config.study.real_pairs` choose freely;
`--config.study.share_generator=True` trains one generator for all seeds. What is in the workdir
already is kept.

Hardware: 2 CPU cores.
Time: 11 minutes a generator, 5 minutes an arm and seed; 18 for `real_longer`.
Score: see docs/science.md.
"""

import ml_collections

from configs.arguments import words
from configs.scenes import demo

GENERATOR_STEPS = 4000
VLM_STEPS = 4000  # with the demo's 1,600 the arms that see new combinations are not done learning
COMPARED = ("real", "real_synthetic")
CONTROLS = ("synthetic", "captions_only", "shuffled", "text_only", "rendered", "real_longer")
ARMS = {
    "curve": (),
    "captions": ("natural", "real_captions"),
    "stages": ("two_stages", "pretrain_then_mix"),
    "tuning": ("lora", "whole"),
}
ARMS["all"] = (*CONTROLS, *ARMS["captions"], *ARMS["stages"], *ARMS["tuning"], "pixel")
CURVE = (94, 375, 1500, 3000)  # a factor of 32


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Words: curve, captions, stages, tuning, all, tiny; see above."""
    given = words(arg, (*ARMS, "tiny"))
    tiny = "tiny" in given
    config = demo.get_config("tiny" if tiny else "")
    config.real_pairs = 0  # all 1,500
    if not tiny:
        config.generator.train.steps = GENERATOR_STEPS
        config.vlm.train.steps = VLM_STEPS
        config.vlm.train.eval_every = VLM_STEPS // demo.CURVE_POINTS
    chosen = [word for word in given if word != "tiny"]
    more = [arm for word in chosen for arm in ARMS[word]] if chosen else CONTROLS
    has_curve = "curve" in chosen or "all" in chosen
    config.study = {
        "seeds": (0, 1) if tiny else (0, 1, 2),
        "arms": tuple(dict.fromkeys((*COMPARED, *more))),
        "more_arms": {},
        "real_pairs": ((32, 64) if tiny else CURVE) if has_curve else (),
        "curve_arms": COMPARED if has_curve else (),
        "share_generator": False,
    }
    return config
