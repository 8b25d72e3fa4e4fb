import sys

import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.scoring import feature_model

SOURCE = """
import numpy as np

def means(inputs):
    if isinstance(inputs, list):
        return np.array([[len(text), 1.0, 0.0] for text in inputs], np.float32)
    return inputs.mean(axis=(1, 2)).astype(np.float32)

def one_too_many(inputs):
    return np.zeros((len(inputs) + 1, 3))

def flat(inputs):
    return np.zeros(len(inputs))

def whole(inputs):
    return np.zeros((len(inputs), 3), np.int64)

def broken(inputs):
    return np.full((len(inputs), 3), np.nan)

number = 3
"""
IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "networks_of_this_test.py").write_text(SOURCE)
    (tmp_path / "fails.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("networks_of_this_test", None)


def test_a_function_of_a_file_or_of_a_module(folder):
    for where in (f"{folder}/networks_of_this_test.py", "networks_of_this_test"):
        features = feature_model.load(f"{where}:means")
        np.testing.assert_allclose(features(IMAGES), IMAGES.mean(axis=(1, 2)))
        np.testing.assert_array_equal(features(["abc", "d"])[:, 0], [3, 1])


@pytest.mark.parametrize(
    "name, message",
    [
        ("means", "expected MODULE:NAME or FILE.py:NAME"),
        ("networks_of_this_test:", "expected MODULE:NAME"),
        (":means", "expected MODULE:NAME"),
        ("nowhere.py:means", "no file nowhere.py"),
        ("no_such_module_at_all:means", "importing no_such_module_at_all fails: ModuleNotFound"),
        ("networks_of_this_test:median", "holds no 'median'"),
        ("networks_of_this_test:number", "expected a function, found 3"),
        ("fails:means", "importing fails fails: ModuleNotFoundError: No module named 'no_such_p"),
    ],
)
def test_a_name_that_leads_nowhere(folder, name, message):
    with pytest.raises(UserError, match=message) as error:
        feature_model.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("one_too_many", r"found shape \(3, 3\) of 2 images, expected \(2, D\)"),
        ("flat", r"found shape \(2,\) of 2 images"),
        ("whole", "found int64, expected float32 or float64"),
        ("broken", "found NaN or infinity"),
    ],
)
def test_features_are_checked(folder, name, message):
    with pytest.raises(UserError, match=message):
        feature_model.load(f"networks_of_this_test:{name}")(IMAGES)
