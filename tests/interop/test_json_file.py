"""The config.json of third-party checkpoints: whatever it holds, an error is one line."""

import json

import pytest

from synth2_jax.errors import UserError
from synth2_jax.interop.diffusers_vq import tokenizer_config
from synth2_jax.interop.gemma import language_model_config
from synth2_jax.interop.hugging_face import text_encoder_config
from synth2_jax.interop.json_file import check_types, read_object
from synth2_jax.interop.recognise import recognise

T5 = {
    **{"model_type": "t5", "architectures": ["T5EncoderModel"], "feed_forward_proj": "gated-gelu"},
    **{"vocab_size": 512, "num_layers": 1, "d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 24},
    **{"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "layer_norm_epsilon": 1e-6,
}
LOCAL, ALL = {"rope_theta": 1e4}, {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
GEMMA = {
    **{"model_type": "gemma3_text", "vocab_size": 512, "num_hidden_layers": 2, "hidden_size": 16},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24},
    **{"sliding_window": 4, "query_pre_attn_scalar": 8, "bos_token_id": 2},
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {"sliding_attention": LOCAL, "full_attention": ALL},
    "hidden_activation": "gelu_pytorch_tanh",
}
VQ_MODEL = {
    **{
        "_class_name": "VQModel",
        "act_fn": "silu",
        "norm_type": "group",
        "block_out_channels": [8, 16],
    },
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    **{"in_channels": 3, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4},
    **{"num_vq_embeddings": 90, "vq_embed_dim": 5, "mid_block_add_attention": False},
}
READERS = {
    "T5": (text_encoder_config, T5),
    "Gemma": (language_model_config, GEMMA),
    "Gemma's positions": (
        language_model_config,
        {**GEMMA, "rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"factor": 8.0}},
    ),
    "VQModel": (tokenizer_config, VQ_MODEL),
}
STRANGE = [None, True, 0, -1, 2.5, 10**9, 10**20, "x", "", [], {}, [1], ["a"], [[1]], [None]]


def places(held, path=()):
    for key, value in held.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(held, path, value):
    key, *rest = path
    return {**held, key: changed(held[key], rest, value) if rest else value}


@pytest.mark.parametrize("reader", READERS)
def test_a_value_of_another_type_or_size_is_one_line_or_read(tmp_path, reader):
    read, held = READERS[reader]
    file = tmp_path / "config.json"
    refused = 0
    for path in places(held):
        for value in STRANGE:
            file.write_text(json.dumps(changed(held, path, value)))
            try:
                read(tmp_path)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error)
    file.write_text(json.dumps(held))
    read(tmp_path)
    assert refused > 10 * len(held)


@pytest.mark.parametrize(
    "text", [b"", b"[", b"[" * 100_000, b"null", b"\xff\xfe", b'{"a":' * 50_000, b"9" * 5000]
)
def test_what_is_no_object_is_one_line(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(UserError, match="config.json: (is not JSON|found None, expected a JSON)"):
        read_object(file)
    assert recognise(tmp_path).description == "a folder whose config.json is not a JSON object"


def test_types_are_told():
    check_types({"a": 1}, {"a": int, "b": str}, "x")
    for value, kinds, told in (
        (True, int, "x: a: found True, expected int"),
        (2**31, int, "x: a: found 2147483648, expected int"),
        ("1", (int, type(None)), "x: a: found '1', expected int or null"),
    ):
        with pytest.raises(UserError, match=f"^{told}$"):
            check_types({"a": value}, {"a": kinds}, "x")
