"""TensorFlow without accelerators: it feeds jax, which wants all of their memory.

Modules of this package take `tf` from here. Import it before SeqIO, which imports TensorFlow too.
"""

import contextlib
import os
import pathlib
import re
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator

# oneDNN logs an error for every type it does not know; it speeds up what no input pipeline does.
# Both are read by TensorFlow while it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Warnings and worse: each file that is opened is worth a line to it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


_TRACED = "in user code:"
_NOT_THEIRS = (
    str(pathlib.Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what C++ writes to stderr; it is shown if the body fails.

    For what no environment variable stops: TensorFlow 2.21 greets with a dozen lines of its log (no
    GPU, which instructions the processor has), SentencePiece with one for each model it loads.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def one_line(error: Exception) -> str:
    """The cause in a message of TensorFlow's, and where in the user's code it arose.

    Such a message is the first line of many; or "in user code:", the stack and the cause at its end
    when a function of a data pipeline failed as it was traced.
    """
    message = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", getattr(error, "message", str(error))).strip()
    if not message.startswith(_TRACED):
        return re.sub("^Error in user-defined function .*?Iterator::[^ ]*: ", "", message).split(
            "\n"
        )[0]
    *_, (file, number) = re.findall(r'File "(.*?)", line (\d+)', message) or [("user code", "?")]
    cause = " ".join(message.split("\n\n")[-1].split())
    return f"{pathlib.Path(file).name}, line {number}: {cause}"


def of_user_code(error: Exception) -> str | None:
    """`one_line` of an error that code outside of this project and its packages raised, or None."""
    if str(error).startswith(_TRACED):
        return one_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(_NOT_THEIRS)]
    if not theirs or theirs[-1].filename.startswith("<"):
        return None
    reason = " ".join(str(error).split())
    file, number = pathlib.Path(theirs[-1].filename).name, theirs[-1].lineno
    return f"{file}, line {number}: {type(error).__name__}: {reason}"


with quiet():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
