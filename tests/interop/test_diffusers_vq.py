"""The VQModel of diffusers, saved by its own `save_pretrained`."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from synth2_jax.errors import UserError
from synth2_jax.interop.diffusers_vq import load_tokenizer, tokenizer_config
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig

# aMUSEd's own, of which only the widths and the number of codes are smaller here.
AMUSED = dict(
    **dict(act_fn="silu", in_channels=3, out_channels=3, norm_num_groups=32, sample_size=32),
    block_out_channels=[128, 256, 256, 512, 768],
    down_block_types=["DownEncoderBlock2D"] * 5,
    up_block_types=["UpDecoderBlock2D"] * 5,
    **dict(latent_channels=64, layers_per_block=2, num_vq_embeddings=8192),
    **dict(mid_block_add_attention=False, lookup_from_codebook=True),
)
SMALL_AMUSED = {
    **AMUSED,
    "block_out_channels": [8, 16, 16, 32, 48],
    **dict(latent_channels=4, norm_num_groups=4, num_vq_embeddings=90),
}
ATTENTION = dict(
    block_out_channels=(16, 32),
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    latent_channels=6,
    vq_embed_dim=5,
    num_vq_embeddings=70,
    norm_num_groups=8,
)


def made(sizes, side, batch=3):
    """(model, image in [-1, 1]): all parameters drawn, codes spread as what is encoded."""
    import torch
    from diffusers import VQModel

    torch.manual_seed(0)
    model = VQModel(**sizes).eval()
    image = torch.rand(batch, 3, side, side) * 2 - 1
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        encoded = model.encode(given(model, image)).latents.movedim(1, -1).flatten(0, 2)
        codes = model.quantize.embedding.weight
        codes.copy_(torch.randn_like(codes) * encoded.std(0) + encoded.mean(0))
    return model, image


def given(model, image):
    """As its pipelines give it: aMUSEd's in [0, 1]."""
    return (image + 1) / 2 if model.config.lookup_from_codebook else image


def expected(model, image):
    """(image, ids, decoded as its own code does)."""
    import torch

    with torch.no_grad():
        latents = model.encode(given(model, image)).latents
        ids = model.quantize(latents)[2][2].reshape(len(image), -1)
        if model.config.lookup_from_codebook:  # as aMUSEd's pipelines decode
            shape = (len(image), *latents.shape[2:], latents.shape[1])
            pixels = model.decode(ids, force_not_quantize=True, shape=shape).sample
        else:
            pixels = model.decode(latents).sample
    return image.movedim(1, -1).numpy(), ids.numpy(), pixels.movedim(1, -1).numpy()


def against():
    import diffusers

    return f"diffusers {diffusers.__version__} VQModel"


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """(model, image, folder)"""
    folder = tmp_path_factory.mktemp("vqvae")
    model, image = made(ATTENTION, 16)
    model.save_pretrained(folder)
    return model, image, folder


@pytest.mark.interop
def test_amused(tmp_path, same_pictures):
    model, image = made(SMALL_AMUSED, 64)
    model.save_pretrained(tmp_path)
    config = tokenizer_config(tmp_path, image_size=64)
    assert config == VQTokenizerConfig(
        image_size=64,
        filters=8,
        channel_multipliers=(1, 2, 2, 4, 6),
        num_res_blocks=2,
        num_middle_blocks=2,
        extra_decoder_blocks=1,
        use_bias=True,
        shortcut_from_input=True,
        latent_channels=4,
        embedding_dim=4,
        codebook_size=90,
        norm_groups=4,
        downsampling="conv_3x3",
        pixel_range=(0.0, 1.0),
    )
    params = load_tokenizer(tmp_path, config)
    what = "VQ-GAN, aMUSEd's layout"
    same_pictures(what, against(), config, params, *expected(model, image), least=6)


@pytest.mark.interop
def test_attention(attention, same_pictures):
    model, image, folder = attention
    config = tokenizer_config(folder, image_size=16)
    assert config.attention_levels == (1,) and config.middle_attention
    assert (config.latent_channels, config.embedding_dim) == (6, 5)
    assert config.pixel_range == (-1.0, 1.0)
    params = load_tokenizer(folder, config)
    what = "VQ-GAN with attention, latent diffusion's layout"
    same_pictures(what, against(), config, params, *expected(model, image), least=6)


@pytest.mark.interop
def test_amused_at_its_own_size(tmp_path, sparse_safetensors, published):
    import torch
    from diffusers import VQModel

    with torch.device("meta"):
        model = VQModel(**AMUSED)
    model.save_config(tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sparse_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", shapes)
    sparse_safetensors(tmp_path / "diffusion_pytorch_model.fp16.safetensors", {"other": (1,)})
    config = tokenizer_config(tmp_path)
    assert config == published("amused") and config.num_tokens == 256
    assert tokenizer_config(tmp_path, image_size=512) == published("amused", 512)
    params = load_tokenizer(tmp_path, config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(map(np.prod, shapes.values()))


@pytest.mark.interop
def test_attention_by_its_names_before_2023(attention, tmp_path):
    """diffusers reads both; such a folder is often of torch's own format."""
    import torch
    from diffusers import VQModel

    model, _, folder = attention
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in model.state_dict().items():
        for theirs, before in renames.items():
            name = name.replace(f".{theirs}.", f".{before}.")
        old[name] = tensor
    assert old.keys() != model.state_dict().keys()
    torch.save(old, tmp_path / "diffusion_pytorch_model.bin")
    model.save_config(tmp_path)
    config = tokenizer_config(tmp_path, image_size=16)
    found, new = (load_tokenizer(path, config) for path in (tmp_path, folder))
    jax.tree.map(np.testing.assert_array_equal, found, new)
    again = VQModel.from_pretrained(tmp_path, use_safetensors=False).state_dict()
    assert again.keys() == model.state_dict().keys()


@pytest.mark.interop
def test_all_tensors_that_do_not_fit_are_listed(attention, tmp_path):
    model, _, folder = attention
    held = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    held["quantize.embedding.weight"] = held["quantize.embedding.weight"][:, :4].copy()
    held["decoder.extra"] = np.zeros(3, np.float32)
    del held["encoder.mid_block.attentions.0.to_out.0.bias"]
    del held["decoder.up_blocks.0.upsamplers.0.conv.weight"]
    safetensors.numpy.save_file(held, tmp_path / "diffusion_pytorch_model.safetensors")
    model.save_config(tmp_path)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path, tokenizer_config(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: its tensors do not fit the config: "
        "2 missing (decoder.up_blocks.0.upsamplers.0.conv.weight, "
        "encoder.mid_block.attentions.0.to_out.0.bias); 1 unknown (decoder.extra); "
        "1 misshapen (quantize.embedding.weight [70, 4] for quantizer/codebook [70, 5])"
    )


# --- config.json alone ---


def config_folder(folder, **changes):
    held = {"_class_name": "VQModel", **ATTENTION, **changes}
    (folder / "config.json").write_text(json.dumps(held))
    return folder


def test_a_strange_config_is_told_in_full(tmp_path):
    changes = {
        "norm_type": "spatial",
        "in_channels": 4,
        "block_out_channels": [16, 24],
        "down_block_types": ["DownEncoderBlock2D", "CrossAttnDownBlock2D"],
    }
    with pytest.raises(UserError) as caught:
        tokenizer_config(config_folder(tmp_path, **changes))
    for text in (
        "config.json: in_channels is 4, expected 3; norm_type is 'spatial', expected group; ",
        "CrossAttnDownBlock2D'], expected DownEncoderBlock2D or AttnDownEncoderBlock2D; ",
        "block_out_channels is (16, 24), expected one for each of 2 blocks down and 2 up, and "
        "multiples of the first; attention stands at other levels in",
    ):
        assert text in str(caught.value)


def test_what_it_need_not_say_is_as_in_diffusers(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    config = tokenizer_config(tmp_path)
    assert (config.filters, config.channel_multipliers, config.num_res_blocks) == (64, (1,), 1)
    assert (config.codebook_size, config.embedding_dim) == (256, 3) and config.middle_attention


def test_another_folder_is_told(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    config = tokenizer_config(config_folder(tmp_path))
    for read in (tokenizer_config, lambda path: load_tokenizer(path, config)):
        with pytest.raises(UserError, match="found a diffusers AutoencoderKL, expected a folder"):
            read(other)
    with pytest.raises(UserError, match=r"found no \.safetensors, expected one"):
        load_tokenizer(tmp_path, config)


def test_what_no_shape_shows_is_compared(tmp_path, sparse_safetensors):
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    sparse_safetensors(file, {"encoder.conv_in.weight": (16, 3, 3, 3)})
    config = tokenizer_config(config_folder(tmp_path), pixel_range=(0.0, 1.0))
    other = dataclasses.replace(config, norm_groups=4, shortcut_from_input=False)
    with pytest.raises(
        UserError, match="shortcut_from_input is False, there True; norm_groups is 4, there 8$"
    ):
        load_tokenizer(tmp_path, other)
    with open(file, "rb+") as opened:
        opened.truncate(500)
    with pytest.raises(UserError, match=r"model\.safetensors: .*download cut short"):
        load_tokenizer(tmp_path, config)
