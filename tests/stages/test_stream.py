"""Synthetic pairs that go straight into training."""

import json

import numpy as np
import pytest

from synth2_jax.caption_writing.folder import CAPTIONS
from synth2_jax.data import records
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import DamagedError
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.trained import load_trained
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sharding import ALL_ROWS, DataLayout
from synth2_jax.synthesis.stream import StreamConfig, StreamedBatches
from synth2_jax.testing.batches import assert_same
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.caption_ids import vlm_text
from synth2_jax.text.vocabulary import load_vocabulary
from synth2_jax.training.metrics import read_metrics


def test_shares():
    assert StreamConfig("g", "c", share=0.25).num_synthetic(64) == 16
    assert StreamConfig("g", "c", share=0.001).num_synthetic(64) == 1
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="share"):
            StreamConfig("g", "c", share=share)


@pytest.fixture
def stream(chain):
    """stream(layout, real) -> the stream of a process with these rows of a batch."""
    tokenizer = load_trained(str(chain.path("tokenizer")), "tokenizer")
    sampler = ParallelDecodeConfig(num_steps=2)

    def make(layout=ALL_ROWS, real=None, fingerprint=None, captions=None, **data):
        folders = str(chain.path("generator")), str(captions or chain.path("captions"))
        config = StreamConfig(*folders, sampler=sampler, seed=3)
        data = DataConfig(batch_size=16, **{"text_length": 26, **data})
        fingerprint = fingerprint or tokenizer.fingerprint("tokenizer")
        return StreamedBatches(config, data, fingerprint, real, layout)

    return make


@pytest.mark.slow
def test_rows_are_the_same_on_any_number_of_processes_and_after_any_stop(chain, stream):
    alone = stream()
    batches = [next(alone) for _ in range(6)]  # 48 rows of 20 captions: more than two epochs
    # Two parts of the batch each, with gaps between them.
    halves = [stream(DataLayout((index, index + 2), 4, index, 2)) for index in (0, 1)]
    for batch in batches[:3]:
        for index, half in enumerate(halves):
            cut = {n: a.reshape(2, 2, 2, *a.shape[1:])[:, index] for n, a in batch.items()}
            rows = {n: a.reshape(4, *a.shape[2:]) for n, a in cut.items()}
            assert_same([next(half)], [rows])
    state = halves[0].get_state()
    again = stream()
    assert again.restart(state, 3) == "resuming the data exactly"
    assert_same([next(again)], [batches[3]])
    resumed = stream()
    resumed.set_state(again.get_state())
    assert_same([next(resumed)], [batches[4]])
    assert resumed.last_keys[0] == "stream-000000032"
    assert resumed.totals == {"data/stream_examples": 40}
    with pytest.raises(DamagedError, match="not one of a stream"):
        stream().set_state(b"12")
    for name, value in (("seed", 4), ("generator", "another"), ("captions", 19)):
        other = json.loads(state)
        assert other["identity"][name]
        other["identity"][name] = value
        with user_error(f"stream.{name} {value!r}, this run has"):
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
def test_real_and_synthetic_rows_take_turns_on_any_mesh(chain, stream):
    spec = {name: array for name, array in next(stream()).items()}
    mixed = stream(real=FakeBatches(spec, seed=1))
    batch = next(mixed)
    real, synthetic = next(FakeBatches(spec, seed=1)), next(stream())
    assert_same([{name: rows[0::2] for name, rows in batch.items()}], [real])
    assert_same([{name: rows[1::2] for name, rows in batch.items()}], [synthetic])
    layout = DataLayout((1,), 2, 1, 2)
    half = next(stream(layout, FakeBatches(spec, seed=1, layout=layout)))
    assert_same([half], [{name: rows[8:] for name, rows in batch.items()}])
    state, expected = mixed.get_state(), next(mixed)
    again = stream(real=FakeBatches(spec, seed=1))
    again.set_state(state)
    assert_same([next(again)], [expected])


@pytest.mark.slow
def test_other_captions_of_the_same_number_are_refused(chain, stream, tmp_path):
    state = stream().get_state()
    lines = (chain.path("captions") / CAPTIONS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[7]["caption"] += " and a star"
    (tmp_path / CAPTIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with user_error(r"stream.captions \[20, '\w{16}'\], this run has \[20"):
        stream(captions=tmp_path).set_state(state)
    with user_error("stream.prompt 'Output:', this run has 'Say:'"):
        stream(prompt="Say:").set_state(state)
    older = json.loads(state)
    older["identity"]["captions"] = 20
    for key in ("text_length", "prompt", "vocabulary"):
        del older["identity"][key]
    stream().set_state(json.dumps(older).encode())


STREAM = {
    "stream__generator": "CHAIN/generator",
    "stream__captions": "CHAIN/captions",
    "stream__sampler__num_steps": 2,
}


@pytest.mark.slow
def test_a_stream_beside_a_folder_of_images(chain, tmp_path):
    """Trains as it does beside the tokens of the same images."""
    chain.run(chain.tokenization(tmp_path, splits="real", on_the_fly="true"))
    losses = []
    for name, folder in (("a", chain.path("pairs", "real")), ("b", tmp_path / "real")):
        keys = {"data__folders__real": folder, "train__steps": 3, **STREAM}
        chain.run(chain.training("vlm", tmp_path / name, **keys))
        losses.append(chain.losses(tmp_path, name))
    assert len(losses[0]) == 3 and losses[0] == losses[1]


@pytest.mark.slow
def test_images_of_another_size_are_one_line(chain, stream):
    spec = {name: rows for name, rows in next(stream()).items() if name != "image_tokens"}
    spec["image"] = np.zeros((8, 16, 16, 3), np.uint8)
    with user_error(r"images of shape \(16, 16, 3\), expected .*\(32, 32, 3\)"):
        next(stream(real=FakeBatches(spec)))


@pytest.mark.slow
def test_a_generator_of_another_tokenizer_is_refused(chain, stream):
    with user_error("makes image tokens of tokenizer .* expected tokenizer ab"):
        stream(fingerprint="ab")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_vlm_trains_on_a_stream(chain, tmp_path, share):
    for steps, folder in ((2, "stopped"), (4, "stopped"), (4, "straight")):
        keys = {**STREAM, "stream__share": share, "train__steps": steps}
        chain.run(chain.training("vlm", tmp_path / folder, **keys))
    found, expected = (
        load_trained(str(tmp_path / folder), "vlm") for folder in ("stopped", "straight")
    )
    assert fingerprint(found.params) == fingerprint(expected.params)
    assert found.step == expected.step == 4
    rows = read_metrics(tmp_path / "straight" / "metrics.jsonl")
    last = [row for row in rows if "loss" in row][-1]
    assert last["data/stream_examples"] == 4 * 16 * share
    assert last.get("data/real_examples", 0) == 4 * 16 * (1 - share)
