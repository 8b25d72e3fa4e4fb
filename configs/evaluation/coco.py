"""COCO captions, the 5,000 images of Karpathy's test split.

    synth2 evaluate --config=configs/evaluation/coco.py --workdir=WORKDIR/coco \\
        --config.vlm=WORKDIR/vlm --config.folder=WORKDIR/pairs_coco/test

The folder is what `synth2 tokenize` makes with config.source.format=karpathy,
config.source.path=dataset_coco.json, config.source.images=IMAGES and config.splits=test. The prompt
is the VLM's own; Flamingo's, "Output:", is the default of training.

Flamingo's zero-shot, with two examples in the text alone: add --config.protocol.text_shots=2.
Few-shot, with four examples and their images: --config.protocol.shots=4. Examples are drawn from
--config.protocol.support=WORKDIR/pairs_coco/train, made with config.splits=train and
config.max_images=2048.

Hardware: any; images are split over all devices.
Time: not run at this size.
Score: CIDEr x100, which papers call CIDEr. Synth² reports 33.4 zero-shot, Flamingo-3B 73.0.

Left open by the papers, and chosen: a length penalty of 0.6, captions of up to 32 tokens.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "vlm": "",
            "folder": "",
            "batch_size": 128,
            "decode": {"method": "beam", "num_beams": 3, "max_length": 32, "length_penalty": 0.6},
            "document_frequencies": "",  # of a corpus for CIDEr: pairs or a COCO file of captions
            "more_scores": (),  # cider_plain, meteor
            "feature_model": "",  # FILE.py:FUNCTION, for CLIPScore
            "protocol": {"task": "caption", "shots": 0, "text_shots": 0, "support": "", "seed": 0},
        }
    )
