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
from synth2_jax.errors import UserError
from synth2_jax.files import temporary_name
from synth2_jax.interop.safetensors_file import write_tensors
from synth2_jax.interop.tensor_files import open_safetensors
from synth2_jax.loading.trained import load_trained
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.stages import export as stage
from synth2_jax.testing.untrained_runs import MODELS, STEP, write_untrained_run
from synth2_jax.text.vocabulary import BUILT_IN, load_vocabulary
from synth2_jax.training.train_state import flatten

OTHERS = [name for name in MODELS if name != "vlm"]
FILES = {"README.md", "config.json", "model.safetensors", "training.json"}
SAMPLING = "import ml_collections\ndef get_config(): return ml_collections.ConfigDict(%r)\n"


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
        argv = ["synth2", "export", str(runs / name), f"--output={output}", *options]
        assert main.main(argv) == 0
        return output

    return run


@pytest.fixture(scope="module")
def exported_vlm(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "vlm"
    assert main.main(["synth2", "export", str(runs / "vlm"), f"--output={folder}"]) == 0
    return folder


@pytest.fixture
def vlm(exported_vlm, tmp_path):
    """A copy, for those who damage it."""
    return shutil.copytree(exported_vlm, tmp_path / "out")


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
    texts = {} if name == "tokenizer" else {"vocabulary.model"}
    examples = {"load_example.py"} if name in ("vlm", "generator") else set()
    assert {file.name for file in folder.iterdir()} == FILES | set(texts) | examples
    assert not list(folder.parent.glob(".*"))


def test_a_user_of_the_model_finds_all_in_the_folder(runs, vlm, tmp_path):
    folder = vlm.rename(tmp_path / "moved")
    data = load_trained(folder, "vlm").config["data"]
    assert data == {
        "vocabulary": str(folder / "vocabulary.model"),
        "prompt": "Output:",
        "text_length": 12,
    }
    assert (folder / "vocabulary.model").read_bytes() == BUILT_IN["scenes"].read_bytes()
    assert str(runs) not in (folder / "config.json").read_text()


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
    argv = ["synth2", "export", str(run), f"--output={output}", "--part=vlm/resampler"]
    assert main.main(argv) == 0
    assert load_trained(run, "vlm").step == STEP


@pytest.mark.slow
def test_defaults_are_written_out_and_settings_kept(export):
    description = json.loads((export("generator") / "config.json").read_text())
    assert description["sampler"]["num_steps"] == 2
    assert description["sampler"]["schedule"] == "cosine"
    assert description["guidance"]["scale"] == 3.0
    assert description["model"]["generator"]["maskgit"]["tied_head"] is True


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
def test_a_setting_for_captions_is_kept(export, tmp_path):
    for decode in ({"method": "greedy"}, {"max_length": 5}):
        (tmp_path / "decode.py").write_text(SAMPLING % {"decode": decode})
        folder = export("vlm", f"--config={tmp_path / 'decode.py'}", folder="new")
        held = json.loads((folder / "config.json").read_text())["decode"]
        assert held == {**held, **decode} and held["max_length"] < 12
        shutil.rmtree(folder)


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
    with pytest.raises(UserError, match=rf"1 of the \d+ files .* not beside it: {files[1]}"):
        load_trained(folder, "vlm")


# --- damage ---


def test_a_changed_byte_is_named(vlm):
    file = vlm / "model.safetensors"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1  # the last tensor is of the part vlm
    file.write_bytes(contents)
    message = "vlm has fingerprint .* says .*; changed since the export: model.safetensors"
    with pytest.raises(UserError, match=message):
        load_trained(vlm, "vlm")


def test_another_vocabulary_is_named(vlm):
    with open(vlm / "vocabulary.model", "ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match="vocabulary.model: has changed since the export"):
        load_trained(vlm, "vlm")


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("vlm/language_model/num_layers", 10**9, "num_layers: found 1000000000, expected at most"),
        ("tokenizer/num_res_blocks", 10**9, "num_res_blocks: found 1000000000, expected at most"),
        ("text_length", -1, "text_length: found -1, expected at least 1"),
        ("vlm", [1], "vlm: "),
        ("tokenizer/channel_multipliers", {"a": 1}, "channel_multipliers: "),
    ],
)
def test_a_config_whose_values_are_damaged_is_one_line(vlm, path, value, told):
    file = vlm / "config.json"
    description = json.loads(file.read_text())
    *sections, key = path.split("/")
    section = description["model"]
    for name in sections:
        section = section[name]
    section[key] = value
    file.write_text(json.dumps(description))
    with pytest.raises(UserError, match=told) as caught:
        load_trained(vlm, "vlm")
    assert "\n" not in str(caught.value)
    file.write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match="config.json"):
        load_trained(vlm, "vlm")


def test_a_changed_model_that_fits_the_parameters_is_named(vlm):
    file = vlm / "config.json"
    whole = file.read_text()
    for section, key, value in (
        ("model/tokenizer", "pixel_range", [0.0, 1.0]),
        ("model/tokenizer", "code_choice", "dot_product"),
        ("data", "prompt", "another"),
    ):
        description = json.loads(whole)
        place = description
        for name in section.split("/"):
            place = place[name]
        place[key] = value
        file.write_text(json.dumps(description))
        with pytest.raises(UserError, match="model or data has changed since the export"):
            load_trained(vlm, "vlm")
    description = json.loads(whole)
    description["decode"]["max_length"] = 3  # how it captions is the user's to change
    file.write_text(json.dumps(description))
    assert load_vlm(vlm).decode.max_length == 3


def test_tensors_that_do_not_fit_are_all_named(vlm):
    description = json.loads((vlm / "config.json").read_text())
    sizes = description["model"]["vlm"]["resampler"]
    sizes["num_latents"], sizes["mlp_dim"] = 3, 24
    (vlm / "config.json").write_text(json.dumps(description))
    with pytest.raises(UserError) as error:
        load_trained(vlm, "vlm")
    for name in ("latents [2, 16]", "mlp.up.kernel", "mlp.down.kernel"):
        assert name in str(error.value), str(error.value)
    assert "misshapen" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "found format 'other', expected 'synth2_jax model'"),
        ({"version": 2}, "found version 2, expected 1"),
        ({"fingerprints": None}, "fingerprints: found None, expected a dict"),
        ({"step": "3"}, "step: found '3', expected a int"),
        ({"sha256": {"../secret": ""}}, "not beside it: ../secret"),
        ({"model": {"tokenizr": {}}}, "config.json.model.tokenizr: unknown key; did you mean"),
        ({"model_name": "generator"}, "holds a generator, expected a vlm"),
    ],
)
def test_another_config_is_named(vlm, change, message):
    description = json.loads((vlm / "config.json").read_text())
    (vlm / "config.json").write_text(json.dumps({**description, **change}))
    with pytest.raises(UserError) as error:
        load_trained(vlm, "vlm")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_half_a_file_and_another_step_are_named(vlm):
    with pytest.raises(UserError, match="found step 3, expected step 4"):
        load_trained(vlm, "vlm", step=4)
    file = vlm / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="model.safetensors: cannot be read .*cut short"):
        load_trained(vlm, "vlm")


# --- mistakes ---


def test_mistakes_of_the_call(runs, export, tmp_path, mistake):
    def line(name, *options, output=tmp_path / "new"):
        return mistake(["synth2", "export", str(runs / name), f"--output={output}", *options])

    assert "--output: not given. Give a folder, or FILE" in line("vlm", output="")
    assert "--part=vlm needs --output=FILE.safetensors" in line("vlm", "--part=vlm")
    assert "--dtype: a tokenizer stays as it is" in line("tokenizer", "--dtype=bfloat16")
    assert "sampling steps: found 12, expected 1 to 4" in line("generator")
    (tmp_path / "c.py").write_text(SAMPLING % {"smapler": {}})
    given = f"--config={tmp_path / 'c.py'}"
    assert "found ['smapler'], expected a section" in line("generator", given)
    assert "samples: there is none" in line("tokenizer", given)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_what_is_there_is_replaced_only_when_it_is_an_export(runs, vlm, tmp_path, mistake):
    argv = ["synth2", "export", str(runs / "language_model"), f"--output={vlm}"]
    before = (vlm / "config.json").read_text()
    assert "already exists. --overwrite replaces it" in mistake(argv)
    assert (vlm / "config.json").read_text() == before
    assert main.main([*argv, "--overwrite=true"]) == 0
    assert load_trained(vlm, "language_model") and not (vlm / "load_example.py").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["out", "a_name_of_more_than_forty_characters_as_users_have_them"])
def test_what_a_killed_export_left_is_removed_and_what_it_replaced_is_put_back(
    runs, vlm, tmp_path, mistake, name
):
    held = (vlm / "config.json").read_bytes()
    target = vlm.rename(tmp_path / name)
    left = temporary_name(target)
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "model.safetensors").write_bytes(bytes(9))
    temporary_name(target).touch()  # of a file
    others = [temporary_name(tmp_path / f"{name}_too"), tmp_path / f".{name}.tmp"]
    for other in others:
        other.touch()
    target.rename(left.with_suffix(".before"))  # as it is between the two renames
    argv = ["synth2", "export", str(runs / "vlm"), f"--output={target}"]
    assert "already exists. --overwrite replaces it" in mistake(argv)
    assert (target / "config.json").read_bytes() == held
    assert sorted(tmp_path.glob(".*")) == sorted(others)


def test_what_cannot_be_replaced_or_removed_is_one_line(runs, vlm, tmp_path, mistake, monkeypatch):
    argv = ["synth2", "export", str(runs / "vlm"), "--overwrite=true"]
    with monkeypatch.context() as patched:  # root may write to all
        patched.setattr(stage.os, "access", lambda path, mode: False)
        line = mistake([*argv, f"--output={vlm}"])
    assert f"--output={vlm}: is there and read-only" in line and not list(tmp_path.glob(".*"))

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    left = temporary_name(vlm)
    left.mkdir()
    monkeypatch.setattr(stage.shutil, "rmtree", refuse)
    line = mistake([*argv, f"--output={vlm}"])
    assert f"{left}: left by a killed export, and cannot be removed (Permission denied)" in line


def test_a_file_is_read_back(runs, tmp_path, mistake, monkeypatch):
    def damaging(path, *arguments, **named):
        write_tensors(path, *arguments, **named)
        contents = bytearray(path.read_bytes())
        contents[-1] ^= 1
        path.write_bytes(contents)

    argv = ["synth2", "export", str(runs / "tokenizer"), f"--output={tmp_path / 'a.safetensors'}"]
    assert main.main(argv) == 0
    monkeypatch.setattr(stage, "write_tensors", damaging)
    assert "a.safetensors: does not read back as it was written" in mistake(
        [*argv, "--overwrite=true"]
    )


@pytest.mark.parametrize("with_export", [True, False])
def test_work_of_the_users_is_not_replaced(runs, vlm, mistake, with_export):
    (vlm / "thesis.txt").write_text("years of work")
    if not with_export:  # but another program's model
        (vlm / "config.json").write_text('{"model_type": "bert"}')
        (vlm / "thesis.txt").unlink()
    before = {file.name: file.read_bytes() for file in vlm.iterdir()}
    argv = ["synth2", "export", str(runs / "vlm"), f"--output={vlm}"]
    for overwrite in ([], ["--overwrite=true"]):  # nothing suggests what is then refused
        line = mistake(argv + overwrite)
        assert "already exists and is not only an export, so it is kept" in line
    assert {file.name: file.read_bytes() for file in vlm.iterdir()} == before


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(runs, vlm, tmp_path, mistake, monkeypatch):
    before = {file.name: file.read_bytes() for file in vlm.iterdir()}

    def full(vlm, shapes, arrays, file_bytes):
        (vlm / "model.safetensors").write_bytes(bytes(100))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage, "write_folder", full)
    argv = ["synth2", "export", str(runs / "vlm"), "--overwrite=true"]
    for name in ("out", "new"):
        line = mistake([*argv, f"--output={tmp_path / name}"])
        assert "No space left on device; nothing is left of it, make room" in line
    assert {file.name: file.read_bytes() for file in vlm.iterdir()} == before
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
