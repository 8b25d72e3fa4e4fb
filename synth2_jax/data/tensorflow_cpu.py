"""TensorFlow without accelerators, which JAX needs for itself.

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

# oneDNN logs an error for every type it does not know, and does not speed up input pipelines.
# TensorFlow reads both variables when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Only warnings and errors: it logs a line for each file that it opens.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


_TRACED = "in user code:"
_NOT_THEIRS = (
    str(pathlib.Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what C++ writes to stderr, unless the body fails.

    No environment variable stops these: TensorFlow 2.21 logs a dozen lines when it starts (no GPU,
    instructions of the processor), SentencePiece logs one for each model that it loads.
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
    """Returns the cause in a TensorFlow error, and its line in the user's code.

    The cause is the first of many lines. If a function of a data pipeline failed while it was
    traced, the message is "in user code:", then the stack, then the cause.
    """
    message = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", getattr(error, "message", str(error))).strip()
    if not message.startswith(_TRACED):
        message = re.sub("^Error in user-defined function .*?Iterator::[^ ]*: ", "", message)
        return message.partition("\n")[0]
    *_, (file, number) = re.findall(r'File "(.*?)", line (\d+)', message) or [("user code", "?")]
    cause = " ".join(message.split("\n\n")[-1].split())
    return f"{pathlib.Path(file).name}, line {number}: {cause}"


def of_user_code(error: Exception) -> str | None:
    """Returns one line for an error that was raised in the user's own code, or None."""
    if str(error).startswith(_TRACED):
        return one_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    *_, last = [None, *(f for f in frames if not f.filename.startswith(_NOT_THEIRS))]
    if last is None or last.filename.startswith("<"):
        return None
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{pathlib.Path(last.filename).name}, line {last.lineno}: {reason}"


with quiet():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
