"""Data sets of TensorFlow Datasets that were prepared before, such as coco_captions."""

import itertools
from collections.abc import Iterator
from typing import Any

from synth2_jax.data.records import Skipped
from synth2_jax.data.sources.source import ImageText, Source, SourceConfig
from synth2_jax.errors import UserError, nearest

_KEYS = "image/filename;image/id;image_id;filename;id"


def open_tfds(config: SourceConfig, split: str, num_shards: int, max_images: int | None) -> Source:
    """A split of the data set `config.path`, in even parts; `config.images` is its data_dir."""
    from synth2_jax.data import tensorflow_cpu  # noqa: F401 (first: it silences TensorFlow)

    # After TensorFlow: it looks for it.
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
            f"`tfds build {config.path}` or give its data_dir as source.images"
        )
    if split not in builder.info.splits:
        raise UserError(f"{where}: no split {split!r}; {nearest(split, builder.info.splits)}")
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

    def read(self, shard: int) -> Iterator[ImageText | Skipped]:
        import tensorflow_datasets as tfds

        start, stop = (self.num_images * s // self.num_shards for s in (shard, shard + 1))
        dataset = self._builder.as_dataset(
            split=f"{self._split}[{start}:{stop}]",
            shuffle_files=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        for number, example in zip(itertools.count(start), tfds.as_numpy(dataset)):
            yield self._example(f"{self._split}/{number:08d}", example)

    def _example(self, where: str, example: dict[str, Any]) -> ImageText | Skipped:
        image = _at(example, self._config.image_field or "image")
        captions = _at(example, self._config.caption_field or "captions/text;caption;text")
        key = _at(example, self._config.key_field or _KEYS)
        key = where if key is None else f"{where}-{_text(key)}"
        if image is None:
            return Skipped(key, "no image", f"the example has {sorted(example)}")
        if captions is None:
            return Skipped(key, "no caption", f"the example has {sorted(example)}")
        captions = [captions] if isinstance(captions, bytes) else list(captions)
        return ImageText(key, image, captions)


def _at(example: dict[str, Any], names: str) -> Any:
    """The value of the first of "a/b;c" that is there, where a/b may be b inside of a."""
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
