"""`synth2 inspect` prints no terminal escapes, whatever a folder's files hold."""

import json

import pytest

from synth2_jax import main
from synth2_jax.data import pair_writer, records, views
from synth2_jax.data.skipped import Skipped
from synth2_jax.files import write_json, write_json_lines
from synth2_jax.testing.untrained_runs import write_untrained_run

HOSTILE = "\x1b]0;title\x07\x1b[31mred\u202e\x9b"


def captions(folder):
    write_json(folder / "manifest.json", {"source": HOSTILE, HOSTILE: 1})
    write_json_lines(folder / "captions.jsonl", [{"caption": "a dog"}])


def pairs(folder):
    pair = records.Pair(f"real-{HOSTILE}-0", [1, 2, 3], f"a {HOSTILE}", "real")
    provenance = records.Provenance(HOSTILE, 3, 8, captions={"source": HOSTILE})
    writer = pair_writer.PairWriter(folder, provenance, num_shards=1)
    writer.write_shard(0, [pair, Skipped(HOSTILE, "corrupt image", HOSTILE)])
    return writer.finish()


def view(folder):
    pairs(folder / "pairs")
    views.write_view(folder, folder / "pairs", [[[0, 0]]], block=4, chosen={"by": HOSTILE})
    path = folder / "view.json"
    values = json.loads(path.read_text())
    write_json(path, {**values, "chosen": {HOSTILE: HOSTILE}})


def training(folder):
    write_untrained_run(folder, "tokenizer", config={"note": HOSTILE})


@pytest.mark.parametrize("write", [captions, pairs, view, training])
def test_no_escapes_are_printed(tmp_path, capsys, write):
    write(tmp_path)
    assert main.main(["synth2", "inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert r"1b[31mred\u202e" in text
    assert all(c.isprintable() or c == "\n" for c in text)
