"""Tests of `synth2 report --captions`: what it reads and finds, and that captions are inert."""

import json
import re

import numpy as np
import pytest

from synth2_jax import main
from synth2_jax.data import pair_writer, records
from synth2_jax.errors import UserError
from synth2_jax.evaluation import caption_sets
from synth2_jax.evaluation.caption_sets import read_captions
from synth2_jax.pages import captions_page
from synth2_jax.stages import report

VARIED = [
    f"{n} {thing} on the {place}"
    for n in ("one", "two")
    for thing in ("cats", "dogs", "cows")
    for place in ("grass", "snow", "sand", "street")
]
NARROW = ["a dog on the grass", "a dog on the snow"] * 12
HOSTILE = [
    "<script>alert(1)</script> a red dog",
    "</style></bdi></table><img src=x onerror=alert(1)>",
    "\x1b]0;owned\x07\x1b[31mred\x1b[0m \x1b[2J",
    "a\x00b\r\nc\x9b31m",
    "\u202egod der a\u202c zero\u200bwidth \u2028 line",
    "\ud800 half a pair",
    "a & b \"quoted\" 'x'",
    "x" * 9000,
    "",
]
ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ud800-\udfff]")


def write_lines(path, lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_rows(path, captions):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_lines(path, [json.dumps({"caption": c, "class": "x"}) for c in captions])


@pytest.fixture
def compare(tmp_path):
    """compare({name: captions, or their path}) -> figures and page."""

    def run(sets, classes=None, **options):
        for name, captions in sets.items():
            if isinstance(captions, list):
                sets = sets | {name: write_lines(tmp_path / f"{name}.txt", captions)}
        if classes:
            options["classes"] = str(write_lines(tmp_path / "classes.txt", classes))
        given = ",".join(f"{name}={path}" for name, path in sets.items())
        report.run(None, str(tmp_path / "out"), captions=given, **options)
        figures = json.loads((tmp_path / "out" / "captions.json").read_text())
        return figures, (tmp_path / "out" / "captions.html").read_text(encoding="utf-8")

    return run


# --- what is read ---


def test_every_kind_of_path_gives_the_same_captions(tmp_path):
    captions = ["a red dog", 'two cats, "one" black', "größe 世界"]
    pairs = [
        records.Pair(f"p-{i}", np.zeros(2, int), caption, "synthetic")
        for i, caption in enumerate(captions)
    ]
    provenance = records.Provenance("tok", num_image_tokens=2, codebook_size=4)
    pair_writer.write_pairs(tmp_path / "pairs", pairs, provenance)
    write_rows(tmp_path / "folder" / "captions.jsonl", captions)
    (tmp_path / "folder" / "manifest.json").write_text('{"source": "language_model"}')
    for path in (
        tmp_path / "pairs",
        tmp_path / "folder",
        tmp_path / "folder" / "captions.jsonl",
        write_lines(tmp_path / "captions.txt", [captions[0], " ", "", *captions[1:], ""]),
        write_lines(tmp_path / "windows.txt", ["\ufeff" + captions[0] + "\r", *captions[1:]]),
    ):
        assert read_captions(path) == captions


@pytest.mark.parametrize(
    "name, content, message",
    [
        (".", b"", "expected captions.jsonl or finished pairs"),
        ("missing.txt", None, "missing.txt: no such file or folder"),
        ("missing.jsonl", None, "missing.jsonl: no such file"),
        ("empty.txt", b" \n\n", "empty.txt: no captions in it"),
        ("binary.gz", b"\x1f\x8b\x08", "binary.gz: not UTF-8 at byte 1"),
        ("rows.jsonl", b'{"caption": "a"}\n{"text": "b"}\n', 'row 2 has no text under "caption"'),
        ("rows.jsonl", b'{"caption": 3}\n', 'row 1 has no text under "caption"'),
        ("rows.jsonl", b'{"caption": "a"}\n{"capt', "line 2 is not JSON"),
        ("all.json", b"a" * 10_001, "caption 1 has 10001 characters, expected at most 10000"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path / name)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--captions=a"], "--captions: found 'a', expected NAME=PATH,NAME=PATH"),
        (["--captions=a=b.txt,"], "--captions: found '', expected"),
        (["--captions=={set}"], "expected NAME=PATH"),
        (["--captions=a={set},a={set}"], "--captions: the name 'a' is there twice"),
        (["--captions=a={set}", "--clusters=99"], "found 24 captions in the smallest set"),
        (["--captions=a={set}", "--classes=no.txt"], "no.txt': no such file"),
        (["--captions=a={set}", "--classes={wordless}"], "line 2: found '...', expected a class"),
        (["--captions=a=missing.txt", "--embedding=x"], "pip install sentence-transformers"),
        (["--captions=a={set}", "--embeding=x"], "did you mean '--embedding'"),
        (["--classes=scenes"], "--classes: only works with --captions=NAME=PATH"),
        ([], "results.json: no such file; expected what `synth2 demo` leaves there"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, capfd, options, message):
    files = {
        "set": write_lines(tmp_path / "set.txt", VARIED),
        "wordless": write_lines(tmp_path / "wordless.txt", ["cat", "..."]),
    }
    given = [option.format(**files) for option in options]
    assert main.main(["synth2", "report", f"--workdir={tmp_path}/out", *given]) == 2
    printed = capfd.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- what is found ---


def test_figures_of_sets_side_by_side(tmp_path, compare, capfd):
    narrow = write_rows(tmp_path / "narrow" / "captions.jsonl", NARROW).parent
    sets, classes = {"varied": VARIED, "narrow": narrow}, ["dog", "cat", "cow", "sheep"]
    figures, page = compare(sets, classes, clusters=12)
    varied, narrow = figures["sets"]["varied"], figures["sets"]["narrow"]
    assert list(figures["sets"]) == ["varied", "narrow"]  # in the order given
    assert varied["captions"] == narrow["captions"] == 24
    assert varied["unique"] == 1 and narrow["unique"] == 2 / 24
    assert varied["entropy"] > narrow["entropy"] and varied["top5_share"] < narrow["top5_share"]
    assert narrow["top5_share"] == 1 and sum(narrow["cluster_sizes"]) == 24
    assert varied["words"] == {"mean": 5.0, "median": 5.0, "histogram": [[5, 24]]}
    assert narrow["vocabulary"] == 6 and narrow["distinct"]["1"] == 6 / (24 * 5)
    assert narrow["most_frequent"]["3"][0] == ["a dog on", 24]
    counts = {"dog": 8, "cat": 8, "cow": 8, "sheep": 0}
    entropy = pytest.approx(np.log(3))
    named = {"named": 3 / 4, "fewest": 0, "median": 8.0, "entropy": entropy, "captions": counts}
    assert varied["classes"] == named
    settings = {"embedding": "hashed n-grams", "clusters": 12, "sample_size": 24, "seed": 0}
    assert figures["settings"] == settings
    printed = capfd.readouterr().out
    for line in (r" +varied +narrow", "captions +24 +24", r"classes named +75.0\s% +25.0\s%"):
        assert re.search(f"^{line}$", printed, re.MULTILINE)
    assert printed.splitlines()[-1] == f"report: {tmp_path}/out/captions.html"
    assert "The most even set is <bdi>varied</bdi>" in page


def test_sets_of_unequal_size_are_compared_on_equal_samples(compare):
    figures, _ = compare({"many": VARIED * 5, "few": VARIED})
    assert figures["settings"]["sample_size"] == 24
    assert all(sum(one["cluster_sizes"]) == 24 for one in figures["sets"].values())
    assert figures["sets"]["many"]["captions"] == 120
    assert figures["num_classes"] is None and figures["sets"]["many"]["classes"] is None


def test_plurals_and_synonyms_name_a_class(compare):
    counts = {
        **{"car": 1, "red cross": 1, "puppy": 1, "wolf": 2, "tench, Tinca tinca": 1, "person": 1},
        **{"pet": 0, "ross": 0, "pup": 0, "wol": 0, "tench": 0, "peopled": 0},
    }
    captions = ["two cars on a carpet", "three Red Crosses", "puppies, wolves and knives", "wolves"]
    figures, _ = compare({"a": [*captions, "a tinca tinca in water", "many people"]}, counts)
    assert figures["sets"]["a"]["classes"]["captions"] == counts


def test_examples_are_in_their_cluster_and_say_from_which_set(compare):
    sets = {"varied": VARIED, "narrow": NARROW}
    figures, page = compare(sets, clusters=4)
    assert compare(sets, clusters=4) == (figures, page)  # the same sets, the same files
    clusters = figures["largest_clusters"]
    assert len(clusters) == 4
    for name in sets:
        assert sum(cluster["share"][name] for cluster in clusters) == pytest.approx(1)
    both = [sum(cluster["share"].values()) for cluster in clusters]
    assert both == sorted(both, reverse=True)
    examples = [tuple(example) for cluster in clusters for example in cluster["examples"]]
    assert len(set(examples)) == len(examples)
    assert set(examples) <= {*(("varied", c) for c in VARIED), *(("narrow", c) for c in NARROW)}
    assert max(len(cluster["examples"]) for cluster in clusters) == caption_sets.EXAMPLES


# --- the page ---


def test_counts_are_drawn_from_the_largest_on_in_percent():
    assert captions_page.ranked([1, 3, 0], 4) == [(1, 75.0), (2, 25.0), (3, 0.0)]


def test_more_sets_than_colours_get_another_chart(compare):
    _, page = compare({f"set{i}": VARIED for i in range(8)})
    section = page[page.index('id="clusters"') : page.index('id="lengths"')]
    assert section.count("<svg ") == 2
    assert all(section.count(f"<bdi>set{i}</bdi>") == 1 for i in range(8))


@pytest.mark.parametrize(
    "histogram, expected",
    [
        ([[3, 50], [4, 49], [5, 1]], [0, 0, 0, 50, 49]),
        ([[0, 7]], [100]),
        ([[0, 98], [2, 2]], [98, 0, 2]),
    ],
)
def test_lengths_are_drawn_as_far_as_captions_reach(histogram, expected):
    points = captions_page.lengths({"a": histogram})["a"]
    assert points == list(enumerate(expected))


def test_of_a_long_list_of_classes_the_ends_are_shown(compare):
    captions = [f"word{i}" for i in range(50) for _ in range(i)]
    _, page = compare({"a": captions}, [f"word{i}" for i in range(50)])
    section = page[page.index('id="classes"') : page.index('id="phrases"')]
    shown = [int(i) for i in re.findall(r"<bdi>word(\d+)</bdi>", section)]
    assert shown == [*range(49, 29, -1), *range(19, -1, -1)]


# --- hostile captions ---


def test_hostile_texts_are_inert_in_the_page_and_on_the_terminal(
    tmp_path, compare, capfd, read_page
):
    sets = {
        "\x1b[31m<b>evil</b>\x07\u202e": write_rows(tmp_path / "h.jsonl", HOSTILE * 3),
        "&amp;": write_rows(tmp_path / "more.jsonl", HOSTILE),
    }
    # As many clusters as are shown, so that every caption is.
    _, page = compare(sets, ["<i>red dog</i>", "cat & dog"], clusters=5)
    printed = capfd.readouterr().out
    assert not ACTIVE.search(page) and not ACTIVE.search(printed)
    assert r"\x1b[31m<b>evil</b>\x07" in printed
    raw = (tmp_path / "out" / "captions.json").read_bytes()
    assert raw.isascii() and not ACTIVE.search(raw.decode())
    assert json.loads(raw)["largest_clusters"]  # as they were, for programs

    text = read_page(page).words
    assert "<script>alert(1)</script> a red dog" in text  # shown as it was written
    assert r"\x1b]0;owned\x07\x1b[31mred\x1b[0m \x1b[2J" in text
    assert r"\u202egod der a\u202c zero\u200bwidth \u2028 line" in text
    assert r"\ud800 half a pair" in text
    assert "x" * 299 + "…" in text and "x" * 301 not in text


@pytest.mark.parametrize("captions", [["", "...", "!"], ["a dog"]])
def test_captions_without_words_and_single_captions_have_a_page(
    tmp_path, compare, captions, read_page
):
    path = write_rows(tmp_path / "a.jsonl", captions)
    figures, page = compare({"a": path, "b": path}, ["dog house", "cat"])
    assert figures["sets"]["a"]["vocabulary"] == len(captions[-1].replace("!", "").split())
    assert figures["sets"]["a"]["classes"]["named"] == 0
    assert "The sets" in read_page(page).words
