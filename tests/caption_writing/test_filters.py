import hashlib
import sys

import pytest
from py3langid import langid

from synth2_jax.caption_writing.classes import COMMON_OBJECTS, load_classes
from synth2_jax.caption_writing.drafts import Draft
from synth2_jax.caption_writing.filters import DraftFilterConfig, forms, make_filter, names
from synth2_jax.caption_writing.languages import LANGUAGES, language_check
from synth2_jax.errors import UserError
from synth2_jax.text.words import count_words, words


def draft(caption, class_name="red circle", finished=True, drop_reason=""):
    return Draft(class_name, 0, caption, finished, drop_reason=drop_reason)


def reason(caption, **settings):
    """Why a caption without a class is dropped."""
    return make_filter(DraftFilterConfig(**settings))(draft(caption, None))


@pytest.mark.parametrize(
    "caption, class_name, finished, expected",
    [
        ("a red circle", "red circle", True, None),
        ("two red circles over a ring", "red circle", True, None),
        ("A Red Circle here", "red circle", True, None),
        ("a big, red circle.", "red circle", True, None),
        ("a t-shirt (large)", "t-shirt", True, None),
        ("what is c++ really", "c++", True, None),
        ("a red circle", "red circle", False, "unfinished"),
        ("red circle", "red circle", True, "too short"),
        ("", "red circle", True, "too short"),
        ("a covered circle", "red circle", True, "class not named"),
        ("a covered bridge", "red", True, "class not named"),
        ("a circle, red", "red circle", True, "class not named"),
        ("two sharp kitchen knives", "kitchen knife", True, None),
        ("a bowl of cherries", "cherry", True, None),
        ("some people at a table", "person", True, None),
        ("緑の芝生の上に赤い円がある", "赤い円", True, None),
        ("緑の芝生の上に青い円がある", "赤い円", True, "class not named"),
    ],
)
def test_it_names_why_a_draft_is_dropped(caption, class_name, finished, expected):
    assert make_filter()(draft(caption, class_name, finished)) == expected


def test_a_drafts_own_reason_comes_first_and_names_may_be_left_out():
    assert make_filter()(draft("a red circle", drop_reason="not JSON")) == "not JSON"
    why = make_filter(DraftFilterConfig(names_class=False))
    assert why(draft("three happy puppies", "dog")) is None


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a red circle", None),
        ("\x1b[31ma red circle\x1b[0m", "control characters"),
        ("a red\x00 circle", "control characters"),
        ("a red\tcircle here", "control characters"),
        ("a red \u202ecircle", "control characters"),  # turns the rest of a line around
        ("a red\u2028circle here", "control characters"),
        ("a half \ud83d of a pair", "control characters"),
        ("a red \ufffd circle", "not UTF-8"),
        ("a <b>red</b> circle", "markup"),
        ("a <img src=x onerror=alert(1)> circle", "markup"),
        ("salt &amp; pepper here", "markup"),
        ("a sign that says 3 < 4 > 2", None),
        ("salt & pepper here", None),
        ("می\u200cخواهم یک سگ ببینم", None),  # a joiner is part of the word
        ("a family 👨\u200d👩\u200d👧 here", None),
        ("a　wide　space", None),
        ("x" * 1000, "too short"),
        ("a b " * 2500, "too long"),
        ("犬" * 10_000, "too long"),
    ],
)
def test_what_no_caption_may_hold(caption, expected):
    assert reason(caption) == expected


def test_length_is_counted_in_words_and_in_characters_without_spaces():
    assert reason("a red circle", min_words=4) == "too short"
    assert reason("a red circle", max_words=3) is None
    assert reason("a big red circle", max_words=3) == "too long"
    assert count_words("芝生の犬。") == 4
    assert count_words("a t-shirt, red") == 3


def test_every_script_gets_through():
    for caption in (
        "собака лежит на траве",
        "ένας σκύλος στο γρασίδι",
        "كلب على العشب الأخضر",
        "घास पर एक कुत्ता है",
        "สุนัขบนหญ้า",
        "잔디 위의 개 한 마리",
        "芝生の上の犬",
        "🐕 🌳 🌞",
    ):
        assert reason(caption) is None


def test_duplicates_are_dropped_and_only_of_what_was_kept():
    why = make_filter()
    assert why(draft("a red circle", finished=False)) == "unfinished"
    assert why(draft("a red circle", "blue ring")) == "class not named"
    assert why(draft("a red circle")) is None
    assert why(draft("a red circle")) == "duplicate"
    assert why(draft("a red circle.")) is None  # another text, word for word
    assert make_filter()(draft("a red circle")) is None  # each filter remembers its own


def test_normalized_duplicates_have_the_same_words():
    why = make_filter(DraftFilterConfig(duplicates="normalized"))
    assert why(draft("a red circle", None)) is None
    for caption in ("A red circle.", "a  red, circle", "ａ red circle!"):
        assert why(draft(caption, None)) == "duplicate"
    assert why(draft("red a circle", None)) is None
    assert why(draft("🐕 🐕 🐕", None)) is None  # no words: the text itself
    assert why(draft("🐈 🐈 🐈", None)) is None
    assert why(draft("🐈 🐈 🐈", None)) == "duplicate"


def test_blocklist_holds_words_and_phrases_in_any_case(tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_bytes("# words\nGore\nstock photo\nстрах\n".encode())
    blocked = {"blocklist": str(path)}
    assert reason("a scene of gore, red", **blocked) == "blocked"
    assert reason("a scene of ｇｏｒｅ here", **blocked) == "blocked"
    assert reason("a Stock-Photo of dogs", **blocked) == "blocked"
    assert reason("собака и страх там", **blocked) == "blocked"
    assert reason("a gorey photo of stock", **blocked) is None
    found = DraftFilterConfig(**blocked).describe()["blocklist"]
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "contents, text",
    [
        (b"", "found no word or phrase"),
        (b"ok\n\xff\n", "line 2 is not UTF-8"),
        (None, "no such file"),
    ],
)
def test_a_blocklist_that_is_none(tmp_path, contents, text):
    path = tmp_path / "blocked.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(UserError, match=text):
        make_filter(DraftFilterConfig(blocklist=str(path)))


SENTENCES = {
    "en": "A brown dog is lying on the grass near a tree",
    "de": "Ein brauner Hund liegt auf dem Gras neben einem Baum",
    "fr": "Un chien brun est couché dans l'herbe près de la maison",
    "es": "Un perro marrón está tumbado en la hierba junto a un árbol",
    "it": "Un cane marrone è sdraiato sul prato vicino alla casa di legno",
    "nl": "Een bruine hond ligt op het gras naast een boom",
    "pt": "Um cachorro marrom está na grama perto de uma árvore",
    "ru": "Коричневая собака лежит на траве возле дерева",
    "ja": "茶色の犬が木のそばの芝生に寝ている",
    "zh": "一只棕色的狗躺在树旁的草地上",
    "ko": "갈색 개가 나무 옆 잔디에 누워 있다",
    "ar": "كلب بني مستلق على العشب قرب شجرة",
    "el": "Ένας καφέ σκύλος ξαπλώνει στο γρασίδι",
    "he": "כלב חום שוכב על הדשא ליד עץ",
    "hi": "एक भूरा कुत्ता पेड़ के पास घास पर लेटा है",
    "th": "สุนัขสีน้ำตาลนอนอยู่บนหญ้า",
}


FOREIGN = (  # short ones
    *(
        "ein Hund am Strand",
        "rote rostige Räder lehnen müde draußen",
        "un vélo rouge contre le mur",
    ),
    *("niños juegan en el parque", "fragole fresche in una ciotola", "oude man met hoed"),
    *("czerwony rower oparty o ścianę", "två katter sover i soffan", "kanepede uyuyan iki kedi"),
)


@pytest.mark.slow
def test_a_sentence_is_in_its_language_and_in_no_other():
    for language, sentence in SENTENCES.items():
        assert [other for other in SENTENCES if language_check(other)(sentence)] == [language]
    assert not any(map(language_check("en"), FOREIGN))
    assert reason(FOREIGN[0], language="en") == "another language"


def test_english_captions_of_any_class_are_english():
    captions = [f"a photo of a {name} on a table" for name in load_classes(COMMON_OBJECTS)]
    assert all(map(language_check("en"), captions))
    assert all(map(language_check("en"), ["red bicycle", "a dog on the beach", "two cats"]))


def test_languages_are_those_of_the_package(monkeypatch):
    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    assert {label for label in model.labels if len(label) == 2} == set(LANGUAGES)
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(
        UserError, match=r"'nl' needs the package py3langid.*synth2-jax\[captions\]"
    ):
        language_check.__wrapped__("nl")


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"language": "eng"}, "language: unknown language 'eng'; did you mean 'en'?"),
        ({"duplicates": "exact"}, "duplicates: unknown 'exact'"),
        ({"min_words": 0}, "min_words: found 0, expected at least 1"),
        ({"max_words": 2}, "max_words: found 2, expected at least `min_words`, 3"),
        ({"similarity": 1.5}, "similarity: found 1.5, expected 0.3 to 1"),
    ],
)
def test_mistakes(settings, text):
    with pytest.raises(UserError) as error:
        DraftFilterConfig(**settings)
    assert str(error.value).startswith(text)


def test_forms_and_names():
    assert forms("goose") == ("goose", "geese")
    assert forms("toy") == ("toy", "toies")  # no word, so it matches nothing
    assert forms("red ring") == ("red ring",)
    assert names("Two GEESE", "goose") and not names("a mongoose", "goose")


def test_words_of_any_script():
    assert words("A T-shirt, RED; 犬と猫") == ["a", "t", "shirt", "red", "犬", "と", "猫"]
    assert words("Straße STRASSE") == ["strasse", "strasse"]
    assert words("\x1b[31m ... 🐕") == ["31m"]
