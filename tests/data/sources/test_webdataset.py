"""Tar files."""

import errno
import gzip
import io
import pathlib
import tarfile
import tracemalloc

import numpy as np
import pytest

from synth2_jax.data.sources import webdataset
from synth2_jax.data.sources.source import (
    SourceConfig,
    open_source,
)
from synth2_jax.testing.user_errors import raises_line

PICTURE = b"a picture" * 20
DAMAGED = "truncated or damaged tar"


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


@pytest.fixture
def read_tars(read):
    """read_tars(path) -> (examples, [(key, reason)] of the skipped) of tar files."""
    return lambda path, **config: read(format="webdataset", path=str(path), **config)


def test_webdataset(tmp_path, read_all, read_tars):
    for number in range(3):
        write_tar(tmp_path / f"cc-{number:05d}.tar", members(4, folder="x/" if number else ""))
    path = str(tmp_path / "cc-{00000..00002}.tar")
    items, source = read_all(format="webdataset", path=path, num_shards=99)
    assert source.num_shards == 3 and len(items) == 12
    assert items[1].key == "cc-00000/001" and items[5].key == "cc-00001/x/001"
    assert items[1].captions == [b"caption 1"] and items[1].image == PICTURE
    items, _ = read_tars(path, caption_field="json/caption", max_images=6)
    assert len(items) == 6 and items[0].captions == ["another"]
    with raises_line("--config.source.path: no file"):
        read_tars(path.replace("2}", "3}"))


def test_incomplete_and_repeated_examples(tmp_path, read_tars):
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


def test_hostile_tar_members_do_nothing(tmp_path, read_tars):
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
def test_truncated_and_damaged_tars(tmp_path, cut, read_tars):
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
def test_files_that_are_one_example(tmp_path, names, examples, skipped, read_tars):
    write_tar(tmp_path / "a.tar", [(name, b'{"caption": "a"}') for name in names.split()])
    found, reasons = read_tars(tmp_path / "a.tar")
    assert [example.key.removeprefix("a/") for example in found] == examples
    assert {key.removeprefix("a/"): reason for key, reason in reasons} == skipped


def test_a_field_with_a_dot_is_an_ending(tmp_path, read_tars):
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


def test_captions_in_json_are_counted_one_by_one(tmp_path, read_all):
    rows = [b'{"caption": ["a", null]}', b'{"text": 7}', b'{"title": "a", "caption": null}']
    files = [
        file
        for number, row in enumerate(rows)
        for file in ((f"{number}.jpg", PICTURE), (f"{number}.json", b"\xef\xbb\xbf" + row))
    ]
    write_tar(tmp_path / "a.tar", files)
    first, second, third = read_all(format="webdataset", path=str(tmp_path / "a.tar"))[0]
    assert (first.captions, second.captions) == (["a", None], [7])
    assert third.detail.endswith("found jpg, json, json/caption, json/title")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_and_their_damage(tmp_path, mode, read_tars):
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
def test_a_huge_header_is_not_unpacked(tmp_path, kind, read_tars):
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


def test_a_file_that_cannot_be_read_is_no_damaged_one(tmp_path, monkeypatch, read_tars):
    write_tar(tmp_path / "a.tar", members(1))

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tarfile.TarFile, "next", fails)
    with raises_line(f"{tmp_path / 'a.tar'}: cannot be read (Input/output error)"):
        read_tars(tmp_path / "a.tar")
