"""Stages in several real processes leave what one process leaves."""

import functools
import json

import pytest

from synth2_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def test_synthesis_deals_out_the_shards(chain, tmp_path, run_in_processes):
    expected = chain.path("pairs", "synthetic")
    outputs = run_in_processes(chain.synthesis(tmp_path))
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        if name.endswith(".tfrecord"):
            assert (tmp_path / name).read_bytes() == (expected / name).read_bytes()
    counts = [
        json.loads((folder / "manifest.json").read_text())["counts"]
        for folder in (tmp_path, expected)
    ]
    assert counts[0] == counts[1]
    done = [error.split(" pairs")[0].rsplit("/", 1)[-1] for _, error in outputs]
    assert sum(map(int, done)) == chain.num_captions and "0" not in done  # both had work


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
    losses = []
    in_processes = functools.partial(run_in_processes, devices=devices)
    for folder, run, over in (("a", chain.run, {}), ("b", in_processes, mesh)):
        folder = tmp_path / folder
        argv = chain.training(
            "vlm",
            folder,
            train__steps=2,
            train__eval_every=2,
            data__source="fake",
            validation__num_batches=2,
            validation__data__folders__test=chain.path("pairs", "test"),
            validation__data__batch_size=16,
            validation__data__text_length=26,
            validation__captions__folder=chain.path("pairs", "test"),
            validation__captions__batch_size=8,
            validation__captions__max_images=10,
            validation__captions__decode__max_length=8,
            **over,
        )
        run(argv)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (row,) = [row for row in rows if "validation/loss" in row]
        losses.append(row)
    names = {name for name in losses[0] if name.startswith("validation/")}
    assert {"validation/loss", "validation/cider"} <= names
    for name in names:
        assert losses[1][name] == pytest.approx(losses[0][name], rel=1e-4, abs=1e-6), name


def test_tokenization_deals_out_the_shards(chain, tmp_path, run_in_processes):
    expected = chain.path("pairs", "test")
    run_in_processes(chain.tokenization(tmp_path, splits="test"))
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == names
    for name in names:
        if name.endswith(".tfrecord"):
            found = (tmp_path / "test" / name).read_bytes()
            assert found == (expected / name).read_bytes()


@PODS
def test_a_stream_is_the_same_on_rows_of_every_process(
    chain, tmp_path, run_in_processes, devices, mesh
):
    losses = []
    in_processes = functools.partial(run_in_processes, devices=devices)
    for folder, run, over in (("a", chain.run, {}), ("b", in_processes, mesh)):
        run(
            chain.training(
                "vlm",
                tmp_path / folder,
                stream__generator=chain.path("generator"),
                stream__captions=chain.path("captions"),
                stream__sampler__num_steps=2,
                train__steps=3,
                **over,
            )
        )
        rows = read_metrics(tmp_path / folder / "metrics.jsonl")
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(set(losses[0])) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_training_on_pairs_goes_on_exactly_with_fewer_processes(chain, tmp_path, run_in_processes):
    """The same batches in two processes as in one, and after the change from two to one."""

    def command(folder, steps):
        return chain.training(
            "vlm",
            folder,
            config="vlm.py:mixture",
            train__steps=steps,
            train__checkpoint_every=3,
            data__folders__synthetic=chain.path("pairs", "synthetic"),
        )

    chain.run(command(tmp_path / "a", 6))
    outputs = run_in_processes(command(tmp_path / "b", 3))
    assert all("Traceback" not in error for _, error in outputs)
    chain.run(command(tmp_path / "b", 6))
    losses = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append({row["step"]: row["loss"] for row in rows if "loss" in row})
    assert losses[0].keys() == losses[1].keys() == set(range(1, 7))
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, rel=1e-4), step
    assert len(set(losses[0].values())) == 6  # so that another order would be seen
