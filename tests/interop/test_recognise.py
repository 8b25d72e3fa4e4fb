"""What lies at a path, told from its files alone."""

import json

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from synth2_jax.errors import UserError
from synth2_jax.interop.recognise import KINDS, recognise


def orbax(folder, tree):
    ocp.PyTreeCheckpointer().save(folder, tree)
    return folder


def nested(names):
    tree = {}
    for name in names:
        *path, last = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = np.zeros(2, np.float32)
    return tree


def test_what_config_json_says_counts(tmp_path):
    for held, kind, description in (
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "hugging_face_t5", "T5Encoder"),
        ({"model_type": "mt5"}, "hugging_face_t5", "a Hugging Face mt5"),
        ({"model_type": "gemma3_text"}, "hugging_face_gemma", "gemma3_text"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "", "a Hugging Face BertModel"),
        ({"_class_name": "VQModel"}, "diffusers_vq", "a diffusers VQModel"),
        ({"_class_name": "VQGANModel"}, "open_muse_vqgan", "open-muse's VQGANModel"),
        ({"_class_name": "MaskGitVQGAN"}, "open_muse_maskgit", "open-muse's MaskGitVQGAN"),
        ({"_class_name": "AutoencoderKL"}, "", "a diffusers AutoencoderKL"),
        ({"format": "synth2_jax model"}, "export", KINDS["export"]),
        ({"answer": 42}, "", "a folder with a config.json of keys ['answer']"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(held))
        found = recognise(tmp_path)
        assert found.kind == kind and description in found.description
    (tmp_path / "config.json").write_text("[1, 2]")
    assert recognise(tmp_path).description == "a folder whose config.json is not a JSON object"


@pytest.mark.parametrize(
    "kind, names",
    [
        ("taming_names", ["encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight"]),
        (
            "open_muse_maskgit",
            ["encoder.mid.0.conv1.weight", "encoder.down.0.block.0.conv1.weight"],
        ),
        ("llamagen", ["encoder.conv_blocks.0.res.0.conv1.bias", "quantize.embedding.weight"]),
        (
            "diffusers_vq",
            ["encoder.down_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight"],
        ),
        ("hugging_face_t5", ["encoder.block.0.layer.0.SelfAttention.q.weight"]),
        ("hugging_face_gemma", ["model.layers.0.pre_feedforward_layernorm.weight"]),
    ],
)
def test_names_of_tensors_tell_the_kind(tmp_path, kind, names):
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({name: np.zeros(1, np.float32) for name in names}, file)
    assert recognise(file).kind == kind
    safetensors.numpy.save_file({"other": np.zeros(1, np.float32)}, file)
    found = recognise(file)
    assert (found.kind, found.description) == ("", "tensors named other")


@pytest.mark.parametrize(
    "kind, names",
    [
        ("maskgit_tokenizer", ["params/quantizer/codebook", "params/encoder/ResBlock_0/x"]),
        ("maskgit_transformer", ["params/Embed_0/word_embeddings/x", "params/MlmLayer_0/x"]),
    ],
)
def test_names_in_a_file_of_flax_tell_the_kind(tmp_path, kind, names):
    file = tmp_path / "checkpoint_without_ending"
    file.write_bytes(flax.serialization.msgpack_serialize(nested(names)))
    assert recognise(file).kind == kind


@pytest.mark.parametrize(
    "kind, names",
    [
        ("t5x", ["target/encoder/encoder_norm/scale", "state/step"]),
        ("gemma", ["embedder/input_embedding", "layer_0/attn/q_einsum/w"]),
        ("", ["a/b", "c"]),
    ],
)
def test_names_in_a_folder_of_orbax_tell_the_kind(tmp_path, kind, names):
    assert recognise(orbax(tmp_path / "saved", nested(names))).kind == kind


def test_t5xs_own_layout_is_known_by_its_files(tmp_path):
    (tmp_path / "checkpoint_10" / "target.encoder.encoder_norm.scale").mkdir(parents=True)
    (tmp_path / "checkpoint_10" / "checkpoint").touch()
    assert recognise(tmp_path / "checkpoint_10").kind == "t5x"
    assert recognise(tmp_path).kind == "t5x"


def test_a_run_is_known_by_its_checkpoints(tmp_path):
    (tmp_path / "checkpoints" / "20" / "params").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "20"):
        assert recognise(path).kind == "run"


def test_what_is_none_of_them_is_described(tmp_path):
    assert recognise(tmp_path).description == "a folder with nothing in it"
    for name in "abcde":
        (tmp_path / name).touch()
    found = recognise(tmp_path)
    assert (found.kind, found.description) == ("", "a folder with a, b, c, d, ...")
    with pytest.raises(UserError, match=r"nowhere: no such file or folder, expected a model"):
        recognise(tmp_path / "nowhere")
