import json

import pytest

from synth2_jax.data.skipped import Skipped
from synth2_jax.data.sources.source import ImageText, SourceConfig, open_source


@pytest.fixture
def read_all():
    """read_all(split, num_shards, max_images, **config) -> (examples and skipped, data source)."""

    def read_all(split="train", num_shards=1, max_images=None, **config):
        source = open_source(SourceConfig(**config), split, num_shards, max_images)
        assert json.loads(json.dumps(source.description)) == source.description
        shards = [list(source.read(shard)) for shard in range(source.num_shards)]
        assert shards == [list(source.read(shard)) for shard in range(source.num_shards)]
        return [item for shard in shards for item in shard], source

    return read_all


@pytest.fixture
def read(read_all):
    """read(**as read_all) -> (examples, [(key, reason)] of the skipped)."""

    def read(*args, **config):
        items, _ = read_all(*args, **config)
        examples = [item for item in items if isinstance(item, ImageText)]
        skipped = [(item.key, item.reason) for item in items if isinstance(item, Skipped)]
        assert len(examples) + len(skipped) == len(items)
        return examples, skipped

    return read


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(b"a picture")
    return folder
