"""What lies at a path, told from its files alone."""

import json

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from synth2_jax.errors import UserError
from synth2_jax.interop.recognise import KINDS, recognise


def nested(names):
    tree = {}
    for name in names:
        *path, last = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = np.zeros(2, np.float32)
    return tree


CONFIGS = [
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
    ([1, 2], "", "a folder whose config.json is not a JSON object"),
]


@pytest.mark.parametrize("held, kind, description", CONFIGS)
def test_what_config_json_says_counts(tmp_path, held, kind, description):
    (tmp_path / "config.json").write_text(json.dumps(held))
    found = recognise(tmp_path)
    assert found.kind == kind and description in found.description


def save_safetensors(folder, names):
    tensors = {name: np.zeros(1, np.float32) for name in names}
    safetensors.numpy.save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def save_flax(folder, names):
    file = folder / "checkpoint_without_ending"
    file.write_bytes(flax.serialization.msgpack_serialize(nested(names)))
    return file


def save_orbax(folder, names):
    ocp.PyTreeCheckpointer().save(folder / "saved", nested(names))
    return folder / "saved"


VQ, BLOCK = "quantize.embedding.weight", "block.0.conv1.weight"
NAMES = [
    ("taming_names", save_safetensors, [f"encoder.down.0.{BLOCK}", VQ]),
    (
        "open_muse_maskgit",
        save_safetensors,
        ["encoder.mid.0.conv1.weight", f"encoder.down.0.{BLOCK}"],
    ),
    ("llamagen", save_safetensors, ["encoder.conv_blocks.0.res.0.conv1.bias", VQ]),
    ("diffusers_vq", save_safetensors, ["encoder.down_blocks.0.resnets.0.conv1.weight", VQ]),
    ("hugging_face_t5", save_safetensors, ["encoder.block.0.layer.0.SelfAttention.q.weight"]),
    (
        "hugging_face_gemma",
        save_safetensors,
        ["model.layers.0.pre_feedforward_layernorm.weight"],
    ),
    ("", save_safetensors, ["other"]),
    (
        "maskgit_tokenizer",
        save_flax,
        ["params/quantizer/codebook", "params/encoder/ResBlock_0/x"],
    ),
    ("maskgit_transformer", save_flax, ["params/Embed_0/word_embeddings/x", "params/MlmLayer_0/x"]),
    ("t5x", save_orbax, ["target/encoder/encoder_norm/scale", "state/step"]),
    ("gemma", save_orbax, ["embedder/input_embedding", "layer_0/attn/q_einsum/w"]),
    ("", save_orbax, ["a/b", "c"]),
]


@pytest.mark.parametrize("kind, save, names", NAMES)
def test_names_of_tensors_tell_the_kind(tmp_path, kind, save, names):
    found = recognise(save(tmp_path, names))
    expected = KINDS[kind] if kind else f"tensors named {', '.join(names)}"
    assert (found.kind, found.description) == (kind, expected)


def test_a_run_and_t5xs_own_layout_are_known_by_their_files(tmp_path):
    (tmp_path / "run" / "checkpoints" / "20" / "params").mkdir(parents=True)
    for path in ("run", "run/checkpoints", "run/checkpoints/20"):
        assert recognise(tmp_path / path).kind == "run"
    # An item of a step, there or not; others' folders may have such a name too.
    step = tmp_path / "run" / "checkpoints" / "20"
    assert recognise(step / "params").description == "a folder with nothing in it"
    (step / "fingerprints").mkdir()
    for item in ("params", "average"):
        assert recognise(step / item).kind == "run"
    (tmp_path / "t5x" / "checkpoint_10" / "target.encoder.encoder_norm.scale").mkdir(parents=True)
    (tmp_path / "t5x" / "checkpoint_10" / "checkpoint").touch()
    for path in ("t5x", "t5x/checkpoint_10"):
        assert recognise(tmp_path / path).kind == "t5x"


def test_what_is_none_of_them_is_described(tmp_path):
    assert recognise(tmp_path).description == "a folder with nothing in it"
    for name in "abcde":
        (tmp_path / name).touch()
    found = recognise(tmp_path)
    assert (found.kind, found.description) == ("", "a folder with a, b, c, d, ...")
    with pytest.raises(UserError, match=r"nowhere: no such file or folder, expected a model"):
        recognise(tmp_path / "nowhere")
