"""Tokenizers whose weights are public, as sections of a config.

Not a config of a stage: a training's `model.tokenizer` is one of these where its
`pretrained.tokenizer` is the file or folder that is named with it. `synth2 tokenize` takes that
path as its `tokenizer` and needs no section. All are of 16 x 16 tokens at 256 pixels.
"""

_F16 = {"filters": 128, "channel_multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2}
_TAMING = {
    "num_middle_blocks": 2,
    "extra_decoder_blocks": 1,
    "use_bias": True,
    "shortcut_from_input": True,
    "downsampling": "conv_3x3",
}


def maskgit(image_size: int = 256) -> dict:
    """tokenizer_imagenet256_checkpoint or tokenizer_imagenet512_checkpoint (google-research).

    Also the folder maskgit-vqgan-imagenet-f16-256 of open-muse (Hugging Face).
    """
    return {
        **_F16,
        "image_size": image_size,
        "embedding_dim": 256,
        "codebook_size": 1024,
        "pixel_range": (0.0, 1.0),
    }


def taming(codebook_size: int = 16384) -> dict:
    """taming:last.ckpt of vqgan_imagenet_f16_16384 or of vqgan_imagenet_f16_1024 (CompVis)."""
    return {
        **_F16,
        **_TAMING,
        "attention_levels": (4,),
        "middle_attention": True,
        "latent_channels": 256,
        "embedding_dim": 256,
        "codebook_size": codebook_size,
    }


def ibq(codebook_size: int = 16384) -> dict:
    """ibq:imagenet256_16384.ckpt, or those of 8192 or 1024 codes (TencentARC)."""
    return {**taming(codebook_size), "num_res_blocks": 4, "code_choice": "dot_product"}


def llamagen() -> dict:
    """vq_ds16_c2i.pt or vq_ds16_t2i.pt (FoundationVision)."""
    return {**taming(), "embedding_dim": 8, "l2_normalize_codes": True}


def amused(image_size: int = 256) -> dict:
    """The folder vqvae of amused-256 or of amused-512 (Hugging Face)."""
    return {
        **_F16,
        **_TAMING,
        "image_size": image_size,
        "channel_multipliers": (1, 2, 2, 4, 6),
        "latent_channels": 64,
        "embedding_dim": 64,
        "codebook_size": 8192,
        "pixel_range": (0.0, 1.0),
    }
