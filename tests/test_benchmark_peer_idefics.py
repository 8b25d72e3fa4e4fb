"""The benchmark beside Idefics: equal sizes on both sides, which both train and write."""

import importlib.util
import pathlib

import pytest

from synth2_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = ("--layers=2", "--width=24", "--heads=2", "--mlp=48", "--every=2", "--latents=3")
TINY += ("--image-tokens=4", "--vocabulary=32", "--text=6", "--batch=2", "--steps=4")
TINY += ("--microbatches=1,2",)


@pytest.fixture(scope="module")
def peer():
    spec = importlib.util.spec_from_file_location(
        "benchmarks_peer_idefics", ROOT / "benchmarks" / "peer_idefics.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[1, 2])
def sides(peer, request):
    """Whole batches, and in two microbatches."""
    given = peer.parse(list(TINY))
    return peer.ours(given, request.param), peer.idefics(given, request.param)


def test_runs_take_turns_and_the_first_ones_do_not_count(peer, monkeypatch):
    now, called = [0.0], []
    monkeypatch.setattr(peer.time, "perf_counter", lambda: now[0])

    def run(name, seconds):
        called.append(name)
        now[0] += 100.0 if called.count(name) <= 2 else seconds

    found = peer.in_turns({"a": lambda: run("a", 2.0), "b": lambda: run("b", 3.0)}, repeats=3)
    assert found == {"a": pytest.approx(2.0), "b": pytest.approx(3.0)}
    assert called == ["a", "b"] * 5


@pytest.mark.parametrize("parts", [0, 3])
def test_microbatches_that_do_not_divide_the_batch_are_one_line(peer, parts):
    with pytest.raises(UserError, match=f"found {parts}, expected a divisor of the batch of 2"):
        peer.measure(peer.parse([*TINY, f"--microbatches=1,{parts}"]))


@pytest.mark.slow
@pytest.mark.interop
def test_both_sides_have_as_many_parameters(sides):
    ours, idefics = sides
    assert ours.frozen == idefics.frozen
    codes, positions = 24 * 24, 4 * 24  # what Idefics lacks: projection and positions of codes
    assert ours.trained - codes - positions == pytest.approx(idefics.trained, rel=0.01)


@pytest.mark.slow
@pytest.mark.interop
def test_both_sides_learn_their_batch(sides):
    for side in sides:
        first = side.train()
        for _ in range(5):
            last = side.train()
        assert last < first


@pytest.mark.slow
@pytest.mark.interop
def test_both_sides_write_captions_of_the_full_length(sides):
    for side in sides:
        ids_BT = side.caption()
        assert ids_BT.shape == (2, 4)
        assert ((ids_BT >= 0) & (ids_BT < 32)).all()


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratios_are_of_the_rates(peer, dtype):
    found = peer.measure(peer.parse([*TINY, f"--dtype={dtype}", "--steps=1", "--repeats=1"]))
    for rate in ("steps_per_second", "tokens_per_second"):
        ours, idefics = found["ours"][rate], found["idefics"][rate]
        assert found[f"{rate}_ratio"] == ours / idefics > 0
    for side in (found["ours"], found["idefics"]):
        rates = side["steps_per_second_by_microbatches"]
        assert rates.keys() == {1, 2} and side["steps_per_second"] == max(rates.values())
        assert rates[side["microbatches"]] == max(rates.values())
