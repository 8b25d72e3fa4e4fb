"""Images with captions in the formats that people have."""

import errno
import gzip
import io
import json
import pathlib
import tarfile
import tracemalloc

import numpy as np
import pytest

from synth2_jax.data.images import encode_png
from synth2_jax.data.skipped import SkipError, Skipped
from synth2_jax.data.sources import webdataset
from synth2_jax.data.sources.file_names import find_files, inside, short_names
from synth2_jax.data.sources.source import (
    DataSource,
    ImageText,
    SourceConfig,
    Wanted,
    from_list,
    open_source,
)
from synth2_jax.domains.scenes import dataset
from synth2_jax.errors import UserError
from synth2_jax.testing.user_errors import raises_line

PICTURE = encode_png(np.zeros((32, 32, 3), np.uint8))
DAMAGED = "truncated or damaged tar"
OUTSIDE = "image outside of the folder"


def read(split="train", num_shards=1, max_images=None, **config):
    source = open_source(SourceConfig(**config), split, num_shards, max_images)
    assert json.loads(json.dumps(source.description)) == source.description
    shards = [list(source.read(shard)) for shard in range(source.num_shards)]
    assert shards == [list(source.read(shard)) for shard in range(source.num_shards)]
    return [item for shard in shards for item in shard], source


def split_up(items):
    """(examples, [(key, reason)] of the skipped)."""
    examples = [item for item in items if isinstance(item, ImageText)]
    skipped = [(item.key, item.reason) for item in items if isinstance(item, Skipped)]
    assert len(examples) + len(skipped) == len(items)
    return examples, skipped


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(PICTURE)
    return folder


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


def test_scenes_are_the_pictures_themselves():
    items, source = read("real", num_shards=3, max_images=7, format="scenes")
    assert [item.key for item in items] == [f"real-{i:06d}" for i in range(7)]
    np.testing.assert_array_equal(items[6].image, dataset.examples("real", 7)[6].image)
    assert source.description == {"source": "scenes/real", "images": 7}


def test_coco(annotations, images):
    config = annotations(
        "coco",
        coco(
            [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 3, 2, 0)],
            [{"image_id": n, "caption": f"caption {n}{x}"} for x in "ab" for n in (3, 2, 1)],
        ),
    )
    items, source = read(**config, num_shards=2)
    assert [item.key for item in items] == ["1", "3", "2", "0"]
    assert items.pop().reason == "no caption"
    assert items[1].captions == ["caption 3a", "caption 3b"]
    assert items[1].image == images / "3.jpg"
    assert source.description["source"] == "coco" and source.num_images == 4
    assert read(**config, max_images=2)[0] == items[:2]


def test_images_with_a_domain_and_images_that_are_listed_twice(annotations):
    rows = [{"id": 1, "file_name": f"{n}.jpg", "domain": "out-domain"} for n in (1, 2)]
    config = annotations("nocaps", coco(rows, [{"image_id": 1, "caption": "a circle"}]))
    examples, skipped = split_up(read(**config)[0])
    assert [(one.key, one.image.name) for one in examples] == [("out-domain/1", "1.jpg")]
    assert skipped == [("out-domain/1", "duplicate key")]


def test_karpathy_splits(annotations):
    rows = [
        {"filename": f"{n}.jpg", "split": split, "imgid": n, "sentences": [{"raw": f"c{n}"}]}
        for n, split in enumerate(["train", "restval", "test", "train"])
    ]
    config = annotations("karpathy", {"images": rows})
    config["path"] = config["path"].replace("{split}", "train")
    assert [item.key for item in read("train", **config)[0]] == ["0", "3"]
    assert [item.key for item in read("train+restval", **config)[0]] == ["0", "1", "3"]
    with raises_line(
        "--config.splits: ",
        " has no split 'tset'; did you mean 'test'? one of: restval, test, train",
    ):
        read("tset", **config)
    annotations("karpathy", {"images": [*rows, {**rows[3], "split": None}, "4.jpg"]})
    assert split_up(read("train", **config)[0])[1] == [
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
def test_flickr30k(annotations, text, expected, unusable):
    examples, skipped = split_up(read(**annotations("flickr30k", text))[0])
    found = [
        (example.image.name, text.strip()) for example in examples for text in example.captions
    ]
    assert found == expected
    assert skipped == [(line, "line not an image and a caption") for line in unusable]
    assert all(example.key == example.image.stem for example in examples)


def test_vqa(tmp_path, annotations, images):
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
        read(**{**config, "images": str(images / "1.jpg")})
    config["images"] = str(images / "{image_id:01d}.jpg")
    items, _ = read(**config)
    assert [item.captions for item in items] == [["blue"], ["red"]]
    assert items[0].prompts == ["Question: what is 1? Answer:"]
    assert items[0].image == images / "1.jpg" and items[0].key == "1/11"
    items, _ = read(**config, answers="all")
    assert items[1].captions == ["red", "blue", "red"] and len(items[1].prompts) == 3
    annotations("vqa", {"annotations": [{**rows[0], "question_id": 99}, rows[1]]})
    examples, skipped = split_up(read(**config)[0])
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
def test_annotations_that_are_something_else(annotations, contents, change, message):
    with raises_line(message):
        read(**annotations("coco", contents) | change)


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
def test_json_lines_come_once_however_they_are_cut(tmp_path, images, num_shards):
    text = [json.dumps(line, ensure_ascii=False) for line in LINES]
    (tmp_path / "a.jsonl").write_text("\n".join(text[:4]) + "\n\n")
    (tmp_path / "b.jsonl").write_text("\n".join([*text[4:], "{broken"]))  # the last has no end
    path = str(tmp_path / "{a,b}.jsonl")
    items, source = read(format="json_lines", path=path, images=str(images), num_shards=num_shards)
    assert source.num_shards == num_shards
    examples, skipped = split_up(items)
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


def test_json_lines_of_bytes_that_are_no_text(tmp_path, images):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"image": "0.jpg", "caption": "gr\xf6\xdfer"}\n' + b"[" * 100_000 + b"\n")
    _, skipped = split_up(read(format="json_lines", path=str(path), images=str(images))[0])
    assert [reason for _, reason in skipped] == ["line not JSON"] * 2


def write_tar(path, members, mode="w"):
    """members: (name, bytes) of files, or TarInfo."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, contents = member
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))


def members(count, folder=""):
    for number in range(count):
        yield f"{folder}{number:03d}.jpg", PICTURE
        yield f"{folder}{number:03d}.txt", f"caption {number}".encode()
        yield f"{folder}{number:03d}.json", b'{"caption": "another"}'


def read_tars(path, **config):
    """(examples, [(key, reason)] of the skipped) of tar files."""
    return split_up(read(format="webdataset", path=str(path), **config)[0])


def test_webdataset(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"cc-{number:05d}.tar", members(4, folder="x/" if number else ""))
    path = str(tmp_path / "cc-{00000..00002}.tar")
    items, source = read(format="webdataset", path=path, num_shards=99)
    assert source.num_shards == 3 and len(items) == 12
    assert items[1].key == "cc-00000/001" and items[5].key == "cc-00001/x/001"
    assert items[1].captions == [b"caption 1"] and items[1].image == PICTURE
    items, _ = read_tars(path, caption_field="json/caption", max_images=6)
    assert len(items) == 6 and items[0].captions == ["another"]
    with raises_line("--config.source.path: no file"):
        read_tars(path.replace("2}", "3}"))


def test_incomplete_and_repeated_examples(tmp_path):
    names = "0.jpg 1.txt 2.jpg 2.json 3.jpg 3.txt 4.jpg 4.json 3.jpg 3.txt 3.mp4 5.mp4"
    contents = {"2.json": b"[1]", "4.json": b"{"}
    write_tar(tmp_path / "a.tar", [(n, contents.get(n, n.encode())) for n in names.split()])
    examples, skipped = read_tars(tmp_path / "a.tar")
    assert [(example.key, example.captions) for example in examples] == [("a/3", [b"3.txt"])]
    assert skipped == [
        ("a/0", "no caption"),
        ("a/1", "no image"),
        ("a/2", "no caption"),
        ("a/4", "caption not JSON"),
        ("a/3", "duplicate key"),
        ("a/5", "no known ending"),
    ]


def test_hostile_tar_members_do_nothing(tmp_path):
    link, device = tarfile.TarInfo("7.jpg"), tarfile.TarInfo("8.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    evil = ("../../evil.jpg", "/tmp/evil.jpg", "x/../../evil.txt")
    good = [("1.jpg", PICTURE), ("1.txt", b"a circle")]
    write_tar(tmp_path / "a.tar", [*((name, PICTURE) for name in evil), link, device, *good])
    before = sorted(tmp_path.rglob("*"))
    examples, skipped = read_tars(tmp_path / "a.tar")
    assert [example.key for example in examples] == ["a/1"]
    outside, no_file = "tar member outside of the archive", "tar member not a file"
    assert [reason for _, reason in skipped] == [outside] * 3 + [no_file] * 2
    assert sorted(tmp_path.rglob("*")) == before
    assert not pathlib.Path("/tmp/evil.jpg").exists()


@pytest.mark.parametrize("cut", ["in a file", "in a header", "before the end", "a flipped byte"])
def test_truncated_and_damaged_tars(tmp_path, cut):
    write_tar(tmp_path / "a.tar", members(3))
    contents = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as tar:
        last = tar.getmembers()[-3]  # the image of the last example
        end = tar.offset
    if cut == "a flipped byte":
        contents[last.offset] ^= 255
    else:
        places = {
            "in a file": last.offset_data + 10,
            "in a header": last.offset + 100,
            "before the end": end,
        }
        del contents[places[cut] :]
    (tmp_path / "a.tar").write_bytes(contents)
    examples, skipped = read_tars(tmp_path / "a.tar")
    assert len(examples) == (3 if cut == "before the end" else 2)
    assert skipped == [("a/", DAMAGED)]


@pytest.mark.parametrize(
    ("names", "examples", "skipped"),
    [
        ("v1.0_1.jpg v1.0_1.txt v1.0_2.jpg v1.0_2.txt", ["v1.0_1", "v1.0_2"], {}),
        ("1.jpg 1.txt 1.b.jpg 1.b.txt", ["1", "1.b"], {}),
        ("1.jpg 1.seg.png 1.txt 2.jpg 2.txt", ["1", "2"], {}),
        ("1.a.png 1.b.png 1.jpg 1.json 1.txt 1.z.png 2.jpg 2.txt", ["1", "2"], {}),
        ("v.1.jpg v.1.txt v.1.seg.png v.2.jpg v.2.txt", ["v.1", "v.2"], {}),
        ("v.1.jpg v.2.jpg v.2.txt v.3.txt", ["v.2"], {"v.1": "no caption", "v.3": "no image"}),
        ("1.txt 1.edited.jpg 1.input.jpg", [], {"1": "no image"}),
        ("1.JPG 1.Txt", ["1"], {}),
        ("README 1.jpg 1.txt x.y/1.jpg x.y/1.txt", ["1", "x.y/1"], {"README": "no known ending"}),
        ("1.jpg 1.txt 1.jpg 1.txt", ["1"], {"1": "duplicate key"}),
        ("._1.jpg ._1.txt .DS_Store __MACOSX/1.jpg 1.jpg 1.txt", ["1"], {}),
        ("./._1.jpg ./1.jpg ./1.txt", ["./1"], {}),
    ],
)
def test_files_that_are_one_example(tmp_path, names, examples, skipped):
    write_tar(tmp_path / "a.tar", [(name, b'{"caption": "a"}') for name in names.split()])
    found, reasons = read_tars(tmp_path / "a.tar")
    assert [example.key.removeprefix("a/") for example in found] == examples
    assert {key.removeprefix("a/"): reason for key, reason in reasons} == skipped


def test_a_field_with_a_dot_is_an_ending(tmp_path):
    names = "1.txt 1.edited.jpg 1.input.jpg 2.b.txt 2.b.edited.jpg"
    write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names.split()])
    examples, skipped = read_tars(tmp_path / "a.tar", image_field="edited.jpg")
    assert [example.key for example in examples] == ["a/1", "a/2.b"] and not skipped


def test_many_images_without_captions_are_not_kept_in_memory(tmp_path, monkeypatch):
    """All names have the same beginning as far as the first dot."""
    monkeypatch.setattr(webdataset, "_MAX_MEMBER", 1 << 20)
    write_tar(tmp_path / "a.tar", [(f"v1.{number}.jpg", bytes(1 << 17)) for number in range(100)])
    source = open_source(SourceConfig("webdataset", str(tmp_path / "a.tar")), "train", 1)
    tracemalloc.start()
    try:
        reasons = [item.reason for item in source.read(0)]
        assert tracemalloc.get_traced_memory()[1] < 3 << 20  # of 13 MB
    finally:
        tracemalloc.stop()
    assert reasons == ["no caption"] * 100


def test_captions_in_json_are_counted_one_by_one(tmp_path):
    rows = [b'{"caption": ["a", null]}', b'{"text": 7}', b'{"title": "a", "caption": null}']
    files = [
        file
        for number, row in enumerate(rows)
        for file in ((f"{number}.jpg", PICTURE), (f"{number}.json", b"\xef\xbb\xbf" + row))
    ]
    write_tar(tmp_path / "a.tar", files)
    first, second, third = read(format="webdataset", path=str(tmp_path / "a.tar"))[0]
    assert (first.captions, second.captions) == (["a", None], [7])
    assert third.detail.endswith("found jpg, json, json/caption, json/title")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_and_their_damage(tmp_path, mode):
    rng, path = np.random.default_rng(0), tmp_path / "a.tar"
    names = ("1.jpg", "1.txt", "2.jpg", "2.txt")
    write_tar(path, [(name, rng.bytes(50_000)) for name in names], mode)
    examples, skipped = read_tars(path)
    assert [example.key for example in examples] == ["a/1", "a/2"] and not skipped
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + bytes(100) + whole[middle + 100 :]):
        path.write_bytes(damaged)
        assert ("a/", DAMAGED) in read_tars(path)[1]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_not_unpacked(tmp_path, kind):
    """A few KB of gzip for 24 MiB of a long name; it could be as many GiB."""
    info = tarfile.TarInfo("name")
    info.type, info.size = kind, 24 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(24):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        _, skipped = read_tars(tmp_path / "a.tar.gz")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert skipped == [("a.tar/", DAMAGED)]


def test_a_file_that_cannot_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", members(1))

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tarfile.TarFile, "next", fails)
    with raises_line(f"{tmp_path / 'a.tar'}: cannot be read (Input/output error)"):
        read_tars(tmp_path / "a.tar")


def test_a_data_source_that_loses_rows_fails():
    def read_part(shard, tally):
        tally.found += 2
        yield 1, Skipped("a", "empty caption")

    with pytest.raises(AssertionError, match="losing: found 2 rows, but 1 are kept or skipped"):
        list(DataSource({"source": "losing"}, 1, read_part).read(0))
    with pytest.raises(AssertionError, match="lost: found 2 rows, but 1 are kept or skipped"):
        from_list(
            [(1, Skipped("a", "no caption"))], 2, {"source": "lost"}, Wanted("train", 1, None)
        )


@pytest.mark.parametrize(
    ("first", "second", "clear"),
    [("1", 1, True), (1, "1", True), (1, 1.0, True), ("1", "01", False), (1, True, False)],
)
def test_ids_of_coco_match_as_text_and_as_numbers(annotations, first, second, clear):
    rows = [{"id": first, "file_name": "1.jpg"}]
    config = annotations("coco", coco(rows, [{"image_id": second, "caption": "a circle"}]))
    examples, skipped = split_up(read(**config)[0])
    assert len(examples) == clear and bool(skipped) != clear


def test_rows_of_coco_that_are_something_else_are_counted(annotations):
    rows = [{"id": 1, "file_name": "1.jpg"}, {"id": 2}, "3.jpg", {"id": [4], "file_name": "3.jpg"}]
    notes = [{"image_id": 1, "text": "a"}, {"image_id": 2, "caption": "b"}, None, {"caption": "c"}]
    examples, skipped = split_up(read(**annotations("coco", coco(rows, notes)))[0])
    assert examples[0].captions == [{"image_id": 1, "text": "a"}]  # it is no text
    assert skipped == [
        ("images/1", "no file_name"),
        ("images/2", "row not a JSON object"),
        ("images/3", "id not text or a number"),
        ("annotations/2", "row not a JSON object"),
        ("annotations/3", "no image_id"),
        ("2", "no such image"),
    ]


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")

    def found(pattern):
        paths = find_files(f"{folder}/{pattern}", "--config.source.path")
        return [str(path.relative_to(folder)) for path in paths]

    return found


def test_names_of_files(tmp_path):
    names = ["a-00.tar", "a-01.tar", "b.tar"]
    found = touched(tmp_path, *names)
    (tmp_path / "c.tar").mkdir()
    assert found("{a-00,a-01,b}.tar") == found("*.tar") == names
    assert found("a-{00..01}.tar") == names[:2]
    (tmp_path / "d.tar").symlink_to(tmp_path / "unplugged.tar")
    for pattern, problem in (
        ("a-{01..00}.tar", "no file .*{01..00}.tar"),
        (f"a-{{2..{10**15}}}.tar", "no file .*a-2.tar"),  # not after all of these names
        ("c-*.tar", "no file .*c-"),
        ("c.tar", r"c\.tar is a folder, expected files\. Name those in it\."),
        ("*.tar", "no file .*d.tar"),
    ):
        with pytest.raises(UserError, match=f"--config.source.path: .*{problem}"):
            found(pattern)
    with raises_line("--config.source.path: no path given"):
        find_files("", "--config.source.path")


def test_names_with_brackets_are_taken_as_they_are_first(tmp_path):
    names = ["run[1]/a.tar", *(f"cc {{a,b}} [v1]/c-0{n}.tar" for n in (0, 1)), "x[1].tar", "x1.tar"]
    found = touched(tmp_path, *names)
    assert found("run[1]/a.tar") == found("run[1]/*.tar") == names[:1]
    assert found("cc {a,b} [v1]/c-{00..01}.tar") == found("cc {a,b} [v1]/*") == names[1:3]
    assert found("x[1].tar") == names[3:4]
    assert found("x[12].tar") == names[4:]
    assert found("{x1,x[1]}.tar") == names[4:] + names[3:4]
    (link := tmp_path / "run[1]" / "b.tar").symlink_to(tmp_path / "x1.tar")
    assert find_files(f"{tmp_path}/run[1]/../run[1]/{{a,b,a}}.tar", "test")[1].samefile(link)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.tar", "b.tar"], ["a", "b"]),
        (["x/a.tar", "y/a.tar"], ["x/a", "y/a"]),
        (["p.tfrecord-0-of-2", "p.tfrecord-1-of-2"], None),
        (["a.tar", "a.tar.gz", "a.tgz"], None),
        (["a.tar", "a/b.tar"], None),  # b/0 in the first and 0 in the second would meet
    ],
)
def test_short_names_of_files_never_meet(names, expected):
    paths = [pathlib.Path("data", name) for name in names]
    assert short_names(paths) == (expected or names)


def test_names_that_lead_out_of_a_folder():
    folder = pathlib.Path("/data/images")
    assert inside(folder, "x/1.jpg") == folder / "x" / "1.jpg"
    assert inside(folder, "x/../1.jpg") == folder / "1.jpg"
    assert inside(folder, "/data/images/x/1.jpg") == folder / "x" / "1.jpg"
    assert inside(pathlib.Path("/"), "etc/1.jpg") == pathlib.Path("/etc/1.jpg")
    assert inside(pathlib.Path("."), "1.jpg") == pathlib.Path.cwd() / "1.jpg"
    for name in ("../1.jpg", "/etc/passwd", "/data/images2/1.jpg", "x/../../1.jpg", ".", "a\0b"):
        with pytest.raises(SkipError, match="outside of the folder"):
            inside(folder, name)
    for name in (None, "", 7, float("nan"), ["1.jpg"], "caf\ud83d.jpg"):
        with pytest.raises(SkipError, match="image name not"):
            inside(folder, name)


def test_mistakes_in_the_config():
    with pytest.raises(ValueError, match="format: unknown 'wds'"):
        SourceConfig(format="wds")
    with pytest.raises(ValueError, match="answers"):
        SourceConfig(format="vqa", answers="best")
