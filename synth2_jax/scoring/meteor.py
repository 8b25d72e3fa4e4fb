"""METEOR by its authors' own program, which pycocoevalcap holds; needs Java."""

import importlib.util
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.scoring import captions

_JAR = "meteor-1.5.jar"
# The program writes and reads numbers and letters as the machine's language and encoding have them.
_JAVA = ("java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-Xmx2G")
_SEPARATOR = "|||"  # of the parts of a line
_START_SECONDS, _SECONDS_PER_LINE = 300, 1  # before the program counts as hanging


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
      UserError: as `check_meteor`; the program fails, hangs or answers something else.
      ValueError: as `captions.score_captions`.
    """
    check_meteor()
    pairs = captions.Pairs.of(candidates, references)
    texts = [[*group, text] for text, group in zip(pairs.candidates, pairs.references, strict=True)]
    statistics = _answers([_line("SCORE", *map(_spoken, text)) for text in texts], len(texts))
    *per_image, corpus = _answers([_line("EVAL", *statistics)], len(texts) + 1)
    try:
        per_image, corpus = np.array(per_image, np.float64), float(corpus)
    except ValueError as error:
        raise UserError(f"METEOR: found {error}, expected numbers from {_JAR}") from error
    return captions.Score("meteor", corpus, per_image, f"{pairs.provenance}, df=none, by {_JAR}")


def _spoken(tokens: captions.Tokens) -> str:
    return " ".join(" ".join(tokens).replace(_SEPARATOR, "").split())


def _line(*parts: str) -> str:
    return f" {_SEPARATOR} ".join(parts)


def _answers(lines: Sequence[str], num_answers: int) -> list[str]:
    """The lines that the program answers. It ends when its input does, so it cannot be waited for.

    It is started for each of the two questions, because two programs that wait for each other's
    pipes are what hangs.
    """
    (package, *_) = importlib.util.find_spec("pycocoevalcap").submodule_search_locations
    command = [*_JAVA, "-jar", _JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    limit = _START_SECONDS + _SECONDS_PER_LINE * num_answers
    try:
        done = subprocess.run(
            command,
            cwd=pathlib.Path(package, "meteor"),
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"METEOR: {_JAR} has not ended within {limit} s") from error
    found = done.stdout.splitlines()
    if done.returncode or len(found) != num_answers:
        said = " ".join(done.stderr.split())
        raise UserError(
            f"METEOR: {_JAR} ended with exit code {done.returncode} and {len(found)} lines, "
            f"expected {num_answers}; it says: {said[-300:]}"
        )
    return found
