"""Data sets of TensorFlow Datasets that were prepared before, such as coco_captions."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from synth2_jax.data.skipped import Skipped
from synth2_jax.data.sources.source import (
    Counted,
    DataSource,
    ImageText,
    SourceConfig,
    Tally,
    Wanted,
    check_split,
    looked_for,
    take,
)
from synth2_jax.errors import UserError, nearest

_CAPTIONS = "captions/text;caption;text"
_KEYS = "image/filename;image/id;image_id;filename;id"


def open_tfds(config: SourceConfig, wanted: Wanted) -> DataSource:
    """A split of the data set `config.path`, in even parts; `config.images` is its data_dir."""
    from synth2_jax.data.tensorflow_cpu import one_line, tf

    import tensorflow_datasets as tfds  # isort: skip (after TensorFlow, which it imports)

    split, num_shards = wanted.split, wanted.num_shards
    where = f"--config.source.path={config.path}"
    try:
        builder = tfds.builder(config.path, data_dir=config.images or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{where}: no such data set of TensorFlow Datasets: {reason}") from error
    if not builder.info.splits:
        raise UserError(
            f"{where}: not prepared in {builder.data_path}; run "
            f"`tfds build {config.path}`, or give its data_dir by --config.source.images"
        )
    check_split(split, builder.info.splits, config.path)
    image_field = config.image_field or "image"
    if image_field not in (features := builder.info.features):
        raise UserError(
            f"--config.source.image_field: {config.path} has no feature {image_field!r}; "
            f"{nearest(image_field, features)}"
        )
    num_images = builder.info.splits[split].num_examples
    num_images = min(num_images, wanted.max_images or num_images)

    def read_part(shard: int, tally: Tally) -> Iterator[Counted]:
        number, stop = (num_images * s // num_shards for s in (shard, shard + 1))
        if number == stop:  # TensorFlow Datasets refuses empty ranges
            return
        tally.found += stop - number
        dataset = builder.as_dataset(
            split=f"{split}[{number}:{stop}]",
            shuffle_files=False,
            decoders={image_field: tfds.decode.SkipDecoding()},
        )
        try:
            for example in tfds.as_numpy(dataset):
                yield 1, _example(f"{split}/{number:08d}", example, image_field, config)
                number += 1
            reason = "the files end here"
        except tf.errors.DataLossError as error:
            reason = one_line(error)
        if lost := stop - number:
            yield lost, Skipped(f"{split}/{number:08d}", "damaged TFRecord", reason, lost)

    description = {
        "source": f"tfds/{builder.info.full_name}",
        "split": split,
        "images": num_images,
    }
    return DataSource(description, num_shards, read_part, num_images)


def _example(
    key: str, example: Mapping[str, Any], image_field: str, config: SourceConfig
) -> ImageText | Skipped:
    caption_field = config.caption_field or _CAPTIONS
    image, captions = take(example, image_field), take(example, caption_field)
    if (name := take(example, config.key_field or _KEYS)) is not None:
        name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        key = f"{key}-{name}"
    for what, value, field in (("image", image, image_field), ("caption", captions, caption_field)):
        if value is None:
            return Skipped(key, f"no {what}", looked_for(field, example))
    captions = [captions] if isinstance(captions, bytes) else list(np.ravel(captions))
    return ImageText(key, image, captions)
