"""Other people's checkpoints as parts of our models: tokenize, train and synthesize on them."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from synth2_jax import main
from synth2_jax.data import records
from synth2_jax.domains.scenes.dataset import REFERENCES
from synth2_jax.errors import UserError
from synth2_jax.files import write_json_lines
from synth2_jax.fingerprint import fingerprint
from synth2_jax.interop import hugging_face, maskgit_weights
from synth2_jax.loading.trained import load_tokenizer, load_trained
from synth2_jax.models.text_encoder import TextEncoderConfig
from synth2_jax.training.checkpoint_reader import read_description, restore_params

VQ_GAN = pathlib.Path(__file__).parents[1] / "data" / "maskgit" / "tokenizer_checkpoint"
IMAGE_SIZE = 16
TEXT_ENCODER = TextEncoderConfig(
    vocab_size=512, num_layers=1, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24
)


def write_t5(folder, seed=0):
    """A T5 1.1 of TEXT_ENCODER's sizes, as Hugging Face saves it: [outputs, inputs]."""
    cfg, rng = TEXT_ENCODER, np.random.default_rng(seed)
    inner = cfg.num_heads * cfg.head_dim
    block = "encoder.block.0.layer"
    shapes = {
        "shared.weight": (cfg.vocab_size, cfg.embed_dim),
        "encoder.final_layer_norm.weight": (cfg.embed_dim,),
        f"{block}.0.layer_norm.weight": (cfg.embed_dim,),
        f"{block}.0.SelfAttention.relative_attention_bias.weight": (32, cfg.num_heads),
        **{f"{block}.0.SelfAttention.{n}.weight": (inner, cfg.embed_dim) for n in "qkv"},
        f"{block}.0.SelfAttention.o.weight": (cfg.embed_dim, inner),
        f"{block}.1.layer_norm.weight": (cfg.embed_dim,),
        f"{block}.1.DenseReluDense.wi_0.weight": (cfg.mlp_dim, cfg.embed_dim),
        f"{block}.1.DenseReluDense.wi_1.weight": (cfg.mlp_dim, cfg.embed_dim),
        f"{block}.1.DenseReluDense.wo.weight": (cfg.embed_dim, cfg.mlp_dim),
    }
    tensors = {n: 0.1 * rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    held = {
        **{"model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": cfg.vocab_size},
        **{"num_layers": cfg.num_layers, "d_model": cfg.embed_dim, "num_heads": cfg.num_heads},
        **{"d_kv": cfg.head_dim, "d_ff": cfg.mlp_dim, "feed_forward_proj": "gated-gelu"},
        **{"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        "layer_norm_epsilon": 1e-6,
    }
    (folder / "config.json").write_text(json.dumps(held))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return maskgit_weights.tokenizer_config(VQ_GAN, image_size=IMAGE_SIZE)


def run(stage, config, workdir, **keys):
    """Exit code; "__" in keys is for "."."""
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()]
    path = f"--config=configs/scenes/{config}"
    return main.main(["synth2", stage, path, f"--workdir={workdir}", *given])


VQ_GAN_OF = {"tokenizer": VQ_GAN, "image_size": IMAGE_SIZE, "num_shards": 1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of photographs, tokenized by another's VQ-GAN."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"picture number {i}", "key": str(i)})
    write_json_lines(folder / "rows.jsonl", rows)
    source = {"source__format": "json_lines", "source__path": folder / "rows.jsonl"}
    keys = {**VQ_GAN_OF, **source, "splits": "train"}
    assert run("tokenize", "tokenize.py", folder / "pairs", **keys) == 0
    return folder / "pairs" / "train"


@pytest.mark.slow
def test_the_built_in_pictures_take_the_size_that_the_tokenizer_wants(tmp_path):
    keys = {**VQ_GAN_OF, "splits": "test", "max_images": 2}
    assert run("tokenize", "tokenize.py", tmp_path, **keys) == 0
    assert records.verify(tmp_path / "test").num_pairs == 2 * REFERENCES


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("models") / "t5")


def train(workdir, pairs, tokenizer, t5, **overrides):
    """Exit code of a generator's training on another's VQ-GAN and T5."""
    text_encoder = dataclasses.asdict(TEXT_ENCODER)
    maskgit = {
        "num_tokens": tokenizer.num_tokens,
        "codebook_size": tokenizer.codebook_size,
        "token_embedding": "learned",
        "codebook_noise": 0.0,
    }
    model = {
        **{f"tokenizer__{k}": v for k, v in dataclasses.asdict(tokenizer).items()},
        **{f"generator__text_encoder__{k}": v for k, v in text_encoder.items()},
        **{f"generator__maskgit__{k}": v for k, v in maskgit.items()},
        "freeze_text_encoder": True,
    }
    given = {
        **{f"model__{k}": v for k, v in model.items() if v not in ("none", None)},
        **{"pretrained__tokenizer": VQ_GAN, "pretrained__text_encoder": t5},
        **{"data__folders__real": pairs, "data__split": "train", "data__batch_size": 2},
        **{"train__steps": 2, "optimizer__warmup_steps": 1, **overrides},
    }
    return run("train", "generator.py:tiny", workdir, **given)


@pytest.mark.slow
def test_pairs_are_tokenized_by_anothers_vq_gan(pairs, tokenizer):
    manifest = records.read_manifest(pairs)
    assert manifest.num_pairs == 6
    assert manifest.provenance.num_image_tokens == tokenizer.num_tokens == (IMAGE_SIZE // 4) ** 2
    assert manifest.provenance.codebook_size == 96
    trained = load_tokenizer(str(VQ_GAN), image_size=IMAGE_SIZE)
    assert manifest.provenance.tokenizer == trained.fingerprint("tokenizer")


@pytest.mark.slow
def test_a_generator_is_trained_on_a_t5_and_anothers_vq_gan(tmp_path, pairs, tokenizer, t5):
    generator = tmp_path / "generator"
    assert train(generator, pairs, tokenizer, t5) == 0
    params = restore_params(generator)
    _, built_on = read_description(generator, 2)
    held = jax.tree.map(np.asarray, hugging_face.load_text_encoder(t5, TEXT_ENCODER))
    jax.tree.map(np.testing.assert_array_equal, params["generator"]["text_encoder"], held)
    assert built_on["text_encoder"] == fingerprint(held)
    assert built_on["tokenizer"] == records.read_manifest(pairs).provenance.tokenizer

    captions = tmp_path / "captions"
    write_json_lines(captions / "captions.jsonl", [{"caption": "picture number 3"}] * 4)
    (captions / "manifest.json").write_text("{}")
    keys = {"generator": generator, "captions": captions}
    keys |= {"sampler__num_steps": 2, "num_shards": 1}
    assert run("synthesize", "synthesize.py", tmp_path / "synthetic", **keys) == 0
    manifest = records.read_manifest(tmp_path / "synthetic")
    assert manifest.num_pairs == 4
    assert manifest.provenance.tokenizer == built_on["tokenizer"]


@pytest.mark.slow
def test_what_is_no_such_part_is_told_with_what_it_looks_like(
    tmp_path, pairs, tokenizer, t5, capfd
):
    for key, value, told in (
        ("pretrained__tokenizer", t5, "looks like a Hugging Face T5EncoderModel; expected a tok"),
        ("pretrained__text_encoder", VQ_GAN, "looks like a VQ-GAN of google-research/maskgit"),
        ("pretrained__text_encoder", tmp_path / "no", "no such file or folder"),
        ("pretrained__language_model", t5, "this generator has no such part"),
        ("model__freeze_text_encoder", False, "pretrained.text_encoder"),
    ):
        assert train(tmp_path / "run", pairs, tokenizer, t5, **{key: value}) == 2
        (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("synth2: ")]
        assert told in line


def test_an_image_size_is_told_of_others_alone(tmp_path, monkeypatch):
    assert load_tokenizer(str(VQ_GAN)).objective.task.tokenizer.image_size == 256
    trained = load_trained(str(VQ_GAN), "tokenizer")
    assert trained.fingerprint("tokenizer") == load_tokenizer(
        str(VQ_GAN), image_size=IMAGE_SIZE, pixel_range=None
    ).fingerprint("tokenizer")


FEATURES = """
import numpy as np

def means(images):
    return images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float64)
"""


@pytest.mark.slow
def test_fid_of_reconstructions_and_of_pairs(tmp_path, pairs):
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / "image_fid.py"
    spec = importlib.util.spec_from_file_location("image_fid", path)
    image_fid = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(image_fid)
    (tmp_path / "features.py").write_text(FEATURES)
    features = f"{tmp_path}/features.py:means"
    trained = load_tokenizer(str(VQ_GAN), image_size=IMAGE_SIZE)
    pictures = f"{pairs.parents[1]}/*.png"
    rfid, known, count = image_fid.measure(trained, features, pictures, batch_size=4)
    assert rfid > 0 and count == known.num_images == 6
    # The pairs hold the same pictures' tokens, so their images are the reconstructions.
    fid, _, count = image_fid.measure(
        trained, features, pairs=str(pairs), reference=known, batch_size=4
    )
    assert count == 6 and fid == pytest.approx(rfid, rel=1e-5)
    with pytest.raises(UserError, match="no such files"):
        image_fid.measure(trained, features, f"{tmp_path}/*.jpg")
