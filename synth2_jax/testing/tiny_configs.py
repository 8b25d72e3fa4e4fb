"""Configs of Scenes whose models are as small as they get."""

import ml_collections

from synth2_jax.config import load_config

_WIDTH = {"num_layers": 1, "embed_dim": 8, "num_heads": 1, "head_dim": 8, "mlp_dim": 8}
_PARTS = {
    "generator": ("generator.text_encoder", "generator.maskgit"),
    "vlm": ("vlm.language_model", "vlm.resampler"),
    "language_model": ("language_model",),
}


def tiny(name: str) -> ml_collections.ConfigDict:
    """Returns the config of configs/scenes/NAME.py:tiny, made still smaller."""
    config = load_config(f"configs/scenes/{name}.py:tiny")
    with config.unlocked():
        for part in _PARTS.get(name, ()):
            section = config.model
            for key in part.split("."):
                section = section[key]
            section.update(_WIDTH)
        if "tokenizer" in config.model:
            config.model.tokenizer.update(filters=8, num_res_blocks=1)
    return config
