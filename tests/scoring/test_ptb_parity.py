"""Caption tokens against CoreNLP's PTBTokenizer, as pycocoevalcap calls it; needs Java.

    python tests/scoring/test_ptb_parity.py        # writes docs/ptb_differences.md anew

Captions are generated: sentences as people write them about photographs, a third of them with a
contraction, a possessive, a number, a quotation, an abbreviation, a price or another thing at which
tokenizers part ways; and those of Scenes.
"""

import importlib.metadata
import os
import pathlib
import shutil

import numpy as np
import pytest

from synth2_jax.domains.scenes import dataset
from synth2_jax.scoring.words import tokenize

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "ptb_differences.md"
NUM_CAPTIONS, NUM_SCENES = 12_000, 400

PEOPLE = (
    "man|woman|boy|little girl|surfer|chef|couple|group of friends|police officer|skier|toddler"
)
ANIMALS = "dog|cat|giraffe|elephant|brown horse|black-and-white cow|teddy bear|zebra|pigeon"
THINGS = (
    "pizza|skateboard|red umbrella|laptop|stop sign|double-decker bus|fire hydrant|cell phone|"
    "t-shirt|bowl of fruit|birthday cake|stuffed animal|wii remote|old-fashioned clock|hot dog|"
    "flat-screen TV|tennis racket|vase|half-eaten sandwich|suitcase|train car|x-ray machine"
)
PLACES = (
    "a counter|the beach|a city street|a wooden table|the grass|a snow-covered hill|the bed|"
    "a parking lot|the living room|a baseball field|an outdoor market|the side of the road"
)
VERBS = "is sitting|stands|is riding|are walking|lies|is looking out|was left|jumps|poses"
PLAIN = (
    "A {person} with a {thing} {verb} on {place}",
    "a {animal} {verb} next to a {thing}",
    "Two {thing}s and a {animal} in {place}.",
    "There is a {thing} in front of a {person}.",
    "A {person} holding a {thing} up to a {animal}.",
    "several people, a {animal}, and a {thing} near {place}",
    "The {person} {verb} near {place} while a {animal} {verb}.",
    "A close up of a {thing} on {place}. ",
    "An image of a {person} and a {animal} that {verb} by {place}",
)
SPECIAL = (
    # Possessives and contractions.
    "A {person}'s {thing} on {place}",
    "the {animal}s' {thing} is in {place}",
    "A {person} who's smiling isn't near {place}.",
    "It's a {thing} that doesn't fit, so they're laughing",
    "He can't ride the {thing}, and she won't let's him.",
    "The {animal} wouldn't move & the {person} couldn't either",
    "There's a {thing} they've left; I'd say we'll need it",
    "A {person}'s children’s toys on {place}",
    "you cannot see the {animal} that's gonna jump",
    "a {person} at 5 o'clock in O'Hare airport",
    "Men's and women's restrooms by {place}",
    # Numbers, times and prices.
    "{n} {thing}s and {n} {animal}s on {place}.",
    "A clock that reads {n}:30 p.m. on {place}.",
    "a clock showing 10:{n} in {place}",
    "A {thing} that costs ${n}.99 at {place}",
    "A sign says {n}% off, only ${n},000!",
    "a {n}-year-old {person} with a {thing}",
    "The {n}th street sign on {place}, #{n}",
    "A 1950's style {thing} from the 1920s",
    "a {person} of the '{n}s with a {thing}",
    "A jersey with number {n}, team 3-2.",
    "A {n} foot tall {animal}, 1/2 of a {thing}",
    "The {thing} is 2.5 ft. long and 3x4 wide",
    "a plane with 747-{n}00 and N{n}AB on its tail",
    "A {thing} at half past {n} a.m. in {place}",
    "the bus goes down Route {n}, no. {n}, exit {n}A.",
    "a phone with the number 555-12{n} on it",
    "About 1,{n}00 people at {place} on 9/{n}/2010",
    "a thermometer of {n}° in {place}",
    "the price is £{n} or €{n} for a {thing}",
    # Quotations, brackets and dashes.
    'A sign that says "{word}" on {place}.',
    'a {thing} with the words "{word} {word}!" on it',
    "A 'No {word}' sign hangs by {place}",
    "a sign reading “{word}” by a {person}",
    'The sign reads: "{word}, {word}".',
    "A {person} (wearing a {thing}) {verb} on {place}.",
    "a {animal} - a {thing} - and {place}",
    "a {animal} -- maybe a {animal} -- {verb}",
    "A {animal} {verb}—or so it seems—on {place}",
    "a {person}...with a {thing} ... on {place}...",
    "A {person} [left] and {animal} [right]",
    "A {person}/{person} with a {thing} and/or a {thing}",
    # Abbreviations and names.
    "Mr. and Mrs. Smith with a {thing} on {place}",
    "A U.S. Navy plane at {place}.",
    "A street sign for Main St. and 5th Ave.",
    "the St. Bernard {verb} by Dr. Jones",
    "a {thing} vs. a {thing}, etc.",
    "A {person} in Washington D.C. with a {thing}",
    "A {person} in the U.K. and the U.S.A. ",
    "a Ph.D. student, J. K. Rowling, and Martin Luther King Jr.",
    "An AT&T store beside an H&M, and a B&B",
    "A T.V. and DVD player on {place}",
    "McDonald's and 7-Eleven signs by {place}",
    "the R2-D2 and C-3PO toys on {place}",
    "Macy's Inc. has a {thing} at St. Louis on Jan. {n}.",
    "e.g. a {thing}, i.e. a {animal}.",
    # Ends, spaces, capitals and rarer signs.
    "A {person} {verb} on {place} .",
    "a {thing} , a {animal} ,and {place}",
    "WOW!! A {animal} {verb}?!",
    "A {person}  {verb} by  {place}",
    "a {thing}; a {animal}: {place}",
    "A {person} {verb}.A {animal} {verb}.",
    "a {person} w/ a {thing} @ {place}",
    "a {person} & a {animal} + a {thing} = fun",
    "A {person} at www.{word}.com or me@{word}.com",
    "a {thing} :) by {place}",
    "THE {person} {verb} ON {place}!",
    "A café with crème brûlée, jalapeños and piñatas",
    "a {animal} ❤ a {thing} 😀",
    "Rock 'n' roll {person} on {place}",
    "a {word}-{word}-{word} {thing}",
    "snow ball, wi-fi, e-mail and x-mas {thing}",
    "a sign: {word} * {word} * {word}",
    "a half-price* {thing} _ {place}",
)
WORDS = "STOP|open|Yield|love|bus only|Happy Birthday|cafe|Welcome|ONE WAY|sale|SAMSUNG|hello"

# Signs and spellings at which the two may part; no part of the share.
ODD = r"""
a phone, (555) 555-1234|it&#39;s a dog|I don`t know|a.m.-p.m. hours|हिन्दी on a sign|a <b >dog|
Figs. 3 and fig. 4|a 5'10" man|nos. 5 and 6|C++ and C#|7:00-9:00 a.m.|the '60s, '99 and '08|1,2,3|
At&t, M&Ms and salt&pepper|5¢, ½ and 1½ cups|:-( a sad dog|@home with #love|a__b and __init__|3:1|
1+1=2|US$5 and A$10|Ala., Ark. and Miss. are states|I miss. Then I wash.|dog❤️cat 🐶|ｆｕｌｌ|
tea for 2...3|A.B.C. of dogs|U.S.A vs. the U.S|l'eau d'or|ma'am, y'all!|x^2 ~ 5|*dog*|_dog_|`dog'|
''dog''|dog-|-dog|dog--|--dog|.dog|dog..|/dog/|\dog|{dog}|e-mail:me@x.co.uk|1.2.3.4|$.50|dog.jpg|
http://x.com/a?b=c&d=e|IMG_1234.JPG|#1-ranked|50%-off|5pm-6pm|20x30cm|6'2''|«dog»|‹dog›|„dog“|
dog™ cat® ©|日本語の犬|Привет, собака!|the '10s|a.k.a. Bob|a dog (cat [bird])|T.G.I.Friday's|ft.tall
"""
ODD = tuple(phrase.strip() for phrase in ODD.split("|"))


def filled(template, rng):
    """The template with each {hole} drawn anew."""
    holes = {
        "person": PEOPLE,
        "animal": ANIMALS,
        "thing": THINGS,
        "place": PLACES,
        "verb": VERBS,
        "word": WORDS,
    }
    for name, choices in holes.items():
        while f"{{{name}}}" in template:
            choice = choices.split("|")[rng.integers(choices.count("|") + 1)]
            if name == "word" and "www." in template:
                choice = choice.replace(" ", "").lower()
            template = template.replace(f"{{{name}}}", choice, 1)
    while "{n}" in template:
        template = template.replace("{n}", str(rng.integers(2, 99)), 1)
    return template


def coco_style(num_captions, seed=0):
    """Captions of which a third is made of SPECIAL; some begin small, some end without a stop."""
    rng = np.random.default_rng(seed)
    captions = []
    for _ in range(num_captions):
        templates = SPECIAL if rng.random() < 1 / 3 else PLAIN
        caption = filled(templates[rng.integers(len(templates))], rng)
        captions.append(caption if rng.random() < 0.8 else caption.rstrip(" .").lower())
    return captions


def all_captions():
    scenes = [text for example in dataset.examples("test", NUM_SCENES) for text in example.captions]
    return coco_style(NUM_CAPTIONS) + scenes


def ptb_tokens(captions):
    """Lists of tokens by pycocoevalcap's own call."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # Java's default may be ASCII.
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    found = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    return [found[i][0].split(" ") if found[i][0] else [] for i in range(len(captions))]


def differences(captions):
    """[(caption, tokens of PTBTokenizer, our tokens)]."""
    expected = ptb_tokens(captions)
    return [
        (caption, " ".join(theirs), " ".join(tokenize(caption)))
        for caption, theirs in zip(captions, expected, strict=True)
        if theirs != tokenize(caption)
    ]


def table(found):
    def code(text):
        return f"`` {text} ``".replace("|", "\\|")

    rows = [
        f"| {code(caption)} | {code(theirs)} | {code(ours)} |\n"
        for caption, theirs, ours in dict.fromkeys(found)
    ]
    return "| caption | PTBTokenizer | here |\n| --- | --- | --- |\n" + "".join(rows)


def document(captions, found, odd):
    share = 1 - len(found) / len(captions)
    return (
        "# Tokens that differ from the Stanford tokenizer's\n\n"
        f"{len(captions):,} captions, generated as people write them and those of Scenes, by\n"
        "`synth2_jax.scoring.words` and by CoreNLP 3.4.1's PTBTokenizer as pycocoevalcap calls\n"
        f"it: {share:.3%} get the same tokens, {len(found):,} do not. Written by\n\n"
        "    python tests/scoring/test_ptb_parity.py\n\n"
        + table(found)
        + f"\nOf {len(ODD)} phrases made of signs and spellings at which tokenizers part, which\n"
        f"are no part of the share above, {len(odd)} get other tokens:\n\n" + table(odd)
    )


@pytest.mark.interop
def test_tokens_are_those_of_the_ptb_tokenizer(parity):
    if shutil.which("java") is None:
        pytest.fail("this test needs Java: install a JRE such as openjdk-17-jre-headless")
    captions = all_captions()
    found, odd = differences(captions), differences(ODD)
    version = importlib.metadata.version("pycocoevalcap")
    parity(
        f"tokens of {len(captions):,} COCO-style captions",
        f"PTBTokenizer of pycocoevalcap {version}",
        "share of captions that differ",
        len(found) / len(captions),
        1e-3,
    )
    assert DOCUMENT.read_text() == document(captions, found, odd), "write it anew, see the top"


def test_generated_captions_hold_what_tokenizers_differ_on():
    text = "\n".join(coco_style(3000))
    for part in ("'s", "n't", "$", "%", '"', "(", "p.m.", "U.S.", "--", "&", "é", "!!", "é", "’"):
        assert part in text, part
    assert "{" not in text


if __name__ == "__main__":
    every = all_captions()
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document(every, differences(every), differences(ODD)))
