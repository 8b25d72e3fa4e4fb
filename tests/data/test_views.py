"""Views of pairs: what they hold, that they train, resume and are sharded as folders of pairs are.

Shards of 30 pairs in two hold 15 rows each; blocks are of 4 rows.
"""

import collections
import json
import pathlib
import shutil

import numpy as np
import pytest

from synth2_jax.data import pipeline, records, views
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.testing.batches import assert_same, layouts, take
from synth2_jax.testing.user_errors import user_error

pytestmark = pytest.mark.usefixtures("clean_registry")

BLOCK = 4
# Of either shard. Block 1 is empty, block 2 lends two of its images, and block 3 is the last, of 3.
ROWS = (
    np.array([[0, 0], [2, 2], [3, 3], [8, 11], [9, 9], [10, 8], [14, 12]]),
    np.array([[1, 1], [12, 12]]),
)


@pytest.fixture
def pairs(write_folder):
    return write_folder("synthetic", 30)


@pytest.fixture
def view(pairs, tmp_path):
    folder = tmp_path / "view"
    views.write_view(folder, pairs, ROWS, block=BLOCK, chosen={"by": "hand"})
    return folder


def expected(pairs):
    """{key: (image tokens, caption)} of ROWS, by hand."""
    shards = np.array_split(np.array(list(records.read_pairs(pairs)), object), 2)
    found = {}
    for shard, rows in zip(shards, ROWS, strict=True):
        for row, image_row in rows:
            own, lender = shard[row], shard[image_row]
            key = own.key if row == image_row else f"{own.key}+{lender.key}"
            found[key] = (tuple(lender.image_tokens.tolist()), own.caption)
    return found


def next_keys(iterator):
    next(iterator)
    return iterator.last_keys


def config_of(folder, **changes):
    values = {"batch_size": 4, "text_length": 24, "shuffle_buffer": 4, **changes}
    return DataConfig(folders={"kept": str(folder)}, **values)


def test_a_view_reads_its_rows_and_lends_images(pairs, view):
    found = list(views.read_view(view))
    assert [pair.key for pair in found] == [
        *("synthetic-000", "synthetic-002", "synthetic-003", "synthetic-008+synthetic-011"),
        *("synthetic-009", "synthetic-010+synthetic-008", "synthetic-014+synthetic-012"),
        *("synthetic-016", "synthetic-027"),
    ]
    assert {p.key: (tuple(p.image_tokens.tolist()), p.caption) for p in found} == expected(pairs)


def test_a_view_says_what_it_holds(pairs, view):
    opened = views.open_pairs(view)
    assert (opened.num_pairs, opened.num_repaired) == (9, 3)
    assert opened.provenance == records.read_manifest(pairs).provenance
    assert opened.chosen == {"by": "hand"}
    for shard, rows in zip(opened.shards, ROWS, strict=True):
        np.testing.assert_array_equal(opened.rows(shard.name), rows)
    assert isinstance(views.open_pairs(pairs), records.Manifest)


def test_fingerprints_are_of_the_contents(pairs, view, tmp_path):
    first = views.open_view(view).fingerprint
    moved = shutil.move(view, tmp_path / "elsewhere")
    assert views.open_view(moved).fingerprint == first
    other = views.write_view(tmp_path / "b", pairs, [ROWS[0], ROWS[1][:1]], block=4, chosen={})
    assert len({first, other.fingerprint, records.read_manifest(pairs).fingerprint}) == 3


def test_view_and_pairs_may_move_together(pairs, view, tmp_path):
    before = expected(pairs)
    together = tmp_path / "together"
    together.mkdir()
    for folder in (pairs, view):
        shutil.move(folder, together)
    assert {pair.key for pair in views.read_view(together / "view")} == before.keys()


@pytest.mark.parametrize("made_by", ["link", "elsewhere"])
@pytest.mark.parametrize("opened_by", ["link", "elsewhere"])
def test_a_view_in_a_linked_workdir_opens_by_every_spelling(pairs, tmp_path, made_by, opened_by):
    """The pairs are outside of the workdir, so the way to them depends on where that really is."""
    real = tmp_path / "elsewhere" / "deep" / "workdir"
    real.mkdir(parents=True)
    spellings = {"elsewhere": real, "link": tmp_path / "link"}
    spellings["link"].symlink_to(real)
    views.write_view(spellings[made_by] / "view", pairs, ROWS, block=4, chosen={})
    found = views.read_view(spellings[opened_by] / "view")
    assert {pair.key for pair in found} == expected(pairs).keys()


def test_a_view_and_a_link_to_its_pairs_may_move_together(pairs, tmp_path):
    before = expected(pairs)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pairs").symlink_to(pairs)
    views.write_view(tmp_path / "a" / "view", tmp_path / "a" / "pairs", ROWS, block=4, chosen={})
    (tmp_path / "far" / "away").mkdir(parents=True)
    shutil.move(tmp_path / "a", tmp_path / "far" / "away")
    found = views.read_view(tmp_path / "far" / "away" / "a" / "view")
    assert {pair.key for pair in found} == before.keys()


def test_an_epoch_of_training_has_each_pair_once_with_its_image(pairs, view):
    """Three epochs of nine pairs are nine batches of three."""
    config = config_of(view, batch_size=3, num_epochs=3)
    iterator = pipeline.train_iterator(config, "vlm", tokenizer_fingerprint="tok-a")
    keys = collections.Counter()
    known = expected(pairs)
    for batch in iterator:
        keys.update(iterator.last_keys)
        for key, tokens in zip(iterator.last_keys, batch["image_tokens"].tolist(), strict=True):
            assert known[key][0] == tuple(tokens)
    assert keys == dict.fromkeys(known, 3)
    assert iterator.source_counts == {"synthetic": 27}


@pytest.mark.slow
def test_a_restored_position_goes_on_exactly(view):
    straight = pipeline.train_iterator(config_of(view), "vlm")
    take(straight, 7)  # beyond an epoch
    state, following = straight.get_state(), take(straight, 12)
    resumed = pipeline.train_iterator(config_of(view), "vlm")
    take(resumed, 3)
    resumed.set_state(state)
    assert_same(take(resumed, 12), following)


def test_a_position_of_another_view_is_refused(pairs, view, tmp_path):
    state = pipeline.train_iterator(config_of(view), "vlm").get_state()
    views.write_view(tmp_path / "b", pairs, ROWS[::-1], block=BLOCK, chosen={})
    with user_error("saved with folders"):
        pipeline.train_iterator(config_of(tmp_path / "b"), "vlm").set_state(state)


def test_processes_that_share_shards_read_disjoint_parts(pairs, view):
    """A shard each, so that none of its images can come from another process's."""
    parts = []
    for layout in layouts(2):
        config = config_of(view, deal="shards")
        iterator = pipeline.train_iterator(config, "vlm", layout=layout)
        parts.append({key for _ in range(20) for key in next_keys(iterator)})
    assert [len(part) for part in parts] == [7, 2]
    assert parts[0] | parts[1] == expected(pairs).keys()


def test_processes_that_share_examples_make_the_batches_of_one(view):
    alone = take(pipeline.train_iterator(config_of(view), "vlm"), 8)
    halves = [
        take(pipeline.train_iterator(config_of(view), "vlm", layout=layout), 8)
        for layout in layouts(2)
    ]
    together = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*halves, strict=True)
    ]
    assert_same(together, alone)


def test_evaluation_is_one_pass_in_order(pairs, view):
    batches = list(pipeline.eval_batches(config_of(view), "vlm", with_keys=True))
    keys = np.concatenate([batch["key"][batch["valid"]] for batch in batches])
    assert keys.tolist() == [pair.key for pair in views.read_view(view)]


def test_a_view_mixes_with_other_pairs(view, write_folder):
    config = DataConfig(
        mixture="both",
        folders={"real": write_folder("real", 20), "kept": str(view)},
        rates={"real": 1.0, "kept": 1.0},
        batch_size=8,
        text_length=24,
        shuffle_buffer=16,
    )
    iterator = pipeline.train_iterator(config, "vlm", tokenizer_fingerprint="tok-a")
    flags = np.concatenate([batch["is_synthetic"] for batch in take(iterator, 60)])
    assert abs(flags.mean() - 0.5) < 4 * (0.25 / flags.size) ** 0.5


def test_pairs_of_another_tokenizer_are_refused(view):
    with user_error("tok-a.*tok-z"):
        pipeline.train_iterator(config_of(view), "vlm", tokenizer_fingerprint="tok-z")


def test_a_view_of_pairs_that_have_changed_names_both_fingerprints(pairs, view, write_folder):
    before = records.read_manifest(pairs).fingerprint
    shutil.rmtree(pairs)
    after = records.read_manifest(write_folder("synthetic", 31)).fingerprint
    for open_it in (views.open_pairs, lambda folder: list(views.read_view(folder))):
        with user_error(f"{after}.*{before}"):
            open_it(view)
    with user_error(f"{after}.*{before}"):
        pipeline.train_iterator(config_of(view), "vlm")


def test_a_view_that_is_not_whole_is_refused(pairs, view):
    rows = sorted(view.glob("*.rows"))[0]
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-8])
    with user_error("found 48 bytes, expected 56"):
        views.open_view(view)
    rows.unlink()
    with user_error("found 0 bytes, expected 56"):
        views.open_view(view)
    rows.write_bytes(whole)
    path = view / "view.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "version": 9}))
    with user_error("value.version: unknown value 9; one of: 1"):
        views.open_view(view)
    path.write_text("{")
    with user_error("not JSON"):
        views.open_view(view)
    path.unlink()
    with user_error("no view.json"):
        views.open_view(view)
    path.write_text(json.dumps({**values, "pairs": "../gone"}))
    with user_error("gone: no manifest.json"):
        views.open_view(view)


def test_a_flipped_bit_in_a_view_is_refused(view):
    rows = sorted(view.glob("*.rows"))[0]
    contents = bytearray(rows.read_bytes())
    contents[4] ^= 1  # another row's image, which lies in the same block
    rows.write_bytes(contents)
    with user_error("damaged .found sha256"):
        views.open_view(view)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("num_pairs", 1, "num_pairs is 1, expected the sum"),
        ("block", 0, "a block of 0 rows"),
        ("block", 1, "image of the same 1 rows"),
        ("fingerprint", [3], "value.fingerprint: found .3., expected str"),
        ("shards", [], "num_pairs is"),
        ("pairs", None, "value.pairs: found None"),
        ("x", 1, "value.x: unknown key"),
    ],
)
def test_a_view_is_checked_value_by_value(view, key, value, message):
    path = view / "view.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with user_error(message):
        views.open_view(view)


@pytest.mark.parametrize(
    "rows",
    [
        [[15, 15]],
        [[-1, -1]],
        [[2, 2], [1, 1]],
        [[1, 1], [1, 1]],
        [[3, 4]],  # of the next block
    ],
)
def test_unfit_rows_are_refused(pairs, tmp_path, rows):
    with user_error("expected ascending rows below 15, each with an image of the same 4 rows"):
        views.write_view(tmp_path / "b", pairs, [np.array(rows), ROWS[1]], block=4, chosen={})
    assert not (tmp_path / "b" / "view.json").exists()


def test_a_shard_of_which_nothing_is_kept(pairs, tmp_path):
    folder = tmp_path / "b"
    views.write_view(folder, pairs, [np.zeros((0, 2)), ROWS[1]], block=BLOCK, chosen={})
    assert [pair.key for pair in views.read_view(folder)] == ["synthetic-016", "synthetic-027"]
    iterator = pipeline.train_iterator(config_of(folder, batch_size=2, num_epochs=1), "vlm")
    assert len(list(iterator)) == 1


@pytest.mark.slow
def test_a_position_holds_a_block_not_the_shard(write_folder, tmp_path):
    shape = {"num_image_tokens": 64, "codebook_size": 8192}
    pairs = write_folder("synthetic", 9000, name="many", num_shards=1, **shape)
    every_row = np.repeat(np.arange(9000)[:, None], 2, axis=1)
    views.write_view(tmp_path / "b", pairs, [every_row], block=64, chosen={})
    iterator = pipeline.train_iterator(config_of(tmp_path / "b", shuffle_buffer=8), "vlm")
    take(iterator, 3)
    (shard,) = pathlib.Path(pairs).glob("*.tfrecord")
    assert len(iterator.get_state()) < shard.stat().st_size / 4


def test_the_folder_of_pairs_is_only_read(pairs, view):
    before = {path.name: path.stat().st_mtime_ns for path in pathlib.Path(pairs).iterdir()}
    take(pipeline.train_iterator(config_of(view), "vlm"), 5)
    after = {path.name: path.stat().st_mtime_ns for path in pathlib.Path(pairs).iterdir()}
    assert before == after
