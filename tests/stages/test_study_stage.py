"""`synth2 study` from nothing to its table, stopped and taken up again with more to do."""

import functools
import json

import pytest

from synth2_jax.experiments.arms import ARMS

pytestmark = pytest.mark.slow

FIRST = ("real", "real_synthetic")
# The tiny study with models that compile fast and a language model whose captions can be used.
WIDTH = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32}
TOKENIZER = {"patch_size": 16, "filters": 16, "embedding_dim": 8, "codebook_size": 32}
SMALL = {
    "study": {"seeds": (0,), "share_generator": True},
    "tokenizer.model.tokenizer": TOKENIZER,
    "generator.model.tokenizer": TOKENIZER,
    "vlm.model.tokenizer": TOKENIZER,
    "language_model.model.language_model": WIDTH,
    "generator.model.generator.text_encoder": WIDTH,
    "generator.model.generator.maskgit": {**WIDTH, "num_tokens": 4, "codebook_size": 32},
    "vlm.model.vlm.language_model": WIDTH,
    "vlm.model.vlm.resampler": {**WIDTH, "num_latents": 2},
    "vlm.model.vlm": {"image_embedding_dim": 8, "num_image_tokens": 4},
    **{f"{name}.data": {"batch_size": 16} for name in ("tokenizer", "language_model", "vlm")},
    "tokenize": {"max_images": 24},
    "language_model.train": {"steps": 60},
    "language_model.optimizer": {"schedule": "constant"},
    # Words that nearly every caption holds: a language model of 60 steps names no shapes.
    "captions": {
        "classes": ("a", "the"),
        "captions_per_class": 8,
        "max_rounds": 40,
        "batch_size": 16,
    },
    "captions.decode": {"max_length": 16},
    **{name: {"batch_size": 16} for name in ("evaluate", "vlm.validation.captions")},
    **{f"{name}.decode": {"max_length": 8} for name in ("evaluate", "vlm.validation.captions")},
    "synthesize": {"batch_size": 16},
    "synthesize.sampler": {"num_steps": 2},
    "vlm.train": {"steps": 6, "eval_every": 6},
    "vlm.optimizer": {"schedule": "constant"},
}


@pytest.fixture
def study(experiment_command):
    return functools.partial(experiment_command, "study", SMALL)


def test_a_study_grows_arm_by_arm_and_seed_by_seed(tmp_path, study):
    code, steps, _ = study(study__arms=FIRST)
    assert code == 0 and {"tokenizer", "vlm_real", "evaluate vlm_real_synthetic"} <= set(steps)
    first = json.loads((tmp_path / "study.json").read_text())["runs"]
    assert first.keys() == {"real/0", "real_synthetic/0", "generator/0"}
    assert rows(tmp_path) == [ARMS[arm].title for arm in FIRST]

    code, steps, _ = study(study__arms=tuple(ARMS))
    others = [arm for arm in ARMS if arm not in FIRST]
    # Synthetic pairs are looked at again, which makes none.
    sets = {"captions_natural", "synthesize_natural", "synthesize_real"}
    assert code == 0 and sorted(set(steps) - {"tokenize", "synthesize"}) == sorted(
        {f"{step}vlm_{arm}" for arm in others for step in ("", "evaluate ")}
        | {"vlm_pretrain_then_mix_first"}
        | sets
    )
    runs = json.loads((tmp_path / "study.json").read_text())["runs"]
    assert runs.keys() == {"generator/0", *(f"{arm}/0" for arm in ARMS)}
    assert {name: runs[name] for name in first} == first
    assert rows(tmp_path) == [arm.title for arm in ARMS.values()]
    check_summary(tmp_path)

    before = (tmp_path / "study.json").read_text()
    code, steps, errors = study(study__arms=FIRST, vlm__optimizer__learning_rate=0.5)
    assert code == 2 and "vlm_real" not in steps
    assert "vlm_real was made with optimizer.learning_rate=0.001, found 0.5" in errors
    assert (tmp_path / "study.json").read_text() == before

    code, steps, _ = study(study__arms=("real_synthetic",), study__seeds=(0, 1))
    assert code == 0 and "generator_seed1" not in steps
    assert {"synthesize_seed1", "vlm_real_synthetic_seed1"} <= set(steps)
    text = (tmp_path / "study.md").read_text()
    assert "| real + synthetic | 2 |" in text and "One generator for all seeds." in text


def check_summary(folder):
    """Checks intervals of every arm, the balance of every caption set, and equal compute."""
    results = json.loads((folder / "study.json").read_text())
    runs, summary = results["runs"], results["summary"]
    assert summary["gains"].keys() == ARMS.keys() - {"real"}
    assert set(summary["captions"]) == {"real", "test", "balanced", "natural"}
    assert runs["real_longer/0"]["steps"] > runs["real/0"]["steps"]
    curve = [step for step, _ in runs["pretrain_then_mix/0"]["curve"]]
    assert curve == sorted(set(curve)) and curve[-1] == runs["real/0"]["steps"]
    assert all(run["steps_per_second"] > 0 for name, run in runs.items() if "generator" not in name)


def rows(folder):
    """The arms of the table."""
    table = (folder / "study.md").read_text().split("\n\n")[0].splitlines()
    return [line.split("|")[1].strip() for line in table[2:]]
