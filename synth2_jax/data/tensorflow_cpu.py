"""TensorFlow without accelerators: it feeds jax, which wants all of their memory.

Modules of this package take `tf` from here. Import it before SeqIO, which imports TensorFlow too.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# oneDNN logs an error for every type it does not know; it speeds up what no input pipeline does.
# Both are read by TensorFlow while it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Warnings and worse: each file that is opened is worth a line to it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


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
    """The first line of a message, without the names of TensorFlow's own functions."""
    message = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", getattr(error, "message", str(error)))
    return message.strip().split("\n")[0]


with quiet():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
