"""One small chain through all stages, made once: every test of a stage starts from its folders."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from synth2_jax import main

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "scenes"

NUM_TOKENS = 4
_WIDTH = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32}
_TOKENIZER = {
    "patch_size": 16,
    "filters": 16,
    "embedding_dim": 8,
    "codebook_size": 32,
    "norm_groups": 4,
}
_LANGUAGE_MODEL = {f"language_model.{name}": value for name, value in _WIDTH.items()}
MODELS = {
    "tokenizer": {f"tokenizer.{name}": value for name, value in _TOKENIZER.items()},
    "language_model": _LANGUAGE_MODEL,
    "generator": {
        **{f"generator.text_encoder.{name}": value for name, value in _WIDTH.items()},
        **{f"generator.maskgit.{name}": value for name, value in _WIDTH.items()},
    },
    "vlm": {
        **{f"vlm.resampler.{name}": value for name, value in _WIDTH.items()},
        "vlm.resampler.num_latents": 2,
    },
}
STEPS = {"tokenizer": 20, "language_model": 60, "generator": 4, "vlm": 6}


@dataclasses.dataclass(frozen=True)
class Chain:
    """Folders that one run of every stage has left in `root`, and how to run stages on them."""

    root: pathlib.Path
    # Words that nearly every caption holds: a language model of 60 steps names no shapes.
    classes: tuple[str, ...] = ("a", "the")
    captions_per_class: int = 10
    num_images: int = 24
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
        """argv of `synth2`; `overrides` are config keys, with "__" for "."."""
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        return [
            "synth2",
            stage,
            f"--config={CONFIGS / config}",
            f"--workdir={workdir}",
            *(f"--config.{key}={value}" for key, value in given.items()),
        ]

    def training(self, name: str, workdir, config: str | None = None, **overrides) -> list[str]:
        """argv of a short `synth2 train` of a small model on the chain's folders."""
        steps = overrides.pop("train__steps", self.steps[name])
        built_on = {
            "tokenizer": {},
            "language_model": {},
            "generator": {"pretrained__tokenizer": self.path("tokenizer")},
            "vlm": {
                "pretrained__tokenizer": self.path("tokenizer"),
                "pretrained__language_model": self.path("language_model"),
            },
        }[name]
        if built_on:
            built_on["data__folders__real"] = self.path("pairs", "real")
        return self.arguments(
            "train",
            config or f"{name}.py:tiny",
            workdir,
            {
                **{f"model__{key}": value for key, value in MODELS[name].items()},
                **built_on,
                "train__steps": steps,
                "optimizer__schedule": "constant",  # whatever the number of steps
                "train__log_every": 1,
                "data__batch_size": 16,
                "data__shuffle_buffer": 16,
                **overrides,
            },
        )

    def tokenization(self, workdir, **overrides) -> list[str]:
        return self.arguments(
            "tokenize",
            "tokenize.py",
            workdir,
            {
                "tokenizer": self.path("tokenizer"),
                "splits": "real,test",
                "max_images": self.num_images,
                "batch_size": 16,
                "num_shards": 2,
                **overrides,
            },
        )

    def writing(self, workdir, **overrides) -> list[str]:
        return self.arguments(
            "captions",
            "captions.py",
            workdir,
            {
                "language_model": self.path("language_model"),
                "classes": self.classes,
                "captions_per_class": self.captions_per_class,
                "max_rounds": 40,
                "decode__top_p": 0.95,
                "batch_size": 16,
                **overrides,
            },
        )

    def synthesis(self, workdir, **overrides) -> list[str]:
        return self.arguments(
            "synthesize",
            "synthesize.py",
            workdir,
            {
                "generator": self.path("generator"),
                "captions": self.path("captions"),
                "sampler__num_steps": 2,
                "sampler__sample_temperature": 1.0,
                "guidance__scale": 1.5,
                "batch_size": 8,
                "num_shards": 3,
                **overrides,
            },
        )

    def evaluation(self, workdir, **overrides) -> list[str]:
        return self.arguments(
            "evaluate",
            "evaluate.py",
            workdir,
            {
                "vlm": self.path("vlm_real"),
                "folder": self.path("pairs", "test"),
                "max_images": 10,
                "batch_size": 8,
                "decode__max_length": 8,
                **overrides,
            },
        )


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
    chain.run(chain.synthesis(chain.path("pairs", "synthetic")))
    chain.run(chain.training("vlm", chain.path("vlm_real")))
    chain.run(
        chain.training(
            "vlm",
            chain.path("vlm_mixture"),
            "vlm.py:mixture,tiny",
            data__folders__synthetic=chain.path("pairs", "synthetic"),
        )
    )
    return chain


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
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "synth2_jax.main", *argv[1:]],
                env={
                    **os.environ,
                    "XLA_FLAGS": flags,
                    "SYNTH2_COORDINATOR": f"127.0.0.1:{port}",
                    "SYNTH2_NUM_PROCESSES": str(num_processes),
                    "SYNTH2_PROCESS_ID": str(index),
                },
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
