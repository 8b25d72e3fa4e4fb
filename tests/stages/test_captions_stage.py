"""`synth2 captions`: the rows, their balance, and the record of what was dropped."""

import collections
import hashlib
import json

import pytest

from synth2_jax.files import read_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.text.prompts import CLASS_PROMPT

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


@pytest.fixture(scope="module")
def rows(chain):
    return read_json_lines(chain.path("captions", "captions.jsonl"))


@pytest.fixture(scope="module")
def manifest(chain):
    return json.loads(chain.path("captions", "manifest.json").read_text())


def test_every_class_has_the_same_number_of_captions(chain, rows):
    found = collections.Counter(row["class"] for row in rows)
    assert found == dict.fromkeys(chain.classes, chain.captions_per_class)


def test_captions_are_distinct_long_enough_and_name_their_class(rows):
    assert len({row["caption"] for row in rows}) == len(rows)
    for row in rows:
        words = row["caption"].lower().split()
        assert len(words) >= 3
        assert any(row["class"] in word for word in words)


def test_every_row_says_who_wrote_it_and_how(rows, manifest):
    for row in rows:
        assert row.keys() == {
            *("caption", "class", "draw", "template_sha256", "model", "seed", "sampling")
        }
        assert row["template_sha256"] == manifest["prompt_sha256"]
        assert row["model"] == manifest["fingerprint"]
        assert row["seed"] == 0 and row["sampling"] == manifest["sampling"]


def test_the_manifest_says_who_wrote_them_and_how(chain, rows, manifest):
    trained = load_trained(str(chain.path("language_model")), "language_model")
    assert manifest["source"] == "language_model"
    assert manifest["checkpoint"] == "language_model"
    assert manifest["step"] == chain.steps["language_model"]
    assert manifest["fingerprint"] == trained.fingerprint("language_model")
    assert manifest["prompt"] == CLASS_PROMPT
    assert manifest["prompt_sha256"] == hashlib.sha256(CLASS_PROMPT.encode()).hexdigest()
    assert manifest["sampling"]["method"] == "nucleus" and manifest["sampling"]["top_p"] == 0.95
    assert manifest["seed"] == 0
    assert manifest["num_classes"] == len(chain.classes)
    assert manifest["num_captions"] == len(rows) == chain.num_captions
    assert manifest["short_of"] == {}


def test_every_draft_is_kept_or_counted_as_dropped(rows, manifest):
    # Draws are numbered without gaps, in rounds: there is one more than the highest number.
    highest = collections.defaultdict(int)
    for row in rows:
        highest[row["class"]] = max(highest[row["class"]], row["draw"])
    num_drafts = len(rows) + sum(manifest["dropped"].values())
    assert sum(highest.values()) + len(highest) <= num_drafts
    assert set(manifest["dropped"]) <= {
        *("unfinished", "too short", "class not named", "duplicate"),
        *("control characters", "markup", "not UTF-8"),  # a model of 60 steps writes any bytes
    }


def test_the_same_seed_writes_the_same_at_any_batch_size_and_another_seed_does_not(
    chain, rows, tmp_path
):
    few = {"captions_per_class": 2, "classes": "('a',)"}
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        chain.run(chain.writing(folder, **few, seed=seed, batch_size=3))
    first = read_json_lines(tmp_path / "0" / "captions.jsonl")
    # The first captions of a class do not depend on how many were asked for.
    assert {row["draw"]: row["caption"] for row in first}.items() <= {
        row["draw"]: row["caption"] for row in rows if row["class"] == "a"
    }.items()
    assert first != read_json_lines(tmp_path / "1" / "captions.jsonl")


def test_a_class_that_is_never_named_is_reported(chain, tmp_path, mistake):
    classes = "('a', 'zebra')"
    chain.run(chain.writing(tmp_path, classes=classes, captions_per_class=1, max_rounds=8))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["short_of"] == {"zebra": 1}
    assert manifest["num_captions"] == 1
    line = mistake(chain.writing(tmp_path, classes="('zebra',)", max_rounds=1))
    assert "none of 10 drafts is usable" in line and "Train the language model" in line
    assert "(--config.classes), not such as 'zebra'" in line


def test_a_template_file_and_a_quota(chain, tmp_path):
    template = tmp_path / "prompt.txt"
    template.write_text("Class: {class_name}. Output:\n")  # what it was trained on
    chain.run(chain.writing(tmp_path / "a", template=template, quotas__the=3))
    rows = read_json_lines(tmp_path / "a" / "captions.jsonl")
    assert collections.Counter(row["class"] for row in rows) == {"a": 10, "the": 3}
    whole = read_json_lines(chain.path("captions", "captions.jsonl"))
    assert [row for row in rows if row["class"] == "a"] == [
        row for row in whole if row["class"] == "a"
    ]


def test_mistakes(chain, mistake, tmp_path):
    for key in ("captions_per_class", "max_rounds", "batch_size"):
        line = mistake(chain.writing(tmp_path, **{key: 0}))
        assert line == f"--config.{key}: found 0, expected at least 1"
    line = mistake(chain.writing(tmp_path, vocabulry="scenes"))
    assert line.startswith("--config.vocabulry: unknown key; did you mean 'vocabulary'")
    line = mistake(chain.writing(tmp_path, decode__method="nuclear"))
    assert "did you mean 'nucleus'?" in line
    line = mistake(chain.writing(tmp_path, language_model=chain.path("tokenizer")))
    assert line.endswith("holds a tokenizer, expected a language_model")
