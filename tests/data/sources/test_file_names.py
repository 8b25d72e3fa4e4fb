"""Patterns of file names, short names and paths inside a folder."""

import pathlib

import pytest

from synth2_jax.data.skipped import SkipError
from synth2_jax.data.sources.file_names import find_files, inside, short_names
from synth2_jax.errors import UserError
from synth2_jax.testing.user_errors import raises_line


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
