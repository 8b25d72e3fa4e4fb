"""`synth2 captions`: the rows, their balance, and the record of what was dropped."""

import collections
import hashlib
import json

import pytest

from synth2_jax.files import read_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.text.prompts import CLASS_PROMPT

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def read(folder):
    rows = read_json_lines(folder / "captions.jsonl")
    return rows, json.loads((folder / "manifest.json").read_text())


def test_captions_are_balanced_distinct_and_name_their_class(chain):
    rows, _ = read(chain.path("captions"))
    found = collections.Counter(row["class"] for row in rows)
    assert found == dict.fromkeys(chain.classes, chain.captions_per_class)
    assert len({row["caption"] for row in rows}) == len(rows)
    for row in rows:
        words = row["caption"].lower().split()
        assert len(words) >= 3 and any(row["class"] in word for word in words)


def test_rows_and_manifest_say_who_wrote_them_and_how(chain):
    rows, manifest = read(chain.path("captions"))
    trained = load_trained(str(chain.path("language_model")), "language_model")
    expected = {
        "source": "language_model",
        "checkpoint": "language_model",
        "step": chain.steps["language_model"],
        "fingerprint": trained.fingerprint("language_model"),
        "prompt": CLASS_PROMPT,
        "prompt_sha256": hashlib.sha256(CLASS_PROMPT.encode()).hexdigest(),
        "seed": 0,
        "num_classes": len(chain.classes),
        "num_captions": len(rows),
        "short_of": {},
    }
    assert manifest == {**manifest, **expected} and len(rows) == chain.num_captions
    assert manifest["sampling"]["method"] == "nucleus" and manifest["sampling"]["top_p"] == 0.95
    told = {
        "template_sha256": manifest["prompt_sha256"],
        "model": manifest["fingerprint"],
        "seed": 0,
        "sampling": manifest["sampling"],
    }
    for row in rows:
        assert row.keys() == {"caption", "class", "draw", *told} and row == {**row, **told}


def test_every_draft_is_kept_or_counted_as_dropped(chain):
    rows, manifest = read(chain.path("captions"))
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


def test_the_same_seed_writes_the_same_at_any_batch_size_and_another_seed_does_not(chain, tmp_path):
    def captions(folder):
        rows = read_json_lines(folder / "captions.jsonl")
        return {row["draw"]: row["caption"] for row in rows if row["class"] == "a"}

    few = {"captions_per_class": 2, "classes": "('a',)", "batch_size": 3}
    for seed in (0, 1):
        chain.run(chain.writing(tmp_path / str(seed), **few, seed=seed))
    # The first captions of a class do not depend on how many were asked for.
    assert captions(tmp_path / "0").items() <= captions(chain.path("captions")).items()
    assert captions(tmp_path / "0") != captions(tmp_path / "1")


def test_a_class_that_is_never_named_is_reported(chain, tmp_path, mistake):
    classes = "('a', 'zebra')"
    chain.run(chain.writing(tmp_path, classes=classes, captions_per_class=1, max_rounds=8))
    _, manifest = read(tmp_path)
    assert (manifest["short_of"], manifest["num_captions"]) == ({"zebra": 1}, 1)
    line = mistake(chain.writing(tmp_path, classes="('zebra',)", max_rounds=1))
    assert "none of 10 drafts is usable" in line and "Train the language model" in line
    assert "(--config.classes), not such as 'zebra'" in line


def test_a_template_file_and_a_quota(chain, tmp_path):
    template = tmp_path / "prompt.txt"
    template.write_text("Class: {class_name}. Output:\n")  # what it was trained on
    chain.run(chain.writing(tmp_path / "a", template=template, quotas__the=3))
    rows, whole = read(tmp_path / "a")[0], read(chain.path("captions"))[0]
    assert collections.Counter(row["class"] for row in rows) == {"a": 10, "the": 3}
    assert [r for r in rows if r["class"] == "a"] == [r for r in whole if r["class"] == "a"]
