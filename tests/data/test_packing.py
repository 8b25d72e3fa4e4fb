"""Several pairs in one text: what a batch then holds, and that few-shot prompts are written alike.

Legend: B texts, I images a text, N image tokens, T text tokens of a pair, P of a text.
"""

import dataclasses

import numpy as np
import pytest

from synth2_jax.data import pipeline, records
from synth2_jax.data.packing import pack
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.references import ReferencedImage
from synth2_jax.evaluation import protocol
from synth2_jax.testing.batches import assert_same, layouts, take
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.caption_ids import vlm_text
from synth2_jax.text.vocabulary import load_vocabulary

pytestmark = pytest.mark.usefixtures("clean_registry")

PACKED = {"images_per_text": 2, "batch_size": 4}


def pairs_of(texts, masks, **more):
    texts_BT = np.array(texts, np.int32)
    return {"text_tokens": texts_BT, "loss_mask": np.array(masks, bool), **more}


def test_a_packed_text():
    """Prompt 7, end 1; four pairs in two texts."""
    batch = pairs_of(
        [[7, 4, 1, 0], [7, 5, 6, 1], [7, 8, 9, 1], [7, 3, 2, 1]],
        [[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]],
        image_tokens=np.array([[10], [11], [12], [13]], np.int32),
        is_synthetic=np.array([False, True, True, True]),
    )
    expected = {
        "text_tokens": [[7, 4, 1, 0, 7, 5, 6, 1, 0], [7, 8, 9, 1, 0, 7, 3, 2, 1]],
        "loss_mask": [[0, 1, 1, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0, 1, 1, 1]],
        "image_of_text": [[1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2, 2, 2]],
        "image_tokens": [[[10], [11]], [[12], [13]]],
        "is_synthetic": [[False, True], [True, True]],
    }
    found = pack(batch, 2)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert found["text_tokens"].dtype == found["image_of_text"].dtype == np.int32


@pytest.mark.parametrize("images_per_text", [1, 2, 3, 5])
def test_packing_against_lists(images_per_text):
    rng = np.random.default_rng(images_per_text)
    longest, count = 6, 4 * images_per_text
    texts, masks = [], []
    for _ in range(count):
        length, prompt = rng.integers(2, longest + 1), rng.integers(0, 2)
        ids = [*rng.integers(2, 30, length - 1).tolist(), 1]
        texts.append(ids + [0] * (longest - length))
        masks.append([prompt <= place < length for place in range(longest)])
    batch = pairs_of(texts, masks, is_synthetic=rng.random(count) < 0.5)
    found = pack(batch, images_per_text)
    if images_per_text == 1:
        assert_same([found], [batch])
        return
    width = images_per_text * (longest + 1) - 1
    for row in range(4):
        tokens, mask, image = [], [], []
        for number in range(images_per_text):
            pair = row * images_per_text + number
            length = sum(token != 0 for token in texts[pair])
            tokens += [*texts[pair][:length], 0]
            mask += [*masks[pair][:length], False]
            image += [number + 1] * (length + 1)
        filled = [(values + [0] * width)[:width] for values in (tokens, mask, image)]
        for name, values in zip(("text_tokens", "loss_mask", "image_of_text"), filled, strict=True):
            np.testing.assert_array_equal(found[name][row], values, err_msg=name)


def test_a_text_is_what_few_shot_evaluation_writes(monkeypatch):
    """The last of three captions is asked for after two examples."""
    vocabulary = load_vocabulary("scenes")
    captions = ["a red circle", "two blue squares", "a large yellow triangle"]
    images = [ReferencedImage(f"i{n}", np.full(4, n), (c,)) for n, c in enumerate(captions)]
    monkeypatch.setattr(protocol, "read_references", lambda *_: images)
    config = protocol.ProtocolConfig(shots=2, support="S")
    (prompt,) = protocol.make_prompts(images[2:], config, vocabulary, "Output:", "")
    order = [int(image[0]) for image in prompt.images]
    tokens_BT, mask_BT = vlm_text([captions[n] for n in order], ["Output:"] * 3, vocabulary, 16)
    packed = pack({"text_tokens": tokens_BT, "loss_mask": mask_BT}, 3)
    inputs = [0, *packed["text_tokens"][0]]  # as `shift_right` makes them
    length = len(prompt.inputs)
    assert tuple(inputs[:length]) == prompt.inputs
    assert tuple(packed["image_of_text"][0][:length]) == prompt.image_of_text
    learned = packed["text_tokens"][0][length - 1 :][packed["loss_mask"][0][length - 1 :]]
    assert learned.tolist() == [*vocabulary.encode(captions[2]), 1]


def test_the_pairs_are_those_of_unpacked_batches(both):
    """After mixing: real and synthetic pairs meet in one text, and are counted one by one."""
    packed = pipeline.train_iterator(dataclasses.replace(both, **PACKED), "vlm")
    plain = pipeline.train_iterator(both, "vlm")
    found, expected = take(packed, 20), [pack(batch, 2) for batch in take(plain, 20)]
    assert_same(found, expected)
    assert packed.totals == plain.totals and packed.last_keys == plain.last_keys
    mixed = [len(set(row)) == 2 for batch in found for row in batch["is_synthetic"].tolist()]
    assert 0 < sum(mixed) < len(mixed)


def test_packed_batches_go_on_exactly(both):
    config = dataclasses.replace(both, **PACKED)
    alone = pipeline.train_iterator(config, "vlm")
    take(alone, 5)
    state, expected = alone.get_state(), take(alone, 5)
    again = pipeline.train_iterator(config, "vlm")
    again.set_state(state)
    assert_same(take(again, 5), expected)
    # Two processes begin where the one stopped.
    halves = [pipeline.train_iterator(config, "vlm", layout=layout) for layout in layouts(2)]
    for half in halves:
        assert half.restart(state, 5) == "resuming the data exactly: skipping 40 examples"
    rows = zip(*(take(half, 5) for half in halves), strict=True)
    assert_same(
        [{name: np.concatenate([p[name] for p in parts]) for name in parts[0]} for parts in rows],
        expected,
    )
    other = pipeline.train_iterator(both, "vlm")
    with user_error("saved with (batch_size 4|images_per_text 2), this run has"):
        other.set_state(state)


def test_processes_with_shards_of_their_own_pack_their_own_pairs(both):
    config = dataclasses.replace(both, **PACKED, deal="shards", mixture="real", rates={})
    keys = []
    for layout in layouts(2):
        half = pipeline.train_iterator(config, "vlm", layout=layout)
        batch = next(half)
        assert batch["image_tokens"].shape == (2, 2, 4)
        keys.append(set(half.last_keys))
    assert len(keys[0] | keys[1]) == 8


def test_rates_follow_a_schedule_of_steps(both):
    """One step has 8 pairs: the second is synthetic alone."""
    rates = {"real": ((0, 1.0), (1, 0.0)), "synthetic": ((0, 0.0), (1, 1.0))}
    config = dataclasses.replace(both, **PACKED, rates=rates)
    flags = [
        batch["is_synthetic"].mean() for batch in take(pipeline.train_iterator(config, "vlm"), 3)
    ]
    assert flags == [0, 1, 1]


def test_evaluation_has_each_pair_once(write_folder):
    """Three of five pairs a batch fill the last text by a copy that does not count."""
    config = DataConfig(folders={"real": write_folder("real", 7)}, text_length=24, **PACKED)
    vocabulary, captions, keys, valid = load_vocabulary("scenes"), [], [], []
    for batch in pipeline.eval_batches(config, "vlm", with_keys=True):
        keys += batch["key"].tolist()
        valid += batch["valid"].tolist()
        for tokens, mask, image in zip(
            batch["text_tokens"], batch["loss_mask"], batch["image_of_text"], strict=True
        ):
            captions += [vocabulary.decode(tokens[mask & (image == n)]) for n in (1, 2)]
    pairs = list(records.read_pairs(config.folders["real"]))
    assert [text for text in captions if text] == [pair.caption for pair in pairs]
    assert keys == [pair.key for pair in pairs] + [pairs[-1].key]
    assert valid == [True, True, True, False]


def test_a_caption_without_room_is_named(both):
    prompt = load_vocabulary("scenes").encode("Output:")
    config = dataclasses.replace(both, **PACKED, text_length=len(prompt) + 1)
    with user_error("example 'synthetic-0.*no token of its caption is left.*text_length=.*short"):
        next(pipeline.train_iterator(config, "vlm"))
    with user_error("images_per_text: found 0, expected at least 1"):
        dataclasses.replace(both, images_per_text=0)
