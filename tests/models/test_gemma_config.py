"""What of a Gemma can be told without the package `gemma`; the model itself is in tests/interop."""

import dataclasses
import sys

import jax.numpy as jnp
import pytest

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.models.gemma import RELEASED, GemmaConfig
from synth2_jax.models.language_model import LanguageModelConfig, init_cache
from synth2_jax.models.vlm import VLMConfig
from synth2_jax.text.vocabulary import load_vocabulary

SIZES = dict(vocab_size=512, num_layers=6, embed_dim=8, num_heads=4, head_dim=6, mlp_dim=16)
SIZES |= dict(num_kv_heads=2, sliding_window=3)


def test_every_sixth_layer_of_the_released_sizes_sees_all_tokens():
    for config in RELEASED.values():
        layers = [layer for layer in range(config.num_layers) if config.is_global(layer)]
        assert layers == list(range(5, config.num_layers, 6))
    config = GemmaConfig(**SIZES, local_layers=1)
    assert [layer for layer in range(6) if config.is_global(layer)] == [1, 3, 5]
    # And the cache has the heads of keys and values.
    cache = init_cache(GemmaConfig(**SIZES), 3, max_length=7)
    assert cache.keys_LBSHK.shape == (6, 3, 7, 2, 6) and cache.keys_LBSHK.dtype == jnp.bfloat16


def test_a_vlm_takes_the_language_model_that_its_section_describes():
    resampler = dict(num_layers=1, embed_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_latents=2)
    rest = {"resampler": resampler, "image_embedding_dim": 4, "num_image_tokens": 4}

    def built(section):
        section = {"language_model": section, "cross_attention_every": 3, **rest}
        return config_lib.build(VLMConfig, section).language_model

    assert built(SIZES) == GemmaConfig(**SIZES)
    ours = {name: SIZES[name] for name in SIZES if name not in ("num_kv_heads", "sliding_window")}
    assert built(ours) == LanguageModelConfig(**ours)
    with pytest.raises(UserError, match="sliding_windwo: unknown key; did you mean 'sliding_win"):
        built({**ours, "num_kv_heads": 2, "sliding_windwo": 3})
    with pytest.raises(UserError, match="divisor of --config.language_model.num_layers, 5"):
        built({**SIZES, "num_layers": 5})


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma", None)
    for name in [name for name in sys.modules if name.startswith("gemma.")]:
        monkeypatch.delitem(sys.modules, name)
    model = GemmaConfig(**SIZES).make()
    with pytest.raises(UserError) as error:
        model.init({}, jnp.zeros((1, 2), jnp.int32), deterministic=True)
    assert str(error.value).startswith("gemma: cannot be imported")
    assert str(error.value).endswith("pip install 'synth2-jax[gemma]'")
    assert "\n" not in str(error.value)


def test_a_vocabulary_of_another_model_is_refused():
    vocabulary = load_vocabulary("scenes")  # 512 pieces, no start of sentence
    config = GemmaConfig(**{**SIZES, "vocab_size": 262_144})
    with pytest.raises(UserError, match="found 512 pieces, but vlm.language_model has 262144 emb"):
        config.check_vocabulary(vocabulary, "vlm.language_model")
    config = dataclasses.replace(config, vocab_size=512)
    with pytest.raises(UserError, match="lm.bos_id: found 2, expected None, the start of sent"):
        config.check_vocabulary(vocabulary, "lm")


def test_our_own_model_has_room_for_every_piece():
    vocabulary = load_vocabulary("scenes")
    sizes = dict(num_layers=1, embed_dim=8, num_heads=1, head_dim=8, mlp_dim=8)
    for vocab_size in (512, 1024):
        LanguageModelConfig(vocab_size, **sizes).check_vocabulary(vocabulary, "lm")
    with pytest.raises(UserError, match="lm.vocab_size: found 511, expected at least the .* 512"):
        LanguageModelConfig(511, **sizes).check_vocabulary(vocabulary, "lm")
