"""The synthetic pairs whose captions find their image best, by a VLM trained on real pairs alone.

    synth2 filter --config=configs/scenes/filter.py --workdir=WORKDIR/pairs/filtered \\
        --config.folder=WORKDIR/pairs/synthetic --config.vlm=WORKDIR/vlm_real

Train on the view by `--config.data.folders.synthetic=WORKDIR/pairs/filtered`. All scores at once:
`--config.scores=likelihood_ratio,caption,cycle --config.generator=WORKDIR/generator`; `by` says
which of them decides. `--config.action=repair` gives captions other images of their pool instead.

Hardware: 2 CPU cores.
Time: 2 minutes for 4,500 pairs; 15 seconds by "caption" or "likelihood_ratio".
Score: objects right 76 % of the better half, 68 % of all pairs.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "folder": "",
            "generator": "",
            "vlm": "",
            "scores": ("cycle",),
            "by": "cycle",
            "keep": 0.5,
            "action": "drop",
            # Visible tokens tell most of the others: with all masked, the caption alone does.
            "likelihood_ratio": {"mask_ratios": (1.0,), "draws_per_ratio": 1},
            "cycle": {"pool_size": 64},
        }
    )
