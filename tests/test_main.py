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


# {stage and config: [(overrides, line)]}, where a line that begins with ":" or "=" is behind the
# last key.
OVERRIDES = {
    "train vlm": [
        ("optimizer.lerning_rate=1", ": unknown key; did you mean 'learning_rate'? one of: beta1,"),
        (
            "optimzer.learning_rate=1",
            "optimzer: unknown key; did you mean 'optimizer'? one of: dat",
        ),
        ("model.vlm.resampler.num_latent=1", ": unknown key; did you mean 'num_latents'?"),
        ("train.steps=1.5", ": found 1.5, expected int"),
        ("model_name.x=1", "model_name: found 'vlm', which has no keys such as 'x'"),
        ("train=1", ": a section, expected one of its keys; it has checkpoint_every,"),
        (
            "model.vlm.language_model.dtype=float23",
            ": unknown dtype 'float23'; did you mean 'float32'? one of: bfloat16, float32",
        ),
        ("", "pretrained.tokenizer: empty, expected a trained tokenizer or a third-party"),
        ("pretrained.tokenizer=/no/where", "=/no/where: no such file or folder, expected a model"),
        ("data.rates.real=abc", ": found 'abc', expected float or tuple"),
        ("data.folders.more=3.5", ": found 3.5, expected str; quote a text: \"'3.5'\""),
        ("model.vlm.resampler.num_heads=0", ": found 0, expected at least 1"),
        ("data.batch_size=0", ": found 0, expected at least 1"),
        ("train.keep_best=1", ": found 1 with --config.train.best_metric='', expected both"),
        (
            "model.vlm.cross_attention_every=3",
            ": found 3, expected a divisor of --config.model.vlm.language_model.num_layers, 2",
        ),
        ("mesh.fsdp=-1", ": found -1, expected at least 1, as --config.mesh.data is -1"),
        ("validation.num_batches=0", ": found 0, expected at least 1"),
        ("validation.data.text_length=7", ": found 7, expected 26 as in --config.data"),
        ("validation.captions.folder=f validation.captions.batch_size=0", ": found 0, expected at"),
        ("data.folders.real=gs://b/x", ": found gs://..., expected a path of this machine"),
        ("pretrained.tokenizer=hf://b/x", ": found hf://..., expected a path of this machine"),
        ("train.seed=1" + 20 * "0", f": found 1{20 * '0'}, expected a number of at most 64"),
        ("train.seed=4294967296", ": found 4294967296, expected 0 to 4294967295"),
        ("data.shuffle_buffer=1" + 15 * "0", f": found 1{15 * '0'}, expected at most 100000000 ex"),
        ("train.steps={[1]:2}", ": found '{[1]:2}', expected int"),
        ("data.rates={1:2}", ": found the key 1, expected a text"),
        ("model.vlm.dtype={1:2} model.vlm.dtype=3", ": a section, expected one of its keys; it ha"),
        ("pretrained.perceptual={'a':1}", ": found {'a': 1}, expected str"),
        ("data.num_epochs={1:2}", ": found {1: 2}, expected int"),
        ("data.rates={'a.b':2}", ": ConfigDict does not accept dots in field names"),
    ],
    "train language_model": [("mesh.fsdp=0", ": found 0, expected at least 1, or -1 for the rest")],
    "demo demo": [("vlm.trian=3", ": unknown key; did you mean 'train'?")],
    "study study": [
        (
            "study.seed=3",
            ": unknown key; did you mean 'seeds'? one of: arms, curve_arms, more_arms, real_pairs, "
            "seeds, share_generator",
        )
    ],
    "filter filter": [("folder=/no/pics", "=/no/pics: no manifest.json (no pairs here)")],
    "evaluate evaluate": [
        ("vlm=/no/run", "=/no/run: no such folder, expected the workdir of a training run")
    ],
    "tokenize tokenize": [
        ("tokenizer=/no/run", "=/no/run: no such file or folder, expected a model"),
        ("batch_size=0", ": found 0, expected at least 1"),
    ],
    "synthesize synthesize": [
        ("generator=", ": no path given, expected the workdir of a training run"),
        ("batch_size=0", ": found 0, expected at least 1"),
    ],
    "captions captions": [("batch_size=-1", ": found -1, expected at least 1")],
}


def mistakes():
    """(arguments, line) of each mistake."""
    yield ["train", "--config=no.py"], "--config=no.py: no such file, expected"
    yield (
        ["train", f"{VLM}:tinny"],
        "--config=FILE:tinny: unknown word 'tinny'; did you mean 'tiny'",
    )
    file = "configs/scenes/evaluate.py"
    yield ["evaluate", f"--config={file}:tiny"], f"--config={file}:tiny: {file} takes no"
    yield ["inspect", "/no/where"], "/no/where: no such folder"
    for names, rows in OVERRIDES.items():
        stage, config = names.split()
        for given, line in rows:
            keys = given.split()
            if line[0] in ":=":
                line = keys[-1].partition("=")[0] + line
            overrides = [f"--config.{key}" for key in keys]
            file = f"--config=configs/scenes/{config}.py"
            yield [stage, file, *overrides], f"--config.{line}"


@pytest.mark.parametrize("arguments, line", mistakes())
def test_a_mistake_is_one_line_and_code_2(capfd, tmp_path, monkeypatch, arguments, line):
    root = pathlib.Path.cwd()
    arguments = [argument.replace("=configs", f"={root}/configs") for argument in arguments]
    arguments += ["--workdir=w"] * (arguments[0] != "inspect")
    monkeypatch.chdir(tmp_path)
    assert mistake(capfd, *arguments).replace(f"{root}/", "").startswith(line)
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
            [VLM, "--config.optimizer.lerning_rate=1"],
            "--config.optimizer.lerning_rate: unknown key; did you mean 'learning_rate'?",
        ),
        # TensorFlow is loaded before the mixture is looked for, and must keep silent.
        pytest.param(
            [LANGUAGE_MODEL, "--config.data.mixture=scenes_txt"],
            "--config.data.mixture: no task or mixture 'scenes_txt'; did you mean "
            "'scenes_text'? one of: scenes_images, scenes_text",
            marks=pytest.mark.slow,
        ),
        # The first batch is read by TensorFlow's kernels and its SentencePiece.
        pytest.param(
            [LANGUAGE_MODEL, "--config.data.text_length=3", "--config.model.text_length=3"],
            "example 'text-018732': no token of its caption is left to learn",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_in_a_process_there_is_no_traceback_either(tmp_path, arguments, text):
    done = subprocess.run(
        [sys.executable, "-m", "synth2_jax.main", "train", *arguments, f"--workdir={tmp_path}"],
        # As a user has it: the tests' own environment keeps TensorFlow silent.
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"synth2: {text}")
    assert all(line.startswith("training ") for line in lines[:-1])  # a run that had begun


# --- how a stage ends ---


def raising(error):
    """A stage that fails."""

    def run(config, workdir):
        raise error

    return run


@pytest.fixture
def report(monkeypatch, tmp_path):
    """report(run): the exit code of `synth2 report`, whose stage does that."""

    def ends(run):
        monkeypatch.setattr("synth2_jax.stages.report.run", run)
        return main.main(["synth2", "report", f"--workdir={tmp_path}/w"])

    return ends


@pytest.mark.parametrize("error", [RuntimeError("a defect"), SystemExit(143)])
def test_a_defect_is_not_hidden_and_a_stop_keeps_its_code(report, error):
    with pytest.raises(type(error)) as raised:
        report(raising(error))
    assert raised.value is error


@pytest.mark.parametrize(
    "error, code, told",
    [(KeyboardInterrupt, 130, "synth2: stopped by Ctrl-C\n"), (BrokenPipeError, 141, "")],
)
def test_ctrl_c_and_a_closed_pipe_leave_no_traceback(capfd, report, error, code, told):
    assert report(raising(error)) == code and capfd.readouterr().err == told


def dangling(folder):
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "link").read_text()


def read_by_tensorflow(path):
    from synth2_jax.data.tensorflow_cpu import tf

    next(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def refuse(number, path=None, text=""):
    raise OSError(number, text or os.strerror(number), path)


NO_TEMPORARY = "No usable temporary directory found in ['/a']"


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
            lambda folder: refuse(errno.ENOENT, text=NO_TEMPORARY),
            f"TMPDIR: {NO_TEMPORARY}. Set TMPDIR to a folder with",
        ),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(
    capfd, monkeypatch, tmp_path, report, fail, line
):
    monkeypatch.setenv("TMPDIR", "/tmp")
    folder = tmp_path.resolve()
    assert report(lambda config, workdir: fail(folder)) == 2
    found = capfd.readouterr().err
    assert line.replace("{}", str(folder)) in found and found.count("\n") == 1


def test_of_two_disks_the_full_one_is_named(capfd, monkeypatch, report):
    free = {"/the/full/one": 0}
    monkeypatch.setattr("synth2_jax.files._free_bytes", lambda path: free.get(str(path), 1 << 40))
    monkeypatch.setenv("TMPDIR", "/the/full/one")
    assert report(lambda config, workdir: refuse(errno.ENOSPC)) == 2
    expected = "synth2: /the/full/one: No space left on device. Make room"
    assert capfd.readouterr().err.startswith(expected)


def test_ctrl_c_while_jax_is_imported_leaves_no_traceback(capfd, monkeypatch, report):
    class Pressed:
        def find_spec(self, name, path=None, target=None):
            if name == "synth2_jax.distributed":  # imports JAX
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "synth2_jax.distributed")
    monkeypatch.delattr("synth2_jax.distributed")
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    assert report(lambda config, workdir: None) == 130
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


def test_a_pipe_may_close_before_what_was_printed_is_written(monkeypatch, report):
    class Closed(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    assert report(lambda config, workdir: None) == 141


@pytest.mark.parametrize("closed", [True, False])
def test_an_output_may_be_closed_or_lack_a_character(monkeypatch, closed):
    written = io.BytesIO()
    stream = None if closed else io.TextIOWrapper(written, "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(main, "main", lambda argv: print("café \ud800") or 0)
    with pytest.raises(SystemExit) as ended:
        main.console()
    sys.stdout.flush()
    assert ended.value.code == 0
    assert written.getvalue() == (b"" if closed else b"caf\\xe9 \\ud800\n")


# --- one writer a folder ---


@pytest.mark.parametrize(
    "arguments, named", [(["report"], "--workdir={}"), (["export", "run"], "--output={}")]
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
