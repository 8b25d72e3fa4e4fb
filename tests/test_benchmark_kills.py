"""The kill campaign's comparison: each bit that must be equal counts, and no other."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks.kills import check_environment, commands, contents
from synth2_jax import sharding
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.sharding import MeshConfig
from synth2_jax.testing.toy_objective import ToyObjective
from synth2_jax.training import train_state
from synth2_jax.training.checkpoints import Checkpoints
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer


@pytest.fixture(scope="module")
def state():
    toy, tx = ToyObjective(), make_optimizer(OptimizerConfig())
    layout = train_state.state_layout(toy, tx, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    return train_state.create_train_state(toy, tx, layout, seed=1)


def run_folder(folder, state, loss=0.5):
    """What a training and a stage of pairs leave, at another time in another place."""
    with Checkpoints(folder / "out") as checkpoints:
        checkpoints.save(state, FakeBatches({}), {"time": str(folder)}, {})
    row = {"step": 1, "time": hash(str(folder)), "loss": loss}
    (folder / "out" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "out" / "manifest.json").write_text(json.dumps({"pairs": f"{folder}/pairs"}))
    (folder / "out" / f".shard.{folder.name}.tmp").write_text(folder.name)
    return folder


def test_what_differs_is_named_and_nothing_else(tmp_path, state):
    expected = contents(run_folder(tmp_path / "a", state))
    assert contents(run_folder(tmp_path / "b", state)) == expected
    moments = jax.tree.map(lambda x: x + jnp.ones_like(x), state.opt_state)
    other = run_folder(tmp_path / "c", state.replace(opt_state=moments), loss=0.25)
    (other / "out" / "manifest.json").write_text("{}")
    found = contents(other)
    differs = {key for key in expected if found[key] != expected[key]}
    kinds = {key.split("[")[0] for key in differs}
    assert kinds == {"out/metrics.jsonl", "out/manifest.json", "out/checkpoints/train"}
    assert any("opt_state" in key for key in differs)
    assert expected.keys() == found.keys()


def test_each_command_comes_after_those_that_it_needs(tmp_path):
    """And the stages that users run for hours are all there."""
    seen = set()
    for name, command in commands(tmp_path).items():
        needed = {
            other
            for other in commands(tmp_path)
            if f"{tmp_path / other}/" in " ".join(command.arguments)
        } | {source.parent.name for source in command.inputs.values()}
        assert needed <= seen, name
        seen.add(name)
    stages = {command.arguments[0] for command in commands(tmp_path).values()}
    assert stages == {
        *("train", "tokenize", "captions", "synthesize", "encode_captions", "filter", "evaluate"),
        "export",
    }


def test_a_campaign_goes_on_only_as_its_programs_were_compiled(tmp_path, monkeypatch):
    check_environment(tmp_path / "environment.json")
    check_environment(tmp_path / "environment.json")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    with pytest.raises(UserError, match="environment: found .*fast_math.*, expected"):
        check_environment(tmp_path / "environment.json")
