"""Scores against pycocoevalcap's own on equal tokens: random and adversarial sets of captions."""

import collections
import importlib.machinery
import importlib.metadata
import os
import shutil
import warnings

import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.scoring import captions, meteor

NUM_SETS, LIMIT = 1000, 1e-6
UNICODE = ("café", "ñandú", "日本語", "犬", "Москва", "❤", "🐶", "ﬁ", "e\u0301", "ß", "İ")


def caption_set(rng):
    """(candidates, references) of a few images; each set is of its own kind."""
    words = [f"w{i}" for i in range(rng.integers(2, 40))]
    if rng.random() < 0.2:
        words = UNICODE
    longest = rng.choice([3, 12, 12, 12, 25])

    def caption():
        kind = rng.random()
        if kind < 0.1:
            return []
        if kind < 0.2:
            return [words[0]] * rng.integers(1, 15)
        if kind < 0.21:
            return [words[i] for i in rng.integers(0, len(words), 150)]
        return [words[i] for i in rng.zipf(1.4, rng.integers(1, longest + 1)) % len(words)]

    most = rng.choice([1, 5, 5, 30], p=[0.3, 0.3, 0.35, 0.05])
    references = [
        [caption() for _ in range(rng.integers(1, most + 1))] for _ in range(rng.integers(1, 6))
    ]
    if not any(token for group in references for token in group):
        references[0][0] = [words[0]]  # pycocoevalcap takes the largest of all frequencies
    # Half of the candidates begin as a reference does, so that long n-grams match too.
    candidates = [
        caption() if rng.random() < 0.5 else group[0][:9] + caption()[:3] for group in references
    ]
    return candidates, references


def theirs(candidates, references):
    """{name: (corpus, per image)} by pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    res = {i: [" ".join(caption)] for i, caption in enumerate(candidates)}
    gts = {i: [" ".join(caption) for caption in group] for i, group in enumerate(references)}
    bleu = zip(*Bleu(4).compute_score(gts, res, verbose=0), strict=True)
    return {
        "cider_d": Cider().compute_score(gts, res),
        "cider_d_sigma_2": Cider(sigma=2.0).compute_score(gts, res),
        # Without a penalty, which clips what only a candidate's repeated n-grams have.
        "cider_without_penalty": Cider(sigma=1e12).compute_score(gts, res),
        "rouge_l": Rouge().compute_score(gts, res),
        **{f"bleu{k + 1}": score for k, score in enumerate(bleu)},
    }


def ours(candidates, references):
    pairs = captions.Pairs(candidates, references)
    # Of candidates that repeat nothing, there is nothing to clip.
    unique = [list(dict.fromkeys(candidate)) for candidate in candidates]
    scores = {
        "cider_d": captions.cider_d(pairs),
        "cider_d_sigma_2": captions.cider_d(pairs, sigma=2.0),
        "rouge_l": captions.rouge_l(pairs),
        **{score.name: score for score in captions.bleu(pairs)},
    }
    plain = captions.cider_plain(captions.Pairs(unique, references))
    return scores, plain, unique


@pytest.mark.interop
def test_scores_are_pycocoevalcaps(parity):
    rng = np.random.default_rng(0)
    worst = collections.defaultdict(float)

    def compare(name, score, expected):
        corpus, per_image = expected
        differences = np.abs(score.per_image - np.array(per_image)), abs(score.corpus - corpus)
        worst[name] = max(worst[name], *map(np.max, differences))

    for _ in range(NUM_SETS):
        candidates, references = caption_set(rng)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "CIDEr is 0")  # of one image
            scores, plain, unique = ours(candidates, references)
            expected = theirs(candidates, references)
        for name, score in scores.items():
            compare(name, score, expected[name])
        compare("cider_plain", plain, theirs(unique, references)["cider_without_penalty"])
    version = importlib.metadata.version("pycocoevalcap")
    for name, difference in worst.items():
        of, without = ", images and corpus", ""
        if name == "cider_plain":
            of, without = " that repeat no word", " without its penalty"
        what = f"{name} of {NUM_SETS} sets of captions{of}"
        parity(what, f"pycocoevalcap {version}{without}", "max abs difference", difference, LIMIT)


@pytest.mark.interop
def test_meteor_is_pycocoevalcaps(parity, monkeypatch):
    if shutil.which("java") is None:
        pytest.fail("this test needs Java: install a JRE such as openjdk-17-jre-headless")
    from pycocoevalcap.meteor.meteor import Meteor

    # A machine whose numbers have decimal commas and whose letters are not UTF-8.
    machine = "-Duser.language=de -Duser.country=DE -Dfile.encoding=ISO-8859-1"
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", machine)
    texts = ["a dog runs on the beach", "", "two cats sit", "a café with ñandús", "dog dog dog dog"]
    known = [
        ["the dog is running by the sea", "a brown dog on sand"],
        ["a man"],
        ["a pair of kittens sitting"],
        ["a coffee shop with birds", "the café"],
        ["one dog"],
    ]
    tokens, references = [t.split() for t in texts], [[r.split() for r in g] for g in known]
    score = meteor.meteor(captions.Pairs(tokens, references))
    of_strings = meteor.meteor(captions.Pairs(texts, known))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    corpus, per_image = Meteor().compute_score(
        dict(enumerate(known)), {i: [text] for i, text in enumerate(texts)}
    )
    difference = max(abs(score.corpus - corpus), np.abs(score.per_image - per_image).max())
    version = importlib.metadata.version("pycocoevalcap")
    parity("METEOR", f"pycocoevalcap {version}", "max abs difference", difference, 0)
    assert score.per_image[0] > 0.1 > score.per_image[1] == 0
    assert "tokenizer=given tokens, images=5, references per image=1-2" in score.provenance
    assert of_strings.corpus == pytest.approx(corpus)  # strings get our tokens


def test_without_java_or_its_package_meteor_says_what_to_install(monkeypatch):
    monkeypatch.setattr(meteor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package pycocoevalcap; pip install"):
        meteor.meteor(captions.Pairs(["a"], [["a"]]))
    monkeypatch.setattr(meteor.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs Java; found no program java"):
        meteor.meteor(captions.Pairs(["a"], [["a"]]))


@pytest.mark.parametrize(
    "java, message",
    [
        ("echo Unable to allocate heap >&2; exit 1", "exit code 1 and 0 lines, .*allocate heap"),
        ("cat > /dev/null; echo 1", "exit code 0 and 1 lines, expected 2; it says"),
        ("cat > /dev/null; echo 0,5; echo 0,5; echo 0,5", "exit code 0 and 3 lines, expected 2"),
        ("sleep 60", "has not ended within 0.2 s"),
        (
            "read line; cat > /dev/null; echo 0,5; echo 0,5; [ ${line%% *} = SCORE ] || echo 0,5",
            "could not convert string to float: .*0,5.*expected numbers",
        ),
    ],
)
def test_a_meteor_that_fails_is_one_line(monkeypatch, tmp_path, java, message):
    program = tmp_path / "java"
    program.write_text(f"#!/bin/sh\n{java}\n")
    program.chmod(0o755)
    (tmp_path / "meteor").mkdir()
    spec = importlib.machinery.ModuleSpec("pycocoevalcap", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(meteor.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(meteor, "_START_SECONDS", 0.2 if java == "sleep 60" else 60)
    monkeypatch.setattr(meteor, "_SECONDS_PER_LINE", 0)
    with pytest.raises(UserError, match=f"^METEOR: .*{message}") as error:
        meteor.meteor(captions.Pairs(["a", "b"], [["a"], ["b"]]))
    assert len(str(error.value).splitlines()) == 1
