"""A config that makes no model names its key. What all stacks share is in layers/test_stack.py."""

import dataclasses
import re

import pytest

from synth2_jax.errors import UserError
from synth2_jax.models.class_conditional_maskgit import ClassConditionalMaskGITConfig
from synth2_jax.models.discriminator import DiscriminatorConfig
from synth2_jax.models.gemma import GemmaConfig
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.models.maskgit import MaskGITConfig
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.text_encoder import TextEncoderConfig
from synth2_jax.models.vgg import VGGConfig
from synth2_jax.models.vlm import VLMConfig
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig

SIZES = dict(num_layers=4, embed_dim=8, num_heads=4, head_dim=6, mlp_dim=16)
LEVELS = dict(image_size=16, patch_size=4, filters=16, channel_multipliers=(1, 2))
LANGUAGE_MODEL = LanguageModelConfig(vocab_size=11, **SIZES)
RESAMPLER = ResamplerConfig(num_latents=3, **SIZES)
CONFIGS = {
    "tokenizer": VQTokenizerConfig(**LEVELS, norm_groups=4),
    "discriminator": DiscriminatorConfig(**LEVELS),
    "vgg": VGGConfig(),
    "text_encoder": TextEncoderConfig(vocab_size=11, **SIZES),
    "maskgit": MaskGITConfig(codebook_size=10, num_tokens=6, **SIZES),
    "class_conditional": ClassConditionalMaskGITConfig(),
    "resampler": RESAMPLER,
    "language_model": LANGUAGE_MODEL,
    "gemma": GemmaConfig(vocab_size=11, num_kv_heads=2, sliding_window=3, **SIZES),
    "vlm": VLMConfig(LANGUAGE_MODEL, RESAMPLER, image_embedding_dim=5, num_image_tokens=6),
}
COUNTS = {
    "tokenizer": ("image_size", "patch_size", "filters", "kernel_size", "embedding_dim")
    + ("norm_groups", "reservoir_size", "num_middle_blocks", "latent_channels"),
    "discriminator": ("image_size", "patch_size", "filters"),
    "text_encoder": ("vocab_size", "num_layers"),
    "maskgit": ("codebook_size", "num_tokens", "num_layers"),
    "class_conditional": ("codebook_size", "num_classes", "num_tokens", "num_layers", "mlp_dim"),
    "resampler": ("num_latents", "num_layers"),
    "language_model": ("vocab_size", "num_layers"),
    "gemma": ("vocab_size", "num_kv_heads", "sliding_window", "query_dim", "num_layers"),
    "vlm": ("image_embedding_dim", "num_image_tokens"),
}
MISTAKES = [
    *(
        (name, {size: 0}, f"{size}: found 0, expected at least 1")
        for name, sizes in COUNTS.items()
        for size in sizes
    ),
    ("tokenizer", {"image_size": 20}, "image_size: found 20, expected a multiple of 8"),
    ("tokenizer", {"channel_multipliers": (1, 0)}, "expected at least one level, each at least 1"),
    ("tokenizer", {"channel_multipliers": ()}, "at least one level"),
    ("tokenizer", {"norm_groups": 5}, "norm_groups: found 5"),
    ("tokenizer", {"activation": "swich"}, "did you mean 'swish'"),
    ("tokenizer", {"downsampling": "avg_pool"}, "did you mean 'average_pool'"),
    ("tokenizer", {"code_choice": "dot_prod"}, "unknown 'dot_prod'; did you mean 'dot_product'"),
    ("tokenizer", {"dtype": "float16"}, "float16"),
    ("tokenizer", {"codebook_size": 65537}, "codebook_size: found 65537"),
    ("tokenizer", {"attention_levels": (0, 2)}, "found (0, 2), expected some of [0, 1]"),
    ("tokenizer", {"extra_decoder_blocks": -1}, "extra_decoder_blocks: found -1, expected at lea"),
    ("tokenizer", {"num_res_blocks": 10**9}, "num_res_blocks: found 1000000000, expected at most"),
    ("tokenizer", {"pixel_range": (1.0, -1.0)}, "pixel_range"),
    ("discriminator", {"image_size": 36}, "image_size: found 36, expected a multiple of 8"),
    ("discriminator", {"channel_multipliers": (1, 0)}, "expected at least one level, each at lea"),
    ("discriminator", {"dtype": "float23"}, "did you mean 'float32'"),
    *(
        ("vgg", changes, "expected as many of the one as of the other")
        for changes in ({"widths": (4, 8)}, {"widths": (), "convs": ()}, {"convs": (2, 2, 3, 0, 3)})
    ),
    ("text_encoder", {"mlp_activation": "gated_geglu"}, "did you mean 'gated_gelu'"),
    ("text_encoder", {"relpos_buckets": 3}, "relpos_buckets: found 3, expected at least 4"),
    ("text_encoder", {"relpos_max_distance": 8}, "relpos_max_distance: found 8, expected more th"),
    ("maskgit", {"token_embedding": "codebok"}, "did you mean 'codebook'"),
    ("maskgit", {"codebook_noise": 0.1}, "codebook_noise: found 0.1, expected 0 without"),
    (
        "class_conditional",
        {"num_heads": 7},
        "num_heads: found 7, expected a divisor of `embed_dim`",
    ),
    ("class_conditional", {"dtype": "float16"}, "dtype"),
    ("language_model", {"head_dim": 3}, "head_dim: found 3, expected an even number"),
    ("gemma", {"head_dim": 5}, "head_dim: found 5, expected an even number"),
    ("gemma", {"num_kv_heads": 3}, "found 3, expected a divisor of `num_heads`, 4"),
    ("gemma", {"local_layers": -1}, "local_layers: found -1, expected at least 0"),
    ("gemma", {"remat": "ful"}, "remat: unknown 'ful'"),
    ("vlm", {"cross_attention_every": 3}, "divisor of `language_model.num_layers`, 4"),
]


@pytest.mark.parametrize(("name", "change", "text"), MISTAKES, ids=str)
def test_a_config_that_makes_no_model_names_its_key(name, change, text):
    with pytest.raises(UserError, match=re.escape(text)):
        dataclasses.replace(CONFIGS[name], **change)
