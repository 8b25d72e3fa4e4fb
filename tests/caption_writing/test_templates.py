import hashlib

import pytest

from synth2_jax.caption_writing.templates import BUILT_IN, Prompts, Template, load_template
from synth2_jax.errors import UserError
from synth2_jax.text.prompts import CLASS_PROMPT, class_prompt


def test_the_built_in_class_prompt_is_the_one_that_models_are_trained_on():
    prompts = Prompts(load_template("class"))
    assert prompts.template.text == CLASS_PROMPT
    assert prompts.prompt("red circle", 7) == class_prompt("red circle")


def test_styles_and_lengths_take_turns_until_all_pairs_were_there():
    prompts = Prompts(Template("{style} {length}: {class_name}"), ("a", "b"), (5, 9, 13))
    found = [prompts.prompt("dog", draw) for draw in range(7)]
    assert found[:3] == ["a 5: dog", "b 5: dog", "a 9: dog"]
    assert len(set(found)) == 6 and found[6] == found[0]
    assert prompts.targets(3) == {"style": "b", "length": 9}


def test_braces_of_a_class_and_doubled_braces_stay():
    prompts = Prompts(Template('{{"class": "{class_name}"}}'))
    assert prompts.prompt("{style}", 0) == '{"class": "{style}"}'


def test_a_template_file_is_named_by_its_hash(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeffDescribe a {class_name}.\r\nIn one line.\r\n".encode())
    template = load_template(str(path))
    assert template.text == "Describe a {class_name}.\nIn one line."
    assert template.sha256 == hashlib.sha256(template.text.encode()).hexdigest()
    path.write_text("Describe a {class_name}!")
    assert load_template(str(path)).sha256 != template.sha256


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{clas_name}", "unknown slot {clas_name}; did you mean 'class_name'? one of: class_name"),
        ("{}: {class_name}", "unknown slot {}"),
        ("{class_name.upper}", "unknown slot {class_name.upper}"),
        ("{class_name!r}", "slot {class_name} has a format, expected only its name"),
        ("{class_name:>9}", "slot {class_name} has a format"),
        ("a dog", "found no slot {class_name}"),
        ("{class_name", "Write {{ for a brace"),
    ],
)
def test_a_text_that_is_no_template(text, expected):
    with pytest.raises(UserError) as error:
        Template(text, "template x")
    assert str(error.value).startswith("template x: ") and expected in str(error.value)


@pytest.mark.parametrize(
    "text, styles, lengths, expected",
    [
        ("{class_name}", ("a",), (), "found no slot {style} and 1 styles, expected both"),
        ("{class_name} {style}", (), (), "found a slot {style} and 0 styles, expected both"),
        ("{class_name}", (), (5,), "found no slot {length} and 1 lengths"),
        (BUILT_IN["describe"], ("a",), (), "found a slot {length} and 0 lengths"),
    ],
)
def test_slots_and_values_come_together(text, styles, lengths, expected):
    with pytest.raises(UserError) as error:
        Prompts(Template(text), styles, lengths)
    assert expected in str(error.value)


def test_files_that_are_no_templates(tmp_path):
    with pytest.raises(UserError, match="template 'descibe': no such file; expected a text file"):
        load_template("descibe")
    (tmp_path / "prompt.txt").write_bytes(b"{class_name}\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_template(str(tmp_path / "prompt.txt"))
