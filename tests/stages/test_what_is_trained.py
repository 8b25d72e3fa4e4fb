"""A language model frozen, with LoRA, or trained whole: from the command line to an export."""

import json

import numpy as np
import pytest

import synth2_jax
from synth2_jax.fingerprint import fingerprint
from synth2_jax.layers.lora import is_adapter
from synth2_jax.loading.trained import load_trained
from synth2_jax.training import train_state
from synth2_jax.training.checkpoint_reader import restore_params

pytestmark = pytest.mark.slow

LORA = {"model__vlm__lora__rank": 2, "model__vlm__lora__targets": "('query','value','mlp/up')"}
WHOLE = {"model__freeze": "^tokenizer/"}
GROUPS = {"optimizer__groups": "({'pattern': '_lora_', 'learning_rate_factor': 2.0},)"}


@pytest.fixture(scope="module")
def runs(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in (("lora", LORA), ("whole", WHOLE)):
        keys = {"optimizer__learning_rate": 0.02, **overrides}
        chain.run(chain.training("vlm", folder / name, **keys))
    return folder


def language_model(path):
    return train_state.flatten(restore_params(path)["vlm"]["language_model"])


def same(first, second):
    return {path: np.array_equal(first[path], second[path]) for path in first}


def test_adapters_are_trained_and_their_base_is_not(chain, runs):
    before = train_state.flatten(restore_params(chain.path("language_model"))["language_model"])
    found = language_model(runs / "lora")
    assert all(same(before, found).values())
    adapters = {path: found[path] for path in found.keys() - before.keys()}
    assert len(adapters) == 6 and all(is_adapter(path) for path in adapters)
    assert all(leaf.any() for leaf in adapters.values())
    built_on = load_trained(str(runs / "lora"), "vlm").built_on
    assert built_on.keys() == {"tokenizer", "language_model"}


def test_a_whole_language_model_is_trained_and_is_the_runs_own(chain, runs):
    before = train_state.flatten(restore_params(chain.path("language_model"))["language_model"])
    assert not any(same(before, language_model(runs / "whole")).values())
    assert load_trained(str(runs / "whole"), "vlm").built_on.keys() == {"tokenizer"}


@pytest.mark.parametrize("name", ["lora", "whole"])
def test_an_export_writes_the_captions_of_the_run(chain, runs, tmp_path, name, capsys):
    out = tmp_path / "out"
    chain.run(chain.evaluation(runs / name / "evaluation", vlm=runs / name))
    chain.run(["synth2", "export", str(runs / name), f"--output={out}"])
    chain.run(chain.evaluation(tmp_path / "of_export", vlm=out))
    texts = [
        folder.joinpath("captions.jsonl").read_text()
        for folder in (runs / name / "evaluation", tmp_path / "of_export")
    ]
    assert texts[0] == texts[1]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = [synth2_jax.load_vlm(path).caption(images) for path in (runs / name, out)]
    assert found[0] == found[1]
    exported = load_trained(str(out), "vlm")
    assert exported.objective.task.vlm.lora is None
    assert not any(map(is_adapter, train_state.flatten(exported.params)))
    assert exported.built_on.keys() == {"tokenizer"}
    assert "results.json" in (out / "README.md").read_text()  # the scores are the run's
    capsys.readouterr()
    chain.run(["synth2", "inspect", str(runs / name)])
    assert ("kernel_lora_a" in capsys.readouterr().out) == (name == "lora")


def test_one_file_has_no_adapters_either(chain, runs, tmp_path):
    file = tmp_path / "language_model.safetensors"
    flags = [f"--output={file}", "--part=vlm/language_model"]
    chain.run(["synth2", "export", str(runs / "lora"), *flags])
    header = file.read_bytes()
    header = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert len(header) > 8 and not any(map(is_adapter, header))
    assert json.loads(header["__metadata__"]["config"])["model"]["vlm"]["lora"] is None


def test_a_run_with_adapters_and_groups_resumes_exactly(chain, runs, tmp_path):
    keys = {**LORA, **GROUPS, "optimizer__learning_rate": 0.02}
    for steps in (3, 6):
        chain.run(chain.training("vlm", tmp_path / "run", **keys, train__steps=steps))
    chain.run(chain.training("vlm", tmp_path / "straight", **keys))
    found, straight, alone = (
        fingerprint(restore_params(path))
        for path in (tmp_path / "run", tmp_path / "straight", runs / "lora")
    )
    assert found == straight != alone


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model__freeze": "^vlm/"}, "--config.model.freeze: found ('^vlm/',), expected '^tok"),
        ({"model__freeze": "()"}, "--config.model.freeze: found (), expected '^tokenizer/' too"),
        (
            {"model__freeze": "^tokenizer/,^vlm/lm/"},
            "--config.model.freeze: '^vlm/lm/' matches no parameter",
        ),
        ({**LORA, **WHOLE}, "--config.model.vlm.lora: found adapters, expected none where --conf"),
        (
            {"model__vlm__lora__targets": "('attention/qeury',)"},
            "--config.model.vlm.lora.targets: 'attention/qeury' matches no matrix",
        ),
        (
            {"optimizer__groups": "({'pattern': '^vlm/language_model'},)"},
            "--config.optimizer.groups[0].pattern: '^vlm/language_model' matches no parameter",
        ),
    ],
)
def test_mistakes_are_one_line(chain, tmp_path, mistake, overrides, message):
    assert message in mistake(chain.training("vlm", tmp_path / "run", **overrides))
