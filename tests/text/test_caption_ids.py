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


CAPTIONS = [
    *("a red circle", "A large  blue square, left of a ring.", " spaces ", "日本 é 🎈", ""),
    "a red circle on the left of a blue square " * 3,
]
LENGTH = 12


def converted(model_name, **features):
    """What a feature converter makes of examples with these features."""
    examples = {
        "image_tokens": np.zeros((len(CAPTIONS), 1), np.int32),
        "caption": CAPTIONS,
        "source": ["real"] * len(CAPTIONS),
        "key": [str(i) for i in range(len(CAPTIONS))],
        **features,
    }
    lengths = {"image_tokens": 1, "caption": LENGTH, "source": 0, "key": 0}
    lengths |= dict.fromkeys(features, 0)
    converter = feature_converters.converter_class(model_name, examples)
    dataset = converter(tasks.sentencepiece("scenes"))(
        tf.data.Dataset.from_tensor_slices(examples), lengths
    )
    return list(dataset.as_numpy_iterator())


def test_text_ids_are_those_that_the_generator_is_trained_on():
    rows = converted("generator")
    ids = text_ids(CAPTIONS, load_vocabulary("scenes"), LENGTH)
    np.testing.assert_array_equal(ids, [row["text_tokens"] for row in rows])
    np.testing.assert_array_equal(ids != 0, [row["text_mask"] for row in rows])
    assert rows[-1]["text_mask"].all() and not rows[0]["text_mask"].all()  # one is cut, one padded


def test_vlm_text_is_what_the_vlm_is_trained_on():
    prompts = ["Output:", "Which?", *["Output:"] * (len(CAPTIONS) - 2)]
    rows = converted("vlm", prompt=prompts)
    text, mask = vlm_text(CAPTIONS, prompts, load_vocabulary("scenes"), LENGTH)
    np.testing.assert_array_equal(text, [row["text_tokens"] for row in rows])
    np.testing.assert_array_equal(mask, [row["loss_mask"] for row in rows])
