"""Captions of the balanced test pictures, scored against five references each.

    synth2 evaluate --config=configs/scenes/evaluate.py --workdir=WORKDIR/evaluation \\
        --config.vlm=WORKDIR/vlm_real --config.folder=WORKDIR/pairs/test

Hardware: 2 CPU cores.
Time: 7 seconds for 512 pictures.
Score: the VLM's.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "vlm": "",
            "folder": "",
            "decode": {"method": "beam", "num_beams": 3, "max_length": 24},
            "scenes_split": "test",
        }
    )
