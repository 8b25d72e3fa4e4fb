"""Sizes of the models for Scenes: the paper's models made small enough for two CPU cores.

Not a config of a stage; the configs beside it share these sections, so that a tokenizer or a
language model always fits what is built on it. Few layers in a loop: on a CPU their steps
take a sixth to a fifth less time than in a scan.
"""

from collections.abc import Collection

from synth2_jax.errors import UserError, nearest

VOCABULARY = "scenes"
VOCAB_SIZE = 512
TEXT_LENGTH = 26  # prompt, caption and eos of the longest caption of Scenes
NUM_TOKENS = 16
CODEBOOK_SIZE = 512
MICROBATCHES = 2  # of a training step: what fits a CPU's cache takes a tenth to a third less time


def words(arg: str, known: Collection[str] = ("tiny",)) -> list[str]:
    """What stands behind the ":" of `--config=FILE:WORD,WORD`; UserError on an unknown word."""
    given = [word for word in arg.split(",") if word]
    for word in given:
        if word not in known:
            raise UserError(f"--config=FILE:{arg}: unknown word {word!r}; {nearest(word, known)}")
    return given


def tokenizer() -> dict:
    """32 pixels in 8x8 patches -> 4x4 tokens of 512 codes; residual blocks as many as MaskGIT's."""
    return {
        "image_size": 32,
        "patch_size": 8,
        "filters": 224,
        "channel_multipliers": (1,),
        "num_res_blocks": 2,
        "kernel_size": 1,
        "embedding_dim": 32,
        "codebook_size": CODEBOOK_SIZE,
        "norm_groups": 8,
        "usage_decay": 0.9,
        "revive_share": 0.05,
    }


def language_model() -> dict:
    """0.6M parameters."""
    return {
        "vocab_size": VOCAB_SIZE,
        "num_layers": 2,
        "embed_dim": 128,
        "num_heads": 2,
        "head_dim": 64,
        "mlp_dim": 256,
        "scan_layers": False,
    }


def generator() -> dict:
    """A T5-style caption encoder and a MaskGIT transformer, both trained from scratch."""
    width = {"embed_dim": 128, "num_heads": 2, "head_dim": 64, "scan_layers": False}
    return {
        "text_encoder": {"vocab_size": VOCAB_SIZE, "num_layers": 2, "mlp_dim": 256, **width},
        "maskgit": {
            "codebook_size": CODEBOOK_SIZE,
            "num_tokens": NUM_TOKENS,
            "num_layers": 4,
            "mlp_dim": 384,
            "token_embedding": "codebook",
            "codebook_noise": 0.15,
            **width,
        },
    }


def vlm() -> dict:
    """The language model, a resampler of 16 latents, and cross-attention before every layer."""
    return {
        "language_model": language_model(),
        "resampler": {
            "num_layers": 1,
            "embed_dim": 128,
            "num_heads": 2,
            "head_dim": 64,
            "mlp_dim": 256,
            "num_latents": 16,
            "scan_layers": False,
        },
        "image_embedding_dim": tokenizer()["embedding_dim"],
        "num_image_tokens": NUM_TOKENS,
        "cross_attention_every": 1,
    }
