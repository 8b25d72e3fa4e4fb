"""METEOR by its authors' own program, which pycocoevalcap holds; needs Java."""

import importlib.util
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.scoring.captions import Pairs, Score, Tokens

_JAR = "meteor-1.5.jar"
# The program writes and reads numbers and letters as the machine's language and encoding have them.
_JAVA = ("java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-Xmx2G")
_SEPARATOR = " ||| "  # of the parts of a line
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


def meteor(pairs: Pairs) -> Score:
    """METEOR 1.5 (Denkowski and Lavie, 2014): 0 to 1, with its stemmer, synonyms and paraphrases.

    Tokens are those of the other scores, joined by spaces; the program normalizes them itself.
    `corpus` pools statistics over images as pycocoevalcap's does, so it is not the mean.

    Raises:
      UserError: as `check_meteor`; the program fails, hangs or answers something else.
    """
    check_meteor()
    lines = [_SEPARATOR.join(["SCORE", *map(_spoken, (*group, text))]) for text, group in pairs]
    statistics = _answers(lines, len(lines))
    *per_image, corpus = _answers([_SEPARATOR.join(["EVAL", *statistics])], len(lines) + 1)
    try:
        per_image, corpus = np.array(per_image, np.float64), float(corpus)
    except ValueError as error:
        raise UserError(f"METEOR: found {error}, expected numbers from {_JAR}") from error
    return Score("meteor", corpus, per_image, f"{pairs.provenance}, df=none, by {_JAR}")


def _spoken(tokens: Tokens) -> str:
    return " ".join(" ".join(tokens).replace(_SEPARATOR.strip(), "").split())


def _answers(lines: Sequence[str], num_answers: int) -> list[str]:
    """Returns the lines that the program prints.

    It is run for each question: with one that stays, two programs could wait for each other.

    Raises:
      UserError: it does not end in time, fails, or prints another number of lines.
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
