"""Several seeds and numbers of real pictures in one workdir, and what needs another workdir."""

import dataclasses
import json

import pytest

from synth2_jax import config as config_lib
from synth2_jax.domains.scenes import dataset
from synth2_jax.errors import UserError
from synth2_jax.experiments import step_runner
from synth2_jax.experiments.arms import Arm
from synth2_jax.experiments.experiment import Experiment
from synth2_jax.stages import train


def test_a_seed_and_a_number_of_real_pictures_have_folders_of_their_own(tmp_path, monkeypatch):
    """Several of them share a workdir, and with it what does not depend on them."""
    ran = []
    monkeypatch.setattr(
        Experiment, "_run", lambda self, stage, step, *rest: ran.append((step, *rest[::2]))
    )
    monkeypatch.setattr(step_runner, "load_trained", lambda *arguments: None)
    experiment = Experiment(config_lib.load_config("configs/scenes/demo.py:tiny"), str(tmp_path))
    experiment.pairs()
    here = experiment.at(real_pairs=94, seed=1)
    here.vlm("real_synthetic")
    here.at(seed=2).vlm("real")
    here.at(real_pairs=0).vlm("real")
    assert [name for name, *_ in ran] == [
        *("tokenize", "tokenize_n94", "generator_n94_seed1", "synthesize_n94_seed1"),
        *("vlm_real_synthetic_n94_seed1", "vlm_real_n94_seed2", "vlm_real_seed1"),
    ]
    real = str(tmp_path / "pairs" / "n94" / "real")
    (_, folder, tokenized), generator, (_, _, sampled), vlm, other, all_real = ran[1:]
    assert f"{folder}/real" == real
    assert (tokenized["splits"], tokenized["max_images"]) == (("real",), 94)
    assert generator[2]["data.folders"] == {"real": real} == other[2]["data.folders"]
    assert sampled["generator"] == str(tmp_path / "generator_n94_seed1")
    synthetic = str(tmp_path / "pairs" / "synthetic_n94_seed1")
    assert vlm[2]["data.folders"] == {"real": real, "synthetic": synthetic}
    assert all_real[2]["data.folders"] == {"real": str(tmp_path / "pairs" / "real")}


@pytest.mark.parametrize("number", [-1, dataset.MOST_REAL + 1])
def test_more_real_pictures_than_there_are_is_one_line(tmp_path, number):
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    config.real_pairs = number
    with pytest.raises(
        UserError, match=rf"^--config.real_pairs: found {number}, expected 0 .* 6000"
    ):
        Experiment(config, str(tmp_path))


@pytest.mark.parametrize(
    "change, step",
    [({"seed": 3}, "tokenizer"), ({"seed": 3}, "vlm_real"), ({"real_pairs": 94}, "vlm_real")],
)
def test_another_seed_or_number_in_the_config_needs_another_workdir(tmp_path, change, step):
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    section = {"vlm_real": "vlm"}.get(step, step)
    Experiment(config, str(tmp_path)).notes.begin(step, config[section].to_dict())
    config.update(change)
    ((key, value),) = change.items()
    experiment = Experiment(config, str(tmp_path))
    experiment._made.update(f"{tmp_path}/pairs {splits}" for splits in (("real",),))
    with pytest.raises(UserError, match=f"{step} was made with {key}=None, found {value}"):
        experiment.vlm("real") if step == "vlm_real" else experiment.tokenizer()


@pytest.fixture
def of_arm(tmp_path, monkeypatch):
    """of_arm(Arm) -> an Experiment whose arm "mine" it is, in one workdir; nothing is trained."""
    for made in ("synthesize", "repaired", "real"):
        monkeypatch.setattr(Experiment, made, lambda self, *names: "/".join(("pairs", *names)))
    monkeypatch.setattr(train, "run", lambda *arguments: None)
    monkeypatch.setattr(step_runner, "load_trained", lambda *arguments: None)
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    return lambda arm: Experiment(config, str(tmp_path), arms={"mine": arm})


MINE = Arm({"real": 0.5, "synthetic": 0.5}, real_first=0.5)


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"rates": {"real": 0.25, "synthetic": 0.5}},
            r"arm.rates.real=\[\[9, 1.0\], \[10, 0.5\]\]",
        ),
        ({"rates": {"real": 0.5, "blank": 0.5}}, "arm.rates.blank=None"),
        ({"captions": "natural"}, "arm.captions='balanced', found 'natural'"),
        ({"two_runs": True}, "arm.rates.real=|arm.two_runs=False, found True"),
    ],
)
def test_another_arm_of_the_same_name_needs_another_workdir(of_arm, tmp_path, change, said):
    of_arm(MINE).vlm("mine")
    of_arm(MINE).vlm("mine")
    with pytest.raises(UserError, match=f"vlm_mine was made with ({said})"):
        of_arm(dataclasses.replace(MINE, **change)).vlm("mine")
    # An older version noted no arm.
    made_with = tmp_path / "made_with.json"
    made = json.loads(made_with.read_text())
    made["vlm_mine"]["config"].pop("arm")
    made_with.write_text(json.dumps(made))
    of_arm(MINE).vlm("mine")
