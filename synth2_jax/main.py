"""The one entry point: `synth2 STAGE --config=FILE --workdir=DIR [--config.KEY=VALUE ...]`.

`synth2 STAGE --help` says what a stage does. `inspect` and `export` take their folder as it is:
`synth2 inspect DIR`.

Exit codes: 0 done, 2 a mistake of the user's or a path that the system refuses (one line says
which), 129 stopped by SIGHUP (a closed terminal), 130 by Ctrl-C, 141 nothing reads the output any
more, 143 stopped by SIGTERM, 1 anything else. After a stop the same command goes on: `train` has
saved where it was, `tokenize`, `encode_captions`, `synthesize` and `filter` keep their finished
shards, `captions` the answers of a server, `demo` and `study` finished steps. Other stages begin
again.
"""

import ast
import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence

import ml_collections
from absl import flags, logging

from synth2_jax import config as config_lib
from synth2_jax import distributed, files, folder_lock
from synth2_jax.config import load_config
from synth2_jax.errors import UserError, nearest
from synth2_jax.inert_text import inert

# As a shell says it of a process that a signal ended: 128 and the signal's number.
_INTERRUPTED = 128 + signal.SIGINT
_LONGEST_HALF = 1000  # characters of an error
_PIPE_CLOSED = 128 + signal.SIGPIPE


# A URL, alone or in a list such as NAME=URL,NAME=URL; and the keys where one is right. TFDS reads
# its data_dir from a bucket by itself.
_URL = re.compile(r"(?<![^,=])[A-Za-z][A-Za-z0-9+.-]+://")
_URL_KEYS = ("server.base_url", "source.images", "--license")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What may stand on a stage's command line.

    Attributes:
      needs_config: whether --config=FILE must be given.
      workdir: the folder without --workdir; None where it must be given.
      takes_folder: whether the workdir may be given without `--workdir=`.
      writes: the option that names the folder it writes to, which no other command may write to
        meanwhile; "" where what it writes is one small file, written whole.
      options: {name: help} of further --name=TEXT, keyword arguments of the stage's `run` when
        given.
    """

    needs_config: bool = True
    workdir: str | None = None
    takes_folder: bool = False
    writes: str = "workdir"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


# In the order data flows. Each is a module of stages/ with `run(config, workdir, **options)`,
# imported when asked for: half of them need TensorFlow, which takes seconds to import.
STAGES = {
    "tokenize": Stage(
        options={"on_the_fly": "true stores images, of which the training step makes the tokens"}
    ),
    "encode_captions": Stage(),
    "train": Stage(),
    "captions": Stage(),
    "synthesize": Stage(),
    "filter": Stage(),
    "evaluate": Stage(),
    "report": Stage(
        needs_config=False,
        options={
            "captions": "NAME=PATH,NAME=PATH to compare; without it a demo's page is made anew",
            "classes": "scenes, common_objects, FILE.txt or names: how many captions name each",
            "embedding": "a Sentence-Transformers model, by name or folder; hashed n-grams",
            "clusters": "how many; 20",
        },
    ),
    "demo": Stage(),
    "study": Stage(),
    "plan": Stage(
        workdir="workdir/plan",
        writes="",
        options={
            "name": "in the file's name and in tables; the config file's, with its argument",
            "topology": "a pod, such as v5e:16x16",
            "slices": "how many of them; 1",
            "mesh": "such as data=16,fsdp=16; the config's",
            "batch": "rows of all chips, or auto for the largest that fits; the config's",
            "sample": "a synthesize config: plans sampling by it, not training",
            "pairs": "how many to sample; 711e6",
        },
    ),
    "inspect": Stage(
        needs_config=False,
        takes_folder=True,
        writes="",
        options={
            "fingerprints": "of a run: true reads every parameter for the parts' own fingerprints",
            "modules": "of a mixture: the modules that register it, separated by commas",
            "tokenizer": "of a mixture: the tokenizer that made its tokens, to see its pictures",
            "output": "of a mixture: the picture; MIXTURE.png",
        },
    ),
    "export": Stage(
        needs_config=False,
        takes_folder=True,
        writes="output",
        options={
            "output": "the folder to write, or FILE.safetensors for the parameters alone",
            "part": "of a file: such as vlm/resampler; all of it",
            "dtype": "of floating parameters, such as bfloat16; as they are",
            "overwrite": "true replaces an export that is there",
            "results": "of a folder: results.json files for its model card, with commas between",
            "license": "of a folder: what its model card says, such as apache-2.0",
            "file_mib": "of a folder: MiB of parameters a file; 4096",
        },
    ),
}


def console() -> None:
    """What the `synth2` command runs."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this; no file may take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (stays open)
    # Captions hold more than a terminal's encoding may have.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _keep_ctrl_c
    try:
        processes = distributed.from_environment()
        if processes:
            distributed.start(processes)
    except UserError as error:
        _tell(str(error))
        distributed.leave(2)
    try:
        code = main(sys.argv)
    except SystemExit:
        raise  # after a save that all processes agreed on
    except BaseException:
        if not processes:
            raise
        traceback.print_exc()
        print(
            f"synth2: process {processes.process_id} of {processes.num_processes} ends here; if a "
            "connection was lost, another one failed before it",
            file=sys.stderr,
        )
        code = 1
    if code:  # at once: threads of libraries may have more to say, and the last line is ours
        distributed.leave(code)
    sys.exit(code)


def _keep_ctrl_c(unraisable) -> None:
    """Sends a Ctrl-C again that came in a callback, where Python only prints exceptions.

    JAX has one at each garbage collection: the program would run on as if no key had been pressed.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()  # after the callback
    else:
        sys.__unraisablehook__(unraisable)


def main(argv: Sequence[str]) -> int:
    """Runs one stage; returns the exit code."""
    folders = [os.environ.get("TMPDIR", "/tmp")]  # that may be full
    try:
        stage, config, workdir, options = parse(argv)
        folders = [workdir, *filter(None, [options.get("output")]), *folders]
        run = importlib.import_module(f"synth2_jax.stages.{stage}").run
        with distributed.through_process_0(_lock(stage, workdir, options)):
            run(config, workdir, **options)
        sys.stdout.flush()
    except UserError as error:
        _tell(str(error))
        return 2
    except BrokenPipeError:  # such as `synth2 inspect DIR | head`
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        _tell("stopped by Ctrl-C")
        return _INTERRUPTED
    except Exception as error:
        line = files.system_problem(error, folders)
        if line is None:
            raise
        logging.info("the error in full:", exc_info=True)
        _tell(line)
        return 2
    return 0


def _tell(line: str) -> None:
    """Prints an error; names and captions in it may come from anywhere, and be of any length."""
    if len(line) > 2 * _LONGEST_HALF:
        line = f"{line[:_LONGEST_HALF]} ... {line[-_LONGEST_HALF:]}"  # ends in what to do
    with contextlib.suppress(OSError):
        print(f"synth2: {inert(line)}", file=sys.stderr, flush=True)


def _check_local(options: Mapping[str, str], config: ml_collections.ConfigDict | None) -> None:
    """Raises UserError on a URL where a path is expected: it would become a folder named "gs:"."""
    given = [(f"--{name}", text) for name, text in options.items()]
    given += config_lib.texts(config, "--config") if config is not None else []
    for key, text in given:
        if key.endswith(_URL_KEYS) or not (found := _URL.search(text)):
            continue
        raise UserError(
            f"{key}: found {found[0]}..., expected a path of this machine: object stores do not "
            "work yet. Mount or copy what is there."
        )


def _lock(
    stage: str, workdir: str, options: Mapping[str, str]
) -> contextlib.AbstractContextManager[None]:
    """Keeps other commands from the folder that the stage writes to."""
    folder = {"workdir": workdir, **options}.get(STAGES[stage].writes)
    if not folder:
        return contextlib.nullcontext()
    file = pathlib.Path(folder, folder_lock.LOCK)
    if STAGES[stage].writes != "workdir":  # replaced as a whole: the lock is next to it
        file = pathlib.Path(os.path.abspath(folder) + folder_lock.LOCK)
    return folder_lock.hold(file, f"--{STAGES[stage].writes}={folder}", f"synth2 {stage}")


def parse(
    argv: Sequence[str],
) -> tuple[str, ml_collections.ConfigDict | None, str, dict[str, str]]:
    """Returns (stage, config, workdir, the stage's own options that were given).

    Keys of the config are checked by the stage, which knows them all: a file lists only some.

    Raises:
      UserError: an unknown stage or flag, or a config file that is missing or fails.
    """
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(f"{__doc__}\nStages: {', '.join(STAGES)}", flush=True)
        raise SystemExit(0)
    stage = argv[1]
    if stage not in STAGES:
        raise UserError(f"stage {stage!r}: unknown; {nearest(stage, STAGES)}")
    expected = STAGES[stage]
    if {"-h", "--help"} & set(argv[2:]):
        print(_stage_help(stage), flush=True)
        raise SystemExit(0)
    arguments, overrides = _split(argv[2:])
    arguments = [_flag(argument, expected.options) for argument in arguments]
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "FILE[:ARGUMENT]", flag_values=values)
    flags.DEFINE_string("workdir", expected.workdir, "Where it works.", flag_values=values)
    flags.DEFINE_bool("verbose", False, "Log more.", flag_values=values)
    for name, text in expected.options.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    try:
        _, *rest = values([argv[0], *arguments])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest and expected.takes_folder and not values.workdir:
        values.workdir = rest.pop(0)
    if rest:
        raise UserError(f"argument {rest[0]!r}: unexpected; options start with --")
    if not values.config and (overrides or expected.needs_config):
        raise UserError(f"{stage}: no --config=FILE given; see configs/")
    if not values.workdir:
        if expected.takes_folder:
            raise UserError(f"{stage}: no folder given. Write synth2 {stage} DIR")
        raise UserError(f"{stage}: no --workdir=DIR given")
    values.workdir = _from_home("workdir", values.workdir)
    workdir = pathlib.Path(values.workdir).absolute()
    for path in (workdir, *workdir.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"--workdir={values.workdir}: {path} is a file, expected a folder")
    config = load_config(values.config) if values.config else None
    for key, text in overrides:
        config_lib.override(config, key, text)
    logging.set_verbosity(logging.INFO if values.verbose else logging.WARNING)
    given = {name: getattr(values, name) for name in expected.options}
    options = {name: _from_home(name, text) for name, text in given.items() if text is not None}
    if "name" in expected.options:
        options.setdefault("name", config_lib.config_name(values.config))
    _check_local({"workdir": values.workdir, **options}, config)
    return stage, config, os.path.abspath(values.workdir), options


def _from_home(name: str, text: str) -> str:
    """A path with the home folder in the place of ~, which a shell leaves in `--workdir=~/x`."""
    expanded = os.path.expanduser(text)
    if re.match("~(/|$)", expanded):
        raise UserError(f"--{name}={text}: ~ has no meaning without HOME. Give the whole path.")
    return expanded


def _stage_help(stage: str) -> str:
    """The docstring of the stage's file, which is not imported for it, and its options."""
    path = pathlib.Path(__file__).parent / "stages" / f"{stage}.py"
    told = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    options = STAGES[stage].options.items()
    lines = [f"  --{name.replace('_', '-')}=  {text}" for name, text in options]
    return "\n".join([told, *([""] if lines else []), *lines])


def _flag(argument: str, options: Mapping[str, str]) -> str:
    """`--on-the-fly` as absl takes it: on_the_fly=true."""
    name, equals, text = argument.removeprefix("--").partition("=")
    name = name.replace("-", "_")
    if not argument.startswith("--") or name not in options:
        return argument
    if not equals and options[name].startswith("true "):
        equals, text = "=", "true"
    return f"--{name}{equals}{text}"


def _split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the arguments for flags, and (key, text) of each `--config.KEY=TEXT`."""
    plain, overrides = [], []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not re.fullmatch(r"--?config\..*", key):
            plain.append(argument)
        elif not equals or not all(key.split(".")):
            raise UserError(f"{argument}: expected --config.KEY=VALUE")
        else:
            overrides.append((key.partition(".")[2], text))
    return plain, overrides


if __name__ == "__main__":
    console()
