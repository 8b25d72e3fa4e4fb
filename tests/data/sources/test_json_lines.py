"""Files of JSON lines with a folder of images."""

import json

import pytest

OUTSIDE = "image outside of the folder"


LINES = [
    {"image": "0.jpg", "caption": "a circle", "key": "first"},
    {"image": "1.jpg", "captions": ["a ring", "größer 日本"]},
    {"image": "../secret.jpg", "caption": "a circle"},
    {"image": "/etc/passwd", "caption": "a circle"},
    {"image": "2.jpg"},
    {"caption": "a circle"},
    {"image": "3.jpg", "caption": 7},
    ["no", "object"],
    {"image": "3.jpg", "text": "a square"},
]


@pytest.mark.parametrize("num_shards", [1, 2, 3, 40])
def test_json_lines_come_once_however_they_are_cut(tmp_path, images, num_shards, read, read_all):
    text = [json.dumps(line, ensure_ascii=False) for line in LINES]
    (tmp_path / "a.jsonl").write_text("\n".join(text[:4]) + "\n\n")
    (tmp_path / "b.jsonl").write_text("\n".join([*text[4:], "{broken"]))  # the last has no end
    path = str(tmp_path / "{a,b}.jsonl")
    config = {"format": "json_lines", "path": path, "images": str(images), "num_shards": num_shards}
    items, source = read_all(**config)
    assert source.num_shards == num_shards
    examples, skipped = read(**config)
    assert [list(example.captions) for example in examples] == [
        ["a circle"],
        ["a ring", "größer 日本"],
        [7],  # which is not text: see test_caption_text.py
        ["a square"],
    ]
    assert [example.key for example in examples][:2] == ["first@a#0", f"a#{len(text[0]) + 1}"]
    reasons = [OUTSIDE, OUTSIDE, "no caption", "no image", "line not a JSON object"]
    assert [reason for _, reason in skipped] == [*reasons, "line not JSON"]
    assert len({item.key for item in items}) == len(items)


def test_json_lines_of_bytes_that_are_no_text(tmp_path, images, read):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"image": "0.jpg", "caption": "gr\xf6\xdfer"}\n' + b"[" * 100_000 + b"\n")
    _, skipped = read(format="json_lines", path=str(path), images=str(images))
    assert [reason for _, reason in skipped] == ["line not JSON"] * 2
