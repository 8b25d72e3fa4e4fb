"""A fifth model: a class and its config in a file of one's own, and nothing else is touched."""

import os

import pytest

from synth2_jax import main
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.trained import load_trained
from synth2_jax.training import train_state
from synth2_jax.training.checkpoint_reader import latest_step, restore_params

MODEL = '''
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax.losses.vlm_loss import vlm_loss
from synth2_jax.models.language_model import shift_right
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig
from synth2_jax.training.objectives import BaseObjective
from synth2_jax.training.tasks import Task


@dataclasses.dataclass(frozen=True)
class WordsConfig:
    vocab_size: int
    width: int

    def check_vocabulary(self, vocabulary, where):
        vocabulary.check_rows(self.vocab_size, where)


@dataclasses.dataclass(frozen=True)
class NextWordTask(Task):
    tokenizer: VQTokenizerConfig
    words: WordsConfig
    text_length: int


class NextWord(nn.Module):
    """The next word from the one before and the mean of the picture."""

    config: WordsConfig

    @nn.compact
    def __call__(self, image_BNC, text_BT):
        def table(name, shape, axes):
            init = nn.initializers.normal(0.1)
            return self.param(name, nn.with_logical_partitioning(init, axes), shape)

        words = table("words", (self.config.vocab_size, self.config.width), ("vocab", "embed"))
        image = table("image", (image_BNC.shape[-1], self.config.width), ("codebook", "embed"))
        mixed_BTD = words[text_BT] + (image_BNC.mean(1) @ image)[:, None]
        return mixed_BTD @ words.T


class NextWordObjective(BaseObjective):
    task_class = NextWordTask
    batches = "vlm"
    text_part = "words"
    part_paths = {"tokenizer": "tokenizer"}

    def __init__(self, task):
        super().__init__(task)
        self._tokenizer, self._model = VQTokenizer(task.tokenizer), NextWord(task.words)

    def init(self, key):
        keys, size = jax.random.split(key), self.task.tokenizer.image_size
        image = jnp.zeros((1, size, size, 3))
        tokenizer = self._tokenizer.init(keys[0], image, deterministic=True)["params"]
        embedding = jnp.zeros((1, 1, self.task.tokenizer.embedding_dim))
        words = self._model.init(keys[1], embedding, jnp.zeros((1, 1), jnp.int32))["params"]
        return {"params": {"words": words, "tokenizer": tokenizer}}

    def loss(self, params, batch, rngs, step, *, train):
        image_BNC = self._tokenizer.apply(
            {"params": params["tokenizer"]}, batch["image_tokens"], method="embed"
        )
        text_BT = shift_right(batch["text_tokens"])
        logits_BTV = self._model.apply({"params": params["words"]}, image_BNC, text_BT)
        is_synthetic = batch["is_synthetic"]
        return vlm_loss(logits_BTV, batch["text_tokens"], batch["loss_mask"], is_synthetic), {}

    def batch_spec(self, batch_size):
        text = (batch_size, self.task.text_length)
        image = (batch_size, self.task.tokenizer.num_tokens)
        return {
            "image_tokens": jax.ShapeDtypeStruct(image, jnp.int32),
            "text_tokens": jax.ShapeDtypeStruct(text, jnp.int32),
            "loss_mask": jax.ShapeDtypeStruct(text, jnp.bool_),
            "is_synthetic": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
        }
'''
TOKENIZER = {
    **{"image_size": 16, "patch_size": 4, "filters": 8, "channel_multipliers": (1, 2)},
    **{"num_res_blocks": 0, "embedding_dim": 4, "codebook_size": 16, "norm_groups": 2},
}
CONFIG = {
    "model_name": "my_model.py:NextWordObjective",
    "model": {"tokenizer": TOKENIZER, "words": {"width": 8}},
    "data": {
        **{"source": "fake", "vocabulary": "scenes", "text_length": 12, "batch_size": 8},
        **{"mixture": "", "folders": {}},
    },
    "optimizer": {"learning_rate": 1e-2},
    "train": {"steps": 2, "seed": 0, "log_every": 1, "checkpoint_every": 10},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(MODEL)
    program = f"import ml_collections\ndef get_config(): return ml_collections.ConfigDict({CONFIG})"
    (tmp_path / "my_config.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*flags):
    return ["synth2", "train", "--config=my_config.py", *flags]


@pytest.mark.slow
def test_it_is_trained_resumed_and_exported(folder, monkeypatch):
    for steps, workdir in ((2, "run"), (4, "run"), (4, "straight")):
        assert main.main(command(f"--config.train.steps={steps}", f"--workdir={workdir}")) == 0
    assert latest_step("run") == 4
    assert fingerprint(restore_params("run")) == fingerprint(restore_params("straight"))
    assert main.main(["synth2", "export", "run", "--output=out"]) == 0
    name = os.path.abspath("my_model.py:NextWordObjective")
    monkeypatch.chdir("/")  # a relative name was made whole when it was saved
    assert main.main(["synth2", "inspect", str(folder / "run")]) == 0
    run, out = (load_trained(folder / path, name) for path in ("run", "out"))
    assert out.fingerprint("words") == run.fingerprint("words")
    # The model is the export's, and so is its tokenizer; the file may be in another folder.
    monkeypatch.chdir(folder)
    from_out = ["--config.init.from=out", "--config.data.vocabulary=scenes"]
    assert main.main(command(*from_out, "--config.train.steps=1", "--workdir=further")) == 0
    further = load_trained(folder / "further", name)
    assert further.fingerprint("tokenizer") == run.fingerprint("tokenizer")
    assert further.config["started_from"]["fingerprints"]["words"] == run.fingerprint("words")
    assert run.objective.frozen == ("^tokenizer/",)


@pytest.mark.slow
def test_what_is_frozen_of_it_is_a_choice(folder):
    """The default is the pretrained part; a part that is trained may start without a path."""
    flags = ("--config.model.freeze=image$", "--config.train.checkpoint_every=1")
    assert main.main(command(*flags, "--workdir=run")) == 0
    first, last = (train_state.flatten(restore_params("run", step)) for step in (1, 2))
    moved = {path for path in first if (first[path] != last[path]).any()}
    assert {"words/words", "tokenizer/quantizer/codebook"} <= moved and "words/image" not in moved


@pytest.mark.parametrize(
    "flag, message",
    [
        (
            "model.text_length=9",
            "--config.model.text_length: found 9, expected 12 as in --config.data",
        ),
        ("pretrained.language_model=x", "--config.pretrained.language_model: found 'x'"),
        ("data.source=seqio", "--config.pretrained.tokenizer: empty, expected a trained"),
        ("model_name=no.py:X", "--config.model_name: no file no.py"),
        ("model_name=my_model.py:NextWord", "is no subclass of BaseObjective"),
        ("model_name=my_model.py:Z", "--config.model_name: my_model.py holds no 'Z'"),
        ("model.freeze=^word/", "--config.model.freeze: '^word/' matches no parameter, such as"),
        ("model.freeze=(", "--config.model.freeze: '(' is not a regular expression"),
        ("model.freeze=.", "--config.model.freeze: ['.'] leave none of"),
    ],
)
def test_mistakes_are_one_line(folder, flag, message, mistake):
    assert message in mistake(command(f"--config.{flag}", "--workdir=run"))
