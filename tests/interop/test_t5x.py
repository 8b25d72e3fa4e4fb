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
    """(tensors by t5x's names, a decoder's too; our parameters), by plain numpy."""
    rng, target = np.random.default_rng(0), {}
    ours = {
        name: rng.normal(size=leaf.shape).astype(dtype)
        for name, leaf in parameter_shapes(dataclasses.replace(config, scan_layers=True)).items()
    }
    theirs = {
        "attention_norm/scale": "pre_attention_layer_norm/scale",
        "mlp_norm/scale": "pre_mlp_layer_norm/scale",
        "mlp/down/kernel": "mlp/wo/kernel",
        "mlp/gate/kernel": "mlp/wi_0/kernel",
        "mlp/up/kernel": f"mlp/{'wi_1' if config.gated_mlp else 'wi'}/kernel",
        "relpos_bias/embedding": "relpos_bias/rel_embedding",
    }
    for path, array in ours.items():
        if not path.startswith("encoder/layers/"):
            continue
        name = path.removeprefix("encoder/layers/")
        if name.startswith("attention/") and not config.relpos_per_layer:  # heads are one axis
            shape = (L, H * K, D) if "/out/" in name else (L, D, H * K)
            array = array.reshape(shape)
        name = theirs.get(name, name)
        if scanned:
            target[f"encoder/encoder/{name}"] = np.moveaxis(array, 0, 1)
        else:
            target |= {f"encoder/layers_{i}/{name}": one for i, one in enumerate(array)}
    if not config.relpos_per_layer:
        target["encoder/relpos_bias/rel_embedding"] = ours["relpos_bias/embedding"]
    target["token_embedder/embedding"] = ours["token_embedding/embedding"]
    target["encoder/encoder_norm/scale"] = ours["final_norm/scale"]
    target["decoder/decoder_norm/scale"] = ours["final_norm/scale"]
    target["decoder/layers_0/mlp/wo/kernel"] = np.zeros((M, D), dtype)
    return target, ours


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


@pytest.fixture
def check(check_parameters):
    return lambda path, ours, config=CONFIG: check_parameters(load_text_encoder(path, config), ours)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of CONFIG in t5x's own layout."""
    return write_own(tmp_path / "checkpoint_7", t5x_target()[0])


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
def test_its_own_layout(tmp_path, check, scanned, scan_layers, variant):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers, **VARIANTS[variant])
    target, ours = t5x_target(config, scanned)
    small = [name for name in target if "scale" in name or "rel_embedding" in name]
    check(write_own(tmp_path / "checkpoint_7", target, in_msgpack=small), ours, config)


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize(
    "handler",
    [{"use_ocdbt": True}, {"use_ocdbt": False}, {"use_ocdbt": True, "use_zarr3": True}],
    ids=str,
)
def test_orbax_layouts(tmp_path, check, handler, scanned):
    target, ours = t5x_target(scanned=scanned)
    folder = write_orbax(tmp_path / "run", target, **handler)
    check(folder, ours)
    check(folder / "state", ours)


def test_the_newest_of_several_is_read(tmp_path, check):
    old, new = t5x_target(), t5x_target(dtype=np.float16)
    write_own(tmp_path / "checkpoint_9", old[0])
    write_own(tmp_path / "checkpoint_10", new[0])
    write_own(tmp_path / "checkpoint_11.tmp-1700000000", old[0])
    (tmp_path / "checkpoint_12.orbax-checkpoint-tmp").mkdir()
    check(tmp_path, new[1])
    check(tmp_path / "checkpoint_9", old[1])


def test_bfloat16_is_read_as_written_and_in_the_form_it_had_before_2021(tmp_path, check):
    target, ours = t5x_target(dtype=ml_dtypes.bfloat16)
    folder = write_own(tmp_path / "checkpoint_7", target)
    scale = folder / "target.encoder.encoder_norm.scale"
    shutil.rmtree(scale)
    write_zarr(scale, target["encoder/encoder_norm/scale"].view(np.uint16))
    check(folder, ours)


def test_a_part_is_read_from_its_own_chunks(saved):
    target, ours = t5x_target()
    query = saved / "target.encoder.layers_1.attention.query.kernel"
    shutil.rmtree(query)
    write_zarr(query, target["encoder/layers_1/attention/query/kernel"], chunks=(D // 2, H * K))
    (query / "1.0").write_bytes((query / "1.0").read_bytes()[:30])
    found = load_text_encoder(saved, CONFIG)["encoder"]["layers"]["attention"]["query"]["kernel"]
    for box in (np.s_[:, : D // 2], np.s_[2:]):
        np.testing.assert_array_equal(
            found[box], ours["encoder/layers/attention/query/kernel"][box]
        )
    with pytest.raises(UserError, match=r"layers_1\.attention\.query\.kernel: cannot be read"):
        found[1:2, D // 2 :]


def test_chunks_that_are_not_there_are_all_named(saved):
    wo = saved / "target.encoder.layers_0.mlp.wo.kernel"
    shutil.rmtree(wo)
    write_zarr(wo, t5x_target()[0]["encoder/layers_0/mlp/wo/kernel"], chunks=(M // 3, D))
    (wo / "1.0").unlink()
    (saved / "target.token_embedder.embedding" / "0.0").unlink()
    (saved / "target.decoder.decoder_norm.scale" / "0").unlink()  # nobody asks for it
    with pytest.raises(UserError) as caught:
        load_text_encoder(saved, CONFIG)
    assert str(caught.value) == (
        f"{saved}: is not whole: 2 arrays (target.encoder.layers_0.mlp.wo.kernel: 2 of 3 chunks; "
        "target.token_embedder.embedding: 0 of 1 chunks)"
    )


@pytest.mark.parametrize("file", [".zarray", "zarr.json"])
def test_an_array_without_its_shape_is_named(tmp_path, file):
    folder = write_orbax(
        tmp_path / "run", t5x_target()[0], use_ocdbt=False, use_zarr3=file == "zarr.json"
    )
    for name in ("encoder_norm.scale", "layers_2.mlp.wo.kernel"):
        (folder / "state" / f"target.encoder.{name}" / file).unlink()
    names = r"target\.encoder\.encoder_norm\.scale, target\.encoder\.layers_2\.mlp\.wo\.kernel"
    with pytest.raises(UserError, match=rf"state: is not whole: 2 arrays without .* \({names}\)"):
        load_text_encoder(folder, CONFIG)


def rename_to_no_utf_8(folder):
    (folder / "target.encoder.layers_0.mlp.wo.kernel").rename(
        os.fsdecode(os.fsencode(folder) + b"/target.encoder.\xff")
    )


def lose_arrays(folder):
    for name in ("encoder_norm.scale", "layers_2.mlp.wo.kernel"):
        shutil.rmtree(folder / f"target.encoder.{name}")


@pytest.mark.parametrize(
    "damage, problem",
    [
        (
            lambda folder: (folder / "target.encoder.encoder_norm.scale" / ".zarray").write_text(
                '{"chunks": [8'
            ),
            r"1 arrays \(target\.encoder\.encoder_norm\.scale: ",
        ),
        (rename_to_no_utf_8, r"checkpoint_7: is not whole: 1 arrays .*encoder.\\xff"),
        (lose_arrays, r"2 missing \(encoder/encoder_norm/scale, encoder/layers_2/mlp/wo/kernel\)"),
        (
            lambda folder: os.truncate(folder / "checkpoint", 99),
            r"checkpoint_7/checkpoint: .*cut short",
        ),
    ],
)
def test_damage_is_named(saved, damage, problem):
    damage(saved)
    with pytest.raises(UserError, match=problem):
        load_text_encoder(saved, CONFIG)


@pytest.mark.parametrize(
    "name", ["checkpoint_7.tmp-1700000000", "checkpoint_7.orbax-checkpoint-tmp"]
)
def test_a_save_that_was_not_finished_is_told(tmp_path, name):
    folder = write_own(tmp_path / name, t5x_target()[0])
    for path in (folder, tmp_path):
        with pytest.raises(UserError, match=rf"save was not finished.*{name}"):
            load_text_encoder(path, CONFIG)
    item = tmp_path / "checkpoint_8" / "state.orbax-checkpoint-tmp"
    item.mkdir(parents=True)
    with pytest.raises(UserError, match=r"save was not finished.*state\.orbax-checkpoint-tmp"):
        load_text_encoder(tmp_path, CONFIG)


def test_half_a_database_is_told(tmp_path):
    folder = write_orbax(tmp_path / "run", t5x_target()[0], use_ocdbt=True) / "state"
    for file in folder.glob("**/d/*"):
        file.unlink()
    with pytest.raises(UserError, match="state: .*(cannot be read|is not whole)"):
        jax.tree.map(np.asarray, load_text_encoder(folder, CONFIG))
    (folder / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"\['ocdbt\.process_0'\], but no manifest\.ocdbt"):
        load_text_encoder(folder, CONFIG)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("num_layers", [L - 1, L + 1])
def test_another_depth_of_a_scanned_one_is_refused(tmp_path, num_layers, scan_layers):
    folder = write_own(tmp_path / "checkpoint_7", t5x_target(scanned=True)[0])
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
