"""Builds scenes.model, the vocabulary that is shipped with Scenes.

Run as `python -m synth2_jax.domains.scenes.vocabulary`.
"""

from synth2_jax.domains.scenes import dataset
from synth2_jax.files import write_bytes
from synth2_jax.text.prompts import CAPTION_PROMPT, class_prompt
from synth2_jax.text.vocabulary import BUILT_IN, train_vocabulary

NUM_LINES = 4000  # of the text split; every word of the language occurs
SIZE = 512  # 256 of them are bytes, so that any text has ids


def build() -> bytes:
    """The model file's bytes; the same on every machine."""
    lines = []
    for name, caption in dataset.texts(NUM_LINES):
        lines += [caption, class_prompt(name), CAPTION_PROMPT]
    return train_vocabulary(lines, SIZE)


if __name__ == "__main__":
    write_bytes(BUILT_IN["scenes"], build())
