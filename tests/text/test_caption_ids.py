"""Captions as models read them: the same as data/feature_converters.py makes of pairs."""

import numpy as np

from synth2_jax.data import feature_converters, tasks
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.text.caption_ids import text_ids, vlm_text
from synth2_jax.text.vocabulary import EOS_ID, load_vocabulary


def test_text_ids_end_in_eos_and_are_padded_or_cut():
    vocabulary = load_vocabulary("scenes")
    ids = vocabulary.encode("a red circle")
    rows = text_ids(["a red circle", "a red circle " * 9], vocabulary, len(ids) + 2)
    assert rows[0].tolist() == [*ids, EOS_ID, 0]
    assert rows[1].tolist() == [*vocabulary.encode("a red circle " * 9)[: len(ids) + 1], EOS_ID]


def test_text_ids_are_those_that_the_generator_is_trained_on():
    captions = [
        *("a red circle", "A large  blue square, left of a ring.", " spaces ", "日本 é 🎈", ""),
        "a red circle on the left of a blue square " * 3,
    ]
    length = 12
    examples = {
        "image_tokens": np.zeros((len(captions), 1), np.int32),
        "caption": captions,
        "source": ["real"] * len(captions),
        "key": [str(i) for i in range(len(captions))],
    }
    converter = feature_converters.GeneratorConverter(tasks.sentencepiece("scenes"))
    converted = converter(
        tf.data.Dataset.from_tensor_slices(examples),
        {"image_tokens": 1, "caption": length, "source": 0, "key": 0},
    )
    rows = list(converted.as_numpy_iterator())
    ids = text_ids(captions, load_vocabulary("scenes"), length)
    np.testing.assert_array_equal(ids, [row["text_tokens"] for row in rows])
    np.testing.assert_array_equal(ids != 0, [row["text_mask"] for row in rows])
    assert rows[-1]["text_mask"].all() and not rows[0]["text_mask"].all()  # one is cut, one padded


def test_vlm_text_is_what_the_vlm_is_trained_on():
    texts = [
        *(("a red circle", ""), ("A large  blue square, left of a ring.", "Which?"), ("", "")),
        ("a red circle on the left of a blue square " * 3, ""),
    ]
    captions = [caption for caption, _ in texts]
    prompts = [prompt or "Output:" for _, prompt in texts]
    examples = {
        "image_tokens": np.zeros((len(texts), 1), np.int32),
        "prompt": prompts,
        "caption": captions,
        "source": ["real"] * len(texts),
        "key": [str(i) for i in range(len(texts))],
    }
    length = 12
    converter = feature_converters.VLMConverter(tasks.sentencepiece("scenes"))
    lengths = {"image_tokens": 1, "prompt": 0, "caption": length, "source": 0, "key": 0}
    dataset = tf.data.Dataset.from_tensor_slices(examples)
    rows = list(converter(dataset, lengths).as_numpy_iterator())
    text, mask = vlm_text(captions, prompts, load_vocabulary("scenes"), length)
    np.testing.assert_array_equal(text, [row["text_tokens"] for row in rows])
    np.testing.assert_array_equal(mask, [row["loss_mask"] for row in rows])
