"""An exported model that is not as it was exported is refused in one line."""

import json

import pytest

from synth2_jax import load_vlm
from synth2_jax.loading.trained import load_trained
from synth2_jax.testing.user_errors import raises_line, user_error


def edit(vlm, path, value):
    """Sets one value of config.json."""
    description = json.loads((vlm / "config.json").read_text())
    *sections, key = path.split("/")
    place = description
    for name in sections:
        place = place[name]
    place[key] = value
    (vlm / "config.json").write_text(json.dumps(description))


LAYERS, CHANGED = "1000000000, expected at most", "model or data has changed since the export"


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("format", "other", "found format 'other', expected 'synth2_jax model'"),
        ("version", 2, "found version 2, expected 1"),
        ("fingerprints", None, "fingerprints: found None, expected a dict"),
        ("step", "3", "step: found '3', expected a int"),
        ("sha256", {"../secret": ""}, "not in its folder: ../secret"),
        ("model", {"tokenizr": {}}, "config.json.model.tokenizr: unknown key; did you mean"),
        ("model_name", "generator", "holds a generator, expected a vlm"),
        ("model/vlm/language_model/num_layers", 10**9, f"num_layers: found {LAYERS}"),
        ("model/tokenizer/num_res_blocks", 10**9, f"num_res_blocks: found {LAYERS}"),
        ("model/text_length", -1, "text_length: found -1, expected at least 1"),
        ("model/vlm", [1], "vlm: "),
        ("model/tokenizer/channel_multipliers", {"a": 1}, "channel_multipliers: "),
        ("model/tokenizer/pixel_range", [0.0, 1.0], CHANGED),
        ("model/tokenizer/code_choice", "dot_product", CHANGED),
        ("data/prompt", "another", CHANGED),
        ("model/vlm/resampler/mlp_dim", 24, "mlp.down.kernel"),
    ],
)
def test_a_changed_config_is_one_line(vlm, path, value, told):
    edit(vlm, path, value)
    with raises_line(told):
        load_trained(vlm, "vlm")


def test_what_may_change_in_a_config(vlm):
    edit(vlm, "decode/max_length", 3)  # how it captions is the user's to change
    assert load_vlm(vlm).decode.max_length == 3
    with raises_line("found step 3, expected step 4"):
        load_trained(vlm, "vlm", step=4)
    # Tensors that do not fit are all named.
    edit(vlm, "model/vlm/resampler/num_latents", 3)
    edit(vlm, "model/vlm/resampler/mlp_dim", 24)
    with raises_line("misshapen", "mlp.down.kernel", "mlp.up.kernel", "latents [2, 16]"):
        load_trained(vlm, "vlm")
    (vlm / "config.json").write_bytes(b"[" * 100_000)
    with raises_line("config.json"):
        load_trained(vlm, "vlm")


BYTE = "vlm has fingerprint .* says .*; changed since the export: model.safetensors"


@pytest.mark.parametrize(
    "name, damage, told",
    [
        ("model.safetensors", lambda held: held[:-1] + bytes([held[-1] ^ 1]), BYTE),
        ("model.safetensors", lambda held: held[:-10], "model.safetensors: cannot be read .*cut s"),
        ("vocabulary.model", lambda held: held + b"\n", "vocabulary.model: has changed since"),
    ],
)
def test_a_changed_file_is_named(vlm, name, damage, told):
    (vlm / name).write_bytes(damage((vlm / name).read_bytes()))
    with user_error(told):
        load_trained(vlm, "vlm")
