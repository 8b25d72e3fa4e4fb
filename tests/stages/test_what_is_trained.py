"""A language model frozen, with LoRA, or trained whole: from the command line to an export."""

import json

import numpy as np
import pytest

import synth2_jax
from synth2_jax import main
from synth2_jax.fingerprint import fingerprint
from synth2_jax.layers.lora import is_adapter
from synth2_jax.loading.trained import load_trained
from synth2_jax.testing.untrained_runs import write_untrained_run
from synth2_jax.training import train_state
from synth2_jax.training.checkpoint_reader import restore_params

pytestmark = pytest.mark.slow

LORA = {"model.vlm.lora.rank": 2, "model.vlm.lora.targets": "('query','value','mlp/up')"}
WHOLE = {"model.freeze": "^tokenizer/"}
GROUPS = {"optimizer.groups": "({'pattern': '_lora_', 'learning_rate_factor': 2.0},)"}
SETTINGS = {
    **{"model.vlm.resampler.embed_dim": 16, "model.vlm.resampler.mlp_dim": 16},
    **{"data.source": "fake", "data.batch_size": 4, "train.microbatches": 1, "train.steps": 4},
    **{"optimizer.learning_rate": 0.02, "optimizer.schedule": "constant"},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for name in ("tokenizer", "language_model"):
        write_untrained_run(folder / name, name)
    return folder


def training(parts, workdir, **overrides):
    """argv of a short training on top of the parts."""
    keys = {f"pretrained.{name}": parts / name for name in ("tokenizer", "language_model")}
    given = (f"--config.{key}={value}" for key, value in (keys | SETTINGS | overrides).items())
    return [
        "synth2",
        "train",
        "--config=configs/scenes/vlm.py:tiny",
        f"--workdir={workdir}",
        *given,
    ]


@pytest.fixture(scope="module")
def runs(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in (("lora", LORA), ("whole", WHOLE)):
        assert main.main(training(parts, folder / name, **overrides)) == 0
    return folder


def language_model(path):
    return train_state.flatten(restore_params(path)["vlm"]["language_model"])


def same(first, second):
    return {path: np.array_equal(first[path], second[path]) for path in first}


def test_adapters_are_trained_and_their_base_is_not(parts, runs):
    before = train_state.flatten(restore_params(parts / "language_model")["language_model"])
    found = language_model(runs / "lora")
    assert all(same(before, found).values())
    adapters = {path: found[path] for path in found.keys() - before.keys()}
    assert len(adapters) == 6 and all(is_adapter(path) for path in adapters)
    assert all(leaf.any() for leaf in adapters.values())
    built_on = load_trained(str(runs / "lora"), "vlm").built_on
    assert built_on.keys() == {"tokenizer", "language_model"}


def test_a_whole_language_model_is_trained_and_is_the_runs_own(parts, runs):
    before = train_state.flatten(restore_params(parts / "language_model")["language_model"])
    assert not any(same(before, language_model(runs / "whole")).values())
    assert load_trained(str(runs / "whole"), "vlm").built_on.keys() == {"tokenizer"}


@pytest.mark.parametrize("name", ["lora", "whole"])
def test_an_export_writes_the_captions_of_the_run(runs, tmp_path, name, capsys):
    out = tmp_path / "out"
    assert main.main(["synth2", "export", str(runs / name), f"--output={out}"]) == 0
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    found = [synth2_jax.load_vlm(path).caption(images) for path in (runs / name, out)]
    assert found[0] == found[1]
    exported = load_trained(str(out), "vlm")
    assert exported.objective.task.vlm.lora is None
    assert not any(map(is_adapter, train_state.flatten(exported.params)))
    assert exported.built_on.keys() == {"tokenizer"}
    capsys.readouterr()
    assert main.main(["synth2", "inspect", str(runs / name)]) == 0
    assert ("kernel_lora_a" in capsys.readouterr().out) == (name == "lora")


def test_the_scores_of_a_run_with_adapters_are_those_of_its_export(chain, tmp_path):
    keys = {f"{key.replace('.', '__')}": value for key, value in LORA.items()}
    chain.run(chain.training("vlm", tmp_path / "run", **keys))
    chain.run(chain.evaluation(tmp_path / "run" / "test", vlm=tmp_path / "run"))
    chain.run(["synth2", "export", str(tmp_path / "run"), f"--output={tmp_path / 'out'}"])
    chain.run(chain.evaluation(tmp_path / "test", vlm=tmp_path / "out"))
    texts = {(tmp_path / path / "captions.jsonl").read_text() for path in ("run/test", "test")}
    assert len(texts) == 1
    assert "test/results.json" in (tmp_path / "out" / "README.md").read_text()


def test_one_file_has_no_adapters_either(runs, tmp_path):
    file = tmp_path / "language_model.safetensors"
    flags = [f"--output={file}", "--part=vlm/language_model"]
    assert main.main(["synth2", "export", str(runs / "lora"), *flags]) == 0
    header = file.read_bytes()
    header = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert len(header) > 8 and not any(map(is_adapter, header))
    assert json.loads(header["__metadata__"]["config"])["model"]["vlm"]["lora"] is None


def test_a_run_with_adapters_and_groups_resumes_exactly(parts, runs, tmp_path):
    for workdir, steps in (("run", 2), ("run", 4), ("straight", 4)):
        keys = {**LORA, **GROUPS, "train.steps": steps}
        assert main.main(training(parts, tmp_path / workdir, **keys)) == 0
    found, straight, alone = (
        fingerprint(restore_params(path))
        for path in (tmp_path / "run", tmp_path / "straight", runs / "lora")
    )
    assert found == straight != alone


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model.freeze": "^vlm/"}, "--config.model.freeze: found ('^vlm/',), expected '^tok"),
        ({"model.freeze": "()"}, "--config.model.freeze: found (), expected '^tokenizer/' too"),
        (
            {"model.freeze": "^tokenizer/,^vlm/lm/"},
            "--config.model.freeze: '^vlm/lm/' matches no parameter",
        ),
        ({**LORA, **WHOLE}, "--config.model.vlm.lora: found adapters, expected none where --conf"),
        (
            {"model.vlm.lora.targets": "('attention/qeury',)"},
            "--config.model.vlm.lora.targets: 'attention/qeury' matches no matrix",
        ),
        (
            {"optimizer.groups": "({'pattern': '^vlm/language_model'},)"},
            "--config.optimizer.groups[0].pattern: '^vlm/language_model' matches no parameter",
        ),
    ],
)
def test_mistakes_are_one_line(parts, tmp_path, mistake, overrides, message):
    assert message in mistake(training(parts, tmp_path / "run", **overrides))
