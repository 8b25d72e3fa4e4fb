"""VQAv2 validation, 214,354 questions.

    synth2 evaluate --config=configs/evaluation/vqav2.py --workdir=WORKDIR/vqav2 \\
        --config.vlm=WORKDIR/vlm --config.folder=WORKDIR/pairs_vqav2/val

The folder is what `synth2 tokenize` makes with config.source.format=vqa,
config.source.questions=v2_OpenEnded_mscoco_val2014_questions.json,
config.source.path=v2_mscoco_val2014_annotations.json,
config.source.images=val2014/COCO_val2014_{image_id:012d}.jpg, config.source.answers=all and
config.splits=val: all ten answers are the references. Each question is the prompt of its image,
"Question: ... Answer:" (Flamingo). Examples as in configs/evaluation/coco.py, from the training
questions; an example is answered as most people did.

predictions.json is in the format of VQA's evaluation server.

Hardware: any; images are split over all devices.
Time: not run at this size.
Score: VQA accuracy x100, with the official answer normalization. Flamingo-3B reports 49.2
zero-shot.

Left open by the papers, and chosen: answers of up to 10 tokens, no length penalty.
"""

import ml_collections

from configs.evaluation import coco


def get_config() -> ml_collections.ConfigDict:
    config = coco.get_config()
    config.decode.max_length = 10
    config.decode.length_penalty = 0.0
    config.protocol.task = "vqa"
    return config
