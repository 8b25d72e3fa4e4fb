"""Stages on a small random Gemma: captions in its chat format, and a VLM on top of it."""

import jax
import numpy as np
import pytest

from synth2_jax import main
from synth2_jax.caption_writing.language_model import LanguageModelSource
from synth2_jax.fingerprint import fingerprint
from synth2_jax.interop.gemma import language_model_config, load_language_model
from synth2_jax.loading import language_models
from synth2_jax.testing.chat_vocabulary import chat_vocabulary
from synth2_jax.text.prompts import CHAT_CAPTION_PROMPT, CHAT_CLASS_PROMPT
from synth2_jax.training.checkpoint_reader import read_description, restore_params

pytestmark = [pytest.mark.interop, pytest.mark.slow]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """(folder of Hugging Face's, its vocabulary)."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("models")
    vocabulary = chat_vocabulary(folder / "chat.model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    config = Gemma3TextConfig(vocab_size=vocabulary.size, **sizes, **heads)
    Gemma3ForCausalLM(config).save_pretrained(folder / "gemma")
    return folder / "gemma", vocabulary


def captions(workdir, gemma, **overrides):
    folder, vocabulary = gemma
    given = {
        **{"language_model": folder, "vocabulary": vocabulary.path, "classes": "circle,star"},
        **{"captions_per_class": 1, "decode.max_length": 8, "batch_size": 4, "max_rounds": 1},
        **{"filter.names_class": False, "filter.min_words": 1, **overrides},
    }
    argv = ["synth2", "captions", "--config=configs/scenes/captions.py", f"--workdir={workdir}"]
    return main.main(argv + [f"--config.{key}={value}" for key, value in given.items()])


def test_a_gemma_is_asked_in_its_chat_format(gemma, tmp_path, capsys):
    """Random words never make a caption, so what was asked is seen at the model."""
    asked = []
    real = LanguageModelSource.write

    def write(self, requests):
        asked.extend(request.prompt for request in requests)
        return real(self, requests)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LanguageModelSource, "write", write)
        assert captions(tmp_path, gemma) == 2
    assert "captions: none of 2 drafts is usable" in capsys.readouterr().err
    assert asked == [CHAT_CLASS_PROMPT.format(class_name=name) for name in ("circle", "star")]


def test_the_manifest_names_the_weights(gemma):
    folder, vocabulary = gemma
    found = language_models.load_language_model(str(folder), vocabulary.path)
    held = jax.tree.map(np.asarray, load_language_model(folder, found.config))
    assert found.provenance == {"checkpoint": "gemma", "fingerprint": fingerprint(held)}
    assert fingerprint(found.params) == fingerprint(held)
    assert found.vocabulary.path == vocabulary.path


def test_a_gemma_without_its_vocabulary_is_one_line(gemma, tmp_path, capsys):
    for change, told in (
        ({"vocabulary": ""}, "config.vocabulary: empty. Give the SentencePiece model of"),
        ({"vocabulary": "scenes"}, "scenes.model: found 512 pieces"),
        ({"language_model": gemma[0].parent}, "looks like a folder with"),
    ):
        assert captions(tmp_path, gemma, **change) == 2
        assert told in capsys.readouterr().err


def test_a_vlm_is_trained_on_a_frozen_gemma(gemma, chain, tmp_path):
    folder, vocabulary = gemma
    config = language_model_config(folder, dtype="float32")
    length = len(vocabulary.encode(CHAT_CAPTION_PROMPT)) + 24
    file = tmp_path / "vlm.py"
    file.write_text(
        "from configs.scenes import vlm\n"
        "def get_config():\n"
        "    config = vlm.get_config('tiny')\n"
        "    with config.unlocked():\n"
        f"        config.data.prompt = {CHAT_CAPTION_PROMPT!r}\n"
        "    return config\n"
    )
    keys = {"model__vlm__language_model__dtype": "float32", "data__text_length": length}
    keys |= {"data__vocabulary": vocabulary.path, "pretrained__language_model": folder}
    chain.run(chain.training("vlm", tmp_path / "vlm", file, **keys))
    params = restore_params(tmp_path / "vlm")
    _, built_on = read_description(tmp_path / "vlm", chain.steps["vlm"])
    held = jax.tree.map(np.asarray, load_language_model(folder, config))
    jax.tree.map(np.testing.assert_array_equal, params["vlm"]["language_model"], held)
    assert built_on["language_model"] == fingerprint(held)
