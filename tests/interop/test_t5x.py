"""The encoder of a t5x checkpoint, in each layout that t5x has written.

tests/data/t5x is of t5x itself: a T5 1.1 with random weights and what its encoder made of tokens,
and the same of its `scalable_t5` (umT5's network), scanned and looped.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil

import flax.linen as nn
import flax.serialization
import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import traverse_util

from synth2_jax.errors import UserError
from synth2_jax.interop.t5x import load_text_encoder
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig, parameter_shapes

REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "t5x"
REFERENCE_CONFIG = TextEncoderConfig(
    vocab_size=128, num_layers=2, embed_dim=32, num_heads=2, head_dim=16, mlp_dim=128
)
# No two sizes are equal, so that no axis can stand for another.
V, L, D, H, K, M, R = 11, 3, 8, 2, 5, 12, 6
CONFIG = TextEncoderConfig(
    vocab_size=V, num_layers=L, embed_dim=D, num_heads=H, head_dim=K, mlp_dim=M, relpos_buckets=R
)


def t5x_target(config=CONFIG, scanned=False, dtype=np.float32):
    """Random parameters by t5x's names: a decoder's too."""
    rng = np.random.default_rng(0)
    heads = (H, K) if config.relpos_per_layer else (H * K,)
    layer = {
        "pre_attention_layer_norm/scale": (D,),
        "pre_mlp_layer_norm/scale": (D,),
        **{f"attention/{n}/kernel": (D, *heads) for n in ("query", "key", "value")},
        "attention/out/kernel": (*heads, D),
        "mlp/wo/kernel": (M, D),
        **{
            f"mlp/{name}/kernel": (D, M)
            for name in (("wi_0", "wi_1") if config.gated_mlp else ("wi",))
        },
    }
    shapes = {
        "token_embedder/embedding": (V, D),
        "encoder/encoder_norm/scale": (D,),
        "decoder/decoder_norm/scale": (D,),
        "decoder/layers_0/mlp/wo/kernel": (M, D),
    }
    if config.relpos_per_layer:
        layer["relpos_bias/rel_embedding"] = (H, R)
    else:
        shapes["encoder/relpos_bias/rel_embedding"] = (H, R)
    for name, shape in layer.items():
        if scanned:
            shapes[f"encoder/encoder/{name}"] = (shape[0], config.num_layers, *shape[1:])
        else:
            shapes |= {f"encoder/layers_{i}/{name}": shape for i in range(config.num_layers)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def expected(target, config=CONFIG):
    """Our parameters of `t5x_target`, by plain numpy."""

    def of(name, i):
        if f"encoder/encoder/{name}" in target:
            return np.moveaxis(target[f"encoder/encoder/{name}"], 1, 0)[i]
        return target[f"encoder/layers_{i}/{name}"]

    layers = []
    for i in range(config.num_layers):
        layer = {
            "attention_norm/scale": of("pre_attention_layer_norm/scale", i),
            "attention/query/kernel": of("attention/query/kernel", i).reshape(D, H, K),
            "attention/key/kernel": of("attention/key/kernel", i).reshape(D, H, K),
            "attention/value/kernel": of("attention/value/kernel", i).reshape(D, H, K),
            "attention/out/kernel": of("attention/out/kernel", i).reshape(H, K, D),
            "mlp_norm/scale": of("pre_mlp_layer_norm/scale", i),
            "mlp/down/kernel": of("mlp/wo/kernel", i),
        }
        if config.gated_mlp:
            layer["mlp/gate/kernel"] = of("mlp/wi_0/kernel", i)
            layer["mlp/up/kernel"] = of("mlp/wi_1/kernel", i)
        else:
            layer["mlp/up/kernel"] = of("mlp/wi/kernel", i)
        if config.relpos_per_layer:
            layer["relpos_bias/embedding"] = of("relpos_bias/rel_embedding", i)
        layers.append(layer)
    found = {
        "token_embedding/embedding": target["token_embedder/embedding"],
        "final_norm/scale": target["encoder/encoder_norm/scale"],
    }
    if not config.relpos_per_layer:
        found["relpos_bias/embedding"] = target["encoder/relpos_bias/rel_embedding"]
    for name in layers[0]:
        if config.scan_layers:
            found[f"encoder/layers/{name}"] = np.stack([layer[name] for layer in layers])
        else:
            found |= {f"encoder/layers_{i}/{name}": layer[name] for i, layer in enumerate(layers)}
    return found


def write_zarr(folder, array, chunks=None, dtype=None):
    dtype = dtype or array.dtype.name
    spec = {
        "driver": "zarr",
        "dtype": dtype,
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "compressor": {"id": "gzip"},
            "shape": list(array.shape),
            "chunks": list(chunks or array.shape),
        },
    }
    tensorstore.open(spec, create=True).result()[...].write(array).result()
    return {**spec, "kvstore": {"driver": "file", "path": f"{folder.name}/"}}


def write_own(folder, target, in_msgpack=()):
    """As t5x.checkpoints.Checkpointer: arrays as folders, some in the msgpack file."""
    folder.mkdir(parents=True)
    tree = {
        name: array if name in in_msgpack else write_zarr(folder / f"target.{dotted(name)}", array)
        for name, array in target.items()
    }
    held = {
        "version": 3,
        "optimizer": {
            "target": traverse_util.unflatten_dict(tree, sep="/"),
            "state": {"step": np.int32(7), "param_states": {"encoder": np.ones(3)}},
        },
    }
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(held))
    return folder


def dotted(name):
    return name.replace("/", ".")


def write_orbax(folder, target, **handler):
    """As t5x.checkpoints.OrbaxCheckpointManagerInterface; `folder` is the parent."""
    state = {
        "target": traverse_util.unflatten_dict(target, sep="/"),
        "state": {"step": np.int32(7), "param_states": {"encoder": np.ones(3, np.float32)}},
    }
    options = ocp.CheckpointManagerOptions(
        step_prefix="checkpoint", enable_async_checkpointing=False
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(**handler)}
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        item = ocp.args.PyTreeSave(jax.tree.map(jax.numpy.asarray, state))
        manager.save(7, args=ocp.args.Composite(state=item))
    return folder / "checkpoint_7"


def check(path, target, config=CONFIG):
    found = traverse_util.flatten_dict(load_text_encoder(path, config), sep="/")
    wanted = expected(target, config)
    assert found.keys() == wanted.keys() == parameter_shapes(config).keys()
    for name, array in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(np.asarray(found[name]), array, name)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_it_encodes_as_t5x_does(scan_layers, parity):
    config = dataclasses.replace(REFERENCE_CONFIG, scan_layers=scan_layers)
    params = jax.tree.map(np.asarray, load_text_encoder(REFERENCE / "checkpoint_7", config))
    held = np.load(REFERENCE / "reference.npz")
    encoded = TextEncoder(config).apply(
        {"params": params}, held["tokens"], held["mask"], deterministic=True
    )
    difference = np.abs(encoded - held["encoded"])[held["mask"]].max()
    what = f"encoder of T5 1.1, {'scanned' if scan_layers else 'looped'}"
    parity(what, "t5x.examples.t5.network", "max abs difference", difference, 1e-4)


@pytest.mark.parametrize("theirs, scan_layers", [("scanned", True), ("looped", False)])
def test_it_encodes_as_scalable_t5_does(tmp_path, theirs, scan_layers, parity):
    held = np.load(REFERENCE / f"scalable_{theirs}.npz")
    target = {k.removeprefix("target/"): held[k] for k in held if k.startswith("target/")}
    config = dataclasses.replace(
        CONFIG, relpos_buckets=32, relpos_per_layer=True, scan_layers=scan_layers
    )
    path = write_own(tmp_path / "checkpoint_7", target)
    params = jax.tree.map(np.asarray, load_text_encoder(path, config))
    mask_BT = held["tokens"] > 0
    encoded = TextEncoder(config).apply(
        {"params": params}, held["tokens"], mask_BT, deterministic=True
    )
    difference = np.abs(encoded - held["encoded"])[mask_BT].max()
    what = f"encoder of umT5, {theirs}"
    parity(what, "t5x.examples.scalable_t5.network", "max abs difference", difference, 1e-4)


VARIANTS = {
    "T5 1.1": {},
    "T5 1.0": {"mlp_activation": "relu"},
    "scalable_t5": {"relpos_per_layer": True},
}


@pytest.mark.interop
@pytest.mark.parametrize(
    "activations, activation",
    [(("gelu", "linear"), "gated_gelu"), (("silu", "linear"), "gated_silu"), (("relu",), "relu")],
)
def test_it_encodes_as_t5xs_own_network(tmp_path, activations, activation, parity):
    """Where t5x is, which is on no package index (the extra `t5x`)."""
    network = pytest.importorskip("t5x.examples.t5.network")
    config = TextEncoderConfig(
        vocab_size=90, num_layers=3, embed_dim=24, num_heads=3, head_dim=8, mlp_dim=40
    )
    config = dataclasses.replace(config, mlp_activation=activation)
    model = network.Transformer(
        network.T5Config(
            vocab_size=config.vocab_size,
            dtype=np.float32,
            emb_dim=config.embed_dim,
            num_heads=config.num_heads,
            num_encoder_layers=config.num_layers,
            num_decoder_layers=1,
            head_dim=config.head_dim,
            mlp_dim=config.mlp_dim,
            mlp_activations=activations,
            dropout_rate=0.0,
            logits_via_embedding=False,
        )
    )
    rng = np.random.default_rng(0)
    mask_BT = np.arange(19) < np.array([[19], [1], [7], [12]])
    tokens_BT = np.where(mask_BT, rng.integers(2, config.vocab_size, (4, 19)), 0)
    decoded = np.ones((4, 3), np.int32)
    init = functools.partial(model.init, enable_dropout=False)
    params = nn.unbox(init(jax.random.key(0), tokens_BT, decoded, decoded)["params"])
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), params)
    write_own(
        tmp_path / "checkpoint_3",
        {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()},
    )
    expected_BTD = model.apply(
        {"params": params}, tokens_BT, enable_dropout=False, method=model.encode
    )
    loaded = jax.tree.map(np.asarray, load_text_encoder(tmp_path, config))
    found_BTD = TextEncoder(config).apply(
        {"params": loaded}, tokens_BT, mask_BT, deterministic=True
    )
    parity(
        f"T5 encoder of t5x, {activation}",
        "t5x's own network",
        "max abs difference on tokens",
        np.abs((found_BTD - expected_BTD) * mask_BT[..., None]).max(),
        1e-4,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("scanned", [True, False])
def test_its_own_layout(tmp_path, scanned, scan_layers, variant):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers, **VARIANTS[variant])
    target = t5x_target(config, scanned)
    small = [name for name in target if "scale" in name or "rel_embedding" in name]
    check(write_own(tmp_path / "checkpoint_7", target, in_msgpack=small), target, config)


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize(
    "handler",
    [{"use_ocdbt": True}, {"use_ocdbt": False}, {"use_ocdbt": True, "use_zarr3": True}],
    ids=str,
)
def test_orbax_layouts(tmp_path, handler, scanned):
    target = t5x_target(scanned=scanned)
    folder = write_orbax(tmp_path / "run", target, **handler)
    check(folder, target)
    check(folder / "state", target)


def test_the_newest_of_several_is_read(tmp_path):
    old, new = t5x_target(), t5x_target(dtype=np.float16)
    write_own(tmp_path / "checkpoint_9", old)
    write_own(tmp_path / "checkpoint_10", new)
    write_own(tmp_path / "checkpoint_11.tmp-1700000000", old)
    (tmp_path / "checkpoint_12.orbax-checkpoint-tmp").mkdir()
    check(tmp_path, new)
    check(tmp_path / "checkpoint_9", old)


def test_bfloat16_is_read_as_written_and_in_the_form_it_had_before_2021(tmp_path):
    target = t5x_target(dtype=ml_dtypes.bfloat16)
    folder = write_own(tmp_path / "checkpoint_7", target)
    name = "encoder/encoder_norm/scale"
    shutil.rmtree(folder / f"target.{dotted(name)}")
    write_zarr(folder / f"target.{dotted(name)}", target[name].view(np.uint16))
    check(folder, target)


def test_a_part_is_read_from_its_own_chunks(tmp_path):
    target = t5x_target()
    folder = write_own(tmp_path / "checkpoint_7", target)
    query = folder / "target.encoder.layers_1.attention.query.kernel"
    shutil.rmtree(query)
    write_zarr(query, target["encoder/layers_1/attention/query/kernel"], chunks=(D // 2, H * K))
    (query / "1.0").write_bytes((query / "1.0").read_bytes()[:30])
    found = load_text_encoder(folder, CONFIG)["encoder"]["layers"]["attention"]["query"]["kernel"]
    wanted = expected(target)["encoder/layers/attention/query/kernel"]
    np.testing.assert_array_equal(found[:, : D // 2], wanted[:, : D // 2])
    np.testing.assert_array_equal(found[2:], wanted[2:])
    with pytest.raises(UserError, match=r"layers_1\.attention\.query\.kernel: cannot be read"):
        found[1:2, D // 2 :]


def test_chunks_that_are_not_there_are_all_named(tmp_path):
    target = t5x_target()
    folder = write_own(tmp_path / "checkpoint_7", target)
    wo = folder / "target.encoder.layers_0.mlp.wo.kernel"
    shutil.rmtree(wo)
    write_zarr(wo, target["encoder/layers_0/mlp/wo/kernel"], chunks=(M // 3, D))
    (wo / "1.0").unlink()
    (folder / "target.token_embedder.embedding" / "0.0").unlink()
    (folder / "target.decoder.decoder_norm.scale" / "0").unlink()  # nobody asks for it
    with pytest.raises(UserError) as caught:
        load_text_encoder(folder, CONFIG)
    assert str(caught.value) == (
        f"{folder}: is not whole: 2 arrays (target.encoder.layers_0.mlp.wo.kernel: 2 of 3 chunks; "
        "target.token_embedder.embedding: 0 of 1 chunks)"
    )


@pytest.mark.parametrize("file", [".zarray", "zarr.json"])
def test_an_array_without_its_shape_is_named(tmp_path, file):
    folder = write_orbax(
        tmp_path / "run", t5x_target(), use_ocdbt=False, use_zarr3=file == "zarr.json"
    )
    for name in ("encoder_norm.scale", "layers_2.mlp.wo.kernel"):
        (folder / "state" / f"target.encoder.{name}" / file).unlink()
    names = r"target\.encoder\.encoder_norm\.scale, target\.encoder\.layers_2\.mlp\.wo\.kernel"
    with pytest.raises(UserError, match=rf"state: is not whole: 2 arrays without .* \({names}\)"):
        load_text_encoder(folder, CONFIG)


def test_a_shape_that_cannot_be_read_is_named(tmp_path):
    folder = write_own(tmp_path / "checkpoint_7", t5x_target())
    (folder / "target.encoder.encoder_norm.scale" / ".zarray").write_text('{"chunks": [8')
    with pytest.raises(UserError, match=r"1 arrays \(target\.encoder\.encoder_norm\.scale: "):
        load_text_encoder(folder, CONFIG)


def test_a_name_that_is_not_utf_8_is_named(tmp_path):
    folder = write_own(tmp_path / "checkpoint_7", t5x_target())
    (folder / "target.encoder.layers_0.mlp.wo.kernel").rename(
        os.fsdecode(os.fsencode(folder) + b"/target.encoder.\xff")
    )
    with pytest.raises(UserError, match=r"checkpoint_7: is not whole: 1 arrays .*encoder.\\xff"):
        load_text_encoder(folder, CONFIG)


def test_arrays_that_are_not_there_are_all_named(tmp_path):
    folder = write_own(tmp_path / "checkpoint_7", t5x_target())
    for name in ("encoder_norm.scale", "layers_2.mlp.wo.kernel"):
        shutil.rmtree(folder / f"target.encoder.{name}")
    names = r"encoder/encoder_norm/scale, encoder/layers_2/mlp/wo/kernel"
    with pytest.raises(UserError, match=rf"2 missing \({names}\)"):
        load_text_encoder(folder, CONFIG)


@pytest.mark.parametrize(
    "name", ["checkpoint_7.tmp-1700000000", "checkpoint_7.orbax-checkpoint-tmp"]
)
def test_a_save_that_was_not_finished_is_told(tmp_path, name):
    folder = write_own(tmp_path / name, t5x_target())
    for path in (folder, tmp_path):
        with pytest.raises(UserError, match=rf"save was not finished.*{name}"):
            load_text_encoder(path, CONFIG)
    item = tmp_path / "checkpoint_8" / "state.orbax-checkpoint-tmp"
    item.mkdir(parents=True)
    with pytest.raises(UserError, match=r"save was not finished.*state\.orbax-checkpoint-tmp"):
        load_text_encoder(tmp_path, CONFIG)


def test_half_a_database_is_told(tmp_path):
    folder = write_orbax(tmp_path / "run", t5x_target(), use_ocdbt=True) / "state"
    for file in folder.glob("**/d/*"):
        file.unlink()
    with pytest.raises(UserError, match="state: .*(cannot be read|is not whole)"):
        jax.tree.map(np.asarray, load_text_encoder(folder, CONFIG))
    (folder / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"\['ocdbt\.process_0'\], but no manifest\.ocdbt"):
        load_text_encoder(folder, CONFIG)


def test_a_msgpack_file_cut_short_is_named(tmp_path):
    folder = write_own(tmp_path / "checkpoint_7", t5x_target())
    file = folder / "checkpoint"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"checkpoint_7/checkpoint: .*cut short"):
        load_text_encoder(folder, CONFIG)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("num_layers", [L - 1, L + 1])
def test_another_depth_of_a_scanned_one_is_refused(tmp_path, num_layers, scan_layers):
    folder = write_own(tmp_path / "checkpoint_7", t5x_target(scanned=True))
    config = dataclasses.replace(CONFIG, num_layers=num_layers, scan_layers=scan_layers)
    with pytest.raises(UserError, match=r"misshapen \(encoder/encoder/.* \[8, 3\] for encoder/"):
        load_text_encoder(folder, config)


def test_all_that_does_not_fit_is_told_at_once():
    config = dataclasses.replace(
        REFERENCE_CONFIG, vocab_size=120, num_layers=3, relpos_per_layer=True
    )
    with pytest.raises(UserError) as caught:
        load_text_encoder(REFERENCE, config)
    message = str(caught.value)
    assert "12 missing (encoder/layers_0/relpos_bias/rel_embedding, " in message
    assert "1 unknown (encoder/relpos_bias/rel_embedding)" in message
    assert "1 misshapen (token_embedder/embedding [128, 32] for " in message


def test_a_path_to_something_else_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_text_encoder(tmp_path / "none", CONFIG)
    with pytest.raises(UserError, match="found a folder with nothing in it, expected a t5x"):
        load_text_encoder(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="found a Hugging Face bert, expected a t5x checkpoint"):
        load_text_encoder(tmp_path, CONFIG)
    file = tmp_path / "model"
    file.write_bytes(flax.serialization.msgpack_serialize({"a": np.ones(2)}))
    with pytest.raises(UserError, match="found tensors named a, expected the folder of a t5x"):
        load_text_encoder(file, CONFIG)
