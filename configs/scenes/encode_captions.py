"""The captions of Scenes, encoded once by the text encoder of a trained generator.

    synth2 encode_captions --config=configs/scenes/encode_captions.py --workdir=WORKDIR/encoded \\
        --config.pairs=WORKDIR/pairs/real --config.text_encoder=WORKDIR/generator

A generator is trained on them with `--config.model.freeze_text_encoder=true`,
`--config.model.stored_text_features=true` and `--config.pretrained.text_encoder=WORKDIR/generator`.

Hardware: 2 CPU cores.
Time: a few seconds.
Score: none.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"pairs": "", "text_encoder": ""})
