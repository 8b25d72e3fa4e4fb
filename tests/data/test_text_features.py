"""Stored features of captions: in records, in the generator's batches, and nowhere else.

Legend: t text tokens of a caption, T of a batch, E text width.
"""

import dataclasses
import itertools
import pathlib

import ml_dtypes
import numpy as np
import pytest

from synth2_jax.data import pair_writer, pipeline, records, views
from synth2_jax.data.images import encode_png
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.sharding import ALL_ROWS
from synth2_jax.testing.batches import layouts
from synth2_jax.testing.user_errors import raises_line
from synth2_jax.text.vocabulary import vocabulary_path

pytestmark = pytest.mark.usefixtures("clean_registry")

BF16 = ml_dtypes.bfloat16
PAIR = records.Pair(
    "real-0",
    np.array([0, 1]),
    "a red circle",
    "real",
    text_features=np.array([[1, -2], [0.5, 3]], BF16),
)


@pytest.fixture
def provenance(text_encoder):
    encoder = text_encoder(width=2, text_length=4)
    return records.Provenance("tok-a", 2, 8, text_encoder=encoder)


@pytest.fixture
def both(both, write_folder, text_encoder):
    """Encoded pairs of two folders."""
    folders = {
        source: write_folder(source, 30, name=f"encoded {source}", text_encoder=text_encoder())
        for source in ("real", "synthetic")
    }
    return dataclasses.replace(both, folders=folders, rates={"real": 1.0, "synthetic": 1.0})


# --- records ---


def test_features_come_back_when_asked_for(tmp_path, provenance):
    manifest = pair_writer.write_pairs(tmp_path, [PAIR], provenance)
    assert records.read_manifest(tmp_path) == manifest
    assert manifest.provenance.text_encoder == provenance.text_encoder
    (found,) = records.read_pairs(tmp_path, text_features=True)
    assert found.text_features.dtype == BF16
    np.testing.assert_array_equal(found.text_features, PAIR.text_features)
    (found,) = records.read_pairs(tmp_path)
    assert found.text_features is None and found.caption == PAIR.caption
    (shard,) = tmp_path.glob("*.tfrecord")
    # Little-endian: the upper halves of the float32s 1, -2, 0.5 and 3.
    assert b"\x80\x3f\x00\xc0\x00\x3f\x40\x40" in shard.read_bytes()


def test_folders_are_as_they_were_before_there_were_features(tmp_path):
    """Byte by byte, hashes of the work and the shards included: a run begun before resumes."""
    provenance = records.Provenance("tok-a", 2, 8, captions={"source": "file"})
    pair_writer.write_pairs(tmp_path, [dataclasses.replace(PAIR, text_features=None)], provenance)
    found = records.sha256_of(tmp_path / "manifest.json")
    assert found == "0857f8311cd347c9200c840c8ed50f558bf66e9f2aa4e5a79b53a7ee48ac588b"
    (pair,) = records.read_pairs(tmp_path, text_features=True)
    assert pair.text_features is None


@pytest.mark.parametrize(
    "features, parts",
    [
        (None, ["expected bfloat16 of shape (t, 2)"]),
        (np.zeros((2, 2), np.float32), ["float32", "expected bfloat16"]),
        (np.zeros((2, 3), BF16), ["(2, 3)", "shape (t, 2)"]),
        (np.zeros((5, 2), BF16), ["5 tokens, expected 1 to 4"]),
        (np.zeros((0, 2), BF16), ["0 tokens, expected 1 to 4"]),
        (np.array([[1, np.nan]], BF16), ["not finite"]),
        (np.array([[1, -np.inf]], BF16), ["not finite"]),
    ],
)
def test_unfit_features_are_refused_by_key(tmp_path, provenance, features, parts):
    with raises_line("'real-0'", *parts):
        pair = dataclasses.replace(PAIR, text_features=features)
        pair_writer.write_pairs(tmp_path, [pair], provenance)


@pytest.mark.parametrize("encoded_first", [False, True])
def test_encoded_pairs_and_plain_ones_share_no_folder(tmp_path, provenance, encoded_first):
    both = [dataclasses.replace(provenance, text_encoder=None), provenance]
    first, second = both[::-1] if encoded_first else both
    pair_writer.PairWriter(tmp_path, first, num_shards=2).write_shard(0, [PAIR])
    with raises_line("found pairs of text_encoder", "delete the folder or choose another"):
        pair_writer.PairWriter(tmp_path, second, num_shards=2)


# --- batches ---


def test_batches_hold_the_features_of_their_own_captions(both):
    """Zero beyond the caption, through shuffling and mixing, in training and evaluation."""
    known = {
        tuple(pair.image_tokens.tolist()): pair.text_features
        for folder in both.folders.values()
        for pair in records.read_pairs(folder, text_features=True)
    }
    encoder = pipeline.stored_text_encoder(both)
    batches = [
        *itertools.islice(pipeline.train_iterator(both, "generator", text_encoder=encoder), 12),
        *pipeline.eval_batches(both, "generator", text_encoder=encoder),
    ]
    assert len(batches) == 12 + 8
    for batch in batches:
        assert batch["text_features"].shape == (8, 24, 3) and batch["text_features"].dtype == BF16
        for row, tokens in enumerate(batch["image_tokens"].tolist()):
            features, mask = batch["text_features"][row], batch["text_mask"][row]
            np.testing.assert_array_equal(features[mask], known[tuple(tokens)])
            assert not features[~mask].any()


@pytest.mark.slow
def test_a_restored_position_goes_on_exactly_on_any_number_of_processes(both):
    encoder = pipeline.stored_text_encoder(both)

    def iterator(layout=ALL_ROWS):
        return pipeline.train_iterator(both, "generator", text_encoder=encoder, layout=layout)

    straight = iterator()
    next(straight)
    state = straight.get_state()
    expected = [next(straight)["text_features"] for _ in range(8)]
    resumed = iterator()
    resumed.set_state(state)
    np.testing.assert_array_equal([next(resumed)["text_features"] for _ in range(8)], expected)
    halves = [iterator(layout) for layout in layouts(2)]
    for half in halves:
        half.restart(state, 1)
    together = [np.concatenate([next(half)["text_features"] for half in halves]) for _ in range(3)]
    np.testing.assert_array_equal(together, expected[:3])


def test_models_that_are_not_told_of_features_do_not_parse_them(both):
    for model in ("vlm", "language_model", "generator"):
        iterator = pipeline.train_iterator(both, model)
        assert "text_features" not in next(iterator)
        (task, _) = iterator._stream.provider.tasks
        assert "text_features" not in task.output_features


def of_one_folder(folder, pairs, provenance):
    """Writes pairs; returns a config that reads them, and what encoded them."""
    pair_writer.write_pairs(folder, pairs, provenance)
    config = DataConfig(folders={"real": str(folder)}, batch_size=1, text_length=24)
    return config, pipeline.stored_text_encoder(config)


@pytest.mark.slow
def test_features_of_pairs_that_hold_images(tmp_path, text_encoder):
    tokens = 4  # of the caption, with its end
    features = np.arange(2 * tokens, dtype=np.float32).reshape(tokens, 2).astype(BF16)
    image = encode_png(np.full((8, 8, 3), 7, np.uint8))
    pair = dataclasses.replace(PAIR, image_tokens=None, image=image, text_features=features)
    provenance = records.Provenance("", 0, 0, image_size=8, text_encoder=text_encoder(width=2))
    config, encoder = of_one_folder(tmp_path, [pair], provenance)
    batch = next(pipeline.train_iterator(config, "generator", text_encoder=encoder))
    assert (batch["image"] == 7).all()
    np.testing.assert_array_equal(batch["text_features"][0, :tokens], features)


def test_a_view_keeps_a_captions_features_when_it_lends_an_image(
    tmp_path, write_folder, text_encoder
):
    folder = write_folder("real", 4, num_shards=1, text_encoder=text_encoder())
    view = views.write_view(tmp_path / "view", folder, [[[0, 1], [3, 3]]], block=4, chosen={})
    pairs = list(records.read_pairs(folder, text_features=True))
    config = DataConfig(folders={"kept": str(view.folder)}, batch_size=2, text_length=24)
    encoder = pipeline.stored_text_encoder(config)
    (batch,) = pipeline.eval_batches(config, "generator", text_encoder=encoder, with_keys=True)
    assert batch["key"].tolist() == ["real-000+real-001", "real-003"]
    np.testing.assert_array_equal(batch["image_tokens"][0], pairs[1].image_tokens)
    for row, pair in enumerate((pairs[0], pairs[3])):
        found = batch["text_features"][row][batch["text_mask"][row]]
        np.testing.assert_array_equal(found, pair.text_features)


def test_features_of_another_length_than_their_caption_are_named(tmp_path, text_encoder):
    provenance = records.Provenance("tok-a", 2, 8, text_encoder=text_encoder(width=2))
    # Two tokens, of "a red circle" and end.
    config, encoder = of_one_folder(tmp_path, [PAIR], provenance)
    with raises_line("--config.data.mixture=real: ", "another length than their caption", "real-0"):
        next(pipeline.train_iterator(config, "generator", text_encoder=encoder))


# --- what encoded them ---


def test_the_encoder_of_the_folders_is_found(both, text_encoder):
    expected = text_encoder()
    del expected["pairs"]  # the folders differ in it
    assert pipeline.stored_text_encoder(both) == expected


@pytest.mark.parametrize("key", records.ENCODED_BY)
def test_folders_of_different_encoders_are_refused_by_both_names(
    both, write_folder, text_encoder, key
):
    encoder = text_encoder()
    other = {"fingerprint": "enc-b", "width": 5, "text_length": 25, "vocabulary": "voc-b"}[key]
    folder = write_folder("real", 3, name="b", text_encoder=text_encoder(**{key: other}))
    config = dataclasses.replace(both, folders={"real": both.folders["real"], "b": folder})
    found = f"features by a text encoder of {key} {other}, expected {encoder[key]}"
    with raises_line(
        f"--config.data.folders.b={folder}: found {found}, as in {both.folders['real']}"
    ):
        pipeline.stored_text_encoder(config)


def test_folders_with_and_without_features_are_refused_by_both_names(both, write_folder):
    plain = write_folder("real", 3, name="plain")
    for folders in ({"a": both.folders["real"], "b": plain}, {"b": plain, **both.folders}):
        with raises_line(
            f"--config.data.folders.b={plain}: found captions without features, expected those of "
            f"text encoder enc-a, as in {both.folders['real']}; run `synth2 encode_captions`"
        ):
            pipeline.stored_text_encoder(dataclasses.replace(both, folders=folders))
    with raises_line("found captions without features in", plain, "synth2 encode_captions"):
        pipeline.stored_text_encoder(DataConfig(folders={"plain": plain}))


def test_held_out_pairs_must_be_encoded_as_those_of_training_are(both, write_folder, text_encoder):
    encoder = pipeline.stored_text_encoder(both)
    folder = write_folder("real", 3, name="b", text_encoder=text_encoder(fingerprint="enc-b"))
    config = dataclasses.replace(both, folders={"b": folder}, mixture="b", rates={})
    for read in (pipeline.train_iterator, pipeline.eval_batches):
        with raises_line(
            f"--config.data.folders.b={folder}", "fingerprint enc-b", "expected enc-a"
        ):
            read(config, "generator", text_encoder=encoder)


def test_text_must_be_as_it_was_encoded(both, tmp_path):
    with raises_line("--config.data.text_length: found 30, expected 24", both.folders["real"]):
        pipeline.stored_text_encoder(dataclasses.replace(both, text_length=30))
    copy = tmp_path / "other.model"
    copy.write_bytes(pathlib.Path(vocabulary_path("scenes")).read_bytes())
    renamed = dataclasses.replace(both, vocabulary=str(copy))  # the file's contents count
    encoder = pipeline.stored_text_encoder(renamed)
    assert encoder == pipeline.stored_text_encoder(both)
    copy.write_bytes(b"another")
    with raises_line("--config.data.vocabulary: found", str(copy), "were encoded"):
        pipeline.stored_text_encoder(renamed)
    state = pipeline.train_iterator(both, "generator").get_state()
    with raises_line("saved with text_encoder None", "enc-a"):
        pipeline.train_iterator(both, "generator", text_encoder=encoder).set_state(state)
