"""Sections that the configs at the paper's scale share: 256 pixels, 632M parameters (2nd).

Not a config of a stage. (2nd) marks what is known of
Synth² (arXiv 2403.07750) at second hand only. The parents are Muse (2301.00704), MaskGIT
(2202.04200 and its released code), Flamingo (2204.14198) and T5 1.1 (1910.10683, 2002.05202).
"""

from configs.arguments import words

# T5's SentencePiece model has 32,100 pieces, its embedding table 32,128 rows.
VOCAB_SIZE = 32128
TEXT_LENGTH = 64  # chosen: captions of 30 to 40 words (2nd), with room
MESH = {"data": -1, "fsdp": 16}


def remat(arg: str) -> str:
    """ "full" behind `--config=FILE:remat`, for smaller pods; UserError on any other word."""
    return "full" if "remat" in words(arg, ("remat",)) else "none"


def tokenizer() -> dict:
    """MaskGIT's VQ-GAN of 16 x 16 tokens with Muse's 8192 codes: 56M parameters."""
    return {
        "image_size": 256,
        "filters": 128,
        "channel_multipliers": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "embedding_dim": 256,
        "codebook_size": 8192,
        "dtype": "bfloat16",
    }


def text_encoder() -> dict:
    """T5 1.1 XXL's encoder: 4.8B parameters, frozen."""
    return {
        "vocab_size": VOCAB_SIZE,
        "num_layers": 24,
        "embed_dim": 4096,
        "num_heads": 64,
        "head_dim": 64,
        "mlp_dim": 10240,
        "dtype": "bfloat16",
    }


def maskgit(num_layers: int, embed_dim: int, remat: str) -> dict:
    """A generator of this depth and width; 16 heads, which tensor=8 divides (chosen)."""
    return {
        "num_layers": num_layers,
        "embed_dim": embed_dim,
        "num_heads": 16,
        "head_dim": embed_dim // 16,
        "mlp_dim": 4 * embed_dim,  # Muse, MaskGIT
        "dropout_rate": 0.1,  # MaskGIT
        "attention_dropout_rate": 0.0,  # chosen: attention can then be one fused kernel
        "dtype": "bfloat16",
        "remat": remat,
    }


def language_model(remat: str) -> dict:
    """341M parameters: T5 1.1 large's widths in a decoder (chosen; the paper's is not known)."""
    return {
        "vocab_size": VOCAB_SIZE,
        "num_layers": 24,
        "embed_dim": 1024,
        "num_heads": 16,
        "head_dim": 64,
        "mlp_dim": 2816,
        "dtype": "bfloat16",
        "remat": remat,
    }


def vlm(remat: str) -> dict:
    """578M parameters, 634M with the tokenizer; the paper's whole has 632M (2nd)."""
    return {
        "language_model": language_model(remat),
        "resampler": {  # Flamingo, appendix A
            "num_layers": 6,
            "embed_dim": 1536,
            "num_heads": 16,
            "head_dim": 96,
            "mlp_dim": 4 * 1536,
            "num_latents": 64,
            "dtype": "bfloat16",
            "remat": remat,
        },
        "cross_attention_every": 4,  # chosen; Flamingo has 1, 4 and 7 by size
    }


def pairs_data(batch_size: int) -> dict:
    """Real pairs, as tokens."""
    return {
        "folders": {"real": ""},
        "split": "train",
        "batch_size": batch_size,
        "vocabulary": "",
        "text_length": TEXT_LENGTH,
        # Of 64 hosts each would have to read what all of them train on.
        "deal": "shards",
    }


def adamw() -> dict:
    """Flamingo's."""
    return {
        "name": "adamw",
        "learning_rate": 1e-4,
        "schedule": "constant",
        "warmup_steps": 5000,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    }


def train(steps: int) -> dict:
    return {"steps": steps, "log_every": 100, "checkpoint_every": 1000}
