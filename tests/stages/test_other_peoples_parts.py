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
from synth2_jax.fingerprint import fingerprint
from synth2_jax.interop import hugging_face, maskgit_weights
from synth2_jax.loading.trained import load_tokenizer, load_trained
from synth2_jax.models.text_encoder import TextEncoderConfig
from synth2_jax.training.checkpoint_reader import latest_step, read_description, restore_params

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
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "vocab_size": cfg.vocab_size,
        "num_layers": cfg.num_layers,
        "d_model": cfg.embed_dim,
        "num_heads": cfg.num_heads,
        "d_kv": cfg.head_dim,
        "d_ff": cfg.mlp_dim,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }
    (folder / "config.json").write_text(json.dumps(held))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return maskgit_weights.tokenizer_config(VQ_GAN, image_size=IMAGE_SIZE)


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
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        f"--workdir={folder}/pairs",
        f"--config.tokenizer={VQ_GAN}",
        f"--config.image_size={IMAGE_SIZE}",
        "--config.source.format=json_lines",
        f"--config.source.path={folder}/rows.jsonl",
        "--config.splits=train",
        "--config.num_shards=1",
    ]
    argv = ["synth2", "tokenize", "--config=configs/scenes/tokenize.py", *arguments]
    assert main.main(argv) == 0
    return folder / "pairs" / "train"


@pytest.mark.slow
def test_the_built_in_pictures_take_the_size_that_the_tokenizer_wants(tmp_path):
    arguments = [
        f"--workdir={tmp_path}",
        f"--config.tokenizer={VQ_GAN}",
        f"--config.image_size={IMAGE_SIZE}",
        *("--config.splits=test", "--config.max_images=2", "--config.num_shards=1"),
    ]
    argv = ["synth2", "tokenize", "--config=configs/scenes/tokenize.py", *arguments]
    assert main.main(argv) == 0
    assert records.verify(tmp_path / "test").num_pairs == 2 * REFERENCES


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("models") / "t5")


def train(workdir, pairs, tokenizer, t5, **overrides):
    """Exit code of a generator's training on another's VQ-GAN and T5."""
    model = {
        **{f"tokenizer.{k}": v for k, v in dataclasses.asdict(tokenizer).items()},
        **{f"generator.text_encoder.{k}": v for k, v in dataclasses.asdict(TEXT_ENCODER).items()},
        "generator.maskgit.num_tokens": tokenizer.num_tokens,
        "generator.maskgit.codebook_size": tokenizer.codebook_size,
        "generator.maskgit.token_embedding": "learned",
        "generator.maskgit.codebook_noise": 0.0,
        "freeze_text_encoder": True,
    }
    given = {
        **{f"model.{k}": v for k, v in model.items() if v not in ("none", None)},
        "pretrained.tokenizer": VQ_GAN,
        "pretrained.text_encoder": t5,
        "data.folders.real": pairs,
        "data.split": "train",
        "data.batch_size": 2,
        "train.steps": 2,
        "optimizer.warmup_steps": 1,
        **overrides,
    }
    return main.main(
        [
            *("synth2", "train", "--config=configs/scenes/generator.py:tiny"),
            f"--workdir={workdir}",
            *(f"--config.{key}={value}" for key, value in given.items()),
        ]
    )


@pytest.mark.slow
def test_pairs_are_tokenized_by_anothers_vq_gan(pairs, tokenizer):
    manifest = records.read_manifest(pairs)
    assert manifest.num_pairs == 6
    assert manifest.provenance.num_image_tokens == tokenizer.num_tokens == (IMAGE_SIZE // 4) ** 2
    assert manifest.provenance.codebook_size == 96
    trained = load_tokenizer(str(VQ_GAN), image_size=IMAGE_SIZE)
    assert manifest.provenance.tokenizer == trained.fingerprint("tokenizer")


@pytest.mark.slow
def test_a_generator_is_trained_on_a_t5_and_anothers_vq_gan(tmp_path, pairs, tokenizer, t5, capsys):
    run = tmp_path / "generator"
    assert train(run, pairs, tokenizer, t5) == 0
    params = restore_params(run)
    _, built_on = read_description(run, latest_step(run))
    held = jax.tree.map(np.asarray, hugging_face.load_text_encoder(t5, TEXT_ENCODER))
    jax.tree.map(np.testing.assert_array_equal, params["generator"]["text_encoder"], held)
    assert built_on["text_encoder"] == fingerprint(held)
    assert built_on["tokenizer"] == records.read_manifest(pairs).provenance.tokenizer

    captions = tmp_path / "captions"
    captions.mkdir()
    (captions / "captions.jsonl").write_text('{"caption": "picture number 3"}\n' * 4)
    (captions / "manifest.json").write_text("{}")
    assert (
        main.main(
            [
                *("synth2", "synthesize", "--config=configs/scenes/synthesize.py"),
                f"--workdir={tmp_path}/synthetic",
                f"--config.generator={run}",
                f"--config.captions={captions}",
                "--config.sampler.num_steps=2",
                "--config.num_shards=1",
            ]
        )
        == 0
    )
    manifest = records.read_manifest(tmp_path / "synthetic")
    assert manifest.num_pairs == 4
    assert manifest.provenance.tokenizer == built_on["tokenizer"]


@pytest.mark.slow
def test_what_is_no_such_part_is_told_with_what_it_looks_like(
    tmp_path, pairs, tokenizer, t5, capsys
):
    for overrides, told in (
        ({"pretrained.tokenizer": t5}, "looks like a Hugging Face T5EncoderModel; expected a tok"),
        ({"pretrained.text_encoder": VQ_GAN}, "looks like a VQ-GAN of google-research/maskgit"),
        ({"pretrained.text_encoder": tmp_path / "no"}, "no such file or folder"),
        ({"model.generator.text_encoder.mlp_dim": 32}, "mlp_dim"),
        ({"model.tokenizer.norm_groups": 16}, "norm_groups is 16, there 32"),
        ({"model.generator.text_encoder.vocab_size": 1024}, "found 512 pieces, but --config.model"),
        ({"pretrained.language_model": t5}, "this generator has no such part"),
        ({"model.freeze_text_encoder": False}, "pretrained.text_encoder"),
    ):
        assert train(tmp_path / "run", pairs, tokenizer, t5, **overrides) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("synth2: ")]
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
