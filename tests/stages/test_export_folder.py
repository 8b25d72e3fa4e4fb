"""An exported folder: what is in it, what comes back, and what is said of a damaged one."""

import dataclasses
import errno
import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest

from synth2_jax import config as config_lib
from synth2_jax import load_vlm, main
from synth2_jax.files import temporary_name
from synth2_jax.interop.safetensors_file import write_tensors
from synth2_jax.interop.tensor_files import open_safetensors
from synth2_jax.loading import export_parameters
from synth2_jax.loading.trained import load_trained
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.stages import export as stage
from synth2_jax.testing.untrained_runs import MODELS, STEP, write_untrained_run
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.vocabulary import BUILT_IN, load_vocabulary
from synth2_jax.training.train_state import flatten

OTHERS = [name for name in MODELS if name != "vlm"]
FILES = {"README.md", "config.json", "model.safetensors", "training.json"}
SAMPLING = "import ml_collections\ndef get_config(): return ml_collections.ConfigDict(%r)\n"


def argv(run, output, *options):
    return ["synth2", "export", str(run), f"--output={output}", *options]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    for name in MODELS:
        write_untrained_run(folder / name, name)
    return folder


@pytest.fixture
def export(runs, tmp_path):
    """export(name, *options) -> the folder that the run was exported to."""
    sampling = tmp_path / "sampling.py"
    sampling.write_text(SAMPLING % {"sampler": {"num_steps": 2}})

    def run(name, *options, folder="out"):
        output = tmp_path / folder
        options = (*options, f"--config={sampling}") if name == "generator" else options
        assert main.main(argv(runs / name, output, *options)) == 0
        return output

    return run


@pytest.mark.parametrize(
    "name", ["vlm", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_what_comes_back_is_what_was_trained(runs, export, name):
    folder = export(name)
    expected, found = load_trained(runs / name, name), load_trained(folder, name)
    before, after = flatten(expected.params), flatten(found.params)
    assert after.keys() == before.keys()
    for path, array in after.items():
        np.testing.assert_array_equal(array, before[path])
        assert array.dtype == before[path].dtype and isinstance(array, np.ndarray)
    for part in expected.params:
        assert found.fingerprint(part) == expected.fingerprint(part)
    assert found.objective.task == expected.objective.task
    assert (found.step, found.built_on) == (STEP, expected.built_on)
    assert found.path == str(folder)
    texts = set() if name == "tokenizer" else {"vocabulary.model"}
    examples = {"load_example.py"} if name in ("vlm", "generator") else set()
    assert {file.name for file in folder.iterdir()} == FILES | texts | examples
    assert not list(folder.parent.glob(".*"))
    # Its user finds all in the folder: defaults are written out, settings kept.
    description = json.loads((folder / "config.json").read_text())
    assert str(runs) not in str(description)
    if texts:
        assert (folder / "vocabulary.model").read_bytes() == BUILT_IN["scenes"].read_bytes()
        vocabulary = str(folder / "vocabulary.model")
        data = {"vocabulary": vocabulary, "prompt": "Output:", "text_length": 12}
        assert found.config["data"] == data
    if name == "generator":
        sampler, guidance = description["sampler"], description["guidance"]
        assert (sampler["num_steps"], sampler["schedule"]) == (2, "cosine")
        assert guidance["scale"] == 3.0
        assert description["model"]["generator"]["maskgit"]["tied_head"] is True


def test_inspect_tells_what_it_is(vlm, capfd, mistake):
    told = json.loads((vlm / "config.json").read_text())
    assert main.main(["synth2", "inspect", str(vlm)]) == 0
    text = capfd.readouterr().out
    assert text.startswith(f"exported vlm, step {STEP} of the run vlm, in {vlm}\n")
    (row,) = [line for line in text.splitlines() if line.startswith("vlm.resampler.latents ")]
    tensor = open_safetensors(vlm)["vlm.resampler.latents"]
    assert row.split()[1:3] == ["float32", "x".join(map(str, tensor.shape))]
    for part, fingerprint in told["fingerprints"].items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"{part} ")]
        assert row.endswith(f"fingerprint {fingerprint}") and " parameters  " in row
    for name, fingerprint in told["built_on"].items():
        assert f"trained on top of {name} {fingerprint}\n" in text
    assert '"method": "beam"' in text and "as they were exported" not in text
    assert main.main(["synth2", "inspect", str(vlm), "--fingerprints=true"]) == 0
    assert f"{len(told['sha256'])} files, all as they were exported\n" in capfd.readouterr().out
    damaged = bytearray((vlm / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (vlm / "model.safetensors").write_bytes(damaged)
    line = mistake(["synth2", "inspect", str(vlm), "--fingerprints=true"])
    assert line == f"{vlm}: changed since the export, by their sha256: model.safetensors"


def test_a_run_that_a_part_was_exported_into_is_still_a_run(runs, tmp_path):
    run = shutil.copytree(runs / "vlm", tmp_path / "run")
    (run / "config.json").write_text("{}")  # as `synth2 train` leaves one
    output = run / "resampler.safetensors"
    assert main.main(argv(run, output, "--part=vlm/resampler")) == 0
    assert load_trained(run, "vlm").step == STEP


def test_a_tokenizers_settings_are_in_every_fingerprint_of_it(export, runs, capsys):
    """In that of the run, of its export and of what inspect says; old exports open without."""
    section = {**MODELS["tokenizer"]["tokenizer"], "code_choice": "dot_product"}
    run = runs / "dot_product"
    write_untrained_run(run, "tokenizer", config={"model": {"tokenizer": section}})
    expected = load_trained(run, "tokenizer").fingerprint("tokenizer")
    assert expected.endswith("+code_choice=dot_product+norm_groups=2")
    folder = export("dot_product")
    description = json.loads((folder / "config.json").read_text())
    assert description["fingerprints"]["tokenizer"] == expected
    assert main.main(["synth2", "inspect", str(run), "--fingerprints=true"]) == 0
    assert expected in capsys.readouterr().out
    description["fingerprints"]["tokenizer"] = expected.partition("+")[0]
    (folder / "config.json").write_text(json.dumps(description))
    assert load_trained(folder, "tokenizer").fingerprint("tokenizer") == expected


def test_captions_are_by_default_as_long_as_those_of_training(vlm):
    held = json.loads((vlm / "config.json").read_text())
    prompt = load_vocabulary(str(vlm / "vocabulary.model")).encode(held["data"]["prompt"])
    longest = held["data"]["text_length"] - len(prompt)
    assert held["decode"] == dataclasses.asdict(TextDecodeConfig(max_length=longest))
    assert f'"max_length": {longest}' in (vlm / "README.md").read_text()
    assert load_vlm(vlm).decode.max_length == longest


@pytest.mark.slow
@pytest.mark.parametrize("decode", [{"method": "greedy"}, {"max_length": 5}])
def test_a_setting_for_captions_is_kept(export, tmp_path, decode):
    (tmp_path / "decode.py").write_text(SAMPLING % {"decode": decode})
    folder = export("vlm", f"--config={tmp_path / 'decode.py'}")
    held = json.loads((folder / "config.json").read_text())["decode"]
    assert held == {**held, **decode} and held["max_length"] < 12


def test_the_run_is_kept_for_the_record_and_can_be_trained_again(vlm, monkeypatch):
    card = (vlm / "README.md").read_text()
    program = card.split("<<'END'\n")[1].split("END\n")[0]
    (vlm / "training.py").write_text(program)
    monkeypatch.chdir(vlm)
    config = config_lib.load_config("training.py")
    assert json.loads(config_lib.to_json(config)) == json.loads((vlm / "training.json").read_text())
    assert config.model_name == "vlm" and config.data.source == "fake"


@pytest.mark.slow
def test_rounded_parameters_load_and_the_tokenizer_stays_as_it_is(runs, export):
    folder = export("vlm", "--dtype=bfloat16")
    expected, found = load_trained(runs / "vlm", "vlm"), load_trained(folder, "vlm")
    for path, array in flatten(found.params).items():
        wanted = flatten(expected.params)[path]
        if not path.startswith("tokenizer/"):
            wanted = wanted.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(array, wanted)
        assert array.dtype == np.float32
    assert found.fingerprint("tokenizer") == expected.fingerprint("tokenizer")
    assert found.fingerprint("vlm") != expected.fingerprint("vlm")
    dtypes = {tensor.dtype.name for tensor in open_safetensors(folder).values()}
    assert dtypes == {"bfloat16", "float32"}


@pytest.mark.slow
def test_a_large_model_is_several_files(runs, export, monkeypatch):
    monkeypatch.setattr(stage, "MIB", 1000)  # the models here have some 50 KB
    folder = export("vlm", "--file-mib=20")
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    found, expected = load_trained(folder, "vlm"), load_trained(runs / "vlm", "vlm")
    assert found.fingerprint("vlm") == expected.fingerprint("vlm")
    (folder / files[1]).unlink()
    with user_error(rf"1 of the \d+ files .* not in its folder: {files[1]}"):
        load_trained(folder, "vlm")


# --- mistakes ---


def test_mistakes_of_the_call(runs, export, tmp_path, mistake):
    new = tmp_path / "new"
    (tmp_path / "c.py").write_text(SAMPLING % {"smapler": {}})
    given = f"--config={tmp_path / 'c.py'}"
    for name, option, told in (
        ("vlm", "--part=vlm", "--part=vlm needs --output=FILE.safetensors"),
        ("tokenizer", "--dtype=bfloat16", "--dtype: a tokenizer stays as it is"),
        ("generator", "--overwrite", "sampling steps: found 12, expected 1 to 4"),
        ("generator", given, "found ['smapler'], expected a section"),
        ("tokenizer", given, "samples: there is none"),
    ):
        assert told in mistake(argv(runs / name, new, option))
    assert "--output: not given. Give a folder, or FILE" in mistake(argv(runs / "vlm", ""))
    assert not new.exists() and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_what_is_there_is_replaced_only_when_it_is_an_export(runs, vlm, tmp_path, mistake):
    before = contents(vlm)
    command = argv(runs / "language_model", vlm)
    assert "already exists. --overwrite replaces it" in mistake(command)
    assert contents(vlm) == before
    assert main.main([*command, "--overwrite=true"]) == 0
    assert load_trained(vlm, "language_model") and not (vlm / "load_example.py").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["out", "a_name_of_more_than_forty_characters_as_users_have_them"])
def test_what_a_killed_export_left_is_removed_and_what_it_replaced_is_put_back(
    runs, vlm, tmp_path, mistake, name
):
    before = contents(vlm)
    target = vlm.rename(tmp_path / name)
    left = temporary_name(target)
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "model.safetensors").write_bytes(bytes(9))
    temporary_name(target).touch()  # of a file
    others = [temporary_name(tmp_path / f"{name}_too"), tmp_path / f".{name}.tmp"]
    for other in others:
        other.touch()
    target.rename(left.with_suffix(".before"))  # as it is between the two renames
    assert "already exists. --overwrite replaces it" in mistake(argv(runs / "vlm", target))
    assert contents(target) == before
    assert sorted(tmp_path.glob(".*")) == sorted(others)


def test_what_cannot_be_replaced_or_removed_is_one_line(runs, vlm, tmp_path, mistake, monkeypatch):
    command = argv(runs / "vlm", vlm, "--overwrite=true")
    with monkeypatch.context() as patched:  # root may write to all
        patched.setattr(stage.os, "access", lambda path, mode: False)
        assert f"--output={vlm}: is there and read-only" in mistake(command)
    assert not list(tmp_path.glob(".*"))

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    left = temporary_name(vlm)
    left.mkdir()
    monkeypatch.setattr(shutil, "rmtree", refuse)
    told = "left by a command that was killed, and cannot be removed (Permission denied)"
    assert f"{left}: {told}" in mistake(command)


def test_a_file_is_read_back(runs, tmp_path, mistake, monkeypatch):
    def damaging(path, *arguments, **named):
        write_tensors(path, *arguments, **named)
        held = bytearray(path.read_bytes())
        held[-1] ^= 1
        path.write_bytes(held)

    command = argv(runs / "tokenizer", tmp_path / "a.safetensors", "--overwrite=true")
    assert main.main(command) == 0
    monkeypatch.setattr(export_parameters, "write_tensors", damaging)
    assert "a.safetensors: does not read back as it was written" in mistake(command)


@pytest.mark.parametrize("with_export", [True, False])
def test_work_of_the_users_is_not_replaced(runs, vlm, mistake, with_export):
    if with_export:
        (vlm / "thesis.txt").write_text("years of work")
    else:  # but another program's model
        (vlm / "config.json").write_text('{"model_type": "bert"}')
    before = contents(vlm)
    for options in ([], ["--overwrite=true"]):  # nothing suggests what is then refused
        line = mistake(argv(runs / "vlm", vlm, *options))
        assert "already exists and is not only an export, so it is kept" in line
    assert contents(vlm) == before


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(runs, vlm, tmp_path, mistake, monkeypatch):
    before = contents(vlm)

    def full(folder, shapes, arrays, file_bytes):
        (folder / "model.safetensors").write_bytes(bytes(100))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage, "write_folder", full)
    for output in (vlm, tmp_path / "new"):
        line = mistake(argv(runs / "vlm", output, "--overwrite=true"))
        assert line == f"{output}: No space left on device. Make room and give the same command."
    assert contents(vlm) == before
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


# --- other people's tools ---


@pytest.mark.interop
def test_hugging_faces_tools_read_it(runs, export, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(stage, "MIB", 1000)
    folder = export("vlm", "--file-mib=20", "--license=apache-2.0", "--dtype=bfloat16")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    expected = open_safetensors(folder)
    assert index["weight_map"].keys() == expected.keys()
    total = 0
    for file in set(index["weight_map"].values()):
        for name, tensor in huggingface_hub.load_state_dict_from_file(folder / file).items():
            assert index["weight_map"][name] == file
            np.testing.assert_array_equal(tensor.float().numpy(), expected[name][...])
            total += tensor.nbytes
    assert total == index["metadata"]["total_size"]
    card = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert (card.license, card.pipeline_tag) == ("apache-2.0", "image-to-text")
    assert card.library_name == "synth2_jax"
