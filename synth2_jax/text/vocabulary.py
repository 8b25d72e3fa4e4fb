"""Text <-> ids by SentencePiece, without TensorFlow.

The ids are those of seqio.SentencePieceVocabulary: 0 and 1 are padding and end of sentence, as T5
and Gemma have them. Decoders start from padding, or from a vocabulary's own start of sentence where
the model was trained with that (see `models.gemma`).

A vocabulary of chats, such as Gemma's, has pieces that open and close a turn. They may stand in any
text as they are written; what is written in an open turn ends as the turn does.
"""

import io
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence

import sentencepiece

from synth2_jax.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
MAX_SPARE_ROWS = 128  # of a pretrained table: rounded up for the hardware, or for T5's sentinels
_DOMAINS = pathlib.Path(__file__).parents[1] / "domains"
BUILT_IN = {"scenes": _DOMAINS / "scenes" / "scenes.model"}


class Vocabulary:
    """A SentencePiece model read from `path`; `bos_id` is its start of sentence, or None.

    Raises:
      UserError: the file is none or has other special ids.
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
        found = self._model.pad_id(), self._model.eos_id()
        if found != (PAD_ID, EOS_ID):
            raise UserError(
                f"vocabulary {self.path}: found pad, eos ids {found}, "
                f"expected {(PAD_ID, EOS_ID)} as T5 and Gemma have them"
            )
        bos_id = self._model.bos_id()
        self.bos_id: int | None = None if bos_id < 0 else bos_id
        self._start_of_turn, self._end_of_turn = map(self._id_of, (START_OF_TURN, END_OF_TURN))

    @property
    def size(self) -> int:
        """Number of pieces, the special ones included."""
        return self._model.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end of sentence."""
        return self._model.encode(text)

    def end_id(self, prompt_ids: Sequence[int]) -> int:
        """Returns what ends a text after this prompt: the end of its open turn, or of sentence."""
        for token in reversed(prompt_ids):
            if token == self._start_of_turn:
                return self._end_of_turn
            if token == self._end_of_turn:
                break
        return EOS_ID

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end, of sentence or of turn; padding is dropped."""
        ends = (EOS_ID, self._end_of_turn)
        kept = itertools.takewhile(lambda token: token not in ends, map(int, ids))
        return self._model.decode([token for token in kept if token != PAD_ID])

    def check_rows(self, num_rows: int, where: str) -> None:
        """Raises UserError where there are more pieces than the `num_rows` of a new table."""
        if num_rows < self.size:
            raise UserError(
                f"{where}.vocab_size: found {num_rows}, expected at least the vocabulary's "
                f"{self.size}"
            )

    def check_table(self, num_rows: int, where: str) -> None:
        """Raises UserError unless a pretrained table of `num_rows` embeddings fits these pieces."""
        if not 0 <= num_rows - self.size <= MAX_SPARE_ROWS:
            raise UserError(
                f"vocabulary {self.path}: found {self.size} pieces, but {where} has {num_rows} "
                f"embeddings; expected the vocabulary that it was trained with (as many pieces, or "
                f"up to {MAX_SPARE_ROWS} fewer)"
            )

    def _id_of(self, piece: str) -> int | None:
        found = self._model.piece_to_id(piece)
        return None if found == self._model.unk_id() else found


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
