"""Folders of pairs written shard by shard."""

import numpy as np
import pytest

from synth2_jax.data.pair_shards import SkipBudget, finish, my_shards, write_shards
from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.records import Pair, Provenance, read_pairs
from synth2_jax.data.skipped import Skipped, reasons
from synth2_jax.testing.user_errors import raises_line

PROVENANCE = Provenance("tok", num_image_tokens=2, codebook_size=8)
PAIRS = [Pair(f"real-{n}", np.array([n % 8, 1]), "a circle", "real") for n in range(3)]


def test_results_of_several_shards_in_one_stream(tmp_path):
    writer = PairWriter(tmp_path, PROVENANCE, num_shards=3)
    assert my_shards(writer) == [0, 1, 2]
    stream = [(0, PAIRS[0]), (0, Skipped("x", "corrupt image")), (0, PAIRS[1]), (0, None)]
    stream += [(1, None), (2, PAIRS[2]), (2, None)]
    write_shards(writer, stream)
    manifest = finish(writer)
    assert [shard.num_pairs for shard in manifest.shards] == [2, 0, 1]
    assert manifest.skipped == {"corrupt image": 1}
    assert [found.key for found in read_pairs(tmp_path)] == ["real-0", "real-1", "real-2"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, AssertionError])
def test_a_stream_that_fails_or_ends_early_leaves_the_shards_before(tmp_path, raised):
    def stream():
        yield from [(0, PAIRS[0]), (0, None), (1, PAIRS[1])]
        if raised is KeyboardInterrupt:
            raise KeyboardInterrupt

    writer = PairWriter(tmp_path, PROVENANCE, num_shards=2)
    with pytest.raises(raised):
        write_shards(writer, stream())
    assert my_shards(PairWriter(tmp_path, PROVENANCE, num_shards=2)) == [1]


def test_a_run_in_which_too_much_is_skipped_stops():
    budget = SkipBudget("tokenize train", 0.1, "--config.max_skipped")
    for item in [PAIRS[0]] * 906 + [Skipped("x", "empty caption")] * 89:
        budget.add(item)
    budget.add(Skipped("x", "corrupt image", "bytes", num_pairs=5))
    with raises_line(
        "tokenize train: 101 of 1,007 pairs are skipped (empty caption 89, corrupt image 12), "
        "expected at most 10%, --config.max_skipped; the last is y6: cut short"
    ):
        for number in range(99):
            budget.add(Skipped(f"y{number}", "corrupt image", "cut short"))


def test_few_pairs_are_judged_at_the_end():
    budget = SkipBudget("tokenize train", 0.5, "--config.max_skipped")
    budget.add(Skipped("x", "empty caption"))  # of one that was found
    budget.check(1, {"empty caption": 1})
    with raises_line("2 of 3 pairs"):
        budget.check(1, {"empty caption": 2})
    budget.check(0, {})


def test_reasons_are_listed_by_frequency():
    assert reasons({"b": 2, "a": 2, "c": 1234}) == "c 1,234, a 2, b 2"
    assert reasons({}) == "none"
