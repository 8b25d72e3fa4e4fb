"""Third-party VQ tokenizers against stored outputs of their own code.

tests/data/tokenizers/KIND.npz holds what the public code made of random parameters: `image`
f32[B,H,W,3] in [-1, 1], `ids` i32[B,N], `pixels` f32[B,H,W,3] as that code decodes them, `config`
(its config.json), and the parameters: `shapes` by name, drawn by `parameters` from `seed`, but for
those that are stored themselves.
"""

import argparse
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from synth2_jax.data.records import Manifest, Provenance, check_tokenizer
from synth2_jax.errors import UserError
from synth2_jax.interop.ibq import IBQ
from synth2_jax.interop.llamagen import LLAMAGEN
from synth2_jax.interop.open_muse import VQGAN
from synth2_jax.interop.recognise import KINDS, PREFIXES, recognise
from synth2_jax.interop.taming import TAMING
from synth2_jax.loading.derived import part_config
from synth2_jax.loading.trained import load_tokenizer, load_trained, others_reader
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig

STORED = pathlib.Path(__file__).parents[1] / "data" / "tokenizers"
# By file: the prefix that its path needs, and what its own code takes black and white to be.
PEERS = {
    "taming": ("taming:", (-1.0, 1.0)),
    "ibq": ("ibq:", (-1.0, 1.0)),
    "llamagen": ("", (-1.0, 1.0)),
    "open_muse_vqganmodel": ("open_muse:", (0.0, 1.0)),
    "open_muse_maskgitvqgan": ("", (0.0, 1.0)),
}


def stored(name):
    with np.load(STORED / f"{name}.npz") as held:
        return dict(held)


def parameters(held):
    """By name, as they were drawn for the reference; RandomState's streams never change."""
    rng, tensors = np.random.RandomState(held["seed"]), {}
    for name, shape in json.loads(str(held["shapes"])).items():
        drawn = rng.uniform(-1, 1, shape)
        if len(shape) > 1:
            drawn = drawn * math.sqrt(3 / math.prod(shape[1:]))
        else:
            drawn = 0.2 * drawn + name.endswith("weight")
        tensors[name] = held.get(f"stored/{name}", drawn).astype(np.float32)
    return tensors


def write(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: write(folder / f"{name}.safetensors", parameters(stored(name))) for name in PEERS}


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_ids_and_pixels_are_those_of_its_own_code(files, name, same_pictures):
    held = stored(name)
    trained = load_tokenizer(f"{PEERS[name][0]}{files[name]}", image_size=16)
    config, params = trained.objective.task.tokenizer, trained.params["tokenizer"]
    reference = held["image"], held["ids"], held["pixels"]
    same_pictures(f"tokenizer, {name}", "its own code", config, params, *reference, least=20)


def test_whose_it_is_must_be_said_where_names_do_not_tell(files):
    for name, prefix in (
        ("taming", "taming"),
        ("ibq", "ibq"),
        ("open_muse_vqganmodel", "open_muse"),
    ):
        path = files[name]
        for load in (load_tokenizer, lambda path: load_trained(path, "tokenizer")):
            with pytest.raises(UserError) as caught:
                load(str(path))
            assert str(caught.value) == (
                f"{path}: found the tensor names of three models (taming-transformers, IBQ, "
                "open-muse), which give other ids. Say which it is: "
                f"taming:{path} or ibq:{path} or open_muse:{path}"
            )
        assert recognise(f"{prefix}:{path}").description == KINDS[PREFIXES[prefix]]
    with pytest.raises(
        UserError, match="^ibq:.*: found a VQ tokenizer of LlamaGen, expected a tok"
    ):
        load_tokenizer(f"ibq:{files['llamagen']}")
    with pytest.raises(UserError, match="^nowhere.ckpt: no such file"):
        load_tokenizer("ibq:nowhere.ckpt")


def test_a_file_whose_own_name_has_a_prefix_comes_first(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(files["llamagen"], "ibq:last.safetensors")
    assert recognise("ibq:last.safetensors").kind == "llamagen"


@pytest.mark.slow
def test_the_averages_of_ibq_are_taken(tmp_path):
    trained = parameters(stored("ibq"))
    averages = {f"model_ema.{name.replace('.', '')}": x for name, x in trained.items()}
    others = {
        "model_ema.decay": np.array(0.999, np.float32),
        "model_ema.lossdiscriminator0weight": np.zeros(3, np.float32),
        "loss.discriminator.0.weight": np.zeros(3, np.float32),
    }
    held = {**{name: x * 0.5 for name, x in trained.items()}, **averages, **others}
    path = write(tmp_path / "last.safetensors", held)
    config = IBQ.tokenizer_config(path, image_size=16)
    found = IBQ.load_tokenizer(path, config)
    expected = IBQ.load_tokenizer(write(tmp_path / "averages.safetensors", trained), config)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(UserError, match=r"holds averaged parameters too .* Write ibq: in front"):
        TAMING.tokenizer_config(f"taming:{path}")


@pytest.mark.parametrize("name", PEERS)
def test_what_no_tensor_shows_is_in_its_config(files, name):
    prefix, pixel_range = PEERS[name]
    path = f"{prefix}{files[name]}"
    config = others_reader(path, "tokenizer").tokenizer_config(path)
    assert config.pixel_range == pixel_range
    assert config.code_choice == ("dot_product" if name == "ibq" else "distance")
    assert config.l2_normalize_codes == (name == "llamagen")
    assert config.shortcut_from_input == (name != "open_muse_maskgitvqgan")


def test_a_pixel_range_may_be_said(files):
    path = f"taming:{files['taming']}"
    config = TAMING.tokenizer_config(path, image_size=16, pixel_range=(0.0, 1.0))
    assert config.pixel_range == (0.0, 1.0)
    assert TAMING.load_tokenizer(path, config)


@pytest.mark.slow
def test_pairs_of_one_reading_of_a_file_are_refused_by_another(files):
    """Parameters that are equal make other tokens by another choice of codes or range of pixels."""
    path = files["ibq"]
    readings = [(f"ibq:{path}", {}), (f"taming:{path}", {})]
    readings += [(f"taming:{path}", {"pixel_range": (0.0, 1.0)})]
    found = [
        load_tokenizer(reading, image_size=16, **settings).fingerprint("tokenizer")
        for reading, settings in readings
    ]
    assert len(set(found)) == 3
    for made_by in found:
        manifest = Manifest(Provenance(made_by, num_image_tokens=16, codebook_size=64), {}, ())
        check_tokenizer(manifest, made_by)
        for other in {*found} - {made_by}:
            with pytest.raises(UserError, match="expected tokenizer") as caught:
                check_tokenizer(manifest, other, "pairs")
            assert made_by in str(caught.value) and other in str(caught.value)
            # Pairs of an older version have the parameters' part alone.
            by_hand = f"write {other} as tokenizer in manifest.json" in str(caught.value)
            assert by_hand == (made_by == found[1])


def test_a_training_takes_the_tokenizer_as_its_file_says_it_is(files):
    path = f"open_muse:{files['open_muse_vqganmodel']}"
    told = {"image_size": 16, "codebook_size": 3, "dtype": "bfloat16", "pixel_range": (-1.0, 1.0)}
    found = VQTokenizerConfig(**part_config("tokenizer", path, told))
    assert found == VQGAN.tokenizer_config(path, image_size=16, dtype="bfloat16")
    # No tensor shows it: by another range all ids would be wrong.
    assert found.pixel_range == (0.0, 1.0)


@pytest.mark.parametrize("name", ["open_muse_vqganmodel", "open_muse_maskgitvqgan"])
def test_a_folder_of_open_muse_needs_no_prefix(tmp_path, name):
    held = stored(name)
    (tmp_path / "config.json").write_text(str(held["config"]))
    write(tmp_path / "pytorch_model.safetensors", parameters(held))
    config = others_reader(str(tmp_path), "tokenizer").tokenizer_config(tmp_path)
    assert config.pixel_range == (0.0, 1.0) and config.channel_multipliers == (1, 2)
    if name == "open_muse_vqganmodel":
        with pytest.raises(
            UserError, match="found open-muse's VQGANModel, expected a tokenizer of"
        ):
            recognise(f"ibq:{tmp_path}")


def test_attention_that_open_muse_leaves_out_is_refused(tmp_path):
    tensors = parameters(stored("open_muse_vqganmodel"))
    one_block = {n: x for n, x in tensors.items() if ".block.1." not in n and ".attn.1." not in n}
    path = write(tmp_path / "model.safetensors", one_block)
    with pytest.raises(UserError, match="one residual block a level and attention at levels"):
        VQGAN.tokenizer_config(path)


@pytest.mark.slow
def test_the_published_sizes_of_llamagen_fit(tmp_path, sparse_safetensors, published):
    """VQ-16: its shapes, with no bytes behind them."""
    shapes = json.loads((STORED / "llamagen_published.json").read_text())
    path = sparse_safetensors(tmp_path / "vq_ds16_c2i.safetensors", shapes)
    config = LLAMAGEN.tokenizer_config(path)
    assert config == published("llamagen") and config.num_tokens == 256
    params = LLAMAGEN.load_tokenizer(path, config)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(map(math.prod, shapes.values())) - math.prod(
        shapes["quantize.codebook_used"]
    )


# --- torch's files ---


@pytest.mark.interop
def test_the_averages_of_a_llamagen_training_are_taken(tmp_path):
    import torch

    averages = {n: torch.from_numpy(x) for n, x in parameters(stored("llamagen")).items()}
    averages["quantize.codebook_used"] = torch.zeros(65536)
    held = {
        "model": {name: tensor * 0.5 for name, tensor in averages.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "steps": 7,
        "args": argparse.Namespace(vq_model="VQ-16"),
        "ema": averages,
    }
    for names in (("model", "ema", "optimizer", "steps", "args"), ("model",)):
        torch.save({name: held[name] for name in names}, tmp_path / "vq.pt")
        trained = load_tokenizer(tmp_path / "vq.pt", image_size=16)
        chosen = held["ema" if "ema" in names else "model"]
        np.testing.assert_array_equal(
            trained.params["tokenizer"]["quantizer"]["codebook"],
            chosen["quantize.embedding.weight"],
        )


@pytest.mark.interop
def test_a_folder_of_open_muse_with_its_own_file(tmp_path):
    import torch

    held = stored("open_muse_maskgitvqgan")
    tensors = parameters(held)
    (tmp_path / "config.json").write_text(str(held["config"]))
    torch.save({n: torch.from_numpy(x) for n, x in tensors.items()}, tmp_path / "pytorch_model.bin")
    trained = load_tokenizer(tmp_path, image_size=16)
    np.testing.assert_array_equal(
        trained.params["tokenizer"]["quantizer"]["codebook"], tensors["quantize.embedding.weight"]
    )
