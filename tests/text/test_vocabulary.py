import io
import re

import pytest
import sentencepiece
import seqio

from synth2_jax.domains.scenes import dataset
from synth2_jax.domains.scenes import vocabulary as scenes_vocabulary
from synth2_jax.errors import UserError
from synth2_jax.testing.chat_vocabulary import chat_vocabulary
from synth2_jax.text.prompts import (
    CAPTION_PROMPT,
    CHAT_CAPTION_PROMPT,
    class_prompt,
    in_turns,
)
from synth2_jax.text.vocabulary import (
    BUILT_IN,
    END_OF_TURN,
    EOS_ID,
    PAD_ID,
    START_OF_TURN,
    UNK_ID,
    load_vocabulary,
    train_vocabulary,
    vocabulary_path,
)


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary("scenes")


@pytest.fixture(scope="module")
def texts():
    """Captions of every split and all prompts."""
    captions = [c for s in ("real", "test") for e in dataset.examples(s, 150) for c in e.captions]
    captions += [caption for _, caption in dataset.texts(1500)]
    return captions + [CAPTION_PROMPT] + [class_prompt(name) for name in dataset.CLASSES]


UNICODE = [
    "héllo wörld",
    "日本語のキャプション",
    "a 🎈 over Ω",
    "tab\tand\nline",
    "e\u0301",
    "\x00",
    "⁇",
]


def test_captions_and_prompts_round_trip(vocabulary, texts):
    for text in texts:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert not {PAD_ID, EOS_ID, UNK_ID} & set(ids)
        assert max(ids) < vocabulary.size


def test_every_word_of_scenes_is_one_piece(vocabulary, texts):
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert {"above", "over", "beneath", "triangles", "Class", "three", "cyan"} < words
    assert {word for word in words if len(vocabulary.encode(word)) != 1} == set()
    # Wherever the word stands, and punctuation is a piece of its own.
    for text in texts:
        assert len(vocabulary.encode(text)) == len(re.findall(r"\w+|[^\w\s]", text)), text


@pytest.mark.parametrize("text", UNICODE)
def test_any_text_round_trips_by_bytes(vocabulary, text):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text and UNK_ID not in ids
    assert vocabulary.encode("") == [] and vocabulary.decode([]) == ""


def test_ids_are_seqios(vocabulary, texts):
    other = seqio.SentencePieceVocabulary(vocabulary.path)
    assert (other.pad_id, other.eos_id, other.unk_id) == (PAD_ID, EOS_ID, UNK_ID) == (0, 1, 2)
    assert other.vocab_size == vocabulary.size == 512
    for text in texts[::10] + UNICODE:
        ids = vocabulary.encode(text)
        assert ids == list(other.encode(text))
        assert vocabulary.decode(ids) == other.decode(ids)


def test_decoding_stops_at_the_first_end_and_drops_padding(vocabulary, chat):
    red, circle = vocabulary.encode("red circle")
    assert vocabulary.decode([red, circle, EOS_ID, red, PAD_ID]) == "red circle"
    assert vocabulary.decode([PAD_ID, red, PAD_ID, circle, PAD_ID]) == "red circle"
    assert vocabulary.decode([EOS_ID, red]) == ""
    caption = chat.encode("a red circle")
    for end in (106, EOS_ID):
        assert chat.decode([*caption, end, *caption]) == "a red circle"


def test_the_shipped_model_is_what_the_code_builds():
    assert scenes_vocabulary.build() == BUILT_IN["scenes"].read_bytes()


def test_class_prompts_are_those_of_the_papers_and_keep_braces():
    assert CAPTION_PROMPT == "Output:"
    assert class_prompt("golden retriever") == "Class: golden retriever. Output:"
    assert class_prompt("{x}") == "Class: {x}. Output:"


def test_a_model_may_be_named_by_path(vocabulary, tmp_path):
    path = tmp_path / "mine.model"
    path.write_bytes(BUILT_IN["scenes"].read_bytes())
    loaded = load_vocabulary(str(path))
    assert loaded.path == str(path) and loaded.size == vocabulary.size
    assert loaded.encode("two rings") == vocabulary.encode("two rings")
    assert vocabulary_path("scenes") == vocabulary.path == str(BUILT_IN["scenes"])


def test_a_trained_model_reads_its_letters(tmp_path):
    # One rare letter among many common ones must be no byte.
    lines = ["aaaa bbbb"] * 3000 + ["v"]
    path = tmp_path / "small.model"
    path.write_bytes(train_vocabulary(lines, 270))
    loaded = load_vocabulary(str(path))
    assert loaded.size == 270
    letters = [piece for piece in loaded.encode("v") if piece < 3 + 256]
    assert not letters


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return chat_vocabulary(tmp_path_factory.mktemp("chat") / "chat.model")


def test_turns_in_a_text_are_single_ids(vocabulary, chat):
    assert vocabulary.bos_id is None and chat.bos_id == 2
    assert chat.encode(START_OF_TURN) == [105] and chat.encode(END_OF_TURN) == [106]
    assert chat.encode(in_turns("a red circle")) == [
        *[105, *chat.encode("user\na red circle"), 106, *chat.encode("\n")],
        *[105, *chat.encode("model\n")],
    ]
    ids = chat.encode(CHAT_CAPTION_PROMPT)
    assert ids == list(seqio.SentencePieceVocabulary(chat.path).encode(CHAT_CAPTION_PROMPT))


def test_what_is_written_in_a_turn_ends_with_it(vocabulary, chat):
    assert chat.end_id(chat.encode(in_turns("a circle"))) == 106
    for closed in ("", "a circle", f"{START_OF_TURN}user\na circle{END_OF_TURN}"):
        assert chat.end_id(chat.encode(closed)) == EOS_ID
    assert vocabulary.end_id(vocabulary.encode(in_turns("circle"))) == EOS_ID
    assert vocabulary.end_id(vocabulary.encode(CAPTION_PROMPT)) == EOS_ID


def test_a_pretrained_table_of_another_vocabulary_is_refused(chat):
    for num_rows in (chat.size, chat.size + 64, chat.size + 128):
        chat.check_table(num_rows, "the model")
    for num_rows in (chat.size - 1, chat.size + 129):
        with pytest.raises(
            UserError, match=f"found {chat.size} pieces, but the model has {num_rows} embeddings"
        ):
            chat.check_table(num_rows, "the model")


def train_by_its_own_defaults():
    """No padding, unknown 0."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle"] * 9),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    "contents, problem",
    [
        (b"", "bad.model: expected a SentencePiece model file"),
        (b"no model at all", "bad.model: expected a SentencePiece model file"),
        (train_by_its_own_defaults(), r"found pad, eos ids \(-1, 2\), expected \(0, 1\)"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, contents, problem):
    (tmp_path / "bad.model").write_bytes(contents)
    with pytest.raises(UserError, match=problem):
        load_vocabulary(str(tmp_path / "bad.model"))
    for name in ("scene", str(tmp_path), str(tmp_path / "none.model")):
        with pytest.raises(UserError, match=r"no such file; expected .* one of \['scenes'\]"):
            load_vocabulary(name)
