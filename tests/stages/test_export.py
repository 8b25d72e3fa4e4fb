"""`synth2 export`: what comes back is what was trained, bit for bit."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors

from synth2_jax import main
from synth2_jax.interop.safetensors_file import read_params
from synth2_jax.training.train_state import flatten
from synth2_jax.training.trained import load_trained

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def export(folder, output, *options):
    return ["synth2", "export", str(folder), f"--output={output}", *options]


@pytest.fixture(scope="module")
def vlm(chain):
    return load_trained(str(chain.path("vlm_real")), "vlm")


def test_the_way_there_and_back(chain, vlm, tmp_path):
    file = tmp_path / "more" / "vlm.safetensors"
    assert main.main(export(chain.path("vlm_real"), file)) == 0
    params, metadata = read_params(str(file))
    expected, found = flatten(vlm.params), flatten(params)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == expected[name].dtype
    assert json.loads(metadata["config"]) == vlm.config
    assert json.loads(metadata["fingerprints"]) == vlm.fingerprints
    assert (metadata["model_name"], metadata["step"]) == ("vlm", str(vlm.step))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_others_read_it_too(chain, vlm, tmp_path):
    file = tmp_path / "vlm.safetensors"
    assert main.main(export(chain.path("vlm_real"), file)) == 0
    with safetensors.safe_open(file, framework="numpy") as opened:
        latents = opened.get_tensor("vlm.resampler.latents")
        assert opened.metadata()["model_name"] == "vlm"
    np.testing.assert_array_equal(latents, vlm.params["vlm"]["resampler"]["latents"])


def test_a_part_in_another_dtype(chain, vlm, tmp_path):
    file = tmp_path / "resampler.safetensors"
    options = ("--part=vlm/resampler", "--dtype=bfloat16")
    assert main.main(export(chain.path("vlm_real", "checkpoints", "6"), file, *options)) == 0
    params, _ = read_params(str(file))
    expected = flatten({"vlm": {"resampler": vlm.params["vlm"]["resampler"]}})
    assert flatten(params).keys() == expected.keys()
    for name, array in flatten(params).items():
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array, expected[name].astype(ml_dtypes.bfloat16))


def test_mistakes(chain, tmp_path, mistake):
    run, file = chain.path("vlm_real"), tmp_path / "x.safetensors"
    line = mistake(export(run, tmp_path / "x.bin"))
    assert "x.bin: expected a file that ends with .safetensors" in line
    line = mistake(export(run, file, "--part=vlm/resamplr"))
    assert "--part=vlm/resamplr: the model has no such part; did you mean 'vlm/resampler'?" in line
    line = mistake(export(run, file, "--dtype=bfloat61"))
    assert "--dtype: unknown dtype 'bfloat61'; did you mean 'bfloat16'?" in line
    assert "expected checkpoint steps" in mistake(export(tmp_path, file))
    assert list(tmp_path.iterdir()) == []

    file.write_text("mine")
    line = mistake(export(run, file))
    assert line.endswith("x.safetensors: is there already; --overwrite=true replaces it")
    assert file.read_text() == "mine"
    assert main.main(export(run, file, "--overwrite=true")) == 0
    assert read_params(str(file))
