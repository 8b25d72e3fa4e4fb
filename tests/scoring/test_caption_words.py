"""Tests of the caption tokenization; expected tokens were recorded from CoreNLP 3.4.1."""

import pytest

from synth2_jax.scoring import words


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("A dog's ball isn't red, but the dogs' are!", "a dog 's ball is n't red but the dogs are"),
        (
            "I can't, won't, they're, we've, I'd, she'll",
            "i ca n't wo n't they 're we 've i 'd she 'll",
        ),
        ("cannot gonna wanna gotta 'Tis 'twas", "can not gon na wan na got ta 't is 't was"),
        ("couldn't've who's let's ma'am y'all", "could n't 've who 's let 's ma'am y' all"),
        ("o'clock O'Neil rock 'n' roll '90s 90's", "o'clock o'neil rock 'n' roll '90s 90 's"),
        ("it’s “smart” ‘single’ quotes… café", "it 's smart single quotes café"),
        ("A \"quoted\" word and ``this'' too...", "a quoted word and this too"),
        ("black-and-white T-shirt; and/or R&B", "black-and-white t-shirt and/or r&b"),
        ("10:30 a.m. at St. John's, Mr. Smith", "10:30 a.m. at st. john 's mr. smith"),
        ("a U.S. man in the U.K.'s capital.", "a u.s. man in the u.k. 's capital"),
        (
            "3,000 people, 1/2 price, $5.99, 50% off #1",
            "3,000 people 1/2 price $ 5.99 50 % off # 1",
        ),
        ("12:30pm 7.5in 3-D 4x4 1990s 2nd -5", "12:30 pm 7.5 in 3-d 4x4 1990s 2nd -5"),
        ("one,two;three:four ! ? sat. the cat", "one two three four sat the cat"),
        ("here—there -- dash --- six- -five", "here there dash six five"),
        # Not removed by coco-caption either: see the module's docstring.
        ("(in brackets) Wow!!", "-lrb- in brackets -rrb- wow !!"),
        ("AT&T and R&B, but salt&pepper", "at&t and r&b but salt & pepper"),
        ("1½ cups, ¼ of it for 5¢", "1 1/2 cups 1/4 of it for 5 cents"),
        ("a smile :) and a sad one :-(", "a smile :-rrb- and a sad one :--lrb-"),
        ("emoji 🐶dog❤️, @home #love", "emoji dog ❤ @home #love"),
        ("Ala. and Miss. are states; a near miss.", "ala. and miss. are states a near miss"),
        ("'80s, '99 and '08; 5'10\"", "'80s '99 and '08 5 10"),
        ("a Ph.D. in no.5, &quot;A&amp;B&quot;", "a ph.d. in no. 5 a&b"),
        ("see http://www.foo.com/bar, me@x.com.", "see http://www.foo.com/bar me@x.com"),
        ("", ""),
        (" . , ; : ! ? - ' \" ", ""),
    ],
)
def test_tokens_are_those_of_the_stanford_tokenizer(caption, expected):
    assert words.tokenize(caption) == expected.split()


def test_plain_words_are_split_on_any_white_space():
    assert words.tokenize("  A red\tcube\nand  a ball ") == ["a", "red", "cube", "and", "a", "ball"]


def test_tokenizing_tokens_again_changes_nothing():
    tokens = words.tokenize("The dog's T-shirt isn't red, it can't be: 3,000 men at 5 p.m.")
    assert words.tokenize(" ".join(tokens)) == tokens
