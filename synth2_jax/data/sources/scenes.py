"""The built-in pictures."""

from synth2_jax.data.sources.source import ImageText, ListSource, SourceConfig
from synth2_jax.scenes import dataset


def open_scenes(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """A split of Scenes."""
    del config
    examples = [
        ImageText(example.key, example.image, example.captions)
        for example in dataset.examples(split, max_images)
    ]
    return ListSource(examples, {"source": f"scenes/{split}"}, num_shards, max_images)
