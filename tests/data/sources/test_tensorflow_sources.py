"""Images with captions in TFRecord files and in TensorFlow Datasets."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest

from synth2_jax.data.images import encode_png
from synth2_jax.data.skipped import Skipped
from synth2_jax.data.sources.source import SourceConfig, open_source
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.data.tfrecord_lengths import _masked_crc, is_gzip, record_lengths
from synth2_jax.testing.user_errors import raises_line

PICTURE = encode_png(np.zeros((32, 32, 3), np.uint8))


def example(**features):
    feature = {
        name.replace("__", "/"): tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        for name, values in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in records:
            file.write(record)


def read(path, **config):
    source = open_source(SourceConfig("tfrecord", str(path), **config), "train", 1)
    return [item for shard in range(source.num_shards) for item in source.read(shard)]


def test_tfrecords(tmp_path):
    rows = [example(image__encoded=[b"%d" % n], caption=[b"a", b"b"]) for n in range(3)]
    write(tmp_path / "a.tfrecord", rows[:2])
    write(tmp_path / "b.tfrecord", rows[2:])
    items = read(tmp_path / "*.tfrecord")
    assert [item.key for item in items] == ["a/00000000", "a/00000001", "b/00000000"]
    assert items[1].image == b"1" and items[1].captions == [b"a", b"b"]


def test_fields_of_other_names_and_records_that_are_something_else(tmp_path):
    rows = [
        example(jpeg=[PICTURE], words=[b"a circle"]),
        example(words=[b"a circle"]),
        example(jpeg=[PICTURE]),
        example(jpeg=[PICTURE, PICTURE], words=[b"a", b"b", b"c"]),
        b"\xff\xff not an Example",
    ]
    write(tmp_path / "a.tfrecord", rows)
    first, *rest = read(tmp_path / "a.tfrecord", image_field="jpeg", caption_field="text;words")
    assert first.captions == [b"a circle"]
    reasons = ["no image", "no caption", "several images", "not a TF Example"]
    assert [item.reason for item in rest] == reasons
    assert rest[2].num_pairs == 3
    skipped, *_ = read(tmp_path / "a.tfrecord", image_field="img;jpg")
    assert skipped.detail == "looked for img;jpg, found jpeg, words"


def test_a_flipped_byte_is_named_with_its_offset(tmp_path):
    rows = [example(image=[PICTURE], caption=[b"a circle"]) for n in range(5)]
    write(tmp_path / "a.tfrecord", rows)
    contents = bytearray((tmp_path / "a.tfrecord").read_bytes())
    frame = 16  # lengths and checksums around each record
    third = sum(len(row) + frame for row in rows[:2])
    contents[third + 12 + 30] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(contents)
    items = read(tmp_path / "a.tfrecord")
    assert len(items) == 3 and isinstance(items[2], Skipped)
    assert items[2].reason == "damaged TFRecord"
    assert items[2].detail == f"a.tfrecord: corrupted record at {third + 12}"


@pytest.mark.parametrize("length", [0, 1, 35615, 100_000])
def test_lengths_are_checked_by_their_own_checksum(tmp_path, length):
    write(tmp_path / "a.tfrecord", [bytes(length), b"more"])
    assert list(record_lengths(tmp_path / "a.tfrecord")) == [length, 4]
    contents = (tmp_path / "a.tfrecord").read_bytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(contents))
    assert list(record_lengths(tmp_path / "a.gz")) == [length, 4]
    assert is_gzip(tmp_path / "a.gz") and not is_gzip(tmp_path / "a.tfrecord")


def test_a_plain_file_may_begin_as_gzip_does(tmp_path):
    length = int.from_bytes(b"\x1f\x8b\x08", "little")
    write(tmp_path / "a.tfrecord", [bytes(length)])
    assert (tmp_path / "a.tfrecord").read_bytes()[:3] == b"\x1f\x8b\x08"
    assert not is_gzip(tmp_path / "a.tfrecord")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_record_longer_than_its_file_is_not_read(tmp_path, compressed):
    """TensorFlow would take memory for all of it, and end the process."""
    write(tmp_path / "a.tfrecord", [example(image=[PICTURE], caption=[b"a circle"])])
    contents = (tmp_path / "a.tfrecord").read_bytes()
    huge = struct.pack("<Q", 1 << 60)
    huge += struct.pack("<I", _masked_crc(huge)) + bytes(100)
    contents += huge
    (tmp_path / "a.tfrecord").write_bytes(gzip.compress(contents) if compressed else contents)
    first, second = read(tmp_path / "a.tfrecord")
    assert first.captions == [b"a circle"]
    assert second.reason == "damaged TFRecord" and "1,152,921,504,606,846,976" in second.detail


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A data set with COCO's features, prepared on disk."""
    import tensorflow_datasets as tfds

    class TinyCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="png"),
                "image/filename": tfds.features.Text(),
                "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(5), "val": self._generate_examples(2)}

        def _generate_examples(self, count):
            for n in range(count):
                image = np.full((32, 32, 3), n, np.uint8)
                captions = [{"text": f"caption {n}"}, {"text": "another"}]
                yield n, {"image": image, "image/filename": f"{n}.png", "captions": captions}

    folder = tmp_path_factory.mktemp("tfds")
    TinyCaptions(data_dir=folder).download_and_prepare()
    return str(folder)


def test_tfds(tfds_folder):
    config = SourceConfig("tfds", "tiny_captions", images=tfds_folder)
    source = open_source(config, "train", num_shards=2)
    assert source.num_images == 5
    shards = [list(source.read(shard)) for shard in range(2)]
    assert [len(shard) for shard in shards] == [2, 3]
    items = shards[0] + shards[1]
    names = sorted(item.key.partition("-")[2] for item in items)
    assert names == [f"{n}.png" for n in range(5)]
    assert items[0].image.startswith(b"\x89PNG")  # not decoded yet
    assert items[0].captions[1] == b"another"
    assert list(source.read(1)) == shards[1]
    examples = open_source(config, "val", num_shards=5)
    assert [len(list(examples.read(shard))) for shard in range(5)] == [0, 0, 1, 0, 1]
    with raises_line("no feature 'picture'; ", "one of: captions, image"):
        open_source(dataclasses.replace(config, image_field="picture"), "train", 1)
    with raises_line("--config.splits: tiny_captions has no split 'vla'; did you mean 'val'"):
        open_source(config, "vla", 1)
    with raises_line("--config.source.path=tiny_caption: no such data set"):
        open_source(dataclasses.replace(config, path="tiny_caption"), "train", 1)
