"""The commands of benchmarks/kills.py: each stage with small models and data."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

SCENES = pathlib.Path(__file__).resolve().parent.parent / "configs" / "scenes"

_WIDTH = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32}
_TOKENIZER = {
    "tokenizer.patch_size": 16,
    "tokenizer.filters": 16,
    "tokenizer.embedding_dim": 8,
    "tokenizer.codebook_size": 32,
    "tokenizer.norm_groups": 4,
}


def _wide(*parts: str) -> dict[str, Any]:
    return {f"{part}.{key}": value for part in parts for key, value in _WIDTH.items()}


_LANGUAGE_MODEL = _wide("language_model")
_GENERATOR = {
    **_TOKENIZER,
    **_wide("generator.text_encoder", "generator.maskgit"),
    "generator.maskgit.num_tokens": 4,
    "generator.maskgit.codebook_size": 32,
}
_VLM = {
    **_TOKENIZER,
    **_wide("vlm.language_model", "vlm.resampler"),
    "vlm.resampler.num_latents": 2,
    "vlm.image_embedding_dim": 8,
    "vlm.num_image_tokens": 4,
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A stage as it runs here.

    Attributes:
      arguments: of `synth2`, in which "{0}" is the folder of the round.
      inputs: {name in that folder: what is copied there before}; for stages that write into them.
      num_processes: that run it together.
    """

    arguments: Sequence[str]
    inputs: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    num_processes: int = 1


def _stage(name: str, config: str = "", **keys: Any) -> Command:
    """`synth2 NAME` on configs/scenes/CONFIG; two underscores in a key are a dot."""
    overrides = [f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()]
    config = f"--config={SCENES / (config or f'{name}.py')}"
    return Command([name, config, "--workdir={0}/out", *overrides])


def _training(config: str, sizes: Mapping[str, Any], steps: int, **keys: Any) -> Command:
    return _stage(
        "train",
        config,
        **{f"model__{key}": value for key, value in sizes.items()},
        train__steps=steps,
        train__checkpoint_every=8,
        train__log_every=1,
        data__batch_size=16,
        data__shuffle_buffer=16,
        **keys,
    )


def commands(made: pathlib.Path) -> dict[str, Command]:
    """The commands by name, each after those whose results in `made` it needs."""

    def out(name: str) -> pathlib.Path:
        return made / name / "out"

    real, tokenizer = out("tokenize") / "real", out("train_tokenizer")
    pairs = {"batch_size": 8, "num_shards": 16}
    mixture = _training(
        "vlm.py:mixture,tiny",
        _VLM,
        40,
        pretrained__tokenizer=tokenizer,
        pretrained__language_model=out("train_language_model"),
        data__folders__real=real,
        data__folders__synthetic=out("synthesize"),
        train__watchdog_seconds=120,
    )
    return {
        "train_tokenizer": _training("tokenizer.py:tiny", _TOKENIZER, 40),
        "tokenize": _stage(
            "tokenize", tokenizer=tokenizer, splits="real,test", max_images=400, **pairs
        ),
        "train_language_model": _training("language_model.py:tiny", _LANGUAGE_MODEL, 60),
        "captions": _stage(
            "captions",
            language_model=out("train_language_model"),
            classes=("a", "the"),  # a language model of 60 steps names no shapes
            captions_per_class=40,
            max_rounds=40,
            batch_size=16,
        ),
        "train_generator": _training(
            "generator.py:tiny",
            _GENERATOR,
            40,
            pretrained__tokenizer=tokenizer,
            data__folders__real=real,
        ),
        "synthesize": _stage(
            "synthesize",
            generator=out("train_generator"),
            captions=out("captions"),
            samples_per_caption=4,
            sampler__num_steps=2,
            **{**pairs, "num_shards": 12},
        ),
        "train_vlm": mixture,
        "train_two_processes": dataclasses.replace(mixture, num_processes=2),
        "encode_captions": _stage(
            "encode_captions", pairs=real, text_encoder=out("train_generator"), batch_size=8
        ),
        "filter": dataclasses.replace(
            _stage("filter", folder="{0}/pairs", vlm=out("train_vlm"), batch_size=8),
            inputs={"pairs": out("synthesize")},
        ),
        "evaluate": _stage(
            "evaluate", vlm=out("train_vlm"), folder=out("tokenize") / "test", batch_size=64
        ),
        "export": Command(
            ["export", f"--workdir={out('train_vlm')}", "--output={0}/out", "--overwrite"]
        ),
    }
