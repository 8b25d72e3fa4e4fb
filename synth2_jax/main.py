"""The one entry point: `synth2 STAGE --config=FILE --workdir=DIR [--config.KEY=VALUE ...]`.

Exit codes: 0 done, 2 a mistake of the user's (one line says which), 143 stopped by SIGTERM after
saving, 1 anything else.
"""

import importlib
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import config_flags

from synth2_jax.errors import UserError, nearest

# In the order data flows. Each is a module of stages/ with `run(config, workdir)`, imported when
# asked for: half of them need TensorFlow, which takes seconds to import.
STAGES = (
    "tokenize",
    "train",
    "captions",
    "synthesize",
    "evaluate",
    "report",
    "demo",
    "study",
    "inspect",
)
NEED_NO_CONFIG = ("report", "inspect")


def console() -> None:
    """What the `synth2` command runs."""
    sys.exit(main(sys.argv))


def main(argv: Sequence[str]) -> int:
    """Runs one stage; returns the exit code."""
    try:
        stage, config, workdir = parse(argv)
        importlib.import_module(f"synth2_jax.stages.{stage}").run(config, workdir)
    except UserError as error:
        print(f"synth2: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]):
    """Returns (stage, ConfigDict or None, workdir).

    Raises:
      UserError: an unknown stage, flag or config key, or a config file that is missing or fails.
    """
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(f"{__doc__}\nStages: {', '.join(STAGES)}")
        raise SystemExit(0)
    stage = argv[1]
    if stage not in STAGES:
        raise UserError(f"stage {stage!r}: unknown; {nearest(stage, STAGES)}")
    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "Where the stage works.", flag_values=values)
    flags.DEFINE_bool("verbose", False, "Log more.", flag_values=values)
    _make_siblings_importable(argv[2:])
    try:
        rest = values([argv[0], *argv[2:]])
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_one_line(error, argv[2:], values)) from error
    if len(rest) > 1:
        raise UserError(f"argument {rest[1]!r}: unexpected; options start with --")
    if config_flag.value is None and stage not in NEED_NO_CONFIG:
        raise UserError(f"{stage}: no --config=FILE given; see configs/")
    if values.workdir is None:
        raise UserError(f"{stage}: no --workdir=DIR given")
    logging.set_verbosity(logging.INFO if values.verbose else logging.WARNING)
    return stage, config_flag.value, os.path.abspath(values.workdir)


def _make_siblings_importable(arguments: Sequence[str]) -> None:
    """Config files may import others (`from configs.scenes import models`) wherever synth2 runs."""
    for argument in arguments:
        if argument.startswith("--config="):
            path = pathlib.Path(argument.removeprefix("--config=").split(":")[0]).resolve()
            for folder in path.parents:
                if folder.name == "configs" and str(folder.parent) not in sys.path:
                    sys.path.insert(0, str(folder.parent))


def _one_line(error: Exception, arguments: Sequence[str], values: flags.FlagValues) -> str:
    """Says of a flag that was refused what it was and what it could have been."""
    config = values["config"].value if "config" in values else None
    for argument in arguments:
        key = argument.split("=")[0].removeprefix("--")
        if not key.startswith("config.") or config is None:
            continue
        section, *path = key.split(".")
        here = config
        for name in path:
            bare = name.split("[")[0]
            if not hasattr(here, "keys") or bare not in here:
                known = here.keys() if hasattr(here, "keys") else ()
                return f"{key}: unknown config key; {nearest(bare, known)}"
            here = here[bare]
    text = " ".join(str(error).split())
    return text or type(error).__name__


if __name__ == "__main__":
    console()
