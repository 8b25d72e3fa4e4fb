"""Views of pairs: what they hold, that they train, resume and are sharded as folders of pairs are.

Shards of 30 pairs in two hold 15 rows each; blocks are of 4 rows.
"""

import collections
import functools
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from synth2_jax.data import pipeline, records, views
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.sharding import ALL_ROWS
from synth2_jax.testing.batches import assert_same, layouts, take
from synth2_jax.testing.user_errors import user_error

pytestmark = pytest.mark.usefixtures("clean_registry")

write_view = functools.partial(views.write_view, block=4, chosen={"by": "hand"})
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
    write_view(tmp_path / "view", pairs, ROWS)
    return tmp_path / "view"


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


def keys_of(view):
    return [pair.key for pair in views.read_view(view)]


def train(folder, *, layout=ALL_ROWS, tokenizer="tok-a", **changes):
    values = {"batch_size": 4, "text_length": 24, "shuffle_buffer": 4, **changes}
    config = DataConfig(folders={"kept": str(folder)}, **values)
    return pipeline.train_iterator(config, "vlm", tokenizer_fingerprint=tokenizer, layout=layout)


def test_a_view_reads_its_rows_and_lends_images(pairs, view):
    found = list(views.read_view(view))
    assert [pair.key for pair in found] == [
        *("synthetic-000", "synthetic-002", "synthetic-003", "synthetic-008+synthetic-011"),
        *("synthetic-009", "synthetic-010+synthetic-008", "synthetic-014+synthetic-012"),
        *("synthetic-016", "synthetic-027"),
    ]
    assert {p.key: (tuple(p.image_tokens.tolist()), p.caption) for p in found} == expected(pairs)
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
    other = write_view(tmp_path / "b", pairs, [ROWS[0], ROWS[1][:1]])
    assert len({first, other.fingerprint, records.read_manifest(pairs).fingerprint}) == 3


@pytest.mark.parametrize("made_by", ["link", "elsewhere"])
@pytest.mark.parametrize("opened_by", ["link", "elsewhere"])
def test_a_view_in_a_linked_workdir_opens_by_every_spelling(pairs, tmp_path, made_by, opened_by):
    """The pairs are outside of the workdir, so the way to them depends on where that really is."""
    real = tmp_path / "elsewhere" / "deep" / "workdir"
    real.mkdir(parents=True)
    spellings = {"elsewhere": real, "link": tmp_path / "link"}
    spellings["link"].symlink_to(real)
    write_view(spellings[made_by] / "view", pairs, ROWS)
    assert keys_of(spellings[opened_by] / "view") == list(expected(pairs))


@pytest.mark.parametrize("linked", [False, True])
def test_a_view_and_its_pairs_or_a_link_to_them_may_move_together(pairs, tmp_path, linked):
    before, work = expected(pairs), tmp_path / "a"
    work.mkdir()
    if linked:
        (work / "pairs").symlink_to(pairs)
    else:
        shutil.move(pairs, work / "pairs")
    write_view(work / "view", work / "pairs", ROWS)
    (tmp_path / "far" / "away").mkdir(parents=True)
    shutil.move(work, tmp_path / "far" / "away")
    assert keys_of(tmp_path / "far" / "away" / "a" / "view") == list(before)


def test_an_epoch_of_training_has_each_pair_once_with_its_image(pairs, view):
    """Three epochs of nine pairs are nine batches of three."""
    iterator = train(view, batch_size=3, num_epochs=3)
    keys, known = collections.Counter(), expected(pairs)
    for batch in iterator:
        keys.update(iterator.last_keys)
        for key, tokens in zip(iterator.last_keys, batch["image_tokens"].tolist(), strict=True):
            assert known[key][0] == tuple(tokens)
    assert keys == dict.fromkeys(known, 3)
    assert iterator.source_counts == {"synthetic": 27}


@pytest.mark.slow
def test_a_restored_position_goes_on_exactly(view):
    straight = train(view)
    take(straight, 7)  # beyond an epoch
    state, following = straight.get_state(), take(straight, 12)
    resumed = train(view)
    take(resumed, 3)
    resumed.set_state(state)
    assert_same(take(resumed, 12), following)


def test_what_belongs_to_other_data_is_refused(pairs, view, tmp_path):
    with user_error("tok-a.*tok-z"):
        train(view, tokenizer="tok-z")
    state = train(view).get_state()
    write_view(tmp_path / "b", pairs, ROWS[::-1])
    with user_error("saved with folders"):
        train(tmp_path / "b").set_state(state)


def test_processes_that_share_shards_read_disjoint_parts(pairs, view):
    """A shard each, so that none of its images can come from another process's."""
    parts = []
    for layout in layouts(2):
        iterator = train(view, layout=layout, deal="shards")
        parts.append({key for _ in itertools.islice(iterator, 20) for key in iterator.last_keys})
    assert [len(part) for part in parts] == [7, 2]
    assert parts[0] | parts[1] == expected(pairs).keys()


@pytest.mark.slow
def test_processes_that_share_examples_make_the_batches_of_one(view):
    halves = [take(train(view, layout=layout), 8) for layout in layouts(2)]
    together = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*halves, strict=True)
    ]
    assert_same(together, take(train(view), 8))


def test_evaluation_is_one_pass_in_order(view):
    config = DataConfig(folders={"kept": str(view)}, batch_size=4, text_length=24)
    batches = list(pipeline.eval_batches(config, "vlm", with_keys=True))
    keys = np.concatenate([batch["key"][batch["valid"]] for batch in batches])
    assert keys.tolist() == keys_of(view)


def test_a_view_mixes_with_other_pairs(pairs, view, write_folder):
    before = {path.name: path.stat().st_mtime_ns for path in pathlib.Path(pairs).iterdir()}
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
    after = {path.name: path.stat().st_mtime_ns for path in pathlib.Path(pairs).iterdir()}
    assert before == after  # the folder of pairs is only read


def test_a_view_of_pairs_that_have_changed_names_both_fingerprints(pairs, view, write_folder):
    before = records.read_manifest(pairs).fingerprint
    shutil.rmtree(pairs)
    after = records.read_manifest(write_folder("synthetic", 31)).fingerprint
    for open_it in (views.open_pairs, keys_of, train):
        with user_error(f"{after}.*{before}"):
            open_it(view)


def test_a_view_that_is_not_whole_is_refused(view):
    rows, path = sorted(view.glob("*.rows"))[0], view / "view.json"
    whole, values = rows.read_bytes(), json.loads(path.read_text())
    flipped = bytearray(whole)
    flipped[4] ^= 1  # another row's image, in the same block
    for contents, message in (
        (whole[:-8], "found 48 bytes, expected 56"),
        (b"", "found 0 bytes, expected 56"),
        (flipped, "damaged .found sha256"),
    ):
        rows.write_bytes(contents)
        with user_error(message):
            views.open_view(view)
    rows.write_bytes(whole)
    path.write_text(json.dumps({**values, "pairs": "../gone"}))
    with user_error("gone: no manifest.json"):
        views.open_view(view)
    path.write_text("{")
    with user_error("not JSON"):
        views.open_view(view)
    path.unlink()
    with user_error("no view.json"):
        views.open_view(view)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("version", 9, "value.version: unknown value 9; one of: 1"),
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


# The last has an image of the next block.
@pytest.mark.parametrize(
    "rows", [[[15, 15]], [[-1, -1]], [[2, 2], [1, 1]], [[1, 1], [1, 1]], [[3, 4]]]
)
def test_unfit_rows_are_refused(pairs, tmp_path, rows):
    with user_error("expected ascending rows below 15, each with an image of the same 4 rows"):
        write_view(tmp_path / "b", pairs, [np.array(rows), ROWS[1]])
    assert not (tmp_path / "b" / "view.json").exists()


def test_a_shard_without_a_kept_row(pairs, tmp_path):
    write_view(tmp_path / "b", pairs, [np.zeros((0, 2)), ROWS[1]])
    assert keys_of(tmp_path / "b") == ["synthetic-016", "synthetic-027"]
    assert len(list(train(tmp_path / "b", batch_size=2, num_epochs=1))) == 1


@pytest.mark.slow
def test_a_position_holds_a_block_not_the_shard(write_folder, tmp_path):
    shape = {"num_image_tokens": 64, "codebook_size": 8192}
    pairs = write_folder("synthetic", 9000, name="many", num_shards=1, **shape)
    every_row = np.repeat(np.arange(9000)[:, None], 2, axis=1)
    write_view(tmp_path / "b", pairs, [every_row], block=64)
    iterator = train(tmp_path / "b", shuffle_buffer=8)
    take(iterator, 3)
    (shard,) = pathlib.Path(pairs).glob("*.tfrecord")
    assert len(iterator.get_state()) < shard.stat().st_size / 4
