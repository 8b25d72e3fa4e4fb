"""The encoder of a T5 from a Hugging Face folder."""

import dataclasses
import functools
import io
import json

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from synth2_jax.errors import UserError
from synth2_jax.interop import tensor_files
from synth2_jax.interop.hugging_face import load_text_encoder, text_encoder_config
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig, parameter_shapes
from synth2_jax.sharding import AXIS_RULES

# No two sizes are equal, so that no axis can stand for another.
V, L, D, H, K, M, R = 11, 3, 8, 2, 5, 12, 6
CONFIG = TextEncoderConfig(
    vocab_size=V, num_layers=L, embed_dim=D, num_heads=H, head_dim=K, mlp_dim=M, relpos_buckets=R
)
KINDS = {
    "mt5": CONFIG,
    "t5": dataclasses.replace(CONFIG, mlp_activation="relu"),
    "umt5": dataclasses.replace(CONFIG, relpos_per_layer=True),
}


def config_json(config=CONFIG, kind="mt5"):
    return {
        "model_type": kind,
        "architectures": [f"{kind.upper()}EncoderModel"],
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "d_model": config.embed_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "relative_attention_num_buckets": config.relpos_buckets,
        "feed_forward_proj": config.mlp_activation.replace("_", "-"),
    }


def weights(config=CONFIG, dtype=np.float32):
    """(tensors by transformers' names, a decoder's too; our parameters), by plain numpy."""
    rng, tensors = np.random.default_rng(0), {}
    ours = {
        name: rng.normal(size=leaf.shape).astype(dtype)
        for name, leaf in parameter_shapes(dataclasses.replace(config, scan_layers=True)).items()
    }
    for i in range(config.num_layers):
        attention, mlp = (f"encoder.block.{i}.layer.{j}" for j in (0, 1))
        layer = {
            name.removeprefix("encoder/layers/"): array[i]
            for name, array in ours.items()
            if name.startswith("encoder/layers/")
        }
        theirs = {"attention/query": "q", "attention/key": "k", "attention/value": "v"}
        theirs = {name: f"{attention}.SelfAttention.{letter}" for name, letter in theirs.items()}
        theirs |= {"mlp/down": f"{mlp}.DenseReluDense.wo", "mlp/gate": f"{mlp}.DenseReluDense.wi_0"}
        theirs["mlp/up"] = f"{mlp}.DenseReluDense.{'wi_1' if config.gated_mlp else 'wi'}"
        for name, their_name in theirs.items():
            if f"{name}/kernel" in layer:
                kernel = layer[f"{name}/kernel"]
                tensors[f"{their_name}.weight"] = kernel.reshape(len(kernel), -1).T
        out = layer["attention/out/kernel"].reshape(-1, config.embed_dim)
        tensors[f"{attention}.SelfAttention.o.weight"] = out.T
        tensors[f"{attention}.layer_norm.weight"] = layer["attention_norm/scale"]
        tensors[f"{mlp}.layer_norm.weight"] = layer["mlp_norm/scale"]
        if i == 0 or config.relpos_per_layer:
            bias = layer if config.relpos_per_layer else ours
            name = f"{attention}.SelfAttention.relative_attention_bias.weight"
            tensors[name] = bias["relpos_bias/embedding"].T
    tensors["shared.weight"] = tensors["lm_head.weight"] = ours["token_embedding/embedding"]
    tensors["encoder.final_layer_norm.weight"] = ours["final_norm/scale"]
    tensors["decoder.final_layer_norm.weight"] = ours["final_norm/scale"]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, ours


def write(folder, tensors, config_json=None, num_files=1):
    """As `save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    if config_json is not None:
        (folder / "config.json").write_text(json.dumps(config_json))
    if num_files == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(num_files):
        name = f"model-{i + 1:05}-of-{num_files:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::num_files]}
        safetensors.numpy.save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def check(check_parameters):
    return lambda path, ours, config=CONFIG: check_parameters(load_text_encoder(path, config), ours)


# --- parameters ---


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_its_place(tmp_path, check, kind, scan_layers, num_files):
    config = dataclasses.replace(KINDS[kind], scan_layers=scan_layers)
    tensors, ours = weights(config)
    check(write(tmp_path, tensors, config_json(config, kind), num_files), ours, config)


def test_what_a_checkpoint_does_not_decide_may_differ(tmp_path, check):
    tensors, ours = weights()
    check(write(tmp_path / "alone", tensors) / "model.safetensors", ours)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]  # another name of it
    config = dataclasses.replace(CONFIG, dtype="bfloat16", dropout_rate=0.1, remat="full")
    check(write(tmp_path / "both", tensors, config_json()), ours, config)
    del tensors["shared.weight"]
    check(write(tmp_path / "other", tensors, config_json()), ours)
    tensors, ours = weights(dtype=ml_dtypes.bfloat16)
    check(write(tmp_path / "bfloat16", tensors, config_json()), ours)


class CountingFile(io.FileIO):
    num_bytes = 0

    def __init__(self, path, mode, buffering):
        del buffering
        super().__init__(path, mode)

    def readinto(self, buffer):
        count = super().readinto(buffer)
        CountingFile.num_bytes += count
        return count


@pytest.mark.parametrize("scan_layers", [True, False])
def test_who_holds_a_quarter_reads_a_quarter(tmp_path, monkeypatch, scan_layers):
    """Of every parameter and axis that a mesh splits: as it is in the file, or turned."""
    config = TextEncoderConfig(
        vocab_size=512, num_layers=2, embed_dim=256, num_heads=4, head_dim=64, mlp_dim=512,
        scan_layers=scan_layers,
    )  # fmt: skip
    write(tmp_path, weights(config)[0], config_json(config))
    params = traverse_util.flatten_dict(load_text_encoder(tmp_path, config), sep="/")
    whole = {name: np.asarray(param) for name, param in params.items()}
    monkeypatch.setattr(tensor_files, "open", CountingFile, raising=False)
    rules, split = dict(AXIS_RULES), set()
    for name, names in logical_axes(config).items():
        for axis, (size, axis_name) in enumerate(zip(params[name].shape, names, strict=True)):
            if not rules[axis_name] or "bias" in name:  # the bias has 128 elements in all
                continue
            box = (slice(None),) * axis + (slice(size // 4, size // 2),)
            CountingFile.num_bytes = 0
            np.testing.assert_array_equal(params[name][box], whole[name][box])
            assert CountingFile.num_bytes == params[name].nbytes // 4, (name, axis_name)
            split.add(axis_name)
    assert split == {"vocab", "embed", "heads", "mlp"}


def logical_axes(config):
    token = np.zeros((1, 1), np.int32)
    init = functools.partial(TextEncoder(config).init, deterministic=True)
    boxed = jax.eval_shape(init, jax.random.key(0), token, token > 0)["params"]
    return traverse_util.flatten_dict(nn.get_partition_spec(boxed), sep="/")


# --- config.json ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_is_read_from_config_json(tmp_path, kind):
    write(tmp_path, {}, config_json(KINDS[kind], kind))
    assert text_encoder_config(tmp_path) == KINDS[kind]
    changed = text_encoder_config(tmp_path, dtype="bfloat16", scan_layers=False)
    assert changed == dataclasses.replace(KINDS[kind], dtype="bfloat16", scan_layers=False)


def test_all_that_differs_from_config_json_is_told(tmp_path):
    write(tmp_path, weights()[0], config_json())
    other = dataclasses.replace(
        CONFIG, num_layers=24, mlp_activation="relu", relpos_max_distance=64, relpos_per_layer=True
    )
    with pytest.raises(UserError) as caught:
        load_text_encoder(tmp_path, other)
    assert str(caught.value) == (
        f"{tmp_path}: its config.json differs from the config of the text encoder: "
        "num_layers is 24, there 3; mlp_activation is 'relu', there 'gated_gelu'; "
        "relpos_max_distance is 64, there 128; relpos_per_layer is True, there False"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "found a Hugging Face BertModel"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj: found 'gated-tanh', expected"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon: found 1e-05, expected 1e-06"),
        ({"num_layers": "3"}, "num_layers: found '3', expected int"),
    ],
)
def test_another_model_is_refused(tmp_path, changes, message):
    write(tmp_path, weights()[0], {**config_json(), **changes})
    for call in (text_encoder_config, lambda path: load_text_encoder(path, CONFIG)):
        with pytest.raises(UserError, match=message):
            call(tmp_path)


def test_a_folder_that_is_none_of_hugging_face_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_text_encoder(tmp_path / "none", CONFIG)
    with pytest.raises(UserError, match="a folder with nothing in it, expected a Hugging Face"):
        load_text_encoder(tmp_path, CONFIG)
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="not JSON|found .1., expected a JSON object"):
            load_text_encoder(tmp_path, CONFIG)


# --- files that are not whole ---


def test_all_that_does_not_fit_is_told_at_once(tmp_path):
    tensors, _ = weights()
    q = "encoder.block.1.layer.0.SelfAttention.q.weight"
    tensors[q] = tensors[q][:, :-1].copy()
    for name in ("shared.weight", "encoder.block.2.layer.1.DenseReluDense.wo.weight"):
        del tensors[name]
    tensors["encoder.block.3.layer.0.layer_norm.weight"] = np.ones(D, np.float32)
    write(tmp_path, tensors, config_json())
    with pytest.raises(UserError) as caught:
        load_text_encoder(tmp_path, CONFIG)
    assert str(caught.value) == (
        f"{tmp_path}: its tensors do not fit the config: "
        "2 missing (encoder.block.2.layer.1.DenseReluDense.wo.weight, shared.weight); "
        "1 unknown (encoder.block.3.layer.0.layer_norm.weight); "
        f"1 misshapen ({q} [10, 7] for encoder/layers/attention/query/kernel [3, 8, 2, 5])"
    )


def test_files_that_are_not_whole_are_all_named(tmp_path):
    write(tmp_path, weights()[0], config_json(), num_files=3)
    file = tmp_path / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors: .*cut short"):
        load_text_encoder(tmp_path, CONFIG)
    for i in (1, 3):
        (tmp_path / f"model-0000{i}-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="2 of 3 files .*model-00001-of-.*, model-00003-of-"):
        load_text_encoder(tmp_path, CONFIG)


# --- with torch and transformers ---


@pytest.mark.interop
def test_files_of_torch_are_read_where_there_is_nothing_else(tmp_path, check):
    import torch

    arrays, ours = weights()
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    write(tmp_path, arrays, config_json())
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    check(tmp_path, ours)
    (tmp_path / "pytorch_model.bin").unlink()
    weight_map = {}
    for i in (1, 2):
        name = f"pytorch_model-0000{i}-of-00002.bin"
        part = {key: tensors[key] for key in sorted(tensors)[i - 1 :: 2]}
        torch.save(part, tmp_path / name)
        weight_map |= dict.fromkeys(part, name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    check(tmp_path, ours)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match="1 of 2 files .* not there: pytorch_model-00002-of-00002"):
        load_text_encoder(tmp_path, CONFIG)
    index.write_text("[]")
    with pytest.raises(UserError, match="index.json: found .., expected a JSON object"):
        load_text_encoder(tmp_path, CONFIG)


@pytest.mark.interop
@pytest.mark.parametrize("name", ["T5Config", "MT5Config", "UMT5Config"])
def test_what_config_json_need_not_say(tmp_path, name):
    import transformers

    config = getattr(transformers, name)()
    write(tmp_path / "short", {}, {"model_type": config.model_type})
    config.save_pretrained(tmp_path / "long")
    assert text_encoder_config(tmp_path / "short") == text_encoder_config(tmp_path / "long")


# Name of the model's class, changes of its config, largest file, whether our layers are scanned.
SIZES = {
    "T5 1.0": (
        "T5EncoderModel",
        {"d_model": 24, "num_heads": 3, "d_kv": 8, "d_ff": 40, "num_layers": 2},
        "1GB", False,
    ),
    "a whole T5 1.0": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "num_heads": 4, "d_kv": 4, "d_ff": 32, "num_layers": 3,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
        "8KB", True,
    ),
    "T5 1.1": (
        "T5EncoderModel",
        {"d_model": 32, "num_heads": 2, "d_kv": 24, "d_ff": 20, "num_layers": 1,
         "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 16},
        "8KB", False,
    ),
    "a whole T5 1.1": (
        "T5ForConditionalGeneration",
        {"d_model": 40, "num_heads": 5, "d_kv": 16, "d_ff": 96, "num_layers": 4,
         "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "1GB", True,
    ),
    "mT5": (
        "MT5EncoderModel",
        {"d_model": 64, "num_heads": 6, "d_kv": 8, "d_ff": 128, "num_layers": 6,
         "relative_attention_max_distance": 64},
        "50KB", True,
    ),
    "mT5 with gated SiLU": (
        "MT5EncoderModel",
        {"d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 24, "num_layers": 2,
         "feed_forward_proj": "gated-silu"},
        "1GB", True,
    ),
    "umT5": (
        "UMT5EncoderModel",
        {"d_model": 32, "num_heads": 4, "d_kv": 12, "d_ff": 48, "num_layers": 3},
        "20KB", False,
    ),
}  # fmt: skip


@pytest.mark.interop
@pytest.mark.parametrize("size", SIZES)
def test_it_encodes_as_transformers_does(tmp_path, parity, size):
    import torch
    import transformers

    name, changes, max_shard_size, scan_layers = SIZES[size]
    model_class = getattr(transformers, name)
    torch.manual_seed(len(size))
    model = model_class(model_class.config_class(vocab_size=99, **changes)).eval()
    for key, parameter in model.named_parameters():
        if "layer_norm" in key:  # all 1 at first, which would hide one in the wrong place
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    if max_shard_size != "1GB":
        assert len(list(tmp_path.glob("*.safetensors"))) > 1

    config = text_encoder_config(tmp_path, scan_layers=scan_layers)
    params = jax.tree.map(np.asarray, load_text_encoder(tmp_path, config))
    encode = jax.jit(functools.partial(TextEncoder(config).apply, deterministic=True))
    rng = np.random.default_rng(0)
    differences = []
    for num_rows, length in ((6, 31), (3, 200), (2, 1)):
        tokens = rng.integers(1, 99, (num_rows, length))
        ends = rng.integers(1, length + 1, num_rows)
        ends[:2] = length, 1  # a full row, and one of one token
        mask = np.arange(length)[None, :] < ends[:, None]
        if length == 31:
            mask[2:4] = rng.random((2, length)) < 0.5  # holes anywhere
            mask[2:4, 3] = True
        tokens[~mask] = 0
        with torch.no_grad():
            wanted = model.get_encoder()(
                input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask, dtype=torch.long)
            ).last_hidden_state.numpy()
        found = encode({"params": params}, tokens, mask)
        differences.append(np.abs(found - wanted)[mask].max())
    version = f"transformers {transformers.__version__}"
    parity(f"encoder of {size}", version, "max abs difference", max(differences), 1e-4)
