"""VQA accuracy with the answer normalization of the VQA challenge (Antol et al., arXiv 1505.00468).

Their script's habits are kept, since published numbers have them: answers are normalized only where
the people's answers to the question differ; where all say the same, the answer must be that, letter
by letter.

OK-VQA is scored by the same script (arXiv 1906.00067), but its published answers are stems: "ride"
of "riding", "build" of "buildings". Answers are then compared by the stems of their words, those of
the references too: stems of stems, since the data set's stemmer is not published.

Legend: B questions.
"""

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.scoring.captions import Score, span

ENOUGH = 3  # as many people make an answer right

_PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # of an answer; the script passes a flag in the place of the number
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(i) for i, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
# A word that lacks one of its apostrophes gets it back.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the script's own


def normalize(answer: str) -> str:
    """Lower case; no articles and punctuation; numbers to ten as digits; apostrophes put back.

    >>> normalize("The two dogs, dont they?")
    "2 dogs don't they"
    """
    text = _cleaned(answer)
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    without = text
    for mark in _PUNCTUATION:
        at_a_space = f"{mark} " in text or f" {mark}" in text
        without = without.replace(mark, "" if at_a_space or has_number else " ")
    words = _PERIOD.sub("", without, count=_MOST_PERIODS).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@functools.cache
def load_stemmer() -> Callable[[str], str]:
    """Word -> stem, by Snowball's English stemmer (Porter2); UserError without its package."""
    try:
        import snowballstemmer
    except ImportError as error:
        raise UserError(
            "stem_answers: needs the package snowballstemmer; pip install 'synth2-jax[okvqa]'"
        ) from error
    return snowballstemmer.stemmer("english").stemWord


def vqa_accuracy(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, stem: bool = False
) -> Score:
    """Mean over people of min(others who gave the answer / 3, 1): 0 to 1.

    Each question has one answer, and as references those of people, ten in the data sets. `stem`
    compares words by their stems, as OK-VQA's are.

    Raises:
      UserError: as `load_stemmer`.
      ValueError: no questions, counts that differ, or a question with fewer than two answers.
    """
    if len(answers) != len(references) or not answers:
        raise ValueError(f"{len(answers)} answers, but references of {len(references)} questions")
    for number, group in enumerate(references):
        if isinstance(group, str) or len(group) < 2:
            raise ValueError(
                f"references[{number}] is {group!r}, expected the answers of several people"
            )
    stemmed, of_stems = (_stems, ", Snowball stems") if stem else (str, "")
    pairs = zip(answers, references, strict=True)
    per_question = np.array([_accuracy(answer, group, stemmed) for answer, group in pairs])
    provenance = (
        f"tokenizer=VQA answer normalization{of_stems}, questions={len(answers)}, "
        f"answers per question={span(references)}, df=none"
    )
    return Score("vqa_accuracy", float(per_question.mean()), per_question, provenance)


def _accuracy(answer: str, group: Sequence[str], stemmed: Callable[[str], str]) -> float:
    answer, group = _cleaned(answer), [_cleaned(reference) for reference in group]
    if len(set(group)) > 1:
        answer, group = normalize(answer), [normalize(reference) for reference in group]
    answer = stemmed(answer)
    matches = [stemmed(reference) == answer for reference in group]
    # Each person is left out once.
    return float(np.mean([min(1.0, (sum(matches) - match) / ENOUGH) for match in matches]))


@functools.lru_cache(maxsize=1 << 16)
def _stems(answer: str) -> str:
    return " ".join(map(load_stemmer(), answer.split()))


def _cleaned(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
