"""The command line: exit codes, one line for a mistake, and overrides of config keys."""

import errno
import gc
import io
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from synth2_jax import command_line, main
from synth2_jax import config as config_lib
from synth2_jax.command_line import STAGES

VLM = "--config=configs/scenes/vlm.py"
LANGUAGE_MODEL = "--config=configs/scenes/language_model.py:tiny"


def mistake(capfd, *arguments):
    """The one line on stderr of a command that ends with code 2."""
    assert main.main(["synth2", *arguments]) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("synth2: ") and printed.err.count("\n") == 1
    return printed.err.removeprefix("synth2: ").rstrip("\n")


def read(*arguments):
    """The config of a command line."""
    return main.read_config(command_line.parse(["synth2", *arguments, "--workdir=w"]))


# --- mistakes ---


def test_a_long_value_does_not_hide_what_to_do(capfd):
    line = mistake(capfd, "x" * 100_000)
    assert line.startswith("stage 'xxx") and " ... " in line and len(line) < 2100
    assert line.endswith("synthesize, tokenize, train")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["train", "--config=no.py", "--workdir=w"], "--config=no.py: no such file, expected"),
        (
            ["train", f"{VLM}:tinny", "--workdir=w"],
            "--config=FILE:tinny: unknown word 'tinny'; did you mean 'tiny'?",
        ),
        (
            ["evaluate", "--config=configs/scenes/evaluate.py:tiny", "--workdir=w"],
            "--config=configs/scenes/evaluate.py:tiny: configs/scenes/evaluate.py takes no",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.optimizer.lerning_rate=1"],
            "--config.optimizer.lerning_rate: unknown key; did you mean 'learning_rate'? one of: "
            "beta1, beta2, clip_norm,",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.optimzer.learning_rate=1"],
            "--config.optimzer: unknown key; did you mean 'optimizer'? one of: data, mesh,",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.model.vlm.resampler.num_latent=1"],
            "--config.model.vlm.resampler.num_latent: unknown key; did you mean 'num_latents'?",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.train.steps=1.5"],
            "--config.train.steps: found 1.5, expected int",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.model_name.x=1"],
            "--config.model_name: found 'vlm', which has no keys such as 'x'",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.train=1"],
            "--config.train: a section, expected one of its keys; it has checkpoint_every,",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.model.vlm.language_model.dtype=float23"],
            "--config.model.vlm.language_model.dtype: unknown dtype 'float23'; did you mean "
            "'float32'? one of: bfloat16, float32",
        ),
        (
            ["train", VLM, "--workdir=w"],
            "--config.pretrained.tokenizer: empty, expected a trained tokenizer or a third-party",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.pretrained.tokenizer=/no/where"],
            "--config.pretrained.tokenizer=/no/where: no such file or folder, expected a model",
        ),
        (
            ["train", LANGUAGE_MODEL, "--workdir=w", "--config.mesh.fsdp=0"],
            "--config.mesh.fsdp: found 0, expected at least 1, or -1 for the rest",
        ),
        (
            ["demo", "--config=configs/scenes/demo.py", "--workdir=w", "--config.vlm.trian=3"],
            "--config.vlm.trian: unknown key; did you mean 'train'?",
        ),
        (
            ["study", "--config=configs/scenes/study.py", "--workdir=w", "--config.study.seed=3"],
            "--config.study.seed: unknown key; did you mean 'seeds'? one of: arms, seeds",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.rates.real=abc"],
            "--config.data.rates.real: found 'abc', expected float or tuple",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.folders.more=3.5"],
            "--config.data.folders.more: found 3.5, expected str; quote a text: \"'3.5'\"",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.model.vlm.resampler.num_heads=0"],
            "--config.model.vlm.resampler.num_heads: found 0, expected at least 1",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.batch_size=0"],
            "--config.data.batch_size: found 0, expected at least 1",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.train.keep_best=1"],
            "--config.train.keep_best: found 1 with --config.train.best_metric='', expected both",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.model.vlm.cross_attention_every=3"],
            "--config.model.vlm.cross_attention_every: found 3, expected a divisor of "
            "--config.model.vlm.language_model.num_layers, 2",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.mesh.fsdp=-1"],
            "--config.mesh.fsdp: found -1, expected at least 1, as --config.mesh.data is -1",
        ),
        (
            ["filter", "--config=configs/scenes/filter.py", "--workdir=w"]
            + ["--config.folder=/no/pics"],
            "--config.folder=/no/pics: no manifest.json (no pairs here)",
        ),
        (
            ["evaluate", "--config=configs/scenes/evaluate.py", "--workdir=w"]
            + ["--config.vlm=/no/run"],
            "--config.vlm=/no/run: no such folder, expected the workdir of a training run",
        ),
        (
            ["tokenize", "--config=configs/scenes/tokenize.py", "--workdir=w"]
            + ["--config.tokenizer=/no/run"],
            "--config.tokenizer=/no/run: no such file or folder, expected a model",
        ),
        (
            ["synthesize", "--config=configs/scenes/synthesize.py", "--workdir=w"]
            + ["--config.generator="],
            "--config.generator: no path given, expected the workdir of a training run",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.validation.num_batches=0"],
            "--config.validation.num_batches: found 0, expected at least 1",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.validation.data.text_length=7"],
            "--config.validation.data.text_length: found 7, expected 26 as in --config.data",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.validation.captions.folder=f"]
            + ["--config.validation.captions.batch_size=0"],
            "--config.validation.captions.batch_size: found 0, expected at least 1",
        ),
        (
            ["captions", "--config=configs/scenes/captions.py", "--workdir=w"]
            + ["--config.batch_size=-1"],
            "--config.batch_size: found -1, expected at least 1",
        ),
        (
            ["synthesize", "--config=configs/scenes/synthesize.py", "--workdir=w"]
            + ["--config.batch_size=0"],
            "--config.batch_size: found 0, expected at least 1",
        ),
        (
            ["tokenize", "--config=configs/scenes/tokenize.py", "--workdir=w"]
            + ["--config.batch_size=0"],
            "--config.batch_size: found 0, expected at least 1",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.folders.real=gs://b/x"],
            "--config.data.folders.real: found gs://..., expected a path of this machine",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.pretrained.tokenizer=hf://b/x"],
            "--config.pretrained.tokenizer: found hf://..., expected a path of this machine",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.train.seed=100000000000000000000"],
            "--config.train.seed: found 100000000000000000000, expected a number of at most 64",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.train.seed=4294967296"],
            "--config.train.seed: found 4294967296, expected 0 to 4294967295",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.shuffle_buffer=1000000000000000"],
            "--config.data.shuffle_buffer: found 1000000000000000, expected at most 100000000 exam",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.train.steps={[1]:2}"],
            "--config.train.steps: found '{[1]:2}', expected int",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.rates={1:2}"],
            "--config.data.rates: found the key 1, expected a text",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.model.vlm.dtype={1:2}"]
            + ["--config.model.vlm.dtype=3"],
            "--config.model.vlm.dtype: a section, expected one of its keys; it has 1",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.pretrained.perceptual={'a':1}"],
            "--config.pretrained.perceptual: found {'a': 1}, expected str",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.num_epochs={1:2}"],
            "--config.data.num_epochs: found {1: 2}, expected int",
        ),
        (
            ["train", VLM, "--workdir=w", "--config.data.rates={'a.b':2}"],
            "--config.data.rates: ConfigDict does not accept dots in field names",
        ),
        (["inspect", "--workdir=/no/where"], "/no/where: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capfd, tmp_path, monkeypatch, arguments, text):
    root = pathlib.Path.cwd()
    arguments = [a.replace("=configs", f"={root}/configs") for a in arguments]
    monkeypatch.chdir(tmp_path)
    assert mistake(capfd, *arguments).replace(f"{root}/", "").startswith(text)
    assert list(tmp_path.iterdir()) == []  # refused before anything was written


@pytest.mark.parametrize("text", ["-" * 100_000 + "1", "-" * 3000 + "1", "[" * 100_000, "9" * 9999])
def test_a_literal_too_deep_or_long_to_read_is_a_text(capfd, text):
    line = mistake(capfd, "train", VLM, "--workdir=w", f"--config.train.steps={text}")
    assert line.startswith(f"--config.train.steps: found '{text[:9]}") and len(line) < 300
    assert line.endswith("..., expected int")


def test_a_text_may_look_like_a_number():
    arguments = ["--config.splits=2017", "--config.source.path=2014", "--config.tokenizer=7"]
    config = read("tokenize", "--config=configs/scenes/tokenize.py", *arguments)
    from synth2_jax.stages.tokenize import TokenizeConfig

    cfg = config_lib.build(TokenizeConfig, config)
    assert (cfg.splits, cfg.source.path, cfg.tokenizer) == (("2017",), "2014", "7")


@pytest.mark.parametrize("below", ["", "/deeper", "/much/deeper"])
def test_a_file_is_no_workdir(capfd, tmp_path, below):
    file = tmp_path / "notes.txt"
    file.touch()
    line = mistake(capfd, "train", LANGUAGE_MODEL, f"--workdir={file}{below}")
    assert line == f"--workdir={file}{below}: {file} is a file, expected a folder"


def test_a_broken_config_file_is_named_with_its_line(capfd, tmp_path):
    file = tmp_path / "broken.py"
    for text, expected in (
        ("import nothing_of_this_name\n", f"{file}, line 1: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0\n", f"{file}, line 2: ZeroDivisionError: division"),
        ("def get_config(:\n", f"{file}: SyntaxError"),
        ("X = 1\n", f"{file}: AttributeError"),
        ("def get_config():\n    return {}\n", f"{file}: get_config gave {{}}, expected a Config"),
    ):
        file.write_text(text)
        assert expected in mistake(capfd, "train", f"--config={file}", f"--workdir={tmp_path}")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (
            ["train", VLM, "--config.optimizer.lerning_rate=1"],
            "synth2: --config.optimizer.lerning_rate: unknown key; did you mean 'learning_rate'?",
        ),
        # TensorFlow is loaded before the mixture is looked for, and must keep silent.
        pytest.param(
            ["train", LANGUAGE_MODEL, "--config.data.mixture=scenes_txt"],
            "synth2: mixture 'scenes_txt': no task or mixture of this name; did you mean "
            "'scenes_text'? one of: scenes_images, scenes_text",
            marks=pytest.mark.slow,
        ),
        # The first batch is read by TensorFlow's kernels and its SentencePiece.
        pytest.param(
            [
                *("train", LANGUAGE_MODEL),
                *("--config.data.text_length=3", "--config.model.text_length=3"),
            ],
            "synth2: example 'text-018732': no token of its caption is left to learn",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_in_a_process_there_is_no_traceback_either(tmp_path, arguments, text):
    done = subprocess.run(
        [sys.executable, "-m", "synth2_jax.main", *arguments, f"--workdir={tmp_path}"],
        # As a user has it: the tests' own environment keeps TensorFlow silent.
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(text) and done.stderr.count("\n") == 1


def test_what_is_no_mistake_of_the_users_is_not_hidden(monkeypatch, tmp_path):
    def fail(config, workdir):
        raise RuntimeError("a defect")

    monkeypatch.setattr("synth2_jax.stages.report.run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main.main(["synth2", "report", f"--workdir={tmp_path}"])


def dangling(folder):
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "link").read_text()


def read_by_tensorflow(path):
    from synth2_jax.data.tensorflow_cpu import tf

    next(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def refuse(number, path):
    raise OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    "fail, line",
    [
        (dangling, "{}/link: is a link to {}/nowhere, which is not there. Repair or remove it"),
        (lambda folder: (folder / "no").read_text(), "{}/no: No such file or directory. Check"),
        (lambda folder: folder.read_text(), "{}: Is a directory. Check the path"),
        (lambda folder: (folder / ("x" * 300)).touch(), "...: File name too long. Choose a short"),
        (lambda folder: refuse(errno.EROFS, "/a/b"), "/a/b: Read-only file system. Choose a place"),
        (lambda folder: refuse(errno.EACCES, "/a/b"), "/a/b: Permission denied. Choose a place"),
        # A disk that is full when a file is written to is not named by the system.
        (
            lambda folder: pathlib.Path("/dev/full").write_text("x"),
            "No space left on device, though {}/w and /tmp have room; is the output's disk full?",
        ),
        (lambda folder: read_by_tensorflow(folder / "no"), "{}/no; No such file or directory"),
        (lambda folder: tempfile.mkdtemp(dir="/a"), "No such file or directory. Check the path"),
        (
            lambda folder: refuse_temporary(),
            "TMPDIR: No usable temporary directory found in ['/a']. Set TMPDIR to a folder with",
        ),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(capfd, monkeypatch, tmp_path, fail, line):
    monkeypatch.setattr(
        "synth2_jax.stages.report.run", lambda config, workdir: fail(tmp_path.resolve())
    )
    monkeypatch.setenv("TMPDIR", "/tmp")
    found = mistake(capfd, "report", f"--workdir={tmp_path}/w")
    assert line.replace("{}", str(tmp_path.resolve())) in found


def refuse_temporary():
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/a']")


def test_of_two_disks_the_full_one_is_named(capfd, monkeypatch, tmp_path):
    def free(folder):
        return 0 if str(folder) == "/the/full/one" else 1 << 40

    monkeypatch.setattr("synth2_jax.files._free_bytes", free)
    monkeypatch.setattr(
        "synth2_jax.stages.report.run", lambda config, workdir: refuse(errno.ENOSPC, None)
    )
    monkeypatch.setenv("TMPDIR", "/the/full/one")
    line = mistake(capfd, "report", f"--workdir={tmp_path}")
    assert line.startswith("/the/full/one: No space left on device. Make room")


@pytest.mark.parametrize(
    "error, code, told",
    [(KeyboardInterrupt, 130, "synth2: stopped by Ctrl-C\n"), (BrokenPipeError, 141, "")],
)
def test_ctrl_c_and_a_closed_pipe_leave_no_traceback(
    capfd, monkeypatch, tmp_path, error, code, told
):
    def stop(config, workdir):
        raise error

    monkeypatch.setattr("synth2_jax.stages.report.run", stop)
    assert main.main(["synth2", "report", f"--workdir={tmp_path}"]) == code
    assert capfd.readouterr().err == told


def test_ctrl_c_while_jax_is_imported_leaves_no_traceback(capfd, monkeypatch, tmp_path):
    class Pressed:
        def find_spec(self, name, path=None, target=None):
            if name == "synth2_jax.distributed":  # imports JAX
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "synth2_jax.distributed")
    monkeypatch.delattr("synth2_jax.distributed")
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    assert main.main(["synth2", "report", str(tmp_path)]) == 130
    assert capfd.readouterr().err == "synth2: stopped by Ctrl-C\n"


def test_ctrl_c_in_a_callback_is_not_lost(monkeypatch):
    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", main._keep_ctrl_c)
    gc.callbacks.append(callback)
    with pytest.raises(KeyboardInterrupt):
        gc.collect()
        time.sleep(10)


def test_a_closed_output_is_no_mistake(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(main, "main", lambda argv: print("unread") or 0)
    with pytest.raises(SystemExit) as ended:
        main.console()
    assert ended.value.code == 0


def test_a_pipe_may_close_before_what_was_printed_is_written(monkeypatch, tmp_path):
    class Closed(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr("synth2_jax.stages.report.run", lambda config, workdir: None)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert main.main(["synth2", "report", f"--workdir={tmp_path}"]) == 141


def test_a_terminal_that_lacks_a_character_gets_its_escape(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr(main, "main", lambda argv: print("café \ud800") or 0)
    with pytest.raises(SystemExit) as ended:
        main.console()
    sys.stdout.flush()
    assert ended.value.code == 0 and written.getvalue() == b"caf\\xe9 \\ud800\n"


def test_a_stage_that_was_told_to_stop_keeps_its_code(monkeypatch, tmp_path):
    def stop(config, workdir):
        raise SystemExit(143)

    monkeypatch.setattr("synth2_jax.stages.report.run", stop)
    with pytest.raises(SystemExit) as stopped:
        main.main(["synth2", "report", f"--workdir={tmp_path}"])
    assert stopped.value.code == 143


# --- one writer a folder ---


@pytest.mark.parametrize(
    "arguments, named",
    [(["report"], "--workdir={}"), (["export", "run"], "--output={}")],
)
def test_while_a_command_writes_to_a_folder_another_is_refused(
    capfd, monkeypatch, tmp_path, arguments, named
):
    folder = tmp_path / "written"
    named = named.format(folder)
    found = []

    def run_twice(config, workdir, **options):
        found.append(sorted(path.name for path in tmp_path.rglob("*.lock")))
        line = mistake(capfd, *arguments, named)
        stage = arguments[0]
        assert line.startswith(f"{named}: in use by process {os.getpid()} on ")
        assert f"(synth2 {stage}, since 20" in line and line.endswith("choose another folder.")

    monkeypatch.setattr(f"synth2_jax.stages.{arguments[0]}.run", run_twice)
    for _ in range(2):  # the end of a command releases it
        assert main.main(["synth2", *arguments, named]) == 0
    assert len(found) == 2 and all(len(locks) == 1 for locks in found)
    assert list(tmp_path.iterdir()) == []


def test_every_stage_that_writes_more_than_one_small_file_locks_its_folder():
    assert {name for name, stage in STAGES.items() if not stage.writes} == {"inspect", "plan"}


def test_a_stage_gets_config_and_absolute_workdir(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("synth2_jax.stages.report.run", lambda *given: calls.append(given))
    monkeypatch.chdir(tmp_path)
    assert main.main(["synth2", "report", "--workdir=here"]) == 0
    assert calls == [(None, str(tmp_path / "here"))]
