"""`synth2 export` to a file, and what stages make of an exported folder, on really trained runs."""

import json
import os
import pathlib
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
from synth2_jax import main
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

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "scenes"

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def export(folder, output, *options):
    return ["synth2", "export", str(folder), f"--output={output}", *options]


@pytest.fixture(scope="module")
def vlm(chain):
    return load_trained(str(chain.path("vlm_real")), "vlm")


def test_the_way_there_and_back(chain, vlm, tmp_path):
    file = tmp_path / "more" / "vlm.safetensors"
    assert main.main(export(chain.path("vlm_real"), file)) == 0
    tensors, metadata = open_safetensors(file), safetensors_header(file)["__metadata__"]
    expected = flatten(vlm.params)
    assert tensors.keys() == {name.replace("/", ".") for name in expected}
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name.replace("/", ".")], array)
        assert tensors[name.replace("/", ".")].dtype == array.dtype
    assert json.loads(metadata["config"]) == vlm.config
    assert json.loads(metadata["fingerprints"]) == vlm.built_on
    assert (metadata["model_name"], metadata["step"]) == ("vlm", str(vlm.step))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_others_read_it_too(chain, vlm, tmp_path):
    file = tmp_path / "vlm.safetensors"
    assert main.main(export(chain.path("vlm_real"), file)) == 0
    with safetensors.safe_open(file, framework="numpy") as opened:
        latents = opened.get_tensor("vlm.resampler.latents")
        assert opened.metadata()["model_name"] == "vlm"
    np.testing.assert_array_equal(latents, vlm.params["vlm"]["resampler"]["latents"])


def test_a_part_in_another_dtype(chain, vlm, tmp_path):
    file = tmp_path / "resampler.safetensors"
    options = ("--part=vlm/resampler", "--dtype=bfloat16")
    assert main.main(export(chain.path("vlm_real", "checkpoints", "6"), file, *options)) == 0
    tensors = open_safetensors(file)
    expected = flatten({"vlm": {"resampler": vlm.params["vlm"]["resampler"]}})
    assert tensors.keys() == {name.replace("/", ".") for name in expected}
    for name, array in expected.items():
        found = tensors[name.replace("/", ".")]
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, array.astype(ml_dtypes.bfloat16))


def test_mistakes(chain, tmp_path, mistake):
    run, file = chain.path("vlm_real"), tmp_path / "x.safetensors"
    line = mistake(export(run, file, "--part=vlm/resamplr"))
    assert "--part=vlm/resamplr: the model has no such part; did you mean 'vlm/resampler'?" in line
    line = mistake(export(run, file, "--dtype=bfloat61"))
    assert "--dtype: unknown dtype 'bfloat61'; did you mean 'bfloat16'?" in line
    line = mistake(export(run, file, "--license=mit"))
    assert f"--license needs --output to be a folder (found {file})" in line
    assert "expected checkpoint steps" in mistake(export(tmp_path, file))
    assert list(tmp_path.iterdir()) == []

    file.write_text("mine")
    line = mistake(export(run, file))
    assert line.endswith("x.safetensors: already exists. --overwrite replaces it")
    assert file.read_text() == "mine"
    assert main.main(export(run, file, "--overwrite=true")) == 0
    assert open_safetensors(file)


@pytest.fixture(scope="module")
def exported(chain, tmp_path_factory):
    """A folder with the exports of the chain's models, by their runs' names."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("tokenizer", "language_model", "vlm_real"):
        assert main.main(export(chain.path(name), folder / name)) == 0
    sampler = ("--config.sampler.num_steps=2", "--config.guidance.scale=1.5")
    config = f"--config={CONFIGS / 'synthesize.py'}"
    options = (config, *sampler)
    assert main.main(export(chain.path("generator"), folder / "generator", *options)) == 0
    return folder


def test_a_run_captions_as_its_export_does(chain, exported, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    decode = TextDecodeConfig(max_length=8)
    paths = (chain.path("vlm_real"), exported / "vlm_real")
    one, other = (synth2_jax.load_vlm(path, batch_size=4, decode=decode) for path in paths)
    assert one.caption(images) == other.caption(images)


def test_a_run_generates_as_its_export_does(chain, exported):
    settings = {
        "sampler": ParallelDecodeConfig(
            num_steps=2, choice_temperature=1.0, sample_temperature=0.5
        ),
        "guidance": GuidanceConfig(scale=1.5),
    }
    one = synth2_jax.load_generator(chain.path("generator"), batch_size=4, **settings)
    other = synth2_jax.load_generator(exported / "generator", batch_size=4)  # has the settings
    captions = ["a red circle", "two blue stars", "a square"] * 2
    np.testing.assert_array_equal(one.generate(captions).tokens, other.generate(captions).tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_take_an_export_for_a_run(chain, exported, tmp_path, dtype):
    vlm = exported / "vlm_real"
    if dtype == "bfloat16":  # the tokenizer stays as it is, so that the pairs are still its own
        vlm = tmp_path / "rounded"
        assert main.main(export(chain.path("vlm_real"), vlm, "--dtype=bfloat16")) == 0
    chain.run(chain.evaluation(tmp_path / "export", vlm=vlm))
    if dtype == "float32":
        chain.run(chain.evaluation(tmp_path / "run"))
        export_of, run_of = (tmp_path / name / "captions.jsonl" for name in ("export", "run"))
        assert export_of.read_text() == run_of.read_text()


def test_pairs_of_an_export_are_those_of_the_run(chain, exported, tmp_path):
    chain.run(chain.synthesis(tmp_path, generator=exported / "generator"))
    shards = sorted(tmp_path.glob("*.tfrecord*"))
    assert shards
    for shard in shards:
        assert shard.read_bytes() == chain.path("pairs", "synthetic", shard.name).read_bytes()


def test_models_are_trained_on_top_of_exports(chain, exported, tmp_path):
    pretrained = {
        "pretrained__tokenizer": exported / "tokenizer",
        "pretrained__language_model": exported / "language_model",
    }
    chain.run(chain.training("vlm", tmp_path, **pretrained, train__steps=1))
    found = load_trained(str(tmp_path), "vlm")
    assert found.built_on == load_trained(str(chain.path("vlm_real")), "vlm").built_on


def test_the_example_captions_a_picture(chain, exported, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(encode_png(image))
    example = exported / "vlm_real" / "load_example.py"
    assert len(example.read_text().splitlines()) <= 30
    done = run_example(example, "0.png", "1.png", cwd=tmp_path)
    captions = synth2_jax.load_vlm(exported / "vlm_real").caption(images)
    assert done.splitlines() == [f"{n}.png: {caption}" for n, caption in enumerate(captions)]


def test_the_example_draws_captions(exported, tmp_path):
    example = exported / "generator" / "load_example.py"
    assert len(example.read_text().splitlines()) <= 30
    done = run_example(example, "a red circle", "a star", cwd=tmp_path)
    assert done.splitlines()[1:] == ["0.png: a red circle", "1.png: a star"]
    generator = synth2_jax.load_generator(exported / "generator")
    images = generator.generate(["a red circle", "a star"]).images
    for number, pixels in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{number}.png")), pixels)


def run_example(example, *arguments, cwd):
    """Its output; no TensorFlow may be there for it."""
    (cwd / "tensorflow.py").write_text("raise ImportError('there is none')")
    program = [sys.executable, str(example), *arguments]
    env = {**os.environ, "PYTHONPATH": str(cwd)}
    done = subprocess.run(program, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    done = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
