"""The command line of `synth2`: its stages, their options, and the help.

Nothing here imports a stage, JAX or TensorFlow: the help and most mistakes take no time.
"""

import argparse
import ast
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from synth2_jax.errors import UserError, nearest

# A URL, alone or in a list such as NAME=URL,NAME=URL.
_URL = re.compile(r"(?<![^,=])[A-Za-z][A-Za-z0-9+.-]+://")
_EXIT_CODES = """\
`synth2 STAGE --help` shows what a stage does and its options.

Exit codes:
    0  done
    2  a mistake in what was asked for, or a path that the system refuses; one line names it
  129  stopped by SIGHUP (a closed terminal)
  130  stopped by Ctrl-C
  141  the reader of the output has gone
  143  stopped by SIGTERM
    1  anything else

After a stop, give the same command again. `train` has saved where it was; `tokenize`,
`encode_captions`, `synthesize` and `filter` keep finished shards; `captions` keeps a server's
answers; `demo`, `study` and `rounds` keep finished steps. Other stages begin again."""


def check_local(key: str, text: str) -> None:
    """Raises UserError on a URL where a path is expected: it would become a folder named "gs:"."""
    if found := _URL.search(text):
        raise UserError(
            f"{key}: found {found[0]}..., expected a path of this machine: object stores do not "
            "work yet. Mount or copy what is there."
        )


# The functions below are types of options: argparse puts the option in front of their errors.


def _path(text: str) -> str:
    """A path with the home folder in the place of ~, which a shell leaves in `--workdir=~/x`."""
    expanded = os.path.expanduser(text)
    if re.match("~(/|$)", expanded):
        raise argparse.ArgumentTypeError(
            f"found {text}, but HOME is not set, so ~ has no meaning. Give the whole path."
        )
    return expanded


def _whole(text: str) -> int:
    """A whole number of 1 or more, also as 711e6."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (1 <= value < math.inf and value == int(value)):
        raise argparse.ArgumentTypeError(f"found {text}, expected a whole number of 1 or more")
    return int(value)


# Of options by their placeholder; the others are texts.
_TYPES = {
    "N": _whole,
    "N|auto": lambda text: text if text == "auto" else _whole(text),
    **dict.fromkeys(("DIR", "FILE", "FILES"), _path),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """The command line of a stage.

    Attributes:
      room: the folder of its file.
      workdir: the folder without --workdir; None where it must be given.
      reads: whether it reads a folder, given without `--workdir=`, and needs no --config=FILE.
      writes: the option that names the folder it writes to, which no other command may write to
        meanwhile; "" where what it writes is one small file, written whole.
      options: {name: (placeholder, help)} of the keyword arguments that the stage's `run` gets
        when they are given; without a placeholder a switch.
    """

    room: str = "stages"
    workdir: str | None = None
    reads: bool = False
    writes: str = "workdir"
    options: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


# In the order data flows. Each is a file of its room with `run(config, workdir, **options)`.
STAGES = {
    "tokenize": Stage(
        options={"on_the_fly": ("", "store the images themselves; the training step makes tokens")}
    ),
    **{name: Stage() for name in ("encode_captions", "train", "captions", "synthesize")},
    **{name: Stage() for name in ("filter", "evaluate")},
    "report": Stage(
        reads=True,
        options={
            "captions": (
                "NAME=PATH,NAME=PATH",
                "caption sets to compare; without it a demo's page is made again",
            ),
            "classes": (
                "CLASSES",
                "count how many captions name each of these classes: scenes, common_objects, "
                "FILE.txt or names",
            ),
            "embedding": (
                "MODEL",
                "a Sentence-Transformers model, by name or folder; default: hashed n-grams",
            ),
            "clusters": ("N", "number of clusters; default: 20"),
        },
    ),
    "demo": Stage(room="experiments"),
    "study": Stage(room="experiments"),
    "rounds": Stage(room="experiments"),
    "plan": Stage(
        workdir="workdir/plan",
        writes="",
        options={
            "name": ("NAME", "name in files and tables; default: the config file's"),
            "topology": ("CHIPS", "the chips, such as v5e:16x16 or h200:8"),
            "slices": ("N", "number of pods; default: 1"),
            "mesh": ("MESH", "such as data=16,fsdp=16; default: the config's"),
            "batch": (
                "N|auto",
                "rows of all chips, or auto for the largest batch that fits; default: the config's",
            ),
            "sample": ("FILE", "plan sampling by this synthesize config, not training"),
            "pairs": ("N", "number of pairs to sample; default: 711e6"),
        },
    ),
    "inspect": Stage(
        reads=True,
        writes="",
        options={
            "fingerprints": (
                "",
                "of a run: read every parameter for the fingerprint of each part; of an export: "
                "check that no byte has changed",
            ),
            "modules": (
                "MODULES",
                "of a mixture: the modules that register it, separated by commas",
            ),
            "tokenizer": (
                "DIR",
                "of a mixture: the tokenizer that made its tokens, to draw its pictures",
            ),
            "output": ("FILE", "of a mixture: the picture to write; default: MIXTURE.png"),
        },
    ),
    "export": Stage(
        reads=True,
        writes="output",
        options={
            "output": ("DIR", "the folder to write, or FILE.safetensors for the parameters alone"),
            "part": ("PART", "of a file: such as vlm/resampler; default: all parts"),
            "dtype": (
                "DTYPE",
                "of floating-point parameters, such as bfloat16; default: unchanged",
            ),
            "overwrite": ("", "replace an export that is there"),
            "results": (
                "FILES",
                "of a folder: results.json files for its model card, separated by commas",
            ),
            "license": (
                "LICENSE",
                "of a folder: the licence in its model card, such as apache-2.0",
            ),
            "file_mib": ("N", "of a folder: MiB of parameters in a file; default: 4096"),
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line that was read; `options` are the stage's own that were given."""

    stage: str
    config: str | None  # FILE[:ARGUMENT]
    overrides: Sequence[tuple[str, str]]  # (key, text) of each --config.KEY=TEXT, in order
    workdir: str  # absolute
    options: Mapping[str, Any]
    verbose: bool


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are UserErrors, and whose help shows a closed pipe."""

    def __init__(self, **given: Any):
        given.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **given)

    def error(self, message: str) -> None:
        raise UserError(message.removeprefix("argument "))

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", flush=True, file=file)


def parse(argv: Sequence[str]) -> Command:
    """Reads a command line, the program's name included.

    Raises:
      UserError: an unknown stage or option, a missing one, or a wrong value.
      SystemExit: with 0, after the help that was asked for.
    """
    arguments = ["--help"] if argv[1:] in ([], ["help"]) else list(argv[1:])
    if arguments[0] not in (*STAGES, "-h", "--help"):
        raise UserError(f"stage {arguments[0]!r}: unknown; {nearest(arguments[0], STAGES)}")
    stage = STAGES.get(arguments[0], Stage())
    plain, overrides = _split(arguments, stage)
    given, unknown = _parser().parse_known_args(plain)
    if unknown:
        _refuse(unknown[0], stage)
    if not given.config and (overrides or not stage.reads):
        raise UserError("--config: not given. Give a config file, --config=FILE (see configs/)")
    positional = getattr(given, "DIR", None)
    if positional and given.workdir:
        _refuse(positional, stage)
    if not (workdir := given.workdir or positional or stage.workdir):
        how = f"synth2 {given.stage} DIR" if stage.reads else "--workdir=DIR"
        raise UserError(f"--workdir: not given. Give a folder, {how}")
    found = {name: getattr(given, name) for name in stage.options}
    options = {name: value for name, value in found.items() if value not in (None, False)}
    for name, value in {"workdir": workdir, **options}.items():
        if isinstance(value, str) and name != "license":
            check_local(_flag(name), value)
    if "name" in stage.options:
        # "generator-stored" for configs/generator.py:stored
        file, _, words = given.config.partition(":")
        name = "-".join([pathlib.Path(file).stem, *re.findall(r"\w+", words)])
        options.setdefault("name", name)
    absolute = os.path.abspath(workdir)
    for folder in (pathlib.Path(absolute), *pathlib.Path(absolute).parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--workdir={workdir}: {folder} is a file, expected a folder")
    return Command(given.stage, given.config, overrides, absolute, options, given.verbose)


def _split(arguments: Sequence[str], stage: Stage) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the arguments for argparse, and (key, text) of each `--config.KEY=TEXT`.

    Names of options come in one spelling: `-on_the_fly=true` is `--on-the-fly`.
    """
    switches = [name for name, (placeholder, _) in stage.options.items() if not placeholder]
    plain, overrides = [], []
    for argument in arguments:
        named = re.match(r"--?([a-z][\w-]+)(.*)", argument, re.DOTALL)
        if not named:
            plain.append(argument)
        elif re.match(r"config\.", named[1] + named[2]):
            key, equals, text = named[2].partition("=")
            if not equals or not all(key[1:].split(".")):
                raise UserError(f"{argument}: expected --config.KEY=VALUE")
            overrides.append((key[1:], text))
        elif named[2] and named[1].replace("-", "_") in (*switches, "verbose"):
            if named[2] not in ("=true", "=false"):
                raise UserError(f"{argument}: expected true or false")
            plain += [_flag(named[1])] * (named[2] == "=true")
        else:
            plain.append(_flag(named[1]) + named[2])
    return plain, overrides


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse(argument: str, stage: Stage) -> None:
    """Raises UserError on an argument that the stage does not take."""
    if not argument.startswith("-"):
        raise UserError(f"argument {argument!r}: unexpected; options start with --")
    known = [_flag(name) for name in ("config", "workdir", "verbose", "help", *stage.options)]
    name = argument.partition("=")[0]
    raise UserError(f"{name}: unknown option; {nearest(name, known)}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="synth2",
        usage=_usage("STAGE", Stage()),
        description="Trains vision-language models on synthetic pairs of captions and images.",
        epilog=_EXIT_CODES,
    )
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", title="stages", required=True)
    for name, stage in STAGES.items():
        # The docstring of the stage's file, which is neither imported nor parsed.
        text = (pathlib.Path(__file__).parent / stage.room / f"{name}.py").read_text("utf-8")
        text = ast.literal_eval(text[: text.index('"""', 3) + 3])
        headline = text.partition("\n")[0].partition(": ")[2].replace("%", "%%")
        sub = stages.add_parser(name, help=headline, description=text, usage=_usage(name, stage))
        sub.add_argument("--config", metavar="FILE[:ARG]", type=_path, help="a Python config file")
        sub.add_argument("--config.KEY", metavar="VALUE", help="sets a key of the config")
        sub.add_argument("--workdir", metavar="DIR", type=_path, help="the folder to work in")
        sub.add_argument("--verbose", action="store_true", help="log more")
        if stage.reads:
            sub.add_argument("DIR", nargs="?", type=_path, help="short for --workdir=DIR")
        for key, (placeholder, text) in stage.options.items():
            given = {"metavar": placeholder, "type": _TYPES.get(placeholder, str)}
            given = given if placeholder else {"action": "store_true"}
            sub.add_argument(_flag(key), help=text.replace("%", "%%"), **given)
    return parser


def _usage(name: str, stage: Stage) -> str:
    given = "DIR [--config=FILE]" if stage.reads else "--workdir=DIR --config=FILE"
    return f"synth2 {name} {given} [--config.KEY=VALUE ...] [--OPTION ...]"
