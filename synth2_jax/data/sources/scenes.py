"""The built-in pictures."""

from synth2_jax.data.sources.source import ImageText, ListSource, SourceConfig
from synth2_jax.domains.scenes import dataset


def open_scenes(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """A split of Scenes."""
    del config
    found = dataset.examples(split, max_images)
    examples = ((1, ImageText(row.key, row.image, row.captions)) for row in found)
    return ListSource(examples, len(found), {"source": f"scenes/{split}"}, num_shards, max_images)
