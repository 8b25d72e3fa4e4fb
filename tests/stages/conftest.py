"""One small chain through all stages, made once: every test of a stage starts from its folders."""

import dataclasses
import functools
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from synth2_jax import main
from synth2_jax.testing.untrained_runs import write_untrained_run
from synth2_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "scenes"

NUM_IMAGES, NUM_TOKENS = 24, 4
# Words that nearly every caption holds: a language model of 60 steps names no shapes.
CLASSES = ("a", "the")
_WIDTH = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32}
_TOKENIZER = {
    **{"patch_size": 16, "filters": 16, "embedding_dim": 8, "codebook_size": 32},
    "norm_groups": 4,
}
MODELS = {
    "tokenizer": {"tokenizer": _TOKENIZER},
    "language_model": {"language_model": _WIDTH},
    "generator": {"generator": {"text_encoder": _WIDTH, "maskgit": _WIDTH}},
    "vlm": {"vlm": {"resampler": {**_WIDTH, "num_latents": 2}}},
}
STEPS = {"tokenizer": 20, "language_model": 60, "generator": 4, "vlm": 6}
_PAIRS = {"pretrained__tokenizer": "CHAIN/tokenizer", "data__folders__real": "CHAIN/pairs/real"}
BUILT_ON = {
    "generator": _PAIRS,
    "vlm": {**_PAIRS, "pretrained__language_model": "CHAIN/language_model"},
}
TRAINING = {
    **{"optimizer__schedule": "constant", "train__log_every": 1},  # whatever the number of steps
    **{"data__batch_size": 16, "data__shuffle_buffer": 16, "train__ema_decay": 0.5},
}
KEYS = {
    "tokenize": {
        **{"tokenizer": "CHAIN/tokenizer", "splits": "real,test", "max_images": NUM_IMAGES},
        **{"batch_size": 16, "num_shards": 2},
    },
    "encode_captions": {
        **{"pairs": "CHAIN/pairs/real", "text_encoder": "CHAIN/generator", "batch_size": 16}
    },
    "captions": {
        **{"language_model": "CHAIN/language_model", "classes": CLASSES, "captions_per_class": 10},
        **{"max_rounds": 40, "decode__top_p": 0.95, "batch_size": 16},
    },
    "synthesize": {
        **{"generator": "CHAIN/generator", "captions": "CHAIN/captions", "batch_size": 8},
        **{"sampler__num_steps": 2, "sampler__sample_temperature": 1.0, "guidance__scale": 1.5},
        "num_shards": 3,
    },
    "evaluate": {
        **{"vlm": "CHAIN/vlm_real", "folder": "CHAIN/pairs/test", "max_images": 10},
        **{"batch_size": 8, "decode__max_length": 8},
    },
}


def flat(section: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a__b": 1}."""
    found = {}
    for name, value in section.items():
        inside = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}__") if inside else {f"{prefix}{name}": value}
    return found


@dataclasses.dataclass(frozen=True)
class Chain:
    """Folders that one run of every stage has left in `root`, and how to run stages on them."""

    root: pathlib.Path
    classes: tuple[str, ...] = CLASSES
    captions_per_class: int = KEYS["captions"]["captions_per_class"]
    num_images: int = NUM_IMAGES
    num_tokens: int = NUM_TOKENS
    steps: dict[str, int] = dataclasses.field(default_factory=lambda: dict(STEPS))

    @property
    def num_captions(self) -> int:
        return self.captions_per_class * len(self.classes)

    def run(self, argv: list[str]) -> None:
        assert main.main(argv) == 0

    def path(self, *names: str) -> pathlib.Path:
        return self.root.joinpath(*names)

    def arguments(self, stage: str, config: str, workdir, overrides: dict) -> list[str]:
        """argv of `synth2`; in config keys "__" is for ".", in values "CHAIN" for the root."""
        argv = ["synth2", stage, f"--config={CONFIGS / config}", f"--workdir={workdir}"]
        for key, value in overrides.items():
            value = str(value).replace("CHAIN/", f"{self.root}/")
            argv.append(f"--config.{key.replace('__', '.')}={value}")
        return argv

    def training(self, name: str, workdir, config: str | None = None, **overrides) -> list[str]:
        """argv of a short `synth2 train` of a small model on the chain's folders."""
        keys = {**flat({"model": MODELS[name]}), **BUILT_ON.get(name, {}), **TRAINING}
        keys |= {"train__steps": self.steps[name], **overrides}
        return self.arguments("train", config or f"{name}.py:tiny", workdir, keys)

    def _stage(self, stage: str, workdir, **overrides) -> list[str]:
        """argv of a stage on the chain's folders."""
        return self.arguments(stage, f"{stage}.py", workdir, {**KEYS[stage], **overrides})

    tokenization = functools.partialmethod(_stage, "tokenize")
    encoding = functools.partialmethod(_stage, "encode_captions")
    writing = functools.partialmethod(_stage, "captions")
    synthesis = functools.partialmethod(_stage, "synthesize")
    evaluation = functools.partialmethod(_stage, "evaluate")

    def losses(self, *names) -> dict[int, float]:
        """{step: loss} of the run in a folder."""
        rows = read_metrics(self.path(*names) / "metrics.jsonl")
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def shards(self, *names) -> dict[str, bytes]:
        """{name: contents} of the shards in a folder."""
        files = sorted(self.path(*names).glob("*.tfrecord"))
        return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="package", autouse=True)
def compile_once(compilation_cache):
    """For every test of a stage."""


@pytest.fixture(scope="package")
def chain(tmp_path_factory, compilation_cache) -> Chain:
    """Trained, tokenized, written, synthesized; `vlm_real` and `vlm_mixture` are two VLMs.

    Tests write in folders of their own, or leave the chain's as they were.
    """
    chain = Chain(tmp_path_factory.mktemp("chain"))
    chain.run(chain.training("tokenizer", chain.path("tokenizer")))
    chain.run(chain.tokenization(chain.path("pairs")))
    chain.run(chain.training("language_model", chain.path("language_model")))
    chain.run(chain.writing(chain.path("captions")))
    chain.run(chain.training("generator", chain.path("generator")))
    synthetic = chain.path("pairs", "synthetic")
    chain.run(chain.synthesis(synthetic))
    chain.run(chain.training("vlm", chain.path("vlm_real")))
    mixture = {"config": "vlm.py:mixture,tiny", "data__folders__synthetic": synthetic}
    chain.run(chain.training("vlm", chain.path("vlm_mixture"), **mixture))
    return chain


@pytest.fixture(scope="package")
def exported_vlm(tmp_path_factory) -> pathlib.Path:
    """The export of an untrained VLM."""
    folder = tmp_path_factory.mktemp("exported")
    write_untrained_run(folder / "vlm", "vlm")
    argv = ["synth2", "export", str(folder / "vlm"), f"--output={folder / 'out'}"]
    assert main.main(argv) == 0
    return folder / "out"


@pytest.fixture
def vlm(exported_vlm, tmp_path) -> pathlib.Path:
    """A copy, for those who damage it."""
    return shutil.copytree(exported_vlm, tmp_path / "out")


@pytest.fixture
def mistake(capfd):
    """mistake(argv) -> the one line that `synth2` prints about it, without "synth2: "."""

    def line(argv: list[str]) -> str:
        capfd.readouterr()
        assert main.main(argv) == 2
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if line.startswith("synth2: ")]
        assert len(lines) == 1 and errors.endswith(f"{lines[0]}\n")
        return lines[0].removeprefix("synth2: ")

    return line


@pytest.fixture
def run_in_processes():
    """run_in_processes(argv) runs a stage in processes of a pod; returns their outputs."""

    def run(argv, num_processes=2, devices=2):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "XLA_FLAGS": flags, "SYNTH2_COORDINATOR": f"127.0.0.1:{port}"}
        env["SYNTH2_NUM_PROCESSES"] = str(num_processes)
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "synth2_jax.main", *argv[1:]],
                env={**env, "SYNTH2_PROCESS_ID": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(num_processes)
        ]
        outputs = [process.communicate(timeout=240) for process in processes]
        assert [p.returncode for p in processes] == [0] * num_processes, outputs[0][1][-3000:]
        return outputs

    return run


@pytest.fixture
def experiment_command(tmp_path, capfd):
    """Runs `synth2 STAGE` on its tiny config, always in one workdir.

    experiment_command(STAGE, {SECTION: {KEY: VALUE}}, KEY=VALUE), with __ for a dot in KEY, returns
    (exit code, steps that ran, errors).
    """

    def run(stage, sections, **overrides):
        given = {f"{name}.{key}": v for name, keys in sections.items() for key, v in keys.items()}
        given |= {key.replace("__", "."): value for key, value in overrides.items()}
        settings = (f"--config.{key}={value}" for key, value in given.items())
        config = f"--config=configs/scenes/{stage}.py:tiny"
        code = main.main(["synth2", stage, config, f"--workdir={tmp_path}", *settings])
        said = capfd.readouterr()
        steps = [line.removeprefix("== ") for line in said.out.splitlines() if line[:3] == "== "]
        return code, steps, said.err

    return run
