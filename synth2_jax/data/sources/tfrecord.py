"""TFRecord files of TF Examples that hold encoded images and captions."""

import itertools
import pathlib
from collections.abc import Iterator

from synth2_jax.data.records import Skipped
from synth2_jax.data.sources.source import (
    FileSource,
    ImageText,
    Source,
    SourceConfig,
)

_IMAGES = "image/encoded;image;jpg;png"
_CAPTIONS = "caption/text;caption;captions;text;txt;image/caption"
_READ_BYTES = 1 << 20


def open_tfrecord(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> Source:
    """Each TFRecord file is a part."""
    del split, num_shards
    return TFRecords("tfrecord", config, max_images)


class TFRecords(FileSource):
    """See `open_tfrecord`. Keys are the file's name and the number of the record."""

    def __init__(self, name: str, config: SourceConfig, max_images: int | None):
        super().__init__(name, config, max_images)
        self._image_field = config.image_field or _IMAGES
        self._caption_field = config.caption_field or _CAPTIONS

    def _examples(self, path: pathlib.Path, name: str) -> Iterator[ImageText | Skipped]:
        from synth2_jax.data.tensorflow_cpu import one_line, tf

        # One at a time: a block would be lost whole with the damaged record in it.
        records = iter(tf.data.TFRecordDataset(str(path), buffer_size=_READ_BYTES))
        for number in itertools.count():
            key = f"{name}/{number:08d}"
            try:
                record = next(records, None)
            except tf.errors.DataLossError as error:
                # What follows cannot be found: the length of each record stands before it.
                yield Skipped(key, "damaged TFRecord", f"{path.name}: {one_line(error)}")
                return
            if record is None:
                return
            yield self._example(key, record.numpy())

    def _example(self, key: str, record: bytes) -> ImageText | Skipped:
        from google.protobuf.message import DecodeError

        from synth2_jax.data.tensorflow_cpu import tf

        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError as error:
            return Skipped(key, "not a TF Example", str(error))
        values = {name: list(feature.bytes_list.value) for name, feature in features.items()}
        images = next((values[f] for f in self._image_field.split(";") if values.get(f)), None)
        if not images:
            return Skipped(key, "no image", f"expected one of {self._image_field}")
        captions = next((values[f] for f in self._caption_field.split(";") if values.get(f)), None)
        if not captions:
            return Skipped(key, "no caption", f"expected one of {self._caption_field}")
        return ImageText(key, images[0], captions)
