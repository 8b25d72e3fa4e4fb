"""Every config builds, no key is dead or mistyped, and docstrings say how to use it."""

import ast
import dataclasses
import functools
import importlib
import pathlib
import pkgutil
import re

import jax
import pytest

import synth2_jax
from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.command_line import STAGES
from synth2_jax.config import load_config
from synth2_jax.errors import UserError
from synth2_jax.experiments import study
from synth2_jax.experiments.experiment import Experiment
from synth2_jax.experiments.round_steps import RoundSteps
from synth2_jax.loading import pretrained
from synth2_jax.stages import captions, encode_captions, evaluate, synthesize, tokenize, train
from synth2_jax.stages import filter as filter_stage
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import make_optimizer

PACKAGE = pathlib.Path(synth2_jax.__file__).parent
FOLDER = pathlib.Path("configs")
SHARED = ("models.py", "arguments.py")  # not a config of a stage
FILES = sorted(path for path in FOLDER.rglob("*.py") if path.name not in SHARED)
CLASSES = {
    "tokenize": tokenize.TokenizeConfig,
    "encode_captions": encode_captions.EncodeCaptionsConfig,
    "captions": captions.CaptionsConfig,
    "synthesize": synthesize.SynthesizeConfig,
    "filter": filter_stage.FilterConfig,
    "evaluate": evaluate.EvaluateConfig,
}
BUILDERS = {
    **{stage: functools.partial(config_lib.build, cls) for stage, cls in CLASSES.items()},
    "train": train.build,
    "demo": lambda config: Experiment(config, "unused"),
    "study": lambda config: Experiment(config, "unused", study.StudyExperimentConfig),
    "rounds": lambda config: RoundSteps(config, "unused"),
}


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text()))


def stage_of(path):
    (stage,) = set(re.findall(r"synth2 (\w+) --config=", docstring(path)))
    return stage


def variants(path):
    """FILE, and FILE:WORD for the words that its get_config tells of."""
    words = sorted(set(re.findall(r"`:([a-z0-9,]+)`", path.read_text())))
    return [str(path), *(f"{path}:{word}" for word in words)]


VARIANTS = [variant for path in FILES for variant in variants(path)]
TRAINED = [v for v in VARIANTS if stage_of(pathlib.Path(v.split(":")[0])) == "train"]


def build(variant, change=None):
    config = load_config(variant)
    if change:
        config_lib.override(config, *change)
    return BUILDERS[stage_of(pathlib.Path(variant.split(":")[0]))](config)


def keys_of(section, where=""):
    """Dotted paths of the keys of a config, those of data that a user names left out."""
    if re.search(r"(^|\.)data\.(folders|rates)\.$", where):
        return
    for name, value in section.items():
        yield f"{where}{name}"
        if hasattr(value, "items"):
            yield from keys_of(value, f"{where}{name}.")


def test_there_are_configs_for_every_stage_that_takes_one():
    without = {"report", "inspect", "export", "plan"}
    assert {stage_of(path) for path in FILES} == set(STAGES) - without
    assert any(variant.endswith(":tiny") for variant in TRAINED)
    assert "configs/scenes/vlm.py:mixture" in VARIANTS


def marks_of(variant):
    """Adapters are looked for among the layers of Gemma, which are the package's own; a config of
    several stages has hundreds of keys, most of which the configs of those stages have too."""
    if variant == "configs/gemma/vlm.py:lora":
        return [pytest.mark.interop]
    stage = stage_of(pathlib.Path(variant.split(":")[0]))
    return [pytest.mark.slow] if stage in ("demo", "study", "rounds") else []


@pytest.mark.parametrize("variant", [pytest.param(v, marks=marks_of(v)) for v in VARIANTS])
def test_it_builds_and_a_typo_in_any_of_its_keys_dies_with_the_right_name(variant):
    build(variant)
    for key in keys_of(load_config(variant)):
        with pytest.raises(UserError) as error:
            build(variant, (f"{key}x", "1"))
        name = key.rpartition(".")[2]
        assert f"--config.{key}x: unknown key; did you mean '{name}'?" in str(error.value)


@pytest.mark.parametrize(
    "variant",
    [  # the layers of Gemma are the package's own
        pytest.param(v, marks=[pytest.mark.interop] if v.startswith("configs/gemma") else [])
        for v in TRAINED
    ],
)
def test_its_training_state_has_a_layout(variant):
    cfg, objective = build(variant)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    tx = make_optimizer(cfg.optimizer, cfg.train.steps)
    layout = train_state.state_layout(objective, tx, mesh)
    assert jax.tree.leaves(layout.params)
    assert objective.batch_spec(cfg.data.batch_size)
    assert cfg.optimizer.warmup_steps < cfg.train.steps


def test_configs_of_one_chain_fit_together():
    """Each model is the same wherever it is a part of another."""
    tasks = {
        name: build(f"configs/scenes/{name}.py")[1].task
        for name in ("tokenizer", "language_model", "generator", "vlm")
    }
    assert tasks["generator"].tokenizer == tasks["vlm"].tokenizer == tasks["tokenizer"].tokenizer
    assert tasks["vlm"].vlm.language_model == tasks["language_model"].language_model
    vocabularies = {
        build(f"configs/scenes/{name}.py")[0].data.vocabulary
        for name in ("language_model", "generator", "vlm")
    }
    assert len(vocabularies) == 1


def test_tiny_is_the_same_model_for_fewer_steps():
    for variant in TRAINED:
        if variant.endswith("tiny"):
            tiny, whole = (load_config(v) for v in (variant, re.sub(r":?,?tiny", "", variant)))
            models = [config.model.to_dict() | {"quantize_start": 0} for config in (tiny, whole)]
            assert models[0] == models[1] and tiny.train.steps < whole.train.steps / 10


@pytest.mark.parametrize("path", FILES, ids=str)
def test_its_docstring_holds_command_hardware_time_and_score(path):
    text = docstring(path)
    assert f"synth2 {stage_of(path)} --config={path} --workdir=" in text
    for line in ("Hardware:", "Time:", "Score:"):
        assert re.search(rf"^{line} \S", text, re.MULTILINE), f"{path}: no line {line!r}"


# --- no key is dead ---


def config_classes():
    """Every config dataclass of the package: those that `config.build` can be asked for."""
    for info in pkgutil.walk_packages([str(PACKAGE)], "synth2_jax."):
        for value in vars(importlib.import_module(info.name)).values():
            is_class = isinstance(value, type) and dataclasses.is_dataclass(value)
            is_config = is_class and value.__name__.endswith(("Config", "Task"))
            if is_config and value.__module__ == info.name:
                yield value


def reads(node, cls=None, function=None):
    """(attribute, name of the enclosing class, name of the enclosing function) of each `x.name`.

    `getattr(x, name)` with a name that is no literal reads nothing in particular.
    """
    if isinstance(node, ast.ClassDef):
        cls = node.name
    elif isinstance(node, ast.FunctionDef):
        function = node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr, cls, function
    for child in ast.iter_child_nodes(node):
        yield from reads(child, cls, function)


def dead_fields(classes, sources):
    """ "Class.field" that nothing reads but the checks in the class's own __post_init__."""
    found = {read for source in sources for read in reads(ast.parse(source))}
    return sorted(
        f"{cls}.{field}"
        for cls, fields in classes.items()
        for field in fields
        if not any(
            name == field and (where, function) != (cls, "__post_init__")
            for name, where, function in found
        )
    )


# Read by `getattr(config.pretrained, part)` in loading/pretrained.py.
READ_BY_NAME = {
    *(f"PretrainedConfig.{part}" for part in pretrained.SOURCES),
    *(f"VQLossConfig.{term}_weight" for term in ("reconstruction", "codebook", "commitment")),
    "FilterConfig.likelihood_ratio",
    "SourceConfig.questions",
}
# Sections of the experiment, which reads them in the ConfigDict that they were built from.
SECTIONS = ("ExperimentConfig.", "StudyExperimentConfig.", "RoundsExperimentConfig.")


def test_every_field_of_every_config_class_is_read():
    classes = {
        cls.__name__: [field.name for field in dataclasses.fields(cls)] for cls in config_classes()
    }
    assert {"TrainConfig", "VQTokenizerConfig", "VLMTask", "DataConfig"} <= classes.keys()
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    dead = set(dead_fields(classes, sources)) - READ_BY_NAME
    assert {name for name in dead if not name.startswith(SECTIONS)} == set()


def test_a_dead_field_is_found():
    source = """
class ToyConfig:
    depth: int = 1
    width: int = 1
    unused: int = 1
    def __post_init__(self):
        assert self.unused > 0 and self.depth > 0
    @property
    def area(self):
        return self.width ** 2
def run(config):
    config.unused = 2
    return config.depth + config.area
"""
    classes = {"ToyConfig": ["depth", "width", "unused"]}
    assert dead_fields(classes, [source]) == ["ToyConfig.unused"]
    assert dead_fields(classes, [source, "print(config.unused)"]) == []


def test_no_family_builds_on_the_toy_and_no_section_is_written_twice():
    sections = {}
    for path in sorted(FOLDER.rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if path.parent.name != "scenes":
            assert "configs.scenes" not in {str(name)[:14] for name in imported}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict) and len(node.keys) > 2:
                first = sections.setdefault(ast.unparse(node), path)
                assert first == path, f"{path}, line {node.lineno}: also in {first}"
