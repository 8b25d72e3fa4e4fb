"""Synthetic pairs that go straight into training."""

import json

import numpy as np
import pytest

from synth2_jax.data import records
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import DamagedError, UserError
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.stages.model_text import vlm_text
from synth2_jax.stages.stream import StreamConfig, StreamedBatches
from synth2_jax.testing.fake_batches import FakeBatches
from synth2_jax.training.checkpoint_reader import latest_step
from synth2_jax.training.fingerprint import fingerprint
from synth2_jax.training.metrics import read_metrics
from synth2_jax.training.trained import load_trained
from synth2_jax.vocabulary import load_vocabulary


def test_shares():
    assert StreamConfig("g", "c", share=0.25).num_synthetic(64) == 16
    assert StreamConfig("g", "c", share=0.001).num_synthetic(64) == 1
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="share"):
            StreamConfig("g", "c", share=share)


@pytest.fixture
def stream(chain):
    """stream(index, count, real) -> the stream of one of so many processes."""
    tokenizer = load_trained(str(chain.path("tokenizer")), "tokenizer")
    config = StreamConfig(
        str(chain.path("generator")),
        str(chain.path("captions")),
        sampler=ParallelDecodeConfig(num_steps=2),
        seed=3,
    )
    data = DataConfig(batch_size=16, text_length=26)

    def make(index=0, count=1, real=None, fingerprint=None):
        fingerprint = fingerprint or tokenizer.fingerprint("tokenizer")
        return StreamedBatches(config, data, fingerprint, real, index, count)

    return make


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_rows_are_the_same_on_any_number_of_processes_and_after_any_stop(chain, stream):
    alone = stream()
    batches = [next(alone) for _ in range(6)]  # 48 rows of 20 captions: more than two epochs
    halves = [stream(index, 2) for index in (0, 1)]
    for batch in batches[:3]:
        parts = [next(half) for half in halves]
        assert_same({name: np.concatenate([p[name] for p in parts]) for name in batch}, batch)
    state = halves[0].get_state()
    again = stream()
    assert again.restart(state, 3) == "the data goes on exactly"
    assert_same(next(again), batches[3])
    resumed = stream()
    resumed.set_state(again.get_state())
    assert_same(next(resumed), batches[4])
    assert resumed.last_keys[0] == "stream-000000032"
    assert resumed.totals == {"data/stream_examples": 40}
    with pytest.raises(DamagedError, match="not one of a stream"):
        stream().set_state(b"12")
    for name, value in (("seed", 4), ("generator", "another"), ("captions", 19)):
        other = json.loads(state)
        assert other["identity"][name]
        other["identity"][name] = value
        with pytest.raises(UserError, match=f"stream.{name} {value!r}, this run has"):
            stream().set_state(json.dumps(other).encode())


@pytest.mark.slow
def test_every_caption_comes_once_an_epoch(chain, stream):
    source, seen = stream(), []
    for _ in range(5):
        seen += [tuple(row) for row in next(source)["text_tokens"].tolist()]
    captions = [pair.caption for pair in records.read_pairs(chain.path("pairs", "synthetic"))]
    expected, _ = vlm_text(captions, ["Output:"] * len(captions), load_vocabulary("scenes"), 26)
    assert sorted(seen[:20]) == sorted(map(tuple, expected.tolist())) == sorted(seen[20:])
    assert seen[:20] != seen[20:]


@pytest.mark.slow
def test_real_rows_come_first(chain, stream):
    spec = {name: array for name, array in next(stream()).items()}
    real = FakeBatches(spec, seed=1)
    mixed = stream(real=real)
    batch = next(mixed)
    assert_same({name: rows[:8] for name, rows in batch.items()}, next(FakeBatches(spec, seed=1)))
    assert_same({name: rows[8:] for name, rows in batch.items()}, next(stream()))
    state, expected = mixed.get_state(), next(mixed)
    again = stream(real=FakeBatches(spec, seed=1))
    again.set_state(state)
    assert_same(next(again), expected)


@pytest.mark.slow
def test_a_generator_of_another_tokenizer_is_refused(chain, stream):
    with pytest.raises(UserError, match="makes image tokens of tokenizer .* expected tokenizer ab"):
        stream(fingerprint="ab")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_vlm_trains_on_a_stream(chain, tmp_path, share):
    def command(steps):
        return chain.training(
            "vlm",
            tmp_path / "vlm",
            stream__generator=chain.path("generator"),
            stream__captions=chain.path("captions"),
            stream__share=share,
            stream__sampler__num_steps=2,
            train__steps=steps,
        )

    chain.run(command(2))
    chain.run(command(4))
    stopped = load_trained(str(tmp_path / "vlm"), "vlm")
    (tmp_path / "vlm").rename(tmp_path / "stopped")
    chain.run(command(4))
    straight = load_trained(str(tmp_path / "vlm"), "vlm")
    assert fingerprint(stopped.params) == fingerprint(straight.params)
    assert latest_step(str(tmp_path / "vlm")) == 4
    rows = [row for row in read_metrics(tmp_path / "vlm" / "metrics.jsonl") if "loss" in row]
    assert rows[-1]["data/stream_examples"] == 4 * 16 * share
    assert rows[-1].get("data/real_examples", 0) == 4 * 16 * (1 - share)


@pytest.mark.slow
def test_only_vlms_take_a_stream(chain, tmp_path, mistake):
    command = chain.training("generator", tmp_path, stream__generator="g", stream__captions="c")
    assert mistake(command) == "config.stream: of a vlm alone, this is a generator"
