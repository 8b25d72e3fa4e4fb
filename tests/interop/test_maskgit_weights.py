"""The models of google-research/maskgit.

tests/data/maskgit is of its own code: random weights, and what its networks made of an image and of
tokens. Other sizes are compared with the tokenizer as written below, which numbers its modules by
Flax's automatic names, as the released files have them.
"""

import dataclasses
import importlib.util
import pathlib
import sys

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from synth2_jax.errors import UserError
from synth2_jax.interop import maskgit_weights
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.maskgit_weights import (
    class_conditional_config,
    load_class_conditional,
    load_tokenizer,
    tokenizer_config,
)
from synth2_jax.models.class_conditional_maskgit import (
    ClassConditionalMaskGIT,
    ClassConditionalMaskGITConfig,
)
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.scoring.frechet import FeatureStatistics

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "maskgit"
TOKENIZER, TRANSFORMER = DATA / "tokenizer_checkpoint", DATA / "maskgit_checkpoint"


@pytest.fixture(scope="module")
def reference():
    with np.load(DATA / "reference.npz") as found:
        return dict(found)


def whole(tree):
    return jax.tree.map(np.asarray, tree)


def rewritten(path, change, source=TOKENIZER):
    """A copy of a checkpoint with other tensors: `change` gets those below "params", flat."""
    held = flax.serialization.msgpack_restore(source.read_bytes())
    flat = flax.traverse_util.flatten_dict(held["params"], sep="/")
    change(flat)
    held = {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}
    path.write_bytes(flax.serialization.msgpack_serialize(held))
    return path


# --- the tokenizer ---


def test_ids_and_images_are_those_of_its_own_code(reference, same_pictures):
    config = tokenizer_config(TOKENIZER, image_size=64)
    assert config == VQTokenizerConfig(
        image_size=64,
        filters=32,
        channel_multipliers=(1, 1, 2),
        num_res_blocks=1,
        embedding_dim=24,
        codebook_size=96,
        pixel_range=(0.0, 1.0),
    )
    what, params = "VQ-GAN of google-research/maskgit, 64 pixels", load_tokenizer(TOKENIZER, config)
    image, ids = reference["image"] * 2 - 1, reference["ids"].reshape(2, -1)
    expected = image, ids, reference["decoded"]
    same_pictures(what, "its own code", config, params, *expected, limit=1e-4)


class ResBlock(nn.Module):
    filters: int
    activation: str

    @nn.compact
    def __call__(self, x):
        activation, y = getattr(nn, self.activation), x
        for _ in range(2):
            y = activation(nn.GroupNorm()(y))
            y = nn.Conv(self.filters, (3, 3), use_bias=False)(y)
        if x.shape[-1] == self.filters:
            return x + y
        return nn.Conv(self.filters, (1, 1), use_bias=False)(y) + y


class Encoder(nn.Module):
    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        x = nn.Conv(cfg.filters, (3, 3), use_bias=False)(x)
        for level, multiplier in enumerate(cfg.channel_multipliers):
            if level and cfg.downsampling == "conv":
                x = nn.Conv(x.shape[-1], (4, 4), strides=(2, 2))(x)
            elif level:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(cfg.num_res_blocks):
                x = ResBlock(cfg.filters * multiplier, cfg.activation)(x)
        for _ in range(cfg.num_res_blocks):
            x = ResBlock(x.shape[-1], cfg.activation)(x)
        x = getattr(nn, cfg.activation)(nn.GroupNorm()(x))
        return nn.Conv(cfg.embedding_dim, (1, 1))(x)


class Decoder(nn.Module):
    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        x = nn.Conv(cfg.filters * cfg.channel_multipliers[-1], (3, 3))(x)
        for _ in range(cfg.num_res_blocks):
            x = ResBlock(x.shape[-1], cfg.activation)(x)
        for level, multiplier in reversed([*enumerate(cfg.channel_multipliers)]):
            for _ in range(cfg.num_res_blocks):
                x = ResBlock(cfg.filters * multiplier, cfg.activation)(x)
            if level:
                size = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
                x = nn.Conv(x.shape[-1], (3, 3))(jax.image.resize(x, size, "nearest"))
        x = getattr(nn, cfg.activation)(nn.GroupNorm()(x))
        return nn.Conv(3, (3, 3))(x)


SIZES = {  # image size, filters, multipliers, blocks, embedding dim, codes, others
    "conv": (16, 32, (1, 2), 2, 6, 30, {"downsampling": "conv", "activation": "relu"}),
    "multipliers": (8, 64, (2, 1), 1, 5, 40, {}),
    "blocks": (4, 32, (3,), 3, 7, 20, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_other_sizes(size, tmp_path, encode_decode):
    *sizes, others = SIZES[size]
    names = ("image_size", "filters", "channel_multipliers", "num_res_blocks", "embedding_dim")
    fields = dict(zip((*names, "codebook_size"), sizes, strict=True))
    config = VQTokenizerConfig(**fields, **others, pixel_range=(0.0, 1.0))
    rng = np.random.default_rng(0)
    side = config.image_size
    image = rng.uniform(size=(3, side, side, 3)).astype(np.float32)
    encoder, decoder = Encoder(config), Decoder(config)
    codes = np.zeros((1, config.grid_size, config.grid_size, config.embedding_dim), np.float32)

    def draw(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.2
        return (rng.normal(size=leaf.shape) * scale).astype(np.float32)

    encoder_params, decoder_params = (
        jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), x)["params"])
        for model, x in ((encoder, image), (decoder, codes))
    )
    encoded = np.asarray(jax.jit(encoder.apply)({"params": encoder_params}, image))
    codebook = rng.normal(size=(config.codebook_size, config.embedding_dim)).astype(np.float32)
    codebook = codebook * encoded.std((0, 1, 2)) + encoded.mean((0, 1, 2))
    ids = np.argmin(((encoded[..., None, :] - codebook) ** 2).sum(-1), axis=-1)
    decoded = jax.jit(decoder.apply)({"params": decoder_params}, codebook[ids])

    file = tmp_path / "checkpoint"
    params = {"encoder": encoder_params, "decoder": decoder_params}
    tree = {"params": {**params, "quantizer": {"codebook": codebook}}}
    file.write_bytes(flax.serialization.msgpack_serialize(tree))
    told = {"image_size": side, "activation": config.activation}
    assert tokenizer_config(file, **told) == config
    found_ids, found = encode_decode(config, load_tokenizer(file, config), image * 2 - 1)
    np.testing.assert_array_equal(found_ids, ids.reshape(3, -1))
    np.testing.assert_allclose((found + 1) / 2, decoded, atol=1e-5)


def test_the_published_sizes_fit(published, monkeypatch):
    config = published("maskgit")
    assert published("maskgit", 512).num_tokens == 4 * config.num_tokens == 1024
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    codes = jax.ShapeDtypeStruct((1, 16, 16, 256), jnp.float32)
    shapes = {
        part: jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        for part, model, x in (
            ("encoder", Encoder(config), image),
            ("decoder", Decoder(config), codes),
        )
    }
    shapes["quantizer"] = {"codebook": jax.ShapeDtypeStruct((1024, 256), jnp.float32)}
    tensors = {
        name: LazyArray(leaf.shape, leaf.dtype, None)
        for name, leaf in flax.traverse_util.flatten_dict({"params": shapes}, sep="/").items()
    }
    monkeypatch.setattr(maskgit_weights, "open_flax_msgpack", lambda path: tensors)
    assert tokenizer_config("released") == config
    params = load_tokenizer("released", config)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(tensor.size for tensor in tensors.values())


def test_all_tensors_that_do_not_fit_are_listed(tmp_path):
    def change(flat):
        flat["quantizer/codebook"] = flat["quantizer/codebook"][:50]
        flat["encoder/ResBlock_1/GroupNorm_0/mean"] = flat["encoder/ResBlock_1/GroupNorm_0/bias"]
        del flat["decoder/Conv_2/bias"], flat["encoder/Conv_0/kernel"]

    config = tokenizer_config(TOKENIZER)
    file = rewritten(tmp_path / "checkpoint", change)
    with pytest.raises(UserError) as caught:
        load_tokenizer(file, config)
    assert str(caught.value) == (
        f"{file}: its tensors do not fit the config: "
        "2 missing (params/decoder/Conv_2/bias, params/encoder/Conv_0/kernel); "
        "1 unknown (params/encoder/ResBlock_1/GroupNorm_0/mean); "
        "1 misshapen (params/quantizer/codebook [50, 24] for quantizer/codebook [96, 24])"
    )
    with pytest.raises(UserError, match=r"without params/encoder/Conv_0/kernel, expected a VQ-GAN"):
        tokenizer_config(file)


@pytest.mark.parametrize(
    "changes, problem",
    [
        (
            {"num_res_blocks": 2, "use_bias": True, "middle_attention": True},
            r"missing \(.*params/encoder/ResBlock_7/Conv_0/bias",
        ),
        (
            {"pixel_range": (-1.0, 1.0), "shortcut_from_input": True},
            r"shortcut_from_input is True, there False; pixel_range is \(-1.0, 1.0\), there \(0",
        ),
    ],
)
def test_another_config_is_refused(changes, problem):
    with pytest.raises(UserError, match=problem):
        load_tokenizer(TOKENIZER, dataclasses.replace(tokenizer_config(TOKENIZER), **changes))


def test_another_model_is_told():
    config = tokenizer_config(TOKENIZER)
    other = r"maskgit_checkpoint: found a class-conditional transformer of .*, expected a VQ-GAN of"
    with pytest.raises(UserError, match=other):
        load_tokenizer(TRANSFORMER, config)
    with pytest.raises(
        UserError, match=r"found a class-conditional .* without .*expected a VQ-GAN"
    ):
        tokenizer_config(TRANSFORMER)
    with pytest.raises(UserError, match=r"found a VQ-GAN of .* expected a class-conditional tr"):
        load_class_conditional(TOKENIZER, ClassConditionalMaskGITConfig())
    with pytest.raises(UserError, match=r"found a VQ-GAN of .* without .*word_embeddings"):
        class_conditional_config(TOKENIZER)


def test_half_a_download_and_a_mistyped_change_are_told(tmp_path):
    file = tmp_path / "checkpoint"
    file.write_bytes(TOKENIZER.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"checkpoint: .*download cut short"):
        load_tokenizer(file, VQTokenizerConfig())
    with pytest.raises(UserError, match="image_siz: unknown key; did you mean 'image_size'"):
        tokenizer_config(TOKENIZER, image_siz=64)


# --- the transformer ---


@pytest.mark.parametrize("scan_layers", [True, False])
def test_logits_are_those_of_its_own_code(reference, parity, scan_layers):
    config = class_conditional_config(TRANSFORMER, codebook_size=96, scan_layers=scan_layers)
    assert config == ClassConditionalMaskGITConfig(
        codebook_size=96,
        num_classes=5,
        num_tokens=16,
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        mlp_dim=64,
        scan_layers=scan_layers,
    )
    params = whole(load_class_conditional(TRANSFORMER, config))
    tokens = np.where(reference["tokens"] == -1, config.mask_id, reference["tokens"])
    model = ClassConditionalMaskGIT(config)
    found = jax.jit(model.apply)({"params": params}, tokens[:, 1:], tokens[:, 0] - 96)
    worst = np.abs(found - reference["logits"][:, 1:, :96]).max()
    what = "class-conditional transformer of google-research/maskgit"
    parity(what, "its own code", "logits, max abs difference", worst, 1e-4)


def test_a_transformer_of_another_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="found 102 rows of embeddings, expected more than 1025"):
        class_conditional_config(TRANSFORMER)

    def change(flat):
        flat["Embed_0/hidden/kernel"] = flat["MlmLayer_0/mlm_dense/kernel"]
        del flat["MlmLayer_0/mlm_bias/bias"], flat["TransformerLayer_1/Mlp_0/layer_output_ln/scale"]

    file = rewritten(tmp_path / "checkpoint", change, TRANSFORMER)
    config = class_conditional_config(TRANSFORMER, codebook_size=96)
    with pytest.raises(
        UserError,
        match=r"2 missing \(params/MlmLayer_0/mlm_bias/bias, params/TransformerLayer_1/Mlp_0/"
        r"layer_output_ln/scale\); 1 unknown \(params/Embed_0/hidden/kernel\)$",
    ):
        load_class_conditional(file, config)


# --- the benchmark of both ---

FEATURES = """
import numpy as np

def mean_colours(images):
    assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)
    return images.mean((1, 2), dtype=np.float32)
"""


@pytest.fixture
def benchmark(compilation_cache):
    path = ROOT / "benchmarks" / "class_conditional_fid.py"
    spec = importlib.util.spec_from_file_location("class_conditional_fid", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_benchmark_samples_by_class_and_gives_fid(benchmark, tmp_path, monkeypatch, capsys):
    results = {}
    monkeypatch.setattr(benchmark, "write_result", lambda name, found: results.update(found))
    (tmp_path / "features.py").write_text(FEATURES)
    picture = tmp_path / "samples.png"

    def run_it(*arguments):
        command = [f"--tokenizer={TOKENIZER}", f"--transformer={TRANSFORMER}", "--images=11"]
        command += ["--batch=4", "--steps=3", f"--picture={picture}", *arguments]
        monkeypatch.setattr(sys, "argv", ["class_conditional_fid.py", *command])
        benchmark.main()
        return capsys.readouterr().out

    assert "images/s; the first:" in run_it()
    assert "fid" not in results and results["image_size"] == 16  # of 4 x 4 tokens
    shown = np.asarray(PIL.Image.open(picture))
    assert shown.shape == (2 * 16, 8 * 16, 3)

    # The same images in one batch: a row depends on neither its batch nor its place there.
    tokenizer, transformer, params = benchmark.load(TOKENIZER, TRANSFORMER, "float32")
    sample = benchmark.make_sample(tokenizer, transformer, ParallelDecodeConfig(num_steps=3), 0)
    images = np.asarray(jax.jit(sample)(params, jnp.arange(11)))
    np.testing.assert_allclose(shown, benchmark.picture([*images]), atol=1)
    assert len(np.unique(images, axis=0)) == 11
    statistics = FeatureStatistics()
    statistics.update(images.mean((1, 2)))
    file = tmp_path / "statistics.npz"
    np.savez(file, mu=statistics.mean + 2.0, sigma=statistics.covariance)
    features = f"--features={tmp_path / 'features.py'}:mean_colours"
    assert "FID" in run_it(features, f"--reference={file}")
    assert results["fid"] == pytest.approx(3 * 2.0**2, abs=0.05)
