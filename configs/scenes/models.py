"""Sections that the configs of Scenes share: the paper's models made small for two CPU cores.

Not a config of a stage. Few layers in a loop: on a CPU their steps take a sixth to a fifth less
time than in a scan.
"""

from configs.arguments import words

TEXT_LENGTH = 26  # prompt, caption and eos of the longest caption of Scenes
MICROBATCHES = 2  # of a training step: what fits a CPU's cache takes a tenth to a third less time


def is_tiny(arg: str) -> bool:
    """Returns whether `--config=FILE:tiny` was given; UserError on another word."""
    return bool(words(arg, ("tiny",)))


def pairs_data() -> dict:
    """Real pairs, as tokens."""
    return {
        "folders": {"real": ""},
        "split": "train",
        "batch_size": 64,
        "text_length": TEXT_LENGTH,
    }


def optimizer(learning_rate: float, steps: int, warmup_steps: int = 50, **settings) -> dict:
    """Adam with a cosine schedule."""
    return {
        "learning_rate": learning_rate,
        "schedule": "cosine",
        "warmup_steps": min(warmup_steps, steps // 2),
        **settings,
    }


def train(steps: int, microbatches: int = MICROBATCHES) -> dict:
    return {
        "steps": steps,
        "log_every": 50,
        "checkpoint_every": 500,
        "microbatches": microbatches,
    }


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
        "codebook_size": 512,
        "norm_groups": 8,
        "usage_decay": 0.9,
        "revive_share": 0.05,
    }


def language_model() -> dict:
    """0.6M parameters."""
    return {
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
        "text_encoder": {"num_layers": 2, "mlp_dim": 256, **width},
        "maskgit": {
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
        "cross_attention_every": 1,
    }
