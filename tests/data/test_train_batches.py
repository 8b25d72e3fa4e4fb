"""Tests of training batches: their order, their mixture, and how processes share them."""

import collections
import dataclasses

import numpy as np
import pytest

from synth2_jax.data import pipeline, records
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.domains.scenes import dataset
from synth2_jax.testing.batches import assert_same, layouts, take
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.vocabulary import load_vocabulary

pytestmark = pytest.mark.usefixtures("clean_registry")

TEXT = {"text_tokens": ((8, 24), "int32")}
IMAGE = {"image_tokens": ((8, 4), "int32")}
MASK = ((8, 24), "bool")


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [
        ("vlm", {**IMAGE, **TEXT, "loss_mask": MASK, "is_synthetic": ((8,), "bool")}),
        ("generator", {**IMAGE, **TEXT, "text_mask": MASK}),
        ("language_model", {**TEXT, "loss_mask": MASK}),
    ],
)
def test_batches_are_as_the_models_take_them(both, model_name, expected):
    batch = next(pipeline.train_iterator(both, model_name))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == expected


def test_scenes_images(monkeypatch):
    monkeypatch.setitem(dataset.SPLITS, "images", 5)
    config = DataConfig(mixture="scenes_images", batch_size=4)
    ((name, images),) = next(pipeline.train_iterator(config, "tokenizer")).items()
    assert (name, images.shape, images.dtype) == ("image", (4, 32, 32, 3), np.float32)
    assert -1 <= images.min() < 0 < images.max() <= 1


def test_the_seed_alone_decides_the_batches(both):
    first, again = (take(pipeline.train_iterator(both, "vlm"), 30) for _ in range(2))
    assert_same(first, again)
    other = take(pipeline.train_iterator(dataclasses.replace(both, seed=1), "vlm"), 3)
    with pytest.raises(AssertionError):
        assert_same(first[:3], other)


def test_images_keep_their_captions_and_sources_follow_the_rates(both):
    """Shuffling and mixing move whole examples; they are counted by source."""
    known = {
        tuple(pair.image_tokens.tolist()): pair
        for folder in both.folders.values()
        for pair in records.read_pairs(folder)
    }
    vocabulary = load_vocabulary("scenes")
    iterator = pipeline.train_iterator(both, "vlm")
    examples, tokens = collections.Counter(), collections.Counter()
    for batch in take(iterator, 250):
        rows = (batch[name] for name in ("image_tokens", "text_tokens", "loss_mask"))
        flags = batch["is_synthetic"].tolist()
        for image_N, text_T, mask_T, flag in zip(*rows, flags, strict=True):
            pair = known[tuple(image_N.tolist())]
            assert vocabulary.decode(text_T[mask_T]) == pair.caption
            assert flag == (pair.source == "synthetic")
            examples[pair.source] += 1
            tokens[pair.source] += int(mask_T.sum())
    assert [key.startswith("synthetic") for key in iterator.last_keys] == flags  # of the last batch
    share = examples["synthetic"] / examples.total()
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / examples.total()) ** 0.5
    assert (iterator.source_counts, iterator.source_tokens) == (examples, tokens)
    assert iterator.totals["data/real_tokens"] == tokens["real"]
    assert iterator.totals["data/real_examples"] == examples["real"]
    resumed = pipeline.train_iterator(both, "vlm")
    resumed.set_state(iterator.get_state())
    assert resumed.totals == iterator.totals


def processes(config, count):
    """The iterators of `count` processes."""
    return [pipeline.train_iterator(config, "vlm", layout=layout) for layout in layouts(count)]


def together(iterators, count):
    """Batches put together from the rows of all processes."""
    parts = zip(*(take(iterator, count) for iterator in iterators), strict=True)
    return [{name: np.concatenate([p[name] for p in rows]) for name in rows[0]} for rows in parts]


def restored(config, count, states):
    parts = processes(config, count)
    for part, state in zip(parts, states, strict=True):
        part.set_state(state)
    return parts


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_batches_are_the_same_on_any_number_of_processes(both, count):
    """Also on more processes than there are shards."""
    assert_same(together(processes(both, count), 6), together(processes(both, 1), 6))


@pytest.mark.slow
def test_after_a_change_of_processes_the_data_goes_on_exactly(both):
    alone = pipeline.train_iterator(both, "vlm")
    take(alone, 5)
    four = processes(both, 4)
    for part in four:
        message = part.restart(alone.get_state(), 5)
        assert message == "resuming the data exactly: skipping 40 examples"
        assert part.source_counts == alone.source_counts
    assert_same(together(four, 3), take(alone, 3))
    # And again, from a position that was itself restarted.
    states = [part.get_state() for part in four]
    expected = take(alone, 3)
    assert_same(together(restored(both, 4, states), 3), expected)
    two = processes(both, 2)
    for part in two:
        part.restart(states[0], 8)
    assert_same(together(two, 3), expected)


@pytest.mark.slow
def test_no_example_of_an_epoch_is_lost_or_seen_twice_when_processes_change(both):
    config = dataclasses.replace(both, mixture="synthetic", rates={}, num_epochs=1, batch_size=6)
    parts, found = processes(config, 2), []

    def read(count):
        for _ in range(count):
            for part in parts:
                next(part)
                found.extend(part.last_keys)

    for step, count in ((3, 3), (5, 1), (7, 6)):
        read(step - len(found) // 6)
        state, parts = parts[0].get_state(), processes(config, count)
        for part in parts:
            part.restart(state, step)
    read(1)
    for part in parts:  # all of them end together
        assert list(part) == []
    assert len(found) == 48 and len(set(found)) == 48  # two of 50 are no batch of 6
    # A run that goes on from there finds the end again, in whatever way it goes on.
    assert [list(part) for part in restored(config, 6, [part.get_state() for part in parts])] == (
        [[]] * 6
    )
    for part in processes(config, 2):
        part.restart(parts[0].get_state(), 8)
        assert list(part) == []


@pytest.mark.slow
def test_rates_follow_a_schedule(both):
    """From real pairs alone to synthetic ones alone, between steps 10 and 30."""
    config = dataclasses.replace(
        both, rates={"real": ((10, 1.0), (30, 0.0)), "synthetic": ((10, 0.0), (30, 1.0))}
    )
    iterator = pipeline.train_iterator(config, "vlm")
    shares = [batch["is_synthetic"].mean() for batch in take(iterator, 60)]
    assert max(shares[:10]) == 0 and min(shares[31:]) == 1
    assert 0.3 < np.mean(shares[10:30]) < 0.7
    assert np.mean(shares[10:17]) < np.mean(shares[23:30])

    # Two processes, and a run that was stopped in between, follow the same schedule.
    expected = together(processes(config, 1), 40)
    two = processes(config, 2)
    assert_same(together(two, 20), expected[:20])
    states = [part.get_state() for part in two]
    assert_same(together(restored(config, 2, states), 20), expected[20:])


def test_rates_jump_at_two_points_of_one_step(both):
    """Real pairs alone before step 4, then both: a batch on either side of it says so."""
    rates = {"real": 0.5, "synthetic": ((4, 0), (4, 0.5))}
    config = dataclasses.replace(both, rates=rates)
    expected = take(pipeline.train_iterator(config, "vlm"), 30)
    shares = [batch["is_synthetic"].mean() for batch in expected]
    assert max(shares[:4]) == 0 and min(shares[4:6]) > 0 and 0.35 < np.mean(shares[4:]) < 0.65
    for stop in (3, 4, 5):  # resumed on both sides
        first = pipeline.train_iterator(config, "vlm")
        take(first, stop)
        again = pipeline.train_iterator(config, "vlm")
        again.set_state(first.get_state())
        assert_same(take(again, 8), expected[stop : stop + 8])


@pytest.mark.parametrize(
    "rates, message",
    [
        ({"real": ((5, 1), (3, 1))}, r"real: found steps \(5, 3\), expected rising ones from 0 on"),
        ({"real": ((3, 1), (3, 0), (3, 1))}, r"real: found steps \(3, 3, 3\), expected rising"),
        (
            {"real": ((2, 1), (2, 0)), "synthetic": ((3, 0), (3, 1))},
            "rates: found a rate of 0 for every task at step 2",
        ),
        (
            {"real": ((4, 0), (4, 1)), "synthetic": ((4, 0), (4, 1))},
            "rates: found a rate of 0 for every task at step 0",
        ),
    ],
)
def test_schedules_of_rates_that_will_not_do_are_named(both, rates, message):
    config = dataclasses.replace(both, rates={**both.rates, **rates})
    with user_error(f"--config.data.*{message}"):
        pipeline.train_iterator(config, "vlm")


def test_tokens_beyond_the_models_are_named(both):
    take(pipeline.train_iterator(both, "vlm", limits={"image_tokens": 512}), 10)
    for read in (pipeline.train_iterator, pipeline.eval_batches):
        with user_error("example '(real|synthetic)-0.*: found image_tokens .*expected 0 to 299"):
            take(read(both, "vlm", limits={"image_tokens": 300}), 10)


@pytest.mark.slow
def test_shards_of_their_own_start_anew_after_a_change_of_processes(both):
    """From a seed of the step, so that no two parts of a run see the data in the same order."""
    both = dataclasses.replace(both, deal="shards")
    alone = pipeline.train_iterator(both, "vlm")
    first = take(alone, 5)
    halves = processes(both, 2)
    for half in halves:
        assert "a new order of the data starts here" in half.restart(alone.get_state(), 5)
        assert half.source_counts == alone.source_counts
    rows = [batch["image_tokens"] for half in halves for batch in take(half, 1)]
    assert [len(part) for part in rows] == [len(first[0]["image_tokens"]) // 2] * 2
    fresh = take(processes(both, 2)[0], 1)[0]["image_tokens"]
    assert not np.array_equal(rows[0], fresh)  # another order than the run began with
    state, expected = halves[0].get_state(), take(halves[0], 20)
    again = processes(both, 2)[0]
    again.set_state(state)
    assert_same(take(again, 20), expected)


@pytest.mark.parametrize(
    "order", [{"deal": "examples", "num_epochs": 1}, {"deal": "shards", "shuffle_buffer": 1}]
)
def test_processes_read_disjoint_parts(both, order):
    """With as many shards as processes, and with fewer."""
    config = dataclasses.replace(both, mixture="real", rates={}, batch_size=6, **order)
    for count in (2, 3):
        parts = [
            {tuple(row) for batch in take(part, 4) for row in batch["image_tokens"].tolist()}
            for part in processes(config, count)
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 24
    with user_error("batch_size: found 6.*multiple of the 4 parts"):
        processes(config, 4)
