"""The steps that demo and study share: they know what is done, and change only the pictures."""

import functools
import json
import pathlib
import shutil
import sys
import time

import numpy as np
import pytest

from synth2_jax import config as config_lib
from synth2_jax import environment, folder_lock
from synth2_jax.data import records
from synth2_jax.domains.scenes import dataset, language, oracle, renderer
from synth2_jax.errors import UserError
from synth2_jax.experiments import experiment as steps
from synth2_jax.experiments import notes, step_runner
from synth2_jax.experiments.arms import ARMS
from synth2_jax.experiments.experiment import Experiment
from synth2_jax.experiments.experiment_config import FILLED_IN, Case
from synth2_jax.files import write_json
from synth2_jax.loading import tokenizing
from synth2_jax.loading.trained import load_trained
from synth2_jax.pages.numbers import flat
from synth2_jax.stages import captions, evaluate, synthesize, tokenize, train

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def overrides(argv, section):
    """The config keys that an argv of the chain sets, moved under a section of the demo's."""
    for argument in argv:
        key, _, text = argument.partition("=")
        key = f"{section}.{key.removeprefix('--config.')}"
        if argument.startswith("--config.") and not filled_in(key):
            yield key, text


def filled_in(key):
    """The entry of FILLED_IN that a key is or lies under; None if the steps leave it alone."""
    return next((filled for filled in FILLED_IN if f"{key}.".startswith(f"{filled}.")), None)


def demo_config(chain):
    """The demo's config, with the settings by which the chain's folders were made."""
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    sections = {
        name: chain.training(name, "")
        for name in ("tokenizer", "language_model", "generator", "vlm")
    }
    sections["tokenize"] = chain.tokenization("")
    sections["captions"] = chain.writing("")
    sections["synthesize"] = chain.synthesis("")
    sections["evaluate"] = chain.evaluation("")
    for section, argv in sections.items():
        for key, text in overrides(argv, section):
            config_lib.override(config, key, text)
    return config


@pytest.fixture
def experiment(chain):
    """On the chain's own folder: all that the chain has made is there already."""
    return Experiment(demo_config(chain), str(chain.root))


def pairs_of(folder):
    return list(records.read_pairs(folder))


def test_what_is_there_is_not_made_again(chain, experiment, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"ran again with {arguments}")

    for stage in (train, captions, evaluate):
        monkeypatch.setattr(stage, "run", refuse)
    for loader, name in ((experiment.tokenizer, "tokenizer"), (experiment.generator, "generator")):
        assert loader().path == str(chain.path(name))
    experiment.captions()
    assert experiment.vlm("real").step == chain.steps["vlm"]
    assert len(experiment.written_captions()) == chain.num_captions
    assert experiment.notes.seconds == {}
    with pytest.raises(AssertionError, match="ran again"):
        experiment.at(seed=1).generator()


def test_folders_of_pairs_are_checked_once_a_process_and_kept(chain, experiment, monkeypatch):
    experiment.pairs()
    folder, calls = str(chain.path("pairs", "synthetic")), []
    assert experiment.synthesize() == folder
    assert records.verify(folder).num_pairs == chain.num_captions
    monkeypatch.setattr(synthesize, "run", lambda section, folder: calls.append(folder))
    assert experiment.synthesize() == folder and calls == []


def steps_of(experiment):
    """The names of the steps that an experiment would run, in place of running them."""
    names = []
    experiment._step = lambda name, *others: names.append(name)
    return names


def test_more_steps_than_were_done_is_more_to_do(chain):
    config = demo_config(chain)
    config.language_model.train.steps += 1
    experiment = Experiment(config, str(chain.root))
    names = steps_of(experiment)
    experiment.language_model()
    assert names == ["language_model"]


def test_damaged_and_interrupted_runs_are_trained_again(chain, tmp_path):
    experiment = Experiment(demo_config(chain), str(tmp_path))
    names = steps_of(experiment)
    (tmp_path / "tokenizer" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="expected checkpoint steps"):
        experiment.tokenizer()
    shutil.copytree(chain.path("tokenizer"), tmp_path / "tokenizer", dirs_exist_ok=True)
    damaged = tmp_path / "tokenizer" / "checkpoints" / str(chain.steps["tokenizer"])
    file = max((damaged / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    with pytest.raises(UserError, match="damaged: params/"):
        experiment.tokenizer()
    assert names == ["tokenizer", "tokenizer"]


def test_shuffled_and_blank_pairs_change_the_pictures_alone(chain, experiment):
    synthetic = pairs_of(chain.path("pairs", "synthetic"))
    found = {name: pairs_of(experiment.repaired(name)) for name in ("shuffled", "blank")}
    tokens = {
        name: [tuple(pair.image_tokens) for pair in pairs]
        for name, pairs in {**found, "synthetic": synthetic}.items()
    }
    for name, pairs in found.items():
        assert [pair.caption for pair in pairs] == [pair.caption for pair in synthetic]
        check_provenance(chain, name)
    assert sorted(tokens["shuffled"]) == sorted(tokens["synthetic"])
    moved = [a != b for a, b in zip(tokens["shuffled"], tokens["synthetic"], strict=True)]
    assert np.mean(moved) > 0.5
    empty = renderer.render(renderer.Scene((), "white"))
    tokenizer = load_trained(str(chain.path("tokenizer")), "tokenizer")
    expected = tokenizing.encode_images(tokenizer, empty[None], 1, "test")[0]
    assert set(tokens["blank"]) == {tuple(expected)}


def test_rendered_pairs_show_what_their_captions_say(chain, experiment, monkeypatch):
    images = []
    encode = tokenizing.encode_images

    def recorded(trained, pictures, *arguments):
        images.append(pictures)
        return encode(trained, pictures, *arguments)

    monkeypatch.setattr(tokenizing, "encode_images", recorded)
    folder = experiment.repaired("rendered")
    rendered = pairs_of(folder)
    (pictures,) = images
    assert len(rendered) == len(pictures) > 5
    claims = 0
    for pair, scene in zip(rendered, oracle.read(pictures), strict=True):
        for right, claimed in language.agreement(language.parse(pair.caption), scene).values():
            assert right == claimed
            claims += claimed
    assert claims
    tokenizer = load_trained(str(chain.path("tokenizer")), "tokenizer")
    np.testing.assert_array_equal(
        np.stack([pair.image_tokens for pair in rendered]), encode(tokenizer, pictures, 4, "test")
    )
    left_out = {p.caption for p in pairs_of(chain.path("pairs", "synthetic"))} - {
        pair.caption for pair in rendered
    }
    for caption in left_out:  # only what no picture can show
        assert language.imagine(language.parse(caption), np.random.default_rng(0)) is None
    check_provenance(chain, "rendered")
    assert experiment.repaired("rendered") == folder and len(images) == 1


def check_provenance(chain, name):
    synthetic = records.read_manifest(chain.path("pairs", "synthetic")).provenance
    folder = chain.path("pairs", name)
    manifest = records.verify(folder)
    found = manifest.provenance
    assert (found.tokenizer, found.generator) == (synthetic.tokenizer, None)
    assert found.captions == {**synthetic.captions, "pictures": name}
    assert dict(manifest.counts) == {"real": 0, "synthetic": manifest.num_pairs}
    assert pairs_of(folder)[0].key == f"{name}-000000000-0"


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_reads_its_folders_at_its_rates_and_nothing_else_differs(
    chain, experiment, monkeypatch, name
):
    seen, arm, steps = [], ARMS[name], chain.steps["vlm"]

    def train_alone(name, section, filled, changed, noted):
        seen.append((name, filled, changed))

    monkeypatch.setattr(experiment, "_train", train_alone)
    for made in ("synthesize", "repaired"):
        monkeypatch.setattr(Experiment, made, lambda self, *names: f"{'/'.join(names)} {self.case}")
    here = experiment.at(seed=2)
    here.vlm("real")
    here.vlm(name)
    (_, real, _), *first, (folder, filled, changed) = seen
    assert folder == f"vlm_{name}_seed2"
    folders = {"real": str(chain.path("pairs", "real"))}
    for source in arm.rates.keys() - {"real"}:
        names = [*([] if source == "synthetic" else [source]), arm.captions]
        folders[source] = f"{'/'.join(names)} {Case(2, 24)}"
    assert filled.pop("data.folders") == {s: f for s, f in folders.items() if s in arm.rates}
    switch = 0 if arm.two_runs else round(arm.real_first * steps)
    assert filled.pop("data.rates", dict.fromkeys(arm.rates, 1.0)) == arm.rates_at(switch)
    assert sum(arm.rates.values()) == 1
    assert ("data.mixture" in filled) == (len(arm.rates) > 1)
    filled.pop("data.mixture", None)
    real.pop("data.folders")
    assert filled["train.seed"] == filled["data.seed"] == 2
    if arm.two_runs:
        ((first_folder, first_filled, first_changed),) = first
        assert filled.pop("init.from") == str(chain.path(first_folder))
        assert first_filled.pop("data.folders") == {"real": folders["real"]}
        assert first_filled == real
        # The checkpoint that it starts from has its parts.
        real = {key: value for key, value in real.items() if not key.startswith("pretrained.")}
        assert first_changed["train.steps"] + changed["train.steps"] == steps
    assert filled == real
    if arm.equal_compute:
        assert changed["train.steps"] == here.vlm_steps(name) > steps
    elif not arm.two_runs:
        stages = {"optimizer.restarts": (switch,), "optimizer.warmup_steps": switch // 2}
        assert changed == arm.changed(experiment.config.vlm) | (stages if switch else {})


@pytest.mark.parametrize(
    "key, said",
    [
        ("vlm.trian.steps", "--config.vlm.trian: unknown key; did you mean 'train'?"),
        ("vlm.model.vlm.resampler.depth", "--config.vlm.model.vlm.resampler.depth: unknown key"),
        ("evaluate.decode.beams", "--config.evaluate.decode.beams: unknown key"),
        ("vml.train.steps", "--config.vml: unknown key; did you mean 'vlm'?"),
        ("vlm.model.text_length", "--config.vlm.model.text_length: found 3, expected"),
        # A warm-up as long as its run.
        ("vlm.train.steps", "--config.vlm.optimizer.warmup_steps: found"),
    ],
)
def test_a_mistake_in_the_last_section_is_found_before_the_first_step(tmp_path, key, said):
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    config_lib.override(config, key, "3")
    with pytest.raises(UserError) as error:
        Experiment(config, str(tmp_path))
    assert said in str(error.value)


@pytest.mark.parametrize("key", FILLED_IN)
def test_a_value_that_a_step_would_overwrite_is_refused(tmp_path, key):
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    given = f"{key}.real" if key.endswith(("folders", "rates")) else key
    config_lib.override(config, given, "7" if key.endswith(("seed", "rates")) else "elsewhere")
    with pytest.raises(UserError) as error:
        Experiment(config, str(tmp_path))
    message = str(error.value)
    assert message.startswith(f"--config.{given}: found ") and message.endswith(" decides")
    assert ("--config.seed" in message) == key.endswith("seed")


def test_what_the_steps_fill_in_is_all_that_is_refused(tmp_path, monkeypatch):
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    config.seed = 3
    changed = set()

    def record(stage, section, folder):
        name = section.get("model_name", stage)
        before, after = (dict(flat(tree.to_dict())) for tree in (config[name], section))
        changed.update(f"{name}.{key}" for key in after if before.get(key) != after[key])
        if stage == "evaluate":
            write_json(pathlib.Path(folder) / "results.json", dict.fromkeys(steps.SCORES))

    for stage in (tokenize, captions, synthesize, train, evaluate):
        name = stage.__name__.rpartition(".")[2]
        monkeypatch.setattr(stage, "run", functools.partial(record, name))
    monkeypatch.setattr(step_runner, "load_trained", lambda *arguments: None)
    experiment = Experiment(config, str(tmp_path))
    experiment.tokenizer()
    experiment.language_model()
    experiment.pairs()
    experiment.captions()
    experiment.vlm("real_synthetic")
    experiment.evaluate("real_synthetic")
    experiment.vlm("pretrain_then_mix")
    # Each of the two runs of that arm is shorter than the section says.
    changed -= {"vlm.train.steps", "vlm.optimizer.warmup_steps"}
    assert {key: filled_in(key) for key in changed if not filled_in(key)} == {}
    assert {filled_in(key) for key in changed} == set(FILLED_IN)


def test_seconds_of_steps_add_up_over_processes(chain, tmp_path):
    config = demo_config(chain)
    first, folder = Experiment(config, str(tmp_path)), str(tmp_path / "step")
    first._step("tokenizer", "tokenizer", folder, lambda: time.sleep(0.02))
    with pytest.raises(SystemExit):
        first._step("synthesize", "synthesize", folder, lambda: time.sleep(0.02) or sys.exit(143))
    later = Experiment(config, str(tmp_path))
    later._step("synthesize", "synthesize", folder, lambda: None)  # all there already
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert seconds.keys() == {"tokenizer", "synthesize"} and min(seconds.values()) >= 0.02
    assert list(later.notes.seconds) == ["synthesize"]
    assert later.notes.seconds["synthesize"] < seconds["synthesize"]


def test_a_step_is_refused_while_another_command_writes_to_its_folder(chain, tmp_path):
    experiment, folder = Experiment(demo_config(chain), str(tmp_path)), tmp_path / "tokenizer"
    with (
        folder_lock.hold(folder / folder_lock.LOCK, "--workdir=w", "synth2 train"),
        pytest.raises(UserError, match=f"^{folder}: in use by .* on .*synth2 train, since"),
    ):
        experiment.tokenizer()


def test_another_config_is_refused_by_every_step_that_was_begun_under_one(chain, tmp_path):
    """A result of the old config must never be reported under the new one."""
    config = demo_config(chain)
    experiment = Experiment(config, str(tmp_path))
    steps = {
        "tokenizer": ("tokenizer", "train.log_every", experiment.tokenizer),
        "captions": ("captions", "captions_per_class", experiment.captions),
        "synthesize_seed1": (
            "synthesize",
            "guidance.scale",
            lambda: experiment.at(seed=1).synthesize(),
        ),
        "evaluate vlm_real": ("evaluate", "batch_size", lambda: experiment.evaluate("real")),
    }
    experiment.generator = lambda: None
    for step, (section, key, run) in steps.items():
        experiment.notes.begin(step, config[section].to_dict())
        with config.unlocked():
            config[section].update_from_flattened_dict({key: 77})
        with pytest.raises(UserError, match=rf"{step} was made with {key}=.* found 77"):
            run()
    made = json.loads((tmp_path / "made_with.json").read_text())
    assert made.keys() == steps.keys()
    assert experiment.notes.commits() == sorted({environment.commit()} - {""})


def test_other_pictures_of_synthetic_pairs_are_refused_under_another_config_too(chain, tmp_path):
    config = demo_config(chain)
    experiment = Experiment(config, str(tmp_path))
    experiment.generator = lambda: None
    write_json(tmp_path / "pairs" / "shuffled" / records.MANIFEST, {})  # made before
    experiment.notes.begin("synthesize", config.synthesize.to_dict())
    config.synthesize.guidance.scale = 77.0
    with pytest.raises(UserError, match=r"synthesize was made with guidance.scale=1.5, found 77"):
        experiment.repaired("shuffled")


def test_the_peak_memory_is_the_most_of_all_processes(chain, tmp_path, monkeypatch):
    config = demo_config(chain)
    first = Experiment(config, str(tmp_path))
    assert (
        0.05 < first.notes.peak_memory_gib() < 100
    )  # this process has imported JAX and TensorFlow
    for peak, expected in ((300.0, 300.0), (200.0, 300.0)):
        monkeypatch.setattr(notes, "_peak_memory_gib", lambda peak=peak: peak)
        step = Experiment(config, str(tmp_path))._step
        step("tokenizer", "tokenizer", str(tmp_path / "step"), lambda: None)
        assert first.notes.peak_memory_gib() == expected


@pytest.mark.parametrize(
    "more_scores, found, runs",
    [((), {}, False), (("meteor",), {}, True), (("meteor",), {"meteor": 1.0}, False)],
)
def test_an_evaluation_lacks_a_further_score_that_failed(
    tmp_path, more_scores, found, runs, monkeypatch
):
    monkeypatch.setattr("synth2_jax.evaluation.scorer.check_meteor", lambda: None)
    config = config_lib.load_config("configs/scenes/demo.py:tiny")
    config.unlock().evaluate.more_scores = more_scores
    experiment = Experiment(config, str(tmp_path))
    names = steps_of(experiment)
    results = tmp_path / "evaluation" / "vlm_real" / "results.json"
    write_json(results, dict.fromkeys(steps.SCORES, 1.0) | found)
    (results.parent / evaluate.PER_IMAGE).touch()
    experiment.evaluate("real")
    assert names == ["evaluate vlm_real"] * runs


def test_seeds_may_share_a_generator_but_not_its_samples(chain, monkeypatch):
    folders = []
    for shared in (False, True):
        experiment = Experiment(demo_config(chain), str(chain.root), share_generator=shared)
        monkeypatch.setattr(experiment, "_train", lambda name, *sections: folders.append(name))
        monkeypatch.setattr(experiment, "_step", lambda *arguments: None)
        assert experiment.at(seed=2).synthesize() == str(chain.path("pairs", "synthetic_seed2"))
    assert folders == ["generator_seed2", "generator"]


def test_the_numbers_of_real_pictures_are_nested_subsets(chain, experiment, tmp_path):
    """In a workdir that has all of them, and in one whose config asks for that number."""
    config = demo_config(chain)
    config.real_pairs = 20
    shutil.copytree(chain.path("tokenizer"), tmp_path / "tokenizer")
    alone = Experiment(config, str(tmp_path))
    alone.pairs()
    folders = [alone.real(), experiment.at(real_pairs=20).real(), experiment.real()]
    assert folders[0] == str(tmp_path / "pairs" / "real")
    assert (tmp_path / "pairs" / "test" / records.MANIFEST).exists()
    fewer, apart, all_pairs = (
        {pair.key: (pair.caption, tuple(pair.image_tokens)) for pair in pairs_of(folder)}
        for folder in folders
    )
    assert len(fewer) == 20 * dataset.REFERENCES and fewer == apart
    assert fewer.items() < all_pairs.items()
