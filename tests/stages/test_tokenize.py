"""`synth2 tokenize`: what the folders of pairs hold."""

import json

import numpy as np
import pytest

from synth2_jax.data import records
from synth2_jax.domains.scenes import dataset
from synth2_jax.loading.tokenizing import decode_images, encode_images
from synth2_jax.loading.trained import load_trained

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


@pytest.fixture(scope="module")
def tokenizer(chain):
    return load_trained(str(chain.path("tokenizer")), "tokenizer")


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tfrecord"))}


@pytest.mark.parametrize("split", ["real", "test"])
def test_the_manifest_says_what_is_there_and_by_whom(chain, tokenizer, split):
    manifest = records.verify(chain.path("pairs", split))
    assert manifest.num_pairs == dataset.REFERENCES * chain.num_images
    assert dict(manifest.counts) == {"real": manifest.num_pairs, "synthetic": 0}
    assert len(manifest.shards) == 2
    provenance = manifest.provenance
    assert provenance.tokenizer == tokenizer.fingerprint("tokenizer")
    assert (provenance.num_image_tokens, provenance.codebook_size) == (chain.num_tokens, 32)
    assert provenance.captions == {"source": f"scenes/{split}", "images": chain.num_images}
    assert provenance.generator is None and provenance.sampler is None
    assert provenance.config["max_images"] == chain.num_images


def test_pairs_are_the_examples_of_scenes_in_order(chain, tokenizer):
    pairs = list(records.read_pairs(chain.path("pairs", "real")))
    examples = dataset.examples("real", chain.num_images)
    assert [p.caption for p in pairs] == [c for example in examples for c in example.captions]
    assert [p.key for p in pairs[:6]] == [f"real-000000-{i}" for i in range(5)] + ["real-000001-0"]
    assert {p.source for p in pairs} == {"real"}
    images = np.stack([example.image for example in examples])
    # Another batch size than the stage's, and a last batch that is not full.
    tokens = encode_images(tokenizer, images, 7, "test")
    np.testing.assert_array_equal(
        np.stack([pair.image_tokens for pair in pairs]), np.repeat(tokens, 5, axis=0)
    )


def test_an_image_has_all_its_captions_in_one_shard(chain):
    folder = chain.path("pairs", "real")
    sizes = [shard.num_pairs for shard in records.read_manifest(folder).shards]
    assert sum(sizes) == 5 * chain.num_images and all(size % 5 == 0 for size in sizes)


def test_decoded_images_are_pixels(chain, tokenizer):
    ids = np.zeros((3, chain.num_tokens), np.int32)
    ids[1] = 1
    images = decode_images(tokenizer, ids, batch_size=2)
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], images[2])


def test_a_finished_folder_is_left_alone(chain, tmp_path):
    chain.run(chain.tokenization(tmp_path, splits="test"))
    before = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "test").iterdir() if "json" not in p.name
    }
    assert len(before) == 2
    chain.run(chain.tokenization(tmp_path, splits="test"))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert shards(tmp_path / "test") == shards(chain.path("pairs", "test"))


@pytest.mark.parametrize("on_the_fly", ["false", "true"])
def test_progress_counts_images_and_nothing_else(chain, tmp_path, capsys, on_the_fly):
    chain.run([*chain.tokenization(tmp_path, splits="test"), f"--on-the-fly={on_the_fly}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"tokenize test {chain.num_images}/{chain.num_images} images  ")


def test_a_missing_shard_is_made_again(chain, tmp_path):
    chain.run(chain.tokenization(tmp_path, splits="test"))
    folder = tmp_path / "test"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / manifest["shards"][1]["name"]).unlink()
    chain.run(chain.tokenization(tmp_path, splits="test"))
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def test_mistakes(chain, mistake, tmp_path):
    line = mistake(chain.tokenization(tmp_path, splits="rael"))
    assert line.startswith(
        "--config.splits: Scenes has no split 'rael'; did you mean 'real'? one of: images"
    )
    line = mistake(chain.tokenization(tmp_path, tokenizer=""))
    assert line == "--config.tokenizer: no path given, expected the workdir of a training run"
    line = mistake(chain.tokenization(chain.path("pairs"), num_shards=3))
    assert "delete the folder or choose another" in line
    line = mistake(chain.tokenization(chain.path("pairs"), max_images=2))
    assert "delete the folder or choose another" in line  # shards of other images never mix
    for key in ("max_images", "batch_size", "num_shards"):
        line = mistake(chain.tokenization(tmp_path, **{key: 0}))
        assert line.endswith(f"--config.{key}: found 0, expected at least 1")
