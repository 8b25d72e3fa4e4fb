"""The one entry point: `synth2 STAGE --config=FILE --workdir=DIR [--config.KEY=VALUE ...]`.

`command_line.py` reads what was typed; here the stage is run, and its end becomes an exit code.
JAX and all that needs it is imported inside functions: the help needs none of it, and Ctrl-C while
it is imported is a Ctrl-C like any other.
"""

import contextlib
import importlib
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from synth2_jax import command_line, files, folder_lock
from synth2_jax.command_line import STAGES, Command
from synth2_jax.errors import UserError
from synth2_jax.inert_text import inert

# A shell's code for a process that a signal ended: 128 and the signal's number.
_INTERRUPTED = 128 + signal.SIGINT
_PIPE_CLOSED = 128 + signal.SIGPIPE
_LONGEST_HALF = 1000  # characters of an error
_URL_KEYS = ("server.base_url", "source.images")  # TFDS reads a bucket in its data_dir by itself


def console() -> None:
    """Runs the `synth2` command; does not return."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this; no file may take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (stays open)
    # Captions hold more than a terminal's encoding may have.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _keep_ctrl_c
    try:
        code = main(sys.argv)
    except SystemExit:
        raise  # after the help, or after a save that all processes agreed on
    except BaseException:
        process = os.environ.get("SYNTH2_PROCESS_ID")
        if process is None:
            raise
        traceback.print_exc()
        print(
            f"synth2: process {process} of {os.environ.get('SYNTH2_NUM_PROCESSES')} ends here; if "
            "a connection was lost, another one failed before it",
            file=sys.stderr,
        )
        code = 1
    if code:
        _leave(code)
    sys.exit(code)


def _keep_ctrl_c(unraisable) -> None:
    """Sends a Ctrl-C again that came in a callback, where Python only prints exceptions.

    JAX has one at each garbage collection: the program would run on as if no key had been pressed.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()  # after the callback
    else:
        sys.__unraisablehook__(unraisable)


def _leave(code: int) -> None:
    """Ends this process at once.

    An orderly exit would wait for other processes, who may be dead, and let threads of libraries
    print more: the last line is ours.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a pipe that nothing reads any more
            stream.flush()
    os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Runs one stage; returns the exit code."""
    folders = [os.environ.get("TMPDIR", "/tmp")]  # that may be full
    try:
        _run(argv, folders)
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
        from absl import logging

        logging.info("the error in full:", exc_info=True)
        _tell(line)
        return 2
    return 0


def _run(argv: Sequence[str], folders: list[str]) -> None:
    """Runs the stage; puts the folders that it writes to in front of `folders`.

    A process of a pod joins the others also with a mistake on its command line, which ends all.
    """
    joins, command, problem = "SYNTH2_COORDINATOR" in os.environ, None, ""
    try:
        command = command_line.parse(argv)  # help leaves here, before JAX is imported
    except UserError as error:
        if not joins:
            raise
        problem = str(error)
    from absl import logging

    from synth2_jax import distributed

    if joins:
        distributed.start(distributed.from_environment())
    with contextlib.ExitStack() as stack:
        if command:
            output = command.options.get("output")
            folders[:0] = [command.workdir, *([output] if output else [])]
            logging.set_verbosity(logging.INFO if command.verbose else logging.WARNING)
            try:
                config = read_config(command)
                if distributed.is_first():
                    stack.enter_context(_lock(command))
            except Exception as error:
                is_ours = isinstance(error, UserError)
                problem = str(error) if is_ours else files.system_problem(error, folders)
                if not (joins and problem):
                    raise
        distributed.agree(problem)
        room = STAGES[command.stage].room
        run = importlib.import_module(f"synth2_jax.{room}.{command.stage}").run
        run(config, command.workdir, **command.options)


def read_config(command: Command) -> Any:
    """Returns the ConfigDict of a command, or None without a config file.

    Its keys are checked by the stage, which knows them all: a file lists only some.

    Raises:
      UserError: a file that is missing or fails, or a key that cannot be set.
    """
    from synth2_jax import config as config_lib

    if not command.config:
        return None
    config = config_lib.load_config(command.config)
    for key, text in command.overrides:
        config_lib.override(config, key, text)
    for key, text in config_lib.texts(config, "--config"):
        if not key.endswith(_URL_KEYS):
            command_line.check_local(key, text)
    return config


def _lock(command: Command) -> contextlib.AbstractContextManager[None]:
    """Keeps other commands from the folder that the stage writes to."""
    writes = STAGES[command.stage].writes
    folder = {"workdir": command.workdir, **command.options}.get(writes)
    if not folder:
        return contextlib.nullcontext()
    file = pathlib.Path(folder, folder_lock.LOCK)
    if writes != "workdir":  # replaced as a whole: the lock is next to it
        file = pathlib.Path(os.path.abspath(folder) + folder_lock.LOCK)
    return folder_lock.hold(file, f"--{writes}={folder}", f"synth2 {command.stage}")


def _tell(line: str) -> None:
    """Prints an error; names and captions in it may come from anywhere, and be of any length."""
    if len(line) > 2 * _LONGEST_HALF:
        line = f"{line[:_LONGEST_HALF]} ... {line[-_LONGEST_HALF:]}"  # ends in what to do
    with contextlib.suppress(OSError):
        print(f"synth2: {inert(line)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    console()
