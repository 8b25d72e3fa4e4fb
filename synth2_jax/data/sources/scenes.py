"""The built-in pictures."""

from synth2_jax.data.sources.source import (
    DataSource,
    ImageText,
    SourceConfig,
    Wanted,
    check_split,
    from_list,
)
from synth2_jax.domains.scenes import dataset


def open_scenes(config: SourceConfig, wanted: Wanted) -> DataSource:
    """A split of Scenes."""
    del config
    check_split(wanted.split, dataset.SPLITS, "Scenes")
    found = dataset.examples(wanted.split, wanted.max_images)
    examples = ((1, ImageText(row.key, row.image, row.captions)) for row in found)
    return from_list(examples, len(found), {"source": f"scenes/{wanted.split}"}, wanted)
