"""METEOR by its authors' own program, which pycocoevalcap holds; needs Java."""

import importlib.util
import shutil
from collections.abc import Sequence

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.scoring import captions


def check_meteor() -> None:
    """UserError, saying what to install, unless METEOR can run here."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise UserError(
            "METEOR: needs the package pycocoevalcap; pip install 'synth2-jax[interop]'"
        )
    if shutil.which("java") is None:
        raise UserError(
            "METEOR: needs Java; found no program java, expected one such as OpenJDK 8+"
        )


def meteor(
    candidates: Sequence[captions.Caption], references: Sequence[Sequence[captions.Caption]]
) -> captions.Score:
    """METEOR 1.5 (Denkowski and Lavie, 2014): 0 to 1, with its stemmer, synonyms and paraphrases.

    Tokens are those of the other scores, joined by spaces; the program normalizes them itself.
    `corpus` pools statistics over images as pycocoevalcap's does, so it is not the mean.

    Raises:
      UserError: as `check_meteor`.
      ValueError: as `captions.score_captions`.
    """
    check_meteor()
    from pycocoevalcap.meteor.meteor import Meteor

    pairs = captions.Pairs.of(candidates, references)
    spoken = [" ".join(tokens) for tokens in pairs.candidates]
    known = [[" ".join(tokens) for tokens in group] for group in pairs.references]
    corpus, per_image = Meteor().compute_score(
        dict(enumerate(known)), {image: [text] for image, text in enumerate(spoken)}
    )
    return captions.Score(
        "meteor", corpus, np.array(per_image), f"{pairs.provenance}, df=none, by meteor-1.5.jar"
    )
