"""OK-VQA validation, 5,046 questions whose published answers are stems ("ride" of "riding").

    synth2 evaluate --config=configs/evaluation/okvqa.py --workdir=WORKDIR/okvqa \\
        --config.vlm=WORKDIR/vlm --config.folder=WORKDIR/pairs_okvqa/val

The folder is what `synth2 tokenize` makes as configs/evaluation/vqav2.py says, of the files
OpenEnded_mscoco_val2014_questions.json and mscoco_val2014_annotations.json.

Hardware: any; images are split over all devices.
Time: not run at this size.
Score: VQA accuracy x100 of stems. Flamingo-3B reports 41.2 zero-shot.

Left open by the papers, and chosen: the stemmer (Snowball's English one, of answers and references;
needs the extra `okvqa`), the decoding as in configs/evaluation/vqav2.py.
"""

import ml_collections

from configs.evaluation import vqav2


def get_config() -> ml_collections.ConfigDict:
    config = vqav2.get_config()
    config.protocol.stem_answers = True
    return config
