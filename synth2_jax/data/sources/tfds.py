"""Data sets of TensorFlow Datasets that were prepared before, such as coco_captions."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from synth2_jax.data.records import Skipped
from synth2_jax.data.sources.source import (
    Counted,
    ImageText,
    Source,
    SourceConfig,
    Tally,
    looked_for,
)
from synth2_jax.errors import UserError, nearest

_KEYS = "image/filename;image/id;image_id;filename;id"


def open_tfds(config: SourceConfig, split: str, num_shards: int, max_images: int | None) -> Source:
    """A split of the data set `config.path`, in even parts; `config.images` is its data_dir."""
    from synth2_jax.data import tensorflow_cpu  # noqa: F401 (first: it silences TensorFlow)

    # After TensorFlow, which it imports.
    import tensorflow_datasets as tfds  # isort: skip

    where = f"tfds {config.path!r}"
    try:
        builder = tfds.builder(config.path, data_dir=config.images or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{where}: no such data set: {reason}") from error
    if not builder.info.splits:
        raise UserError(
            f"{where}: not prepared in {builder.data_path}; run "
            f"`tfds build {config.path}`, or give its data_dir by --config.source.images"
        )
    if split not in builder.info.splits:
        raise UserError(f"{where}: no split {split!r}; {nearest(split, builder.info.splits)}")
    image_field = config.image_field or "image"
    if image_field not in builder.info.features:
        known = nearest(image_field, builder.info.features)
        raise UserError(
            f"--config.source.image_field: {where} has no feature {image_field!r}; {known}"
        )
    return TFDS(builder, split, config, num_shards, max_images)


class TFDS(Source):
    """See `open_tfds`."""

    def __init__(
        self,
        builder: Any,
        split: str,
        config: SourceConfig,
        num_shards: int,
        max_images: int | None,
    ):
        total = builder.info.splits[split].num_examples
        self.num_images = total if max_images is None else min(total, max_images)
        self.num_shards = num_shards
        self.description = {
            "source": f"tfds/{builder.info.full_name}",
            "split": split,
            "images": self.num_images,
        }
        self._builder, self._split, self._config = builder, split, config

    def _read(self, shard: int, tally: Tally) -> Iterator[Counted]:
        from synth2_jax.data.tensorflow_cpu import one_line, tf

        import tensorflow_datasets as tfds  # isort: skip

        start, stop = (self.num_images * s // self.num_shards for s in (shard, shard + 1))
        if start == stop:  # TensorFlow Datasets refuses empty ranges
            return
        tally.found += stop - start
        dataset = self._builder.as_dataset(
            split=f"{self._split}[{start}:{stop}]",
            shuffle_files=False,
            decoders={self._config.image_field or "image": tfds.decode.SkipDecoding()},
        )
        number = start
        try:
            for example in tfds.as_numpy(dataset):
                yield 1, self._example(f"{self._split}/{number:08d}", example)
                number += 1
            reason = "the files end here"
        except tf.errors.DataLossError as error:
            reason = one_line(error)
        if number < stop:
            where, lost = f"{self._split}/{number:08d}", stop - number
            yield lost, Skipped(where, "damaged TFRecord", reason, lost)

    def _example(self, where: str, example: dict[str, Any]) -> ImageText | Skipped:
        fields = {
            "image": self._config.image_field or "image",
            "caption": self._config.caption_field or "captions/text;caption;text",
        }
        image, captions = (_at(example, names) for names in fields.values())
        key = _at(example, self._config.key_field or _KEYS)
        key = where if key is None else f"{where}-{_text(key)}"
        if image is None:
            return Skipped(key, "no image", looked_for(fields["image"], example))
        if captions is None:
            return Skipped(key, "no caption", looked_for(fields["caption"], example))
        return ImageText(
            key, image, [captions] if isinstance(captions, bytes) else list(np.ravel(captions))
        )


def _at(example: dict[str, Any], names: str) -> Any:
    """Returns the value of the first of "a/b;c" that is there; a/b may be b inside of a."""
    for name in names.split(";"):
        value: Any = example.get(name)
        if value is None:
            value = example
            for part in name.split("/"):
                value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
