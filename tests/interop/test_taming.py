"""The VQGAN of taming-transformers, against its layout written down in PyTorch below."""

import dataclasses
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from synth2_jax.errors import UserError
from synth2_jax.interop.taming import TAMING
from synth2_jax.interop.tensor_files import open_torch
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig

SMALL = dict(
    ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_levels=(1,), z_channels=6, embed_dim=5, n_embed=60
)
DEEP = dict(
    ch=32,
    ch_mult=(1, 1, 3),
    num_res_blocks=2,
    attn_levels=(0, 2),
    z_channels=4,
    embed_dim=4,
    n_embed=40,
)
PUBLISHED = dict(
    ch=128,
    ch_mult=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    attn_levels=(4,),
    z_channels=256,
    embed_dim=256,
    n_embed=16384,
)
AGAINST = "its layout in PyTorch"
tokenizer_config, load_tokenizer = TAMING.tokenizer_config, TAMING.load_tokenizer


def reference(*, ch, ch_mult, num_res_blocks, attn_levels, z_channels, embed_dim, n_embed):
    """A torch module of the layout's names, with `ids(image)` and `pixels(ids)`."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def conv(inputs, outputs, kernel, **kwargs):
        return nn.Conv2d(inputs, outputs, kernel, **kwargs)

    def norm(channels):
        return nn.GroupNorm(32, channels, eps=1e-6)

    class Res(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.norm1, self.conv1 = norm(inputs), conv(inputs, outputs, 3, padding=1)
            self.norm2, self.conv2 = norm(outputs), conv(outputs, outputs, 3, padding=1)
            if inputs != outputs:
                self.nin_shortcut = conv(inputs, outputs, 1)

        def forward(self, x):
            y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
            return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)

    class Attention(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.norm = norm(channels)
            self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

        def forward(self, x):
            normed = self.norm(x)
            q, k, v = (project(normed).flatten(2) for project in (self.q, self.k, self.v))
            weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=2)
            return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))

    class Level(nn.Module):
        def __init__(self, inputs, outputs, num_blocks, attention):
            super().__init__()
            widths = [inputs] + [outputs] * num_blocks
            self.block = nn.ModuleList(Res(a, b) for a, b in zip(widths, widths[1:], strict=False))
            num_attentions = num_blocks if attention else 0
            self.attn = nn.ModuleList(Attention(outputs) for _ in range(num_attentions))

        def forward(self, x):
            for i, block in enumerate(self.block):
                x = block(x)
                x = self.attn[i](x) if len(self.attn) else x
            return x

    class Resample(nn.Module):
        def __init__(self, channels, stride):
            super().__init__()
            self.conv = conv(channels, channels, 3, stride=stride, padding=2 - stride)

        def forward(self, x):
            if self.conv.stride[0] == 2:
                return self.conv(F.pad(x, (0, 1, 0, 1)))
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    class Middle(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.block_1, self.attn_1 = Res(channels, channels), Attention(channels)
            self.block_2 = Res(channels, channels)

        def forward(self, x):
            return self.block_2(self.attn_1(self.block_1(x)))

    widths = [ch * multiplier for multiplier in ch_mult]
    last = len(widths) - 1

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = conv(3, ch, 3, padding=1)
            self.down = nn.ModuleList(
                Level(inputs, outputs, num_res_blocks, i in attn_levels)
                for i, (inputs, outputs) in enumerate(zip([ch, *widths], widths, strict=False))
            )
            for level, width in zip(self.down[:-1], widths, strict=False):
                level.downsample = Resample(width, 2)
            self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
            self.conv_out = conv(widths[-1], z_channels, 3, padding=1)

        def forward(self, x):
            x = self.conv_in(x)
            for level in self.down:
                x = level(x)
                x = level.downsample(x) if hasattr(level, "downsample") else x
            return self.conv_out(F.silu(self.norm_out(self.mid(x))))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = conv(z_channels, widths[-1], 3, padding=1)
            self.mid, self.norm_out = Middle(widths[-1]), norm(widths[0])
            inputs = [*widths[1:], widths[-1]]
            self.up = nn.ModuleList(
                Level(inputs[i], widths[i], num_res_blocks + 1, i in attn_levels)
                for i in range(last + 1)
            )
            for level, width in zip(self.up[1:], widths[1:], strict=True):
                level.upsample = Resample(width, 1)
            self.conv_out = conv(widths[0], 3, 3, padding=1)

        def forward(self, x):
            x = self.mid(self.conv_in(x))
            for level in reversed(self.up):
                x = level(x)
                x = level.upsample(x) if hasattr(level, "upsample") else x
            return self.conv_out(F.silu(self.norm_out(x)))

    class VQGAN(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = Encoder(), Decoder()
            self.quantize = nn.Module()
            self.quantize.embedding = nn.Embedding(n_embed, embed_dim)
            self.quant_conv = conv(z_channels, embed_dim, 1)
            self.post_quant_conv = conv(embed_dim, z_channels, 1)
            self.loss = nn.Module()
            self.loss.discriminator = nn.Sequential(conv(3, 4, 4))
            self.loss.logvar = nn.Parameter(torch.zeros(()))

        def encoded(self, image):
            """[B, H, W, 3] in [-1, 1] -> [B, N, C]."""
            encoded = self.quant_conv(self.encoder(image.movedim(-1, 1)))
            return encoded.movedim(1, -1).flatten(1, 2)

        def ids(self, image):
            distances = (self.encoded(image)[:, :, None] - self.quantize.embedding.weight) ** 2
            return distances.sum(-1).argmin(-1)

        def pixels(self, ids):
            side = int(ids.shape[1] ** 0.5)
            codes = self.quantize.embedding(ids).unflatten(1, (side, side)).movedim(-1, 1)
            return self.decoder(self.post_quant_conv(codes)).movedim(1, -1)

    return VQGAN().eval()


def randomized(model, image):
    """All parameters drawn, so that none is 0 or 1; codes spread as what is encoded."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        encoded = model.encoded(image).flatten(0, 1)
        codes = model.quantize.embedding.weight
        codes.copy_(torch.randn_like(codes) * encoded.std(0) + encoded.mean(0))
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(model, image, Lightning's file)"""
    return made(SMALL, tmp_path_factory.mktemp("taming") / "last.ckpt", 16)


def made(sizes, file, side):
    import torch

    image = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (3, side, side, 3)))
    image = image.float()
    model = randomized(reference(**sizes), image)
    held = {"epoch": 3, "global_step": 4, "state_dict": model.state_dict(), "lr_schedulers": []}
    torch.save(held, file)
    return model, image, file


def whole(tree):
    return jax.tree.map(np.asarray, tree)


def compared(model, image, config, params, parity, what):
    import torch

    @jax.jit
    def run(image):
        variables = {"params": params}
        ids = VQTokenizer(config).apply(variables, image, method="encode")
        return ids, VQTokenizer(config).apply(variables, ids, method="decode")

    ids, pixels = run(np.asarray(image))
    with torch.no_grad():
        expected_ids = model.ids(image)
        expected = model.pixels(expected_ids).numpy()
    assert len(np.unique(expected_ids)) > 10
    different = np.sum(np.asarray(ids) != expected_ids.numpy())
    parity(what, AGAINST, f"code ids that differ, of {ids.size}", different, 0)
    parity(what, AGAINST, "pixels, max abs difference", np.abs(pixels - expected).max(), 1e-3)


@pytest.mark.interop
def test_a_lightning_checkpoint(small, parity):
    model, image, file = small
    config = tokenizer_config(file, image_size=16)
    assert config == VQTokenizerConfig(
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
    params = whole(load_tokenizer(file, config))
    compared(model, image, config, params, parity, "VQGAN of taming-transformers, 2 levels")


@pytest.mark.interop
def test_safetensors_of_the_same_names(tmp_path, parity):
    model, image, _ = made(DEEP, tmp_path / "last.ckpt", 16)
    file = tmp_path / "model.safetensors"
    held = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    safetensors.numpy.save_file(held, file)
    config = tokenizer_config(file, image_size=16)
    assert config.attention_levels == (0, 2) and config.channel_multipliers == (1, 1, 3)
    params = whole(load_tokenizer(file, config))
    compared(model, image, config, params, parity, "VQGAN of taming-transformers, 3 levels")


@pytest.mark.interop
def test_the_published_sizes_fit(tmp_path, sparse_safetensors, published):
    """`vqgan_imagenet_f16_16384`: its shapes, with no bytes behind them."""
    import torch

    with torch.device("meta"):
        model = reference(**PUBLISHED)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    file = sparse_safetensors(tmp_path / "model.safetensors", shapes)
    config = tokenizer_config(file)
    assert config == published("taming", 16384) and config.num_tokens == 256
    params = load_tokenizer(file, config)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    of_loss = sum(tensor.numel() for tensor in model.loss.state_dict().values())
    assert count == sum(map(np.prod, shapes.values())) - of_loss


@pytest.mark.interop
def test_all_tensors_that_do_not_fit_are_listed(small, tmp_path):
    import torch

    held = dict(small[0].state_dict())
    held["quant_conv.weight"] = torch.zeros(5, 6, 3, 3)
    held["encoder.mid.attn_1.q.weight"] = torch.zeros(64, 64, 3, 3)
    held["quantize.used"] = torch.zeros(3)
    del held["decoder.up.1.upsample.conv.bias"], held["encoder.down.1.attn.0.k.bias"]
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": held}, file)
    config = tokenizer_config(small[2], image_size=16)
    with pytest.raises(UserError) as caught:
        load_tokenizer(file, config)
    assert str(caught.value) == (
        f"{file}: its tensors do not fit the config: "
        "2 missing (decoder.up.1.upsample.conv.bias, encoder.down.1.attn.0.k.bias); "
        "1 unknown (quantize.used); "
        "2 misshapen (encoder.mid.attn_1.q.weight [64, 64, 3, 3] for "
        "encoder/attention_2/self_attention/query/kernel [64, 1, 64], "
        "quant_conv.weight [5, 6, 3, 3] for encoder/quant_conv/kernel [1, 1, 6, 5])"
    )


@pytest.mark.interop
def test_what_no_shape_shows_is_compared(small):
    config = dataclasses.replace(
        tokenizer_config(small[2]), activation="relu", shortcut_from_input=False, norm_groups=8
    )
    with pytest.raises(
        UserError,
        match="shortcut_from_input is False, there True; activation is 'relu', there 'swish'; "
        "norm_groups is 8, there 32",
    ):
        load_tokenizer(small[2], config)


@pytest.mark.interop
def test_another_model_is_told(small, tmp_path):
    import torch

    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, file)
    with pytest.raises(UserError, match=r"found tensors named layer.weight, expected a VQGAN of t"):
        load_tokenizer(file, tokenizer_config(small[2]))
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
    held = torch.load(small[2], weights_only=True)
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
    held = torch.load(small[2], weights_only=True)
    # By its class, as Lightning 1 has it, and an object besides.
    torch.save({**held, "callbacks": {lightning: {"best": 0.5}, "one": callback}}, file)
    found, expected = open_torch(file), open_torch(small[2])
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
