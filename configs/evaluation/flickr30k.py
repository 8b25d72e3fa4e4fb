"""Flickr30k, the 1,000 images of Karpathy's test split.

    synth2 evaluate --config=configs/evaluation/flickr30k.py --workdir=WORKDIR/flickr30k \\
        --config.vlm=WORKDIR/vlm --config.folder=WORKDIR/pairs_flickr30k/test

The folder is what `synth2 tokenize` makes with config.source.format=karpathy,
config.source.path=dataset_flickr30k.json, config.source.images=IMAGES and config.splits=test.
Examples as in configs/evaluation/coco.py, from this data set's own training split.

Hardware: any; images are split over all devices.
Time: not run at this size.
Score: CIDEr x100. Flamingo-3B reports 60.6 zero-shot.
"""

import ml_collections

from configs.evaluation import coco


def get_config() -> ml_collections.ConfigDict:
    return coco.get_config()
