"""TFRecord files, plain or gzip, of TF Examples that hold encoded images and captions.

Keys are the file's name and the number of the record.
"""

import functools
import gzip
import itertools
import pathlib
import zlib
from collections.abc import Iterator

from synth2_jax.data.skipped import Skipped
from synth2_jax.data.sources.source import (
    Counted,
    DataSource,
    ImageText,
    SourceConfig,
    Tally,
    Wanted,
    from_files,
    looked_for,
    take,
)
from synth2_jax.data.tfrecord_lengths import is_gzip, record_lengths
from synth2_jax.errors import UserError

_IMAGES = "image/encoded;image;jpg;png"
_CAPTIONS = "caption/text;caption;captions;text;txt;image/caption"
_READ_BYTES = 1 << 20
_DAMAGED = (ValueError, EOFError, zlib.error, gzip.BadGzipFile)


def open_tfrecord(config: SourceConfig, wanted: Wanted) -> DataSource:
    """The files `config.path`."""
    return from_files(config, wanted, functools.partial(_read_file, config))


def _read_file(
    config: SourceConfig, path: pathlib.Path, name: str, tally: Tally
) -> Iterator[Counted]:
    from synth2_jax.data.tensorflow_cpu import one_line, tf

    # One at a time: a block would be lost whole with the damaged record in it. And none ahead
    # of the check of its length.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    compression = "GZIP" if is_gzip(path) else None
    records = tf.data.TFRecordDataset(str(path), compression, buffer_size=_READ_BYTES)
    records = iter(records.with_options(options))
    lengths = record_lengths(path)
    for number in itertools.count():
        key = f"{name}/{number:08d}"
        try:
            next(lengths, None)
            record = next(records, None)
        except _DAMAGED + (tf.errors.DataLossError,) as error:
            # The next record cannot be found: the length of each is written before it.
            yield 0, Skipped(key, "damaged TFRecord", f"{path.name}: {one_line(error)}")
            return
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
        if record is None:
            return
        tally.found += 1
        yield 1, _example(config, key, record.numpy())


def _example(config: SourceConfig, key: str, record: bytes) -> ImageText | Skipped:
    from google.protobuf.message import DecodeError

    from synth2_jax.data.tensorflow_cpu import tf

    image_field, caption_field = config.image_field or _IMAGES, config.caption_field or _CAPTIONS
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        return Skipped(key, "not a TF Example", str(error))
    values = {name: list(feature.bytes_list.value) or None for name, feature in features.items()}
    images, captions = take(values, image_field), take(values, caption_field)
    num_pairs = len(captions or [None])
    if images is None:
        return Skipped(key, "no image", looked_for(image_field, features), num_pairs)
    if len(images) > 1:  # the captions may belong to any of them
        return Skipped(key, "several images", f"found {len(images)}", num_pairs)
    if captions is None:
        return Skipped(key, "no caption", looked_for(caption_field, features))
    return ImageText(key, images[0], captions)
