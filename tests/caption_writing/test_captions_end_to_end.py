"""`synth2 captions` from a server and from a file; from a language model: tests/stages."""

import base64
import collections
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from synth2_jax import main
from synth2_jax.caption_writing import rounds
from synth2_jax.domains.scenes import dataset
from synth2_jax.files import read_json_lines
from synth2_jax.stages import captions
from synth2_jax.testing.untrained_runs import write_untrained_run

KEY = "sk-planted-0123456789"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ROOT = pathlib.Path(__file__).parents[2]
PAPER = ROOT / "configs" / "paper" / "captions.py"
SCENES = ROOT / "configs" / "scenes" / "captions.py"


def arguments(config, workdir, **overrides):
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return [
        *("synth2", "captions", f"--config={config}", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in given.items()),
    ]


def from_server(workdir, **overrides):
    settings = {"classes": "dog,wine glass", "captions_per_class": 5, "filter__similarity": 0.99}
    return arguments(PAPER, workdir, server__model="m", **settings | overrides)


def from_file(workdir, path, **overrides):
    return arguments(
        SCENES, workdir, **{"text_file": path, "captions_per_class": None, **overrides}
    )


def results(workdir):
    manifest = json.loads((workdir / "manifest.json").read_text())
    return read_json_lines(workdir / "captions.jsonl"), manifest


@pytest.fixture
def run(capfd):
    """run(argv, code=0) -> what was printed, both streams."""

    def run(argv, code=0):
        capfd.readouterr()
        assert main.main(argv) == code
        out = capfd.readouterr()
        assert "Traceback" not in out.err
        return out.out + out.err

    return run


def write_of_class(body, number):
    """A caption of the class and style that the prompt asks for, different for each seed."""
    del number
    prompt = body["messages"][0]["content"]
    name = re.search(r"this object: (.+?)\. Name", prompt)[1]
    spelled = " ".join(DIGITS[int(digit)] for digit in str(body["seed"]))
    return {"text": f'"A picture of the {name} with {spelled}."'}


def test_every_caption_tells_where_it_comes_from(server, tmp_path, run):
    server.act = write_of_class
    printed = run(from_server(tmp_path, quotas__dog=3, server__input_price=1.0))
    rows, manifest = results(tmp_path)
    counts = collections.Counter(row["class"] for row in rows)
    assert counts == {"dog": 3, "wine glass": 5}
    assert rows[0] == {
        "caption": rows[0]["caption"],
        "class": "dog",
        "draw": 0,
        "template_sha256": manifest["prompt_sha256"],
        "style": "plain, as in a caption data set",
        "length": 8,
        "model": "m-0613",
        "seed": rows[0]["seed"],
        "sampling": {"temperature": 1.0, "top_p": 0.95, "max_tokens": 80},
    }
    assert rows[0]["caption"].startswith("A picture of the dog with ")
    assert {row["seed"] for row in rows} == {body["seed"] for body in server.bodies}
    assert rows[3]["style"] == rows[0]["style"] != rows[1]["style"]
    assert rows[6]["length"] == 12
    assert manifest["source"] == "server" and manifest["server"] == server.url
    assert manifest["usage"]["cost"] == 8 * 10 / 1e6
    assert manifest["num_captions"] == 8 and manifest["short_of"] == {}
    contents = (tmp_path / "captions.jsonl").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(contents).hexdigest()
    assert manifest["filter"]["language"] == "en"
    assert "8 answers in this run, 0 retries, 0 failed; 8 in all, 80 prompt and 32" in printed
    assert "cost 8e-05" in printed


def test_the_captions_do_not_depend_on_the_order_of_the_answers(server, tmp_path, run):
    server.act = write_of_class
    run(from_server(tmp_path / "a", server__concurrency=1))
    server.act = lambda body, number: {
        **write_of_class(body, number),
        "delay": body["seed"] % 7 * 0.01,
        "status": 200 if number > 1 or body["seed"] % 3 else 503,
    }
    run(from_server(tmp_path / "b"))
    assert (tmp_path / "a/captions.jsonl").read_bytes() == (
        tmp_path / "b/captions.jsonl"
    ).read_bytes()


def test_another_filter_or_quota_asks_for_nothing_that_is_there(server, tmp_path, run):
    server.act = write_of_class
    run(from_server(tmp_path))
    assert len(server.bodies) == 10
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run(from_server(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written
    run(from_server(tmp_path, captions_per_class=3, filter__max_words=39))
    assert len(server.bodies) == 10 and len(results(tmp_path)[0]) == 6
    run(from_server(tmp_path, captions_per_class=7))
    assert len(server.bodies) == 14


def test_what_is_dropped_is_asked_for_again_until_the_class_has_its_number(server, tmp_path, run):
    bad = ("A wine.", "Ein Hund und ein Glas auf dem Tisch", "a \x1b[31mdog\x1b[0m wine glass <b>")

    def act(body, number):
        if body["seed"] % 3 == 0:
            return {"text": bad[body["seed"] % len(bad)]}
        if body["seed"] % 3 == 1:
            return {"text": "The same dog and wine glass in a room"}
        return write_of_class(body, number)

    server.act = act
    printed = run(from_server(tmp_path, max_rounds=20, max_dropped_share=1.0))
    rows, manifest = results(tmp_path)
    assert collections.Counter(row["class"] for row in rows) == {"dog": 5, "wine glass": 5}
    assert manifest["dropped"]["duplicate"] > 0
    assert sum(manifest["dropped"].values()) + 10 == len(server.bodies)
    assert "\x1b[31m" not in printed


@pytest.mark.slow
def test_a_server_that_knows_one_sentence_is_given_up(server, tmp_path, run):
    server.act = lambda body, number: {"text": "The same dog and wine glass in a room"}
    run(from_server(tmp_path, max_rounds=3, max_dropped_share=1.0))
    rows, manifest = results(tmp_path)
    assert len(rows) == 1 and manifest["short_of"] == {"dog": 4, "wine glass": 5}
    assert len(server.bodies) == 10 + 9 + 9


def test_too_much_that_is_bad_stops_the_run_and_answers_are_kept(server, tmp_path, run):
    server.act = lambda body, number: {"text": f"Eine Katze und ein Hund {body['seed']}"}
    line = run(from_server(tmp_path, classes="dog", captions_per_class=500), code=2)
    assert (
        "--config.max_dropped_share: 100 of 100 drafts were dropped" in line and "most 0.5" in line
    )
    assert not (tmp_path / "captions.jsonl").exists()
    num_asked = len(server.bodies)
    assert num_asked < 300
    any_words = {"filter__language": "", "filter__names_class": False}
    run(from_server(tmp_path, classes="dog", captions_per_class=5, **any_words))
    assert len(server.bodies) == num_asked


def start(argv):
    return subprocess.Popen(
        [sys.executable, "-m", "synth2_jax.main", *argv[1:]],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow  # the starts of processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_run_again_it_asks_only_for_what_it_does_not_have(server, tmp_path, run, number):
    server.act = lambda body, number: {**write_of_class(body, number), "delay": 0.1}
    few = {"captions_per_class": 50, "server__concurrency": 4}
    process = start(from_server(tmp_path / "killed", **few))
    journal = tmp_path / "killed" / "answers.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 12)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    assert not (tmp_path / "killed" / "captions.jsonl").exists()
    kept = journal.read_bytes().count(b"\n")
    if number == signal.SIGTERM:  # what was under way was waited for
        assert kept == len(server.bodies)
    with open(journal, "ab") as file:
        file.write(b'{"key": "torn')
    server.bodies.clear()
    server.act = write_of_class
    run(from_server(tmp_path / "killed", **few))
    assert len(server.bodies) == 100 - kept
    run(from_server(tmp_path / "straight", **few))
    killed, straight = (tmp_path / name / "captions.jsonl" for name in ("killed", "straight"))
    assert killed.read_bytes() == straight.read_bytes()


SPELLINGS = [
    KEY,
    "".join(f"%{ord(character):02X}" for character in KEY),
    base64.b64encode(f"Bearer {KEY}".encode()).decode()[8:],
]
ECHO = " ".join(SPELLINGS)
SAID = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}", "code": KEY}})
LEAKS = [
    lambda body, number: {"text": f"the dog and the wine glass say {ECHO} {body['seed']}"},
    lambda body, number: {"status": 500, "raw": SAID.encode()},
    lambda body, number: {"status": 400, "raw": SAID.encode()},
    lambda body, number: {"status": 401, "raw": SAID.encode()},
    lambda body, number: {"raw": f"<html>{KEY}".encode()},
    lambda body, number: {"status": 500, "raw": b"", "headers": {"X-Echo": f"Bearer {KEY}"}},
    lambda body, number: {"status": 500, "raw": b"", "reason": f"Not {KEY}"},
]
FEW = {"captions_per_class": 2, "max_rounds": 1, "server__max_attempts": 1}


def files_with_key(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("number", range(len(LEAKS)))
def test_the_key_is_in_no_file_and_in_nothing_printed(server, tmp_path, run, caplog, number):
    server.act = LEAKS[number]
    with caplog.at_level("DEBUG"):
        printed = run(from_server(tmp_path, **FEW), code=2 if number else 0)
    assert server.keys == {f"Bearer {KEY}"}  # it was there to be leaked
    assert KEY not in printed + caplog.text
    assert "DEBUG" in caplog.text  # the client's own log
    assert not files_with_key(tmp_path)
    if number == 0:
        for name in ("captions.jsonl", "answers.jsonl"):
            text = (tmp_path / name).read_text()
            assert "***" in text and not any(spelling in text for spelling in SPELLINGS)


@pytest.mark.slow  # the starts of processes
@pytest.mark.parametrize("number", range(len(LEAKS)))
def test_the_key_is_not_in_the_log_of_a_process(server, tmp_path, monkeypatch, number):
    monkeypatch.setenv("OPENAI_LOG", "debug")
    server.act = LEAKS[number]
    process = start([*from_server(tmp_path, **FEW), "--verbose"])
    printed = "".join(process.communicate(timeout=60))
    assert process.returncode == (2 if number else 0)
    assert KEY not in printed and "Traceback" not in printed
    assert not files_with_key(tmp_path)


def test_a_text_file_fills_quotas_and_counts_what_is_bad(tmp_path, run):
    path = tmp_path / "captions.txt"
    path.write_bytes(
        b"a dog on the grass\na dog on the grass\n\xff\xfe\n\na dog\n<i>a dog</i> in bed\n"
        b"a cat near the dog\na cat \x1b[2J sits here\nnothing at all here\n"
        + "芝生の上の犬\n".encode()
        + b"a dog " * 2000
        + b"\nthe dogs run fast\nthe dogs run slowly\ntwo cats on a sofa"
    )
    quotas = {"captions_per_class": 2, "quotas__dog": 3}
    printed = run(from_file(tmp_path / "out", path, classes="dog,cat,犬,sofa", **quotas))
    rows, manifest = results(tmp_path / "out")
    assert [(row["class"], row["draw"], row["caption"]) for row in rows] == [
        ("dog", 1, "a dog on the grass"),
        ("dog", 12, "the dogs run fast"),
        ("dog", 13, "the dogs run slowly"),
        ("cat", 7, "a cat near the dog"),
        ("cat", 14, "two cats on a sofa"),
        ("犬", 10, "芝生の上の犬"),
    ]
    assert manifest["dropped"] == {
        **{"duplicate": 1, "not UTF-8": 1, "too short": 1, "markup": 1},
        **{"control characters": 1, "class not named": 1, "too long": 1},
    }
    assert manifest["short_of"] == {"犬": 1, "sofa": 2}
    assert manifest["file"] == "captions.txt" and len(manifest["file_sha256"]) == 64
    assert rows[0].keys() == {"caption", "class", "draw", "model", "seed", "sampling"}
    assert "\x1b" not in printed


def test_a_file_without_classes_is_taken_whole(tmp_path, run):
    path = tmp_path / "captions.jsonl"
    lines = [{"caption": f"a dog number {i}", "class": "dog" if i % 2 else None} for i in range(9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(from_file(tmp_path / "out", path, classes="dog"))
    assert len(results(tmp_path / "out")[0]) == 9
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"a dog number {i}\n" for i in range(9)))
    run(from_file(tmp_path / "out", path, classes=""))
    rows, manifest = results(tmp_path / "out")
    assert len(rows) == 9 and rows[0]["class"] is None
    assert manifest["num_classes"] == 0 and manifest["short_of"] == {}


@pytest.mark.parametrize(
    "overrides, text",
    [
        ({"captions_per_class": None}, "--config.captions_per_class: missing"),
        (
            {"text_file": "x.txt"},
            "--config.server: found --config.text_file as well, expected one source",
        ),
        ({"quotas__dgo": 3}, "--config.quotas: no class 'dgo'; did you mean 'dog'?"),
        ({"quotas__dog": 0}, "--config.quotas: found 0, expected at least 1"),
        ({"lengths": "(0,)"}, "--config.lengths: found 0, expected at least 1"),
        ({"max_dropped_share": 2}, "--config.max_dropped_share: found 2.0, expected 0 to 1"),
        ({"styles": "()"}, "template describe: found a slot {style} and 0 styles"),
        ({"template": "no such"}, "template 'no such': no such file"),
        ({"classes": ""}, "classes: found none"),
        ({"filter__language": "xx"}, "--config.filter.language: unknown language 'xx'"),
        ({"server__modle": "x"}, "--config.server.modle: unknown key; did you mean 'model'?"),
    ],
)
def test_mistakes_from_a_server(server, tmp_path, run, overrides, text):
    assert text in run(from_server(tmp_path, **overrides), code=2)
    assert not server.bodies


@pytest.mark.parametrize(
    "overrides, text",
    [
        ({"text_file": "no such"}, "text_file 'no such': no such file"),
        (
            {"styles": "('a',)"},
            "--config.styles: found with --config.text_file, which needs no prompt. Remove it.",
        ),
        ({"classes": "zebra"}, "none of 1 drafts is usable, dropped {'class not named': 1}"),
    ],
)
def test_mistakes_from_a_file(tmp_path, run, overrides, text):
    path = tmp_path / "captions.txt"
    path.write_text("a dog on the grass\n")
    line = run(from_file(tmp_path / "out", path, **overrides), code=2)
    assert text in line and "Train the language model" not in line


def test_several_processes_would_each_pay(server, tmp_path, run, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert "found 2 processes, expected one: each would pay" in run(from_server(tmp_path), code=2)
    assert not server.bodies


@pytest.mark.parametrize("mixture", ["scenes_text", "my_task", ""])
def test_classes_are_given_or_those_of_the_training_data(tmp_path, run, monkeypatch, mixture):
    data = {"mixture": mixture, "text_length": 12}
    write_untrained_run(tmp_path / "model", "language_model", config={"data": data})
    asked = []
    # No caption of a model that is not trained is usable: the classes are what is looked at.
    monkeypatch.setattr(
        captions, "ask_in_rounds", lambda _, selection, *__, **___: asked.append(selection)
    )
    line = run(arguments(SCENES, tmp_path, language_model=tmp_path / "model"), code=2)
    if mixture == "scenes_text":
        assert tuple(asked[0].kept) == dataset.CLASSES
        assert "none of 0 drafts is usable" in line and "such as 'red circle'" in line
    else:
        assert "classes: found none, expected class names" in line and not asked


def test_a_round_without_anything_usable_is_the_last(server, tmp_path, run, monkeypatch):
    monkeypatch.setattr(rounds, "_HOPELESS", 20)
    server.act = lambda body, number: {"text": f"nothing of the kind {body['seed']}"}
    many = {"captions_per_class": 10, "max_dropped_share": 1.0, "max_rounds": 4}
    assert "none of 20 drafts is usable" in run(from_server(tmp_path, **many), code=2)
    assert len(server.bodies) == 20


def test_nothing_given_is_a_missing_language_model(tmp_path, run):
    line = run(arguments(SCENES, tmp_path), code=2)
    assert "--config.language_model: no path given" in line
