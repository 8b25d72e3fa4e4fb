"""Text <-> ids by SentencePiece, without TensorFlow.

The ids are those of seqio.SentencePieceVocabulary: 0, 1 and 2 are padding, end of sentence and
unknown, as T5 has them. Decoders start from padding.
"""

import io
import os
import pathlib
from collections.abc import Iterable, Sequence

import sentencepiece

from synth2_jax.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BUILT_IN = {"scenes": pathlib.Path(__file__).parent / "scenes" / "scenes.model"}


class Vocabulary:
    """A SentencePiece model read from `path`.

    Raises UserError when the file is none or has other special ids.
    """

    def __init__(self, path: str):
        self.path = str(path)
        sentencepiece.set_min_log_level(1)  # warnings; else it speaks at every load
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=self.path)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"vocabulary {self.path}: expected a SentencePiece model file, found: {error}"
            ) from error
        found = self._model.pad_id(), self._model.eos_id(), self._model.unk_id()
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise UserError(
                f"vocabulary {self.path}: found pad, eos, unk ids {found}, "
                f"expected {(PAD_ID, EOS_ID, UNK_ID)} as T5 has them"
            )

    @property
    def size(self) -> int:
        """Number of pieces, the special ones included."""
        return self._model.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end of sentence."""
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end of sentence; padding is dropped."""
        kept = []
        for token in ids:
            if token == EOS_ID:
                break
            if token != PAD_ID:
                kept.append(int(token))
        return self._model.decode(kept)


def vocabulary_path(name: str) -> str:
    """The model file of a built-in vocabulary ("scenes") or a path; UserError if there is none."""
    path = str(BUILT_IN.get(name, name))
    if not os.path.isfile(path):
        raise UserError(
            f"vocabulary {name!r}: no such file; expected a SentencePiece model file or one of "
            f"{sorted(BUILT_IN)}"
        )
    return path


def load_vocabulary(name: str) -> Vocabulary:
    """A vocabulary by built-in name or by the path of a SentencePiece model file."""
    return Vocabulary(vocabulary_path(name))


def train_vocabulary(lines: Iterable[str], size: int) -> bytes:
    """Trains a SentencePiece byte-pair model with byte fallback; returns the model file's bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        normalization_rule_name="identity",
        character_coverage=1.0,  # the default leaves rare letters to bytes, and so splits words
        byte_fallback=True,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
