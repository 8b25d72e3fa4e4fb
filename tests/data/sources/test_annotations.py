"""Files of annotations with a folder of images."""

import json

import pytest

from synth2_jax.testing.user_errors import raises_line


@pytest.fixture
def annotations(tmp_path, images):
    """Writes a file of annotations; returns the keys of a config that reads it with `images`."""

    def write(format, contents):
        path = tmp_path / "annotations_train.json"
        text = contents if isinstance(contents, str) else json.dumps(contents)
        path.write_text(text, newline="")
        name = str(path).replace("train", "{split}")
        return {"format": format, "path": name, "images": str(images)}

    return write


def coco(images, annotations):
    return {"images": images, "annotations": annotations}


def test_coco(annotations, images, read_all):
    config = annotations(
        "coco",
        coco(
            [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 3, 2, 0)],
            [{"image_id": n, "caption": f"caption {n}{x}"} for x in "ab" for n in (3, 2, 1)],
        ),
    )
    items, source = read_all(**config, num_shards=2)
    assert [item.key for item in items] == ["1", "3", "2", "0"]
    assert items.pop().reason == "no caption"
    assert items[1].captions == ["caption 3a", "caption 3b"]
    assert items[1].image == images / "3.jpg"
    assert source.description["source"] == "coco" and source.num_images == 4
    assert read_all(**config, max_images=2)[0] == items[:2]


def test_images_with_a_domain_and_images_that_are_listed_twice(annotations, read):
    rows = [{"id": 1, "file_name": f"{n}.jpg", "domain": "out-domain"} for n in (1, 2)]
    config = annotations("nocaps", coco(rows, [{"image_id": 1, "caption": "a circle"}]))
    examples, skipped = read(**config)
    assert [(one.key, one.image.name) for one in examples] == [("out-domain/1", "1.jpg")]
    assert skipped == [("out-domain/1", "duplicate key")]


def test_karpathy_splits(annotations, read, read_all):
    rows = [
        {"filename": f"{n}.jpg", "split": split, "imgid": n, "sentences": [{"raw": f"c{n}"}]}
        for n, split in enumerate(["train", "restval", "test", "train"])
    ]
    config = annotations("karpathy", {"images": rows})
    config["path"] = config["path"].replace("{split}", "train")
    assert [item.key for item in read_all("train", **config)[0]] == ["0", "3"]
    assert [item.key for item in read_all("train+restval", **config)[0]] == ["0", "1", "3"]
    with raises_line(
        "--config.splits: ",
        " has no split 'tset'; did you mean 'test'? one of: restval, test, train",
    ):
        read_all("tset", **config)
    annotations("karpathy", {"images": [*rows, {**rows[3], "split": None}, "4.jpg"]})
    assert read("train", **config)[1] == [
        ("images/4", "split not text"),
        ("images/5", "row not a JSON object"),
    ]


CIRCLE = ("1.jpg", b"a red circle")
CIRCLES = ("1.jpg", b'two, or "more"')
RING = ("2.jpg", b"a ring")


@pytest.mark.parametrize(
    ("text", "expected", "unusable"),
    [
        ("1.jpg#0\ta red circle\n2.jpg#0\ta ring\n", [CIRCLE, RING], []),
        ("1.jpg| 0| a red circle\n2.jpg| 0| a ring", [CIRCLE, RING], []),
        (
            "\ufeffimage_name| comment_number| comment\r\n1.jpg| 0| a red circle\r\n"
            "1.jpg| 4   A dog runs\r\n2.jpg| 0| a ring\r\n",
            [CIRCLE, RING],
            ["line 3"],
        ),
        (
            'image,caption\n1.jpg,a red circle\n1.jpg,"two, or ""more"""\n\n2.jpg,a ring\n3.jpg',
            [CIRCLE, CIRCLES, RING],
            ["line 6"],
        ),
        ('image,caption\n1.jpg,two, or "more"\n', [CIRCLES], []),
        ("image_name,comment_number,comment\n1.jpg,0,a red circle\n", [CIRCLE], []),
        ("image_1.jpg#0\ta ring\n", [("image_1.jpg", b"a ring")], []),
        ("1.jpg a red circle\n#0\tno name\n", [], ["line 1", "line 2"]),
    ],
)
def test_flickr30k(annotations, text, expected, unusable, read):
    examples, skipped = read(**annotations("flickr30k", text))
    found = [
        (example.image.name, text.strip()) for example in examples for text in example.captions
    ]
    assert found == expected
    assert skipped == [(line, "line not an image and a caption") for line in unusable]
    assert all(example.key == example.image.stem for example in examples)


def test_vqa(tmp_path, annotations, images, read, read_all):
    questions = tmp_path / "questions.json"
    asked = [{"question_id": 10 + n, "image_id": n, "question": f"what is {n}?"} for n in (1, 2)]
    questions.write_text(json.dumps({"questions": asked}))
    given = [{"answer": answer} for answer in ("red", "blue", "red")]
    rows = [
        {"question_id": 11, "answers": given, "multiple_choice_answer": "blue"},
        {"question_id": 12, "answers": given},  # as in OKVQA
    ]
    config = annotations("vqa", {"annotations": rows}) | {"questions": str(questions)}
    with raises_line("--config.source.images", "{image_id}"):
        read_all(**{**config, "images": str(images / "1.jpg")})
    config["images"] = str(images / "{image_id:01d}.jpg")
    items, _ = read_all(**config)
    assert [item.captions for item in items] == [["blue"], ["red"]]
    assert items[0].prompts == ["Question: what is 1? Answer:"]
    assert items[0].image == images / "1.jpg" and items[0].key == "1/11"
    items, _ = read_all(**config, answers="all")
    assert items[1].captions == ["red", "blue", "red"] and len(items[1].prompts) == 3
    annotations("vqa", {"annotations": [{**rows[0], "question_id": 99}, rows[1]]})
    examples, skipped = read(**config)
    assert [example.key for example in examples] == ["2/12"]
    assert skipped == [("annotations/0", "no such question"), ("questions/11", "no answer")]


@pytest.mark.parametrize(
    ("contents", "change", "message"),
    [
        ("", {"path": "no"}, "--config.source.path: found 'no', expected a file of annotations"),
        ("{", {}, "not JSON"),
        ({"info": 1, "images": []}, {}, "with a list 'annotations', found ['images', 'info']"),
        (coco([], []), {"images": "no"}, "--config.source.images: found 'no', expected a folder"),
    ],
)
def test_annotations_that_are_something_else(annotations, contents, change, message, read_all):
    with raises_line(message):
        read_all(**annotations("coco", contents) | change)


@pytest.mark.parametrize(
    ("first", "second", "clear"),
    [("1", 1, True), (1, "1", True), (1, 1.0, True), ("1", "01", False), (1, True, False)],
)
def test_ids_of_coco_match_as_text_and_as_numbers(annotations, first, second, clear, read):
    rows = [{"id": first, "file_name": "1.jpg"}]
    config = annotations("coco", coco(rows, [{"image_id": second, "caption": "a circle"}]))
    examples, skipped = read(**config)
    assert len(examples) == clear and bool(skipped) != clear


def test_rows_of_coco_that_are_something_else_are_counted(annotations, read):
    rows = [{"id": 1, "file_name": "1.jpg"}, {"id": 2}, "3.jpg", {"id": [4], "file_name": "3.jpg"}]
    notes = [{"image_id": 1, "text": "a"}, {"image_id": 2, "caption": "b"}, None, {"caption": "c"}]
    examples, skipped = read(**annotations("coco", coco(rows, notes)))
    assert examples[0].captions == [{"image_id": 1, "text": "a"}]  # it is no text
    assert skipped == [
        ("images/1", "no file_name"),
        ("images/2", "row not a JSON object"),
        ("images/3", "id not text or a number"),
        ("annotations/2", "row not a JSON object"),
        ("annotations/3", "no image_id"),
        ("2", "no such image"),
    ]
