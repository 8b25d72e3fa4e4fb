"""Tests of caption embeddings: the built-in one, and that of a sentence model."""

import collections
import os
import subprocess
import sys
import types
import zlib

import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.scoring import caption_embedding, words
from synth2_jax.scoring.caption_embedding import (
    EmbeddingConfig,
    embed_captions,
    sentence_transformer,
)

CAPTIONS = [
    *(
        f"a {size} {animal} in the grass"
        for size in ("small", "large")
        for animal in ("dog", "cat")
    ),
    *("A small dog, in the grass!", "", "...", "a dog, a dog and a dog", "\ud800 dog", "dogs"),
    *("two slices of pizza on a plate", "three slices of bread on a plate"),
]


def run_python(code, **env):
    """What a new process prints."""
    path = os.pathsep.join(["", *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_embedding_is_the_same_in_another_process():
    printed = run_python(  # Python's own hash of a string is not
        "from synth2_jax.scoring.caption_embedding import embed_captions;"
        "print(repr(float(embed_captions(['a red dog', 'two cats'])[0, 0])))",
        PYTHONHASHSEED="123",
    )
    assert float(printed) == float(embed_captions(["a red dog", "two cats"])[0, 0])


def slow_embedding(captions, config):
    """The definition, caption by caption."""
    projection = np.random.default_rng(config.seed).standard_normal(
        (config.num_buckets, config.dim)
    )

    def bags(features_of):
        return [
            collections.Counter(
                zlib.crc32(f.encode("utf-8", "surrogatepass")) % config.num_buckets
                for f in features_of(c)
            )
            for c in captions
        ]

    def word_features(caption):
        tokens = words.tokenize(caption)
        for order in config.word_orders:
            for i in range(len(tokens) - order + 1):
                yield "w" + " ".join(tokens[i : i + order])

    def char_features(caption):
        for token in words.tokenize(caption):
            for order in config.char_orders:
                for i in range(len(token) + 2 - order + 1):
                    yield "c" + f"<{token}>"[i : i + order]

    embeddings = np.zeros((len(captions), config.dim))
    for kind in (bags(word_features), bags(char_features)):
        bags_with = collections.Counter(bucket for bag in kind for bucket in bag)
        for row, bag in enumerate(kind):
            weights = np.zeros(config.num_buckets)
            for bucket, count in bag.items():
                weights[bucket] = count * (1 + np.log(len(captions) / bags_with[bucket]))
            if bag:
                embeddings[row] += weights / np.linalg.norm(weights) @ projection
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(norms > 0, norms, 1)


@pytest.mark.parametrize("block", [5, 4096])
def test_embedding_is_what_its_definition_gives(monkeypatch, block):
    monkeypatch.setattr(caption_embedding, "_BLOCK", block)
    config = EmbeddingConfig(dim=16, num_buckets=64)  # few buckets, so that features share them
    found = embed_captions(CAPTIONS, config)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_embedding(CAPTIONS, config), atol=1e-5)
    norms = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(norms, [c not in ("", "...") for c in CAPTIONS], atol=1e-5)


def test_no_words_at_all_is_no_error():
    np.testing.assert_array_equal(embed_captions(["", "..."]), np.zeros((2, 256)))


@pytest.mark.slow
def test_a_hundred_thousand_captions_take_less_than_two_gibibytes():
    # A million words by Zipf's law, which no cluster fits: k-means takes as many steps as it can.
    code = """
import pathlib, re
import numpy as np
from synth2_jax.scoring.diversity import balance

rng = np.random.default_rng(0)
chance = 1 / np.arange(1, 30_001)
drawn = rng.choice(30_000, (100_000, 10), p=chance / chance.sum())
balance({"all": [" ".join(f"w{i:x}" for i in row) for row in drawn.tolist()]})
# Not ru_maxrss, which begins with what the process had that this one was forked from.
print(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""
    printed = run_python(code)
    assert 0.1 < int(printed) / 2**20 < 2  # GiB


# A sentence model.


@pytest.fixture
def fake_package(monkeypatch):
    """A package that knows the model "known": lengths of captions, with what encode was asked."""
    asked = []

    class SentenceTransformer:
        def __init__(self, name):
            if name != "known":
                raise OSError(f"{name} is not a local folder\nand not a model")

        def encode(self, sentences, **options):
            asked.append((sentences, options))
            return np.array([[3.0 * len(s), 4.0 * len(s)] for s in sentences])

    module = types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return asked


def test_a_sentence_model_gives_unit_rows_in_the_order_of_the_captions(fake_package):
    captions = [*("x" * (i % 7) for i in range(40)), "\ud800 dog"]
    found = sentence_transformer("known", batch_size=2)(captions)
    assert found.dtype == np.float32 and found.shape == (41, 2)
    expected = [[0.6, 0.8] if caption else [0, 0] for caption in captions]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    asked = [s for sentences, _ in fake_package for s in sentences]
    assert asked == [*captions[:-1], "? dog"]  # which tokenizers can encode
    assert {options["batch_size"] for _, options in fake_package} == {2}


def test_a_sentence_model_that_is_not_there_is_one_line(fake_package):
    with pytest.raises(UserError, match="embedding 'other': cannot be loaded, .* folder and not"):
        sentence_transformer("other")


def test_without_the_package_the_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        sentence_transformer("any")
