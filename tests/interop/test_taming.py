"""The VQGAN of taming-transformers: its sizes, and what else is in its files.

tests/interop/test_vq_tokenizers.py compares its numbers with stored ones of its own code.
"""

import dataclasses
import json
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.interop import diffusers_vq
from synth2_jax.interop.taming import TAMING
from synth2_jax.interop.tensor_files import open_torch
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig

STORED = pathlib.Path(__file__).parents[1] / "data" / "tokenizers"
tokenizer_config, load_tokenizer = TAMING.tokenizer_config, TAMING.load_tokenizer
SMALL = VQTokenizerConfig(
    image_size=16,
    filters=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    num_middle_blocks=2,
    extra_decoder_blocks=1,
    attention_levels=(1,),
    middle_attention=True,
    use_bias=True,
    shortcut_from_input=True,
    latent_channels=6,
    embedding_dim=5,
    codebook_size=60,
    downsampling="conv_3x3",
)


def by_taming_names(state, last):
    """Tensors of a diffusers VQModel by taming-transformers' names; `last` level."""
    renames = (
        (r"\.down_blocks\.", ".down."),
        (r"\.up_blocks\.(\d+)", lambda found: f".up.{last - int(found[1])}"),
        (r"\.mid_block\.resnets\.(\d)", lambda found: f".mid.block_{int(found[1]) + 1}"),
        (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
        (r"\.(down|up)samplers\.0\.", r".\1sample."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.group_norm\.", ".norm."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.to_out\.0\.", ".proj_out."),
        (r"\.resnets\.", ".block."),
        (r"\.attentions\.", ".attn."),
    )
    tensors = {}
    for name, tensor in state.items():
        for pattern, theirs in renames:
            name = re.sub(pattern, theirs, name)
        # 1x1 convolutions where diffusers has linear maps.
        is_map = re.search(r"\.attn(_1|\.\d)\.(q|k|v|proj_out)\.weight$", name)
        tensors[name] = tensor[:, :, None, None] if is_map else tensor
    return tensors


def of_diffusers(config):
    """Random tensors of this network by taming-transformers' names, and diffusers' own model."""
    import torch
    from diffusers import VQModel

    torch.manual_seed(0)
    levels = range(len(config.channel_multipliers))
    kinds = ["Attn" * (level in config.attention_levels) for level in levels]
    model = VQModel(
        block_out_channels=[config.filters * size for size in config.channel_multipliers],
        down_block_types=[f"{kind}DownEncoderBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        layers_per_block=config.num_res_blocks,
        latent_channels=config.latent_channels,
        vq_embed_dim=config.embedding_dim,
        num_vq_embeddings=config.codebook_size,
    ).eval()
    return by_taming_names(model.state_dict(), len(kinds) - 1), model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file as Lightning saves it, of SMALL."""
    import torch

    held = of_diffusers(SMALL)[0]
    held |= {"loss.discriminator.0.weight": torch.zeros(4, 3, 4, 4), "loss.logvar": torch.zeros(())}
    path = tmp_path_factory.mktemp("taming") / "last.ckpt"
    torch.save({"epoch": 3, "global_step": 4, "state_dict": held, "lr_schedulers": []}, path)
    return path


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.interop
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "channel_multipliers": (1, 1, 3),
            "num_res_blocks": 2,
            "attention_levels": (0, 2),
            "latent_channels": 4,
        },
    ],
)
def test_every_tensor_is_in_its_place(tmp_path, changes):
    """As of the same model in diffusers' layout, whose numbers are compared with its code."""
    import torch

    expected = dataclasses.replace(SMALL, **changes)
    tensors, model = of_diffusers(expected)
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    config = tokenizer_config(tmp_path / "last.ckpt", image_size=16)
    assert config == expected
    model.save_pretrained(tmp_path / "diffusers")
    found = load_tokenizer(tmp_path / "last.ckpt", config)
    equal(found, diffusers_vq.load_tokenizer(tmp_path / "diffusers", config))


@pytest.mark.slow
def test_the_published_sizes_fit(tmp_path, sparse_safetensors, published):
    """`vqgan_imagenet_f16_16384`: its shapes, with no bytes behind them."""
    shapes = json.loads((STORED / "taming_published.json").read_text())
    file = sparse_safetensors(tmp_path / "model.safetensors", shapes)
    config = tokenizer_config(file)
    assert config == published("taming", 16384) and config.num_tokens == 256
    count = sum(leaf.size for leaf in jax.tree.leaves(load_tokenizer(file, config)))
    assert count == sum(
        np.prod(shape) for name, shape in shapes.items() if not name.startswith("loss.")
    )


@pytest.mark.interop
def test_all_tensors_that_do_not_fit_are_listed(small, tmp_path):
    import torch

    held = torch.load(small, weights_only=True)["state_dict"]
    held["quant_conv.weight"] = torch.zeros(5, 6, 3, 3)
    held["encoder.mid.attn_1.q.weight"] = torch.zeros(64, 64, 3, 3)
    held["quantize.used"] = torch.zeros(3)
    del held["decoder.up.1.upsample.conv.bias"], held["encoder.down.1.attn.0.k.bias"]
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": held}, file)
    with pytest.raises(UserError) as caught:
        load_tokenizer(file, SMALL)
    assert str(caught.value) == (
        f"{file}: its tensors do not fit the config: "
        "2 missing (decoder.up.1.upsample.conv.bias, encoder.down.1.attn.0.k.bias); "
        "1 unknown (quantize.used); "
        "2 misshapen (encoder.mid.attn_1.q.weight [64, 64, 3, 3] for "
        "encoder/attention_2/self_attention/query/kernel [64, 1, 64], "
        "quant_conv.weight [5, 6, 3, 3] for encoder/quant_conv/kernel [1, 1, 6, 5])"
    )


@pytest.mark.interop
def test_another_model_or_config_is_refused(small, tmp_path):
    import torch

    other = dataclasses.replace(SMALL, activation="relu", shortcut_from_input=False, norm_groups=8)
    with pytest.raises(
        UserError,
        match="shortcut_from_input is False, there True; activation is 'relu', there 'swish'; "
        "norm_groups is 8, there 32",
    ):
        load_tokenizer(small, other)
    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, file)
    with pytest.raises(UserError, match=r"found tensors named layer.weight, expected a VQGAN of t"):
        load_tokenizer(file, SMALL)
    with pytest.raises(UserError, match=r"layer.weight without encoder.conv_in.weight, .* a VQGAN"):
        tokenizer_config(file)


# --- what else is in the file ---


class Touches:
    """An object whose unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.interop
def test_nothing_is_unpickled(small, tmp_path):
    import torch

    planted, file = tmp_path / "planted", tmp_path / "last.ckpt"
    held = torch.load(small, weights_only=True)
    torch.save({**held, "callbacks": Touches(planted)}, file)
    for read in (tokenizer_config, lambda path: load_tokenizer(path, VQTokenizerConfig())):
        with pytest.raises(UserError, match=r"last.ckpt: refused, .* its code: .*pathlib.Path"):
            read(file)
    assert not planted.exists()
    torch.load(file, weights_only=False)
    assert planted.exists()  # so that the test could have failed


@pytest.fixture
def lightning(monkeypatch):
    """A module of Lightning's name, whose callback would leave a trace."""
    module = types.ModuleType("pytorch_lightning.callbacks")

    class ModelCheckpoint:
        def __setstate__(self, state):
            pathlib.Path(state["trace"]).touch()

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return ModelCheckpoint


@pytest.mark.interop
def test_lightnings_callbacks_are_left_out(lightning, small, tmp_path):
    import torch

    allowed = torch.serialization.get_safe_globals
    file, trace = tmp_path / "last.ckpt", tmp_path / "trace"
    callback = lightning()
    callback.trace = str(trace)
    held = torch.load(small, weights_only=True)
    # By its class, as Lightning 1 has it, and an object besides.
    torch.save({**held, "callbacks": {lightning: {"best": 0.5}, "one": callback}}, file)
    found, expected = open_torch(file), open_torch(small)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["quant_conv.bias"], expected["quant_conv.bias"])
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # so that the test could have failed

    planted = tmp_path / "planted"
    torch.save({**held, "callbacks": {lightning: Touches(planted)}}, file)
    with pytest.raises(UserError, match="refused, .*run its code"):
        open_torch(file)
    assert not planted.exists()
    named = [name for _, name in filter(lambda one: isinstance(one, tuple), allowed())]
    assert not [name for name in named if "lightning" in name]
