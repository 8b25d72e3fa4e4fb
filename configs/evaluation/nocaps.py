"""NoCaps validation, 4,500 images in three domains: in-domain, near-domain and out-domain.

    synth2 evaluate --config=configs/evaluation/nocaps.py --workdir=WORKDIR/nocaps \\
        --config.vlm=WORKDIR/vlm --config.folder=WORKDIR/pairs_nocaps/val

The folder is what `synth2 tokenize` makes with config.source.format=nocaps,
config.source.path=nocaps_val_4500_captions.json, config.source.images=IMAGES and
config.splits=val. Examples as in configs/evaluation/coco.py: they come from COCO.

Hardware: any; images are split over all devices.
Time: not run at this size.
Score: CIDEr x100 as cider, and of each domain as cider/in-domain and so on, against document
frequencies of that domain alone, as when the domains are scored as files of their own.
"""

import ml_collections

from configs.evaluation import coco


def get_config() -> ml_collections.ConfigDict:
    config = coco.get_config()
    config.protocol.by_domain = True
    return config
