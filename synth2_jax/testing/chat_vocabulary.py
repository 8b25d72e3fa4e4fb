"""A small vocabulary of chats, with the special ids of Gemma's and the pieces of its turns."""

import io
import pathlib

import sentencepiece

from synth2_jax.text.prompts import CHAT_CAPTION_PROMPT, CHAT_CLASS_PROMPT
from synth2_jax.text.vocabulary import END_OF_TURN, START_OF_TURN, Vocabulary


def chat_vocabulary(path: pathlib.Path) -> Vocabulary:
    """Writes the SentencePiece model and loads it; turns open with 105 and close with 106."""
    model = io.BytesIO()
    unused = [f"<unused{i}>" for i in range(100)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([CHAT_CAPTION_PROMPT, CHAT_CLASS_PROMPT, "a red <b> 1"] * 9),
        model_writer=model,
        vocab_size=600,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=["<mask>", *unused, START_OF_TURN, END_OF_TURN, "\n"],
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return Vocabulary(str(path))
