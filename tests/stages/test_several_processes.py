"""Stages in several real processes leave what one process leaves."""

import json

import pytest

from synth2_jax.data import records
from synth2_jax.training.checkpoint_reader import latest_step
from synth2_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def test_synthesis_deals_out_the_shards(chain, tmp_path, run_in_processes):
    outputs = run_in_processes(chain.synthesis(tmp_path))
    expected = chain.path("pairs", "synthetic")
    names = [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path, expected)]
    assert names[0] == names[1]
    assert chain.shards(tmp_path) == chain.shards(expected)
    manifests = [records.read_manifest(folder) for folder in (tmp_path, expected)]
    assert manifests[0].counts == manifests[1].counts
    done = [error.split(" pairs")[0].rsplit("/", 1)[-1] for _, error in outputs]
    assert sum(map(int, done)) == chain.num_captions and "0" not in done  # both had work


def test_tokenization_deals_out_the_shards(chain, tmp_path, run_in_processes):
    run_in_processes(chain.tokenization(tmp_path, splits="test"))
    assert chain.shards(tmp_path, "test") == chain.shards("pairs", "test")


# Devices of each of two processes, and the mesh: rows of their own, or one tensor group.
PODS = pytest.mark.parametrize("devices, mesh", [(2, {}), (1, {"mesh__tensor": 2})])


@PODS
def test_evaluation_gathers_every_caption_once(chain, tmp_path, run_in_processes, devices, mesh):
    """Ten images in batches of eight: six rows only fill up, and are dropped."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    chain.run(chain.evaluation(alone))
    run_in_processes(chain.evaluation(together, **mesh), devices=devices)
    captions = [(folder / "captions.jsonl").read_text() for folder in (alone, together)]
    assert captions[0] == captions[1] and len(captions[0].splitlines()) == 10
    results = [json.loads((folder / "results.json").read_text()) for folder in (alone, together)]
    configs = [result.pop("config") for result in results]
    assert configs[1]["mesh"] == configs[0]["mesh"] | {k[6:]: v for k, v in mesh.items()}
    assert results[0] == results[1]


@PODS
def test_training_validates_on_rows_of_every_process(
    chain, tmp_path, run_in_processes, devices, mesh
):
    """Losses on held-out data and captions of images, from parameters that lie on all devices."""
    held_out = {"folders__test": "CHAIN/pairs/test", "batch_size": 16, "text_length": 26}
    images = {"folder": "CHAIN/pairs/test", "batch_size": 8, "max_images": 10}
    keys = {f"validation__data__{key}": value for key, value in held_out.items()}
    keys |= {f"validation__captions__{key}": value for key, value in images.items()}
    keys |= {"validation__captions__decode__max_length": 8, "validation__num_batches": 2}
    keys |= {"train__steps": 2, "train__eval_every": 2, "data__source": "fake"}
    chain.run(chain.training("vlm", tmp_path / "a", **keys))
    run_in_processes(chain.training("vlm", tmp_path / "b", **keys, **mesh), devices=devices)
    losses = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        rows = read_metrics(folder / "metrics.jsonl")
        (row,) = [row for row in rows if "validation/loss" in row]
        losses.append({name: row[name] for name in row if name.startswith("validation/")})
    assert {"validation/loss", "validation/cider"} <= losses[0].keys()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)


@PODS
def test_data_that_ends_early_is_evaluated_saved_and_said_again(
    chain, tmp_path, run_in_processes, devices, mesh
):
    """15 batches of 120 pairs: two times all of them, or once with half of each batch made."""
    keys = {"data__num_epochs": 2, "train__steps": 20, "train__eval_every": 100}
    keys |= {"validation__data__folders__test": "CHAIN/pairs/test"}
    keys |= {"validation__data__batch_size": 16, "validation__data__text_length": 26}
    if not mesh:
        keys |= {"stream__generator": "CHAIN/generator", "stream__captions": "CHAIN/captions"}
        keys |= {"stream__sampler__num_steps": 2, "data__num_epochs": 1}
    argv = chain.training("vlm", tmp_path, **keys, **mesh)
    for ending in ("\n", ", and none was left. To train further"):
        outputs = run_in_processes(argv, devices=devices)
        assert f"the data ends after step 15 of 20{ending}" in outputs[0][1]
        assert latest_step(tmp_path) == 15 and list(chain.losses(tmp_path)) == [*range(1, 16)]
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert [row["step"] for row in rows if "validation/loss" in row] == [15]


@PODS
def test_a_stream_is_the_same_on_rows_of_every_process(
    chain, tmp_path, run_in_processes, devices, mesh
):
    stream = {"generator": "CHAIN/generator", "captions": "CHAIN/captions"}
    keys = {f"stream__{key}": value for key, value in stream.items()}
    keys |= {"stream__sampler__num_steps": 2, "train__steps": 3}
    chain.run(chain.training("vlm", tmp_path / "a", **keys))
    run_in_processes(chain.training("vlm", tmp_path / "b", **keys, **mesh), devices=devices)
    expected = chain.losses(tmp_path, "a")
    assert len(set(expected.values())) == 3
    assert chain.losses(tmp_path, "b") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("words", ["mixture", "mixture,interleaved"])
def test_training_on_pairs_goes_on_exactly_with_fewer_processes(
    chain, tmp_path, run_in_processes, words
):
    """The same batches in two processes as in one, and after the change from two to one."""

    def command(folder, steps):
        keys = {"train__steps": steps, "train__checkpoint_every": 3}
        keys["data__folders__synthetic"] = "CHAIN/pairs/synthetic"
        return chain.training("vlm", tmp_path / folder, f"vlm.py:{words}", **keys)

    chain.run(command("a", 6))
    outputs = run_in_processes(command("b", 3))
    assert all("Traceback" not in error for _, error in outputs)
    chain.run(command("b", 6))
    expected = chain.losses(tmp_path, "a")
    assert len(set(expected.values())) == 6  # so that another order would be seen
    assert chain.losses(tmp_path, "b") == pytest.approx(expected, rel=1e-4)
