"""Data sources of any format."""

import numpy as np
import pytest

from synth2_jax.data.skipped import Skipped
from synth2_jax.data.sources.source import (
    DataSource,
    SourceConfig,
    Wanted,
    from_list,
)
from synth2_jax.domains.scenes import dataset


def test_scenes_are_the_pictures_themselves(read_all):
    items, source = read_all("real", num_shards=3, max_images=7, format="scenes")
    assert [item.key for item in items] == [f"real-{i:06d}" for i in range(7)]
    np.testing.assert_array_equal(items[6].image, dataset.examples("real", 7)[6].image)
    assert source.description == {"source": "scenes/real", "images": 7}


def test_a_data_source_that_loses_rows_fails():
    def read_part(shard, tally):
        tally.found += 2
        yield 1, Skipped("a", "empty caption")

    with pytest.raises(AssertionError, match="losing: found 2 rows, but 1 are kept or skipped"):
        list(DataSource({"source": "losing"}, 1, read_part).read(0))
    with pytest.raises(AssertionError, match="lost: found 2 rows, but 1 are kept or skipped"):
        from_list(
            [(1, Skipped("a", "no caption"))], 2, {"source": "lost"}, Wanted("train", 1, None)
        )


def test_mistakes_in_the_config():
    with pytest.raises(ValueError, match="format: unknown 'wds'"):
        SourceConfig(format="wds")
    with pytest.raises(ValueError, match="answers"):
        SourceConfig(format="vqa", answers="best")
