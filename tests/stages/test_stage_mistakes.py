"""A mistake in a config is one line that names the key, and nothing is written.

In keys "__" is for ".". In values and lines CHAIN is the chain's folder and TMP the test's.
"""

import pathlib
import shutil

import pytest

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute

HELD_OUT = {
    **{"train__eval_every": 2, "validation__data__mixture": "scenes_text"},
    **{"validation__data__split": "validation", "validation__data__text_length": 32},
}
T5X = pathlib.Path(__file__).parents[1] / "data" / "t5x"
LARGER = {
    **{"model__vocab_size": 512, "model__num_layers": 1, "model__embed_dim": 32},
    **{"model__num_heads": 4, "model__head_dim": 16, "model__mlp_dim": 32},
}
TOKENIZER = "--config.pretrained.tokenizer"


def zero(command, *keys):
    return [(command, {key: 0}, f"--config.{key}: found 0, expected at least 1") for key in keys]


def held_out(key, value, told):
    return "language_model", {**HELD_OUT, f"validation__{key}": value}, told


PRETRAINED = "--config.pretrained.language_model: empty, expected a trained language_model or a Gem"
LOST = "--config.captions=TMP: TMP/captions.jsonl: no such file, expected one JSON object a line"
HELD = "--config.text_encoder: found 'CHAIN/generator', expected nothing: the generator in CHAIN/"
STREAM = {"stream__generator": "g", "stream__captions": "c"}
IMAGES = "--config.data.images_per_text: found"
DAMAGED = f"{TOKENIZER}=TMP/damaged: TMP/damaged/checkpoints/20: this checkpoint"
NO_TASK = "--config.data.mixture: no task or mixture 'scenes_txt'; did you mean 'scenes_text'?"
LONG = "a red circle on the left of a blue square " * 5
CASES = [
    *zero("tokenization", "max_images", "batch_size", "num_shards"),
    (
        "tokenization",
        {"splits": "rael"},
        "--config.splits: Scenes has no split 'rael'; did you mean 'r",
    ),
    ("tokenization", {"tokenizer": ""}, "--config.tokenizer: no path given, expected the workdir"),
    *zero("encoding", "batch_size", "text_length"),
    ("encoding", {"text_encoder": "CHAIN/vlm_real"}, "holds a vlm, expected a generator"),
    ("encoding", LARGER, "has a text encoder of num_heads 2, expected 4"),
    ("encoding", {"text_encoder": T5X}, f"--config.text_encoder: {T5X} is a t5x checkpoint, which"),
    *zero("writing", "captions_per_class", "max_rounds", "batch_size"),
    ("writing", {"vocabulry": "scenes"}, "--config.vocabulry: unknown key; did you mean 'vocabula"),
    ("writing", {"decode__method": "nuclear"}, "did you mean 'nucleus'?"),
    ("writing", {"language_model": "CHAIN/tokenizer"}, "tokenizer, expected a language_model"),
    *zero("synthesis", "samples_per_caption", "batch_size", "num_shards"),
    ("synthesis", {"captions": "TMP"}, LOST),
    ("synthesis", {"sampler__order": "halto"}, "did you mean 'halton'?"),
    ("synthesis", {"guidance__ramp": "linaer"}, "did you mean 'linear'?"),
    ("synthesis", {"generator": "CHAIN/captions"}, "expected checkpoint steps"),
    ("synthesis", {"text_encoder": "CHAIN/generator"}, HELD),
    ("vlm", {"pretrained__tokenizer": "TMP/no"}, f"{TOKENIZER}=TMP/no: no such file or folder"),
    ("vlm", {"pretrained__tokenizer": "CHAIN/generator"}, "holds a generator, expected"),
    ("vlm", {"pretrained__tokenizer": "TMP/damaged"}, DAMAGED),
    ("vlm", {"pretrained__language_model": ""}, PRETRAINED),
    ("vlm", {"data__prompt": LONG}, "no token of its caption is left to learn"),
    ("generator", STREAM, "--config.stream: only works for model_name=vlm (this config"),
    ("vlm", {"data__images_per_text": 0}, f"{IMAGES} 0, expected at least 1"),
    ("vlm", {"data__images_per_text": 2, **STREAM}, f"{IMAGES} 2, expected 1 with --config.stream"),
    (
        "vlm",
        {"model__images_per_text": 2},
        "--config.model.images_per_text: found 2, expected 1 as",
    ),
    ("generator", {"data__images_per_text": 2}, f"{IMAGES} 2, expected 1: several images a text"),
    ("language_model", {"data__mixture": "scenes_txt"}, NO_TASK),
    ("language_model", {"data__split": "trian"}, "task 'scenes_text' has no split 'trian'"),
    (
        "language_model",
        {"data__modules": "no_tasks"},
        "--config.data.modules: module 'no_tasks': n",
    ),
    ("language_model", {"model__language_model__dtype": "bfloat61"}, "did you mean 'bfloat16'?"),
    ("language_model", {"model__language_model__remat": "ful"}, "did you mean 'full'?"),
    ("language_model", {"model__language_model__vocab_size": 100}, "vocab_size: found 100"),
    ("language_model", {"model_name": "languagemodel"}, "did you mean 'language_model'?"),
    ("language_model", {"model__text_length": 7}, "--config.model.text_length: found 7, expected"),
    ("language_model", {"optimizer__schedule": "cosin"}, "did you mean 'cosine'?"),
    ("language_model", {"train__steps": "many"}, "--config.train.steps: found 'many'"),
    ("language_model", {"mesh__fsdp": 3}, "fsdp=3"),
    held_out("data__mixture", "scenes_txt", "did you mean 'scenes_text'?"),
    held_out("data__split", "vaildation", "did you mean 'validation'?"),
    held_out("data__source", "fake", "has no end, so there is nothing to evaluate"),
    held_out("data__batch_size", 300, "--config.validation.data: fewer examples than the 300 of"),
    held_out("data__text_length", 7, "--config.validation.data.text_length: found 7, expected"),
    held_out("data__images_per_text", 2, "validation.data.images_per_text: found 2, expected 1 as"),
    held_out("data__prompt", "Say:", "validation.data.prompt: found 'Say:', expected 'Output:'"),
    held_out("captions__folder", "/no/where", "captions: a LanguageModelObjective writes none"),
]


@pytest.mark.parametrize(("command", "change", "told"), CASES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_a_config_is_one_line(chain, mistake, tmp_path, command, change, told):
    if "TMP/damaged" in change.values():
        shutil.copytree(chain.path("tokenizer"), tmp_path / "damaged")
        for path in tmp_path.glob("damaged/checkpoints/*/params/**/d/*"):
            path.write_bytes(path.read_bytes()[:10])
    change = {key: str(value).replace("TMP", str(tmp_path)) for key, value in change.items()}
    workdir = tmp_path / "w"
    if command in chain.steps:
        argv = chain.training(command, workdir, **change)
    else:
        argv = getattr(chain, command)(workdir, **change)
    told = told.replace("TMP", str(tmp_path)).replace("CHAIN", str(chain.root))
    line = mistake(argv)
    assert line.startswith(told) if told.startswith("--") else told in line
    assert not list(workdir.glob("checkpoints/[0-9]*")) and not list(workdir.rglob("*.tfrecord"))
