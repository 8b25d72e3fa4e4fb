"""`synth2 train` of a tokenizer with the perceptual loss, from the file of its network on."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from synth2_jax import main
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.tokenizing import encode_images
from synth2_jax.loading.trained import load_trained
from synth2_jax.models.vgg import VGGConfig, from_torchvision
from synth2_jax.training.checkpoint_reader import latest_step, read_description, restore_params
from synth2_jax.training.metrics import read_metrics

VGG = VGGConfig(widths=(4, 6), convs=(1, 1))
TOKENIZER = {
    **{"patch_size": 16, "filters": 8, "num_res_blocks": 0, "embedding_dim": 4},
    **{"codebook_size": 16, "norm_groups": 2},
}
MODEL = {f"model__tokenizer__{name}": value for name, value in TOKENIZER.items()}
PERCEPTUAL = {
    "model__loss__perceptual_weight": 0.1,
    "model__perceptual__widths": "4,6",
    "model__perceptual__convs": "1,1",
}
FAKE = {
    **{"data__source": "fake", "data__batch_size": 4, "train__steps": 1, "train__log_every": 1},
    "optimizer__schedule": "constant",
}


def training(name, workdir, **overrides):
    """argv of a short `synth2 train` on random batches; "__" is for ".", None for leaving out."""
    given = {**MODEL, **(PERCEPTUAL if name == "tokenizer" else {}), **FAKE, **overrides}
    argv = ["synth2", "train", f"--config=configs/scenes/{name}.py:tiny", f"--workdir={workdir}"]
    keys = {key.replace("__", "."): value for key, value in given.items() if value is not None}
    return [*argv, *(f"--config.{key}={value}" for key, value in keys.items())]


def tensors(seed):
    """Random weights of VGG in torchvision's layout."""
    rng = np.random.default_rng(seed)
    shapes = {
        "features.0.weight": (4, 3, 3, 3),
        "features.0.bias": (4,),
        "features.3.weight": (6, 4, 3, 3),
        "features.3.bias": (6,),
        "classifier.0.bias": (1,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two networks' files."""
    folder = tmp_path_factory.mktemp("vgg")
    for seed in (0, 1):
        save_file(tensors(seed), folder / f"vgg_{seed}.safetensors")
    return [folder / f"vgg_{seed}.safetensors" for seed in (0, 1)]


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """The workdir of one step of a tokenizer with the first network."""
    workdir = tmp_path_factory.mktemp("perceptual") / "tokenizer"
    assert main.main(training("tokenizer", workdir, pretrained__perceptual=files[0])) == 0
    return workdir


@pytest.mark.slow
def test_a_step_trains_the_tokenizer_and_leaves_the_network_as_its_file(trained):
    (row,) = read_metrics(trained / "metrics.jsonl")
    assert row["perceptual"] > 0 and np.isfinite(row["loss"]) and row["grad_norm"] > 0
    params = restore_params(trained)
    _, built_on = read_description(trained, latest_step(trained))
    expected = from_torchvision(tensors(0), VGG, "tensors")
    jax.tree.map(np.testing.assert_array_equal, params["perceptual"], expected)
    assert built_on == {"perceptual": fingerprint(expected)}


@pytest.mark.slow
def test_more_steps_go_on_with_the_same_network_alone(trained, files, tmp_path, mistake):
    first, other = (fingerprint(from_torchvision(tensors(i), VGG, "tensors")) for i in (0, 1))
    line = mistake(training("tokenizer", trained, pretrained__perceptual=files[1], train__steps=2))
    assert f"trained with perceptual {first}, this run has {other}" in line
    before = load_trained(str(trained), "tokenizer")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    more = training("tokenizer", tmp_path, pretrained__perceptual=files[0], train__steps=2)
    assert main.main(more) == 0
    after = load_trained(str(tmp_path), "tokenizer")
    assert after.step == 2 and after.built_on == before.built_on
    assert after.fingerprint("perceptual") == before.fingerprint("perceptual")
    assert after.fingerprint("tokenizer") != before.fingerprint("tokenizer")


def test_who_uses_the_tokenizer_sees_nothing_of_it(trained):
    """Ids and the fingerprint that pairs carry are those of the tokenizer alone."""
    found = load_trained(str(trained), "tokenizer")
    assert found.params.keys() == {"tokenizer", "perceptual"}
    assert found.provenance("tokenizer")["fingerprint"] == (
        f"{fingerprint(found.params['tokenizer'])}+norm_groups=2"
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert encode_images(found, images, 4, "test").shape == (3, 4)


@pytest.mark.slow
def test_a_generator_is_built_on_it(trained, tmp_path):
    maskgit = {"num_tokens": 4, "codebook_size": 16}
    keys = {f"model__generator__maskgit__{name}": value for name, value in maskgit.items()}
    built = training("generator", tmp_path, **keys, pretrained__tokenizer=trained)
    assert main.main(built) == 0
    tokenizer = load_trained(str(trained), "tokenizer")
    generator = load_trained(str(tmp_path), "generator")
    assert generator.params.keys() == {"generator", "tokenizer"}
    assert generator.built_on == {"tokenizer": tokenizer.fingerprint("tokenizer")}


# --- mistakes ---


GIVEN = {"pretrained__perceptual": "FILE"}
NO_LOSS = {"model__loss__perceptual_weight": 0}
NO_NETWORK = {"model__perceptual__widths": None, "model__perceptual__convs": None}
PRETRAINED = "--config.pretrained"
LACKS = "FILE: found no 'features.5.weight', expected shape (6, 6, 3, 3); did you mean 'features.3"
SHAPE = "FILE: 'features.3.weight' has shape (6, 4, 3, 3), expected (8, 4, 3, 3)"
TOO_MUCH = "--config.model.perceptual: found a section, expected none with --config.model.loss.per"


@pytest.mark.parametrize(
    "overrides, text",
    [
        ({"data__source": "seqio"}, f"{PRETRAINED}.perceptual: empty, expected a .saf"),
        ({"pretrained__perceptual": "/no/where.safetensors"}, "/no/where.safetensors: no such"),
        ({"pretrained__perceptual": "setup.py"}, "expected a .safetensors file; was its"),
        ({**GIVEN, "model__perceptual__convs": "1,2"}, LACKS),
        ({**GIVEN, "model__perceptual__widths": "4,8"}, SHAPE),
        (NO_LOSS, TOO_MUCH),
        ({"pretrained__tokenizer": "w"}, f"{PRETRAINED}.tokenizer: found 'w', expected no"),
        ({**GIVEN, **NO_LOSS, **NO_NETWORK}, f"{PRETRAINED}.perceptual: found 'FILE', expec"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    files, mistake, tmp_path, overrides, text
):
    path = str(files[0])
    given = {key: path if value == "FILE" else value for key, value in overrides.items()}
    line = mistake(training("tokenizer", tmp_path / "w", **given))
    assert text in line.replace(path, "FILE")
    assert not (tmp_path / "w").exists()
