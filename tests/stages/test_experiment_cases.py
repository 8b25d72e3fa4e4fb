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


def test_as_many_real_pictures_as_tokenize_reads_are_all(tmp_path):
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    config.tokenize.max_images = 3000
    assert Experiment(config, str(tmp_path)).case.real_pairs == 3000
    config.tokenize.max_images = dataset.MOST_REAL + 1
    with pytest.raises(UserError, match=r"^--config.tokenize.max_images: found 6001, .* 6000"):
        Experiment(config, str(tmp_path))


def test_real_captions_get_as_many_new_pictures_as_other_captions(tmp_path, monkeypatch):
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    config.unlock().synthesize.samples_per_caption = 2
    experiment = Experiment(config, str(tmp_path))
    monkeypatch.setattr(experiment, "real_captions", lambda: ["a", "b", "c"])
    monkeypatch.setattr(experiment, "written_captions", lambda: ["x"] * 7)
    monkeypatch.setattr(experiment, "generator", lambda: None)
    ran = []
    monkeypatch.setattr(experiment, "_run", lambda *given: ran.append(given))
    experiment.synthesize("real")
    ((_, _, _, _, filled),) = ran
    assert "samples_per_caption" not in filled
    rows = (tmp_path / "captions_real" / "captions.jsonl").read_text().splitlines()
    assert len(rows) == 7 and set(rows) == {f'{{"caption": "{c}"}}' for c in "abc"}


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


@pytest.mark.parametrize(
    "change, said",
    [
        ({"vlm": {"train": {"seed": 3}}}, "--config.vlm.train.seed: found 3, expected none: "),
        ({"vlm": {"data": {"rates": {"real": 1}}}}, "--config.vlm.data.rates.real: found 1"),
        ({"vlm": {"init": {"from": "a"}}}, "--config.vlm.init.from: found 'a', expected none"),
        (
            {"vlm": {"model_name": {"x": 1}}},
            "--config.vlm.model_name: found 'vlm', which has no keys (found 'model_name.x')",
        ),
        ({"vlm": {"optimizer": {"warmup_steps": 50}}, "real_first": 0}, "warmup_steps: found 50"),
        ({"vlm": {"train": {"stepz": 3}}}, "--config.vlm.train.stepz: unknown key"),
        ({"real_first": 0.02}, "real_first: found 0.02, which is 0 of 20 steps, expected 1 to 19"),
        ({"real_first": 0.98}, "real_first: found 0.98, which is 20 of 20 steps, expected 1 to 19"),
    ],
)
def test_a_mistake_in_an_arm_is_found_before_the_first_step(of_arm, change, said):
    with pytest.raises(UserError) as error:
        of_arm(dataclasses.replace(MINE, **change))
    assert str(error.value).startswith("arm mine: ") and said in str(error.value)


@pytest.mark.parametrize("two_runs", [False, True])
def test_an_arm_may_have_steps_and_a_warm_up_of_its_own(of_arm, tmp_path, two_runs):
    own = {"train": {"steps": 60}, "optimizer": {"warmup_steps": 9}}
    experiment = of_arm(dataclasses.replace(MINE, vlm=own, two_runs=two_runs))
    assert experiment.vlm_steps("mine") == 60
    experiment.vlm("mine")
    made = json.loads((tmp_path / "made_with.json").read_text())["vlm_mine"]["config"]
    assert made["optimizer"]["warmup_steps"] == 9
    assert made["train"]["steps"] == (30 if two_runs else 60)
