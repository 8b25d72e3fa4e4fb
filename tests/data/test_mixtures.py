import collections
import sys

import pytest
import seqio

from synth2_jax.data import mixtures, tasks
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.testing.user_errors import raises_line

pytestmark = pytest.mark.usefixtures("clean_registry")
NO_TASK = "--config.data.rates: no task or mixture 'reel'; did you mean 'real'?"


@pytest.fixture
def two_tasks(write_folder):
    for source in ("real", "synthetic"):
        tasks.add_pairs_task(source, write_folder(source, 20), "scenes")


def letters(draws, seed, rates):
    datasets = [tf.data.Dataset.from_tensors(letter).repeat() for letter in "abc"]
    drawn = mixtures.sample_in_blocks(datasets, rates, seed).take(draws)
    return [letter.decode() for letter in drawn.as_numpy_iterator()]


def test_draws_follow_the_rates_and_the_seed():
    drawn = letters(4000, 3, [3.0, 1.0, 0.0])
    counts = collections.Counter(drawn)
    assert counts["c"] == 0
    assert abs(counts["b"] / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert letters(4000, 3, [3.0, 1.0, 0.0]) == drawn
    assert letters(4000, 4, [3.0, 1.0, 0.0]) != drawn
    assert drawn[:512] != drawn[512:1024]


def test_a_mixture_ends_with_its_first_empty_task():
    datasets = [tf.data.Dataset.from_tensors("a").repeat(), tf.data.Dataset.from_tensors("b")]
    drawn = list(mixtures.sample_in_blocks(datasets, [1.0, 1.0], 0).as_numpy_iterator())
    assert drawn.count(b"b") == 1


def test_rates_make_a_mixture(two_tasks):
    mixture = mixtures.add_mixture("both", {"real": 1, "synthetic": 3})
    assert [task.name for task in mixtures.tasks_of(mixture)] == ["real", "synthetic"]
    assert mixtures.resolve("both") is mixture
    assert mixtures.add_mixture("both", {"real": 1, "synthetic": 3}) is mixture
    with raises_line("--config.data.mixture=both: already registered"):
        mixtures.add_mixture("both", {"real": 1, "synthetic": 2})
    replaced = mixtures.add_mixture("both", {"real": 1, "synthetic": 2}, replace=True)
    assert replaced.get_rate(seqio.TaskRegistry.get("synthetic")) == 2.0
    mixtures.check_split(mixture, "train")
    with raises_line("--config.data.split: task 'real' has no split 'tran'; did you mean 'train'"):
        mixtures.check_split(mixture, "tran")


@pytest.mark.parametrize(
    ("name", "rates", "message"),
    [
        ("both", {}, "--config.data.rates: found none"),
        ("both", {"real": 0}, "--config.data.rates.real: found 0"),
        ("both", {"real": float("nan")}, "--config.data.rates.real: found nan"),
        ("both", {"real": float("inf")}, "--config.data.rates.real: found inf"),
        ("both", {"reel": 1}, f"{NO_TASK} one of: real, synthetic"),
        ("real", {"real": 1}, "--config.data.mixture=real: a task has this name"),
    ],
)
def test_unfit_mixtures(two_tasks, name, rates, message):
    with raises_line(message):
        mixtures.add_mixture(name, rates)


def test_a_mixture_of_tasks_since_replaced_is_refused(two_tasks, write_folder):
    seqio.MixtureRegistry.add("mine", [("real", 1.0)])
    mixtures.resolve("mine")
    tasks.add_pairs_task("real", write_folder("real", 21, name="more"), "scenes", replace=True)
    with raises_line("--config.data.mixture=mine: ", "'real' was registered again"):
        mixtures.resolve("mine")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("my_taks_module", "not found in the Python path"),
        ("my_mixtures_module", "imports 'not_a_module_of_anyone', not found"),
        ("my_failing_module", "ValueError: first second"),
    ],
)
def test_modules_are_imported_from_the_current_folder(tmp_path, monkeypatch, module, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_mixtures_module.py").write_text("import not_a_module_of_anyone\n")
    (tmp_path / "my_failing_module.py").write_text("raise ValueError('first\\nsecond')\n")
    with raises_line(f"--config.data.modules: module {module!r}: {message}"):
        mixtures.import_modules([module])
