"""`synth2 export` to a file, and what stages make of an exported folder, on really trained runs."""

import json
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from PIL import Image
from safetensors.numpy import load_file

import synth2_jax
from synth2_jax import config as config_lib
from synth2_jax.data.images import encode_png
from synth2_jax.interop.tensor_files import open_safetensors, safetensors_header
from synth2_jax.loading.trained import load_trained
from synth2_jax.models.vlm import VLM
from synth2_jax.models.vq_tokenizer import VQTokenizer, normalized
from synth2_jax.sampling.captions import make_caption
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.vocabulary import Vocabulary
from synth2_jax.training.tasks import VLMTask
from synth2_jax.training.train_state import flatten, unflatten

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def export(folder, output, *options):
    return ["synth2", "export", str(folder), f"--output={output}", *options]


@pytest.fixture(scope="module")
def vlm(chain):
    return load_trained(str(chain.path("vlm_real")), "vlm")


def test_the_way_there_and_back(chain, vlm, tmp_path):
    file = tmp_path / "more" / "vlm.safetensors"
    chain.run(export(chain.path("vlm_real"), file))
    tensors, metadata = open_safetensors(file), safetensors_header(file)["__metadata__"]
    expected = {name.replace("/", "."): array for name, array in flatten(vlm.params).items()}
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype
    assert json.loads(metadata["config"]) == vlm.config
    assert json.loads(metadata["fingerprints"]) == vlm.built_on
    assert (metadata["model_name"], metadata["step"]) == ("vlm", str(vlm.step))
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with safetensors.safe_open(file, framework="numpy") as opened:  # others read it too
        latents = opened.get_tensor("vlm.resampler.latents")
        assert opened.metadata()["model_name"] == "vlm"
    np.testing.assert_array_equal(latents, vlm.params["vlm"]["resampler"]["latents"])


def test_a_part_in_another_dtype(chain, vlm, tmp_path):
    file = tmp_path / "resampler.safetensors"
    options = ("--part=vlm/resampler", "--dtype=bfloat16")
    chain.run(export(chain.path("vlm_real", "checkpoints", "6"), file, *options))
    tensors = open_safetensors(file)
    expected = flatten({"vlm": {"resampler": vlm.params["vlm"]["resampler"]}})
    assert tensors.keys() == {name.replace("/", ".") for name in expected}
    for name, array in expected.items():
        found = tensors[name.replace("/", ".")]
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, array.astype(ml_dtypes.bfloat16))


def test_mistakes(chain, tmp_path, mistake):
    run, file = chain.path("vlm_real"), tmp_path / "x.safetensors"
    for option, told in (
        ("--part=vlm/resamplr", "the model has no such part; did you mean 'vlm/resampler'?"),
        ("--dtype=bfloat61", "--dtype: unknown dtype 'bfloat61'; did you mean 'bfloat16'?"),
        ("--license=mit", f"--license needs --output to be a folder (found {file})"),
    ):
        assert told in mistake(export(run, file, option))
    assert "expected checkpoint steps" in mistake(export(tmp_path, file))
    assert list(tmp_path.iterdir()) == []
    file.write_text("mine")
    line = mistake(export(run, file))
    assert line.endswith("x.safetensors: already exists. --overwrite replaces it")
    assert file.read_text() == "mine"
    chain.run(export(run, file, "--overwrite=true"))
    assert open_safetensors(file)


@pytest.fixture(scope="module")
def exported(chain, tmp_path_factory):
    """A folder with the exports of the chain's models, by their runs' names."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("tokenizer", "language_model", "vlm_real"):
        chain.run(export(chain.path(name), folder / name))
    sampler = [a for a in chain.synthesis("w") if "config=" in a or "steps" in a or "scale" in a]
    chain.run(export(chain.path("generator"), folder / "generator", *sampler))
    return folder


def test_a_run_captions_and_generates_as_its_export_does(chain, exported):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    decode = TextDecodeConfig(max_length=8)
    paths = (chain.path("vlm_real"), exported / "vlm_real")
    one, other = (synth2_jax.load_vlm(path, batch_size=4, decode=decode) for path in paths)
    assert one.caption(images) == other.caption(images)

    sampler = ParallelDecodeConfig(num_steps=2, choice_temperature=1.0, sample_temperature=0.5)
    settings = {"sampler": sampler, "guidance": GuidanceConfig(scale=1.5)}
    one = synth2_jax.load_generator(chain.path("generator"), batch_size=4, **settings)
    other = synth2_jax.load_generator(exported / "generator", batch_size=4)  # has the settings
    captions = ["a red circle", "two blue stars", "a square"] * 2
    np.testing.assert_array_equal(one.generate(captions).tokens, other.generate(captions).tokens)


def test_stages_take_an_export_for_a_run(chain, exported, tmp_path):
    # The tokenizer stays as it is in another dtype, so that the pairs are still its own.
    chain.run(export(chain.path("vlm_real"), tmp_path / "rounded", "--dtype=bfloat16"))
    chain.run(chain.evaluation(tmp_path / "of_rounded", vlm=tmp_path / "rounded"))
    chain.run(chain.evaluation(tmp_path / "export", vlm=exported / "vlm_real"))
    chain.run(chain.evaluation(tmp_path / "run"))
    export_of, run_of = (tmp_path / name / "captions.jsonl" for name in ("export", "run"))
    assert export_of.read_text() == run_of.read_text()
    chain.run(chain.synthesis(tmp_path / "pairs", generator=exported / "generator"))
    assert chain.shards(tmp_path, "pairs") == chain.shards("pairs", "synthetic") != {}


def test_models_are_trained_on_top_of_exports(chain, exported, vlm, tmp_path):
    pretrained = {
        "pretrained__tokenizer": exported / "tokenizer",
        "pretrained__language_model": exported / "language_model",
    }
    chain.run(chain.training("vlm", tmp_path, **pretrained, train__steps=1))
    assert load_trained(str(tmp_path), "vlm").built_on == vlm.built_on


@pytest.mark.parametrize("name", ["vlm_real", "generator"])
def test_the_example_runs_without_tensorflow(exported, tmp_path, name):
    example = exported / name / "load_example.py"
    assert len(example.read_text().splitlines()) <= 30
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    arguments = ["0.png", "1.png"] if name == "vlm_real" else ["a red circle", "a star"]
    if name == "vlm_real":
        for file, image in zip(arguments, images, strict=True):
            (tmp_path / file).write_bytes(encode_png(image))
    (tmp_path / "tensorflow.py").write_text("raise ImportError('there is none')")
    program = [sys.executable, str(example), *arguments]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    if name == "vlm_real":
        captions = synth2_jax.load_vlm(exported / name).caption(images)
        expected = [f"{n}.png: {caption}" for n, caption in enumerate(captions)]
        assert done.stdout.splitlines() == expected
        return
    assert done.stdout.splitlines()[1:] == ["0.png: a red circle", "1.png: a star"]
    images = synth2_jax.load_generator(exported / name).generate(arguments).images
    for number, pixels in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{number}.png")), pixels)


def test_the_files_alone_are_enough(exported):
    """What another program would do: safetensors, config.json and the modules, and nothing else."""
    folder = exported / "vlm_real"
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    params = unflatten({name.replace(".", "/"): array for name, array in tensors.items()})
    task = config_lib.build(VLMTask, config["model"])
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    tokenizer = VQTokenizer(task.tokenizer).bind({"params": params["tokenizer"]})
    embeddings = tokenizer.embed(tokenizer.encode(normalized(images)))
    vocabulary = Vocabulary(str(folder / "vocabulary.model"))
    prompt = vocabulary.encode(config["data"]["prompt"])
    decode = TextDecodeConfig("greedy", max_length=6)
    ids_BT, _ = jax.jit(make_caption(VLM(task.vlm), prompt, decode))(params["vlm"], embeddings)
    vlm = synth2_jax.load_vlm(folder, batch_size=2, decode=decode)
    assert vlm.caption(images) == [vocabulary.decode(ids) for ids in ids_BT.tolist()]


def test_on_a_mesh_each_device_holds_its_part(exported):
    program = """
import sys
import jax, numpy as np
from synth2_jax import sharding
from synth2_jax.loading.trained import load_trained
from synth2_jax.training.train_state import flatten, params_layout
mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
whole, split = (load_trained(sys.argv[1], "vlm", mesh=m) for m in (None, mesh))
layout = flatten(params_layout(split.objective, mesh))
parts = 0
for path, array in flatten(split.params).items():
    assert array.sharding == layout[path].sharding
    np.testing.assert_array_equal(np.asarray(array), flatten(whole.params)[path])
    parts += array.addressable_shards[0].data.shape != array.shape
assert parts > 10 and len(jax.devices()) == 8
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-c", program, str(exported / "vlm_real")]
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
