"""What is read from a command line, its help, and the line that a mistake gets."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from synth2_jax import command_line
from synth2_jax.command_line import STAGES, parse
from synth2_jax.errors import UserError
from synth2_jax.testing.user_errors import user_error

VLM = "--config=configs/scenes/vlm.py"
PACKAGE = pathlib.Path(command_line.__file__).parent


def helped(capsys, *arguments):
    """What a command prints that ends with its help, with one space between words."""
    with pytest.raises(SystemExit) as stopped:
        parse(["synth2", *arguments])
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def headline(stage):
    text = (PACKAGE / STAGES[stage].room / f"{stage}.py").read_text()
    return text.partition("\n")[0].removeprefix('"""')


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_stages_with_a_line_each(capsys, arguments):
    told = helped(capsys, *arguments)
    for stage in STAGES:
        named, colon, what = headline(stage).partition(": ")
        assert named.startswith(f"`synth2 {stage}") and colon
        assert f"{stage} {what.removesuffix('.')}" in told
    assert "143 stopped by SIGTERM" in told


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_help_of_a_stage_is_what_its_file_says_and_its_options(stage, capsys):
    told = helped(capsys, stage, "--config=no.py", "--help")
    assert headline(stage) in told
    for name, (placeholder, text) in STAGES[stage].options.items():
        assert f"--{name.replace('_', '-')} {placeholder}".rstrip() in told and text in told


def test_help_comes_before_anything_heavy_is_imported():
    """Under half a second: JAX alone takes longer, TensorFlow seconds."""
    program = (
        "import sys; from synth2_jax import main\n"
        "try: main.main(['synth2', 'train', '--help'])\n"
        "finally: print(sorted({'jax', 'numpy', 'tensorflow', 'absl'} & set(sys.modules)))"
    )
    environ = {**os.environ, "SYNTH2_COORDINATOR": "10.0.0.1:1"}  # not even for a pod
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: synth2 train") and done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("room, shares", [("stages", False), ("experiments", True)])
def test_a_room_holds_one_file_a_stage_and_what_experiments_share(room, shares):
    files = {path.stem: path.read_text() for path in (PACKAGE / room).glob("*.py")}
    del files["__init__"]
    stages = {name for name, text in files.items() if "\ndef run(" in text}
    assert stages == {name for name, stage in STAGES.items() if stage.room == room}
    imported = set()
    for node in (node for text in files.values() for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.ImportFrom):
            imported |= {node.module.split(".")[-1], *(alias.name for alias in node.names)}
    assert files.keys() - stages <= (imported if shares else set())


def test_the_home_folder_is_found_or_asked_for(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    command = parse(["synth2", "export", "~/run", "--output=~/out"])
    assert (command.workdir, command.options) == ("/home/me/run", {"output": "/home/me/out"})
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as of a container's numbered user
    with user_error("--output: found ~/out, but HOME is not set, so ~ has no meaning. Give the"):
        parse(["synth2", "export", "run", "--output=~/out"])


@pytest.mark.parametrize(
    "arguments",
    [
        [VLM, "--workdir=w", "--config.train.steps=3", "--config.a.b=[1,2]", "--verbose"],
        ["--config.train.steps=3", "--workdir", "w", "--config", VLM.partition("=")[2]]
        + ["--config.a.b=[1,2]", "--verbose=true"],
        ["-config.train.steps=3", "-workdir=w", VLM, "-config.a.b=[1,2]", "-verbose"],
    ],
)
def test_options_come_in_any_order_and_form(arguments):
    command = parse(["synth2", "train", *arguments])
    assert (command.stage, command.config) == ("train", "configs/scenes/vlm.py")
    assert command.overrides == [("train.steps", "3"), ("a.b", "[1,2]")]
    assert command.workdir == os.path.abspath("w") and command.options == {} and command.verbose


@pytest.mark.parametrize(
    "arguments, options",
    [
        (["tokenize", VLM, "--workdir=w", "--on-the-fly"], {"on_the_fly": True}),
        (["tokenize", VLM, "--workdir=w", "--on_the_fly=true"], {"on_the_fly": True}),
        (["tokenize", VLM, "--workdir=w", "--on-the-fly=false"], {}),
        (["export", "--overwrite", "w", "--file_mib=20"], {"overwrite": True, "file_mib": 20}),
        (["inspect", "w", "--fingerprints"], {"fingerprints": True}),
        (["inspect", "--workdir=w", "--modules=a,b"], {"modules": "a,b"}),
        (["report", "w", "--clusters", "12"], {"clusters": 12}),
        (["export", "w", "--license=http://a.b/c"], {"license": "http://a.b/c"}),
        (
            ["plan", VLM, "--workdir=w", "--batch=auto", "--pairs=711e6", "--slices=2"],
            {"batch": "auto", "pairs": 711_000_000, "slices": 2, "name": "vlm"},
        ),
        (["plan", VLM, "--workdir=w", "--batch=64"], {"batch": 64, "name": "vlm"}),
        (["plan", f"{VLM}:tiny,remat", "--workdir=w"], {"name": "vlm-tiny-remat"}),
        (["plan", f"{VLM}:tiny", "--workdir=w", "--name=mine"], {"name": "mine"}),
    ],
)
def test_options_have_types(arguments, options):
    command = parse(["synth2", *arguments])
    assert command.options == options and command.workdir == os.path.abspath("w")
    assert all(type(command.options[name]) is type(value) for name, value in options.items())


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["trian"], "stage 'trian': unknown; did you mean 'train'? one of: captions, demo, enco"),
        (["train", "--workdir=w"], "--config: not given. Give a config file, --config=FILE"),
        (["train", VLM], "--workdir: not given. Give a folder, --workdir=DIR"),
        (["inspect"], "--workdir: not given. Give a folder, synth2 inspect DIR"),
        (["train", VLM, "--wrokdir=w"], "--wrokdir: unknown option; did you mean '--workdir'? one"),
        (["train", VLM, "--work=w"], "--work: unknown option; did you mean '--workdir'? one of: "),
        (["inspect", "w", "--finger"], "--finger: unknown option; did you mean '--fingerprints'?"),
        (["train", VLM, "--overwrite"], "--overwrite: unknown option; "),
        (["train", VLM, "-x"], "-x: unknown option; one of: --config, --help, --verbose, --workd"),
        (["train", VLM, "--workdir"], "--workdir: expected one argument"),
        (["train", VLM, "--workdir=w", "here"], "argument 'here': unexpected; options start with"),
        (["inspect", "--workdir=w", "here"], "argument 'here': unexpected"),
        (["inspect", "w", "more"], "argument 'more': unexpected; options start with --"),
        (["export", "w", "--overwrite=yes"], "--overwrite=yes: expected true or false"),
        (["export", "w", "--file-mib=0"], "--file-mib: found 0, expected a whole number of 1 or"),
        (["report", "w", "--clusters=many"], "--clusters: found many, expected a whole number of"),
        (["plan", VLM, "--pairs=1.5"], "--pairs: found 1.5, expected a whole number of 1 or more"),
        (["plan", VLM, "--pairs=nan"], "--pairs: found nan, expected a whole number of 1 or more"),
        (["train", VLM, "--workdir=w", "--config.a"], "--config.a: expected --config.KEY=VALUE"),
        (["train", VLM, "--workdir=w", "--config.a..b=1"], "--config.a..b=1: expected --config.KE"),
        (["report", "--workdir=w", "--config.a=1"], "--config: not given. Give a config file"),
        (["train", VLM, "--workdir=gs://b/x"], "--workdir: found gs://..., expected a path of th"),
        (["inspect", "s3://b/x"], "--workdir: found s3://..., expected a path of this machine: ob"),
        (["export", "run", "--output=file:///x"], "--output: found file://..., expected a path"),
        (["report", "--workdir=w", "--captions=a=b,c=gs://d"], "--captions: found gs://..., exp"),
    ],
)
def test_a_mistake_names_what_was_typed(arguments, line):
    with pytest.raises(UserError) as error:
        parse(["synth2", *arguments])
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
