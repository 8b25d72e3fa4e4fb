"""WebDataset: tar files in which the files of one example follow each other under one name.

    000000017.jpg  000000017.txt  000000017.json  000000018.jpg  ...

The name ends at the first dot whose ending is looked for, so names may have dots. In a.b.jpg, a.jpg
and a.txt the first file is a part of the example "a", which it extends; with a.b.txt it is another.

Members are read in memory, never unpacked: `..` and absolute names, links and devices do no harm.
"""

import dataclasses
import functools
import json
import pathlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping

from synth2_jax.data.skipped import SkipError, Skipped
from synth2_jax.data.sources.source import (
    Counted,
    DataSource,
    ImageText,
    SourceConfig,
    Tally,
    Wanted,
    from_files,
    looked_for,
    num_pairs,
    take,
)
from synth2_jax.errors import UserError

_IMAGES = "jpg;jpeg;png;webp;gif;bmp;tif;tiff"
_CAPTIONS = "txt;text;caption;json/caption;json/text"  # json/x: x of the JSON object
_MAX_MEMBER = 256 << 20  # bytes
_MAX_HEADERS = 1 << 20  # bytes before a member, long names included
_MAX_FAMILY = 256  # members
_DAMAGED = "truncated or damaged tar"


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file of a tar: `path` with its folder as far as the dot, `ending` in lower case.

    `contents` is None for an ending that is not looked for, or says why the file is not read.
    """

    path: str
    ending: str
    contents: bytes | SkipError | None

    @property
    def stem(self) -> str:
        """The path as far as the first dot of the file's name."""
        folder, slash, name = self.path.rpartition("/")
        return folder + slash + name.partition(".")[0]


_Family = dict[str, dict[str, _Member]]  # members by path and ending


def open_webdataset(config: SourceConfig, wanted: Wanted) -> DataSource:
    """The tar files `config.path`. Keys are the tar file's name and the example's."""
    fields = _Fields(config.image_field or _IMAGES, config.caption_field or _CAPTIONS)

    def read_file(path: pathlib.Path, tar_name: str, tally: Tally) -> Iterator[Counted]:
        seen: set[str] = set()
        for family in _families(_members(path, fields, tally), fields):
            if isinstance(family, SkipError):  # what follows is not found
                yield 0, family.at(f"{tar_name}/")
                continue
            for name, members in _by_example(family, fields).items():
                key = f"{tar_name}/{name}"
                try:
                    item = fields.example(
                        key, {e: member.contents for e, member in members.items()}
                    )
                except SkipError as error:
                    item = error.at(key)
                if name in seen:
                    item = Skipped(key, "duplicate key", "", num_pairs(item))
                seen.add(name)
                yield len(members), item

    return from_files(config, wanted, read_file)


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Which endings hold the image and the caption of an example, as in SourceConfig."""

    image: str
    caption: str

    @functools.cached_property
    def images(self) -> frozenset[str]:
        return frozenset(self.image.split(";"))

    @functools.cached_property
    def captions(self) -> frozenset[str]:
        return frozenset(field.partition("/")[0] for field in self.caption.split(";"))

    def is_whole(self, endings: Iterable[str]) -> bool:
        """Returns whether these endings include an image and a caption."""
        return not (self.images.isdisjoint(endings) or self.captions.isdisjoint(endings))

    def example(self, key: str, found: Mapping[str, bytes | SkipError | None]) -> ImageText:
        """Returns the example of files by their endings, or raises SkipError."""
        for contents in found.values():
            if isinstance(contents, SkipError):
                raise contents
        if self.images.isdisjoint(found) and self.captions.isdisjoint(found):
            raise SkipError("no known ending", looked_for(f"{self.image};{self.caption}", found))
        image = take(found, self.image)
        if image is None:
            raise SkipError("no image", looked_for(self.image, found))
        there = set(found)
        for name in self.caption.split(";"):
            ending, _, field = name.partition("/")
            if ending not in found:
                continue
            if not field:
                return ImageText(key, image, [found[ending]])
            try:
                row = json.loads(found[ending].decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise SkipError("caption not JSON", str(error)) from None
            row = row if isinstance(row, dict) else {}
            if (captions := row.get(field)) is not None:
                return ImageText(key, image, captions if isinstance(captions, list) else [captions])
            there |= {f"{ending}/{name}" for name in row}
        raise SkipError("no caption", looked_for(self.caption, there))


def _families(
    members: Iterable[_Member | SkipError], fields: _Fields
) -> Iterator[_Family | SkipError]:
    """Groups members that follow each other and may belong together.

    A family ends where the stem changes, where a file comes a second time, and where a file comes
    whose name does not extend that of an example that is whole.
    """
    family: _Family = {}
    stem, num_members, num_bytes = "", 0, 0
    for member in members:
        whole = [path for path, endings in family.items() if fields.is_whole(endings)]
        if (
            isinstance(member, SkipError)
            or (family and member.stem != stem)
            or member.ending in family.get(member.path, ())
            or (whole and not any(_extends(member.path, path) for path in whole))
            or num_members == _MAX_FAMILY
            or num_bytes > _MAX_MEMBER
        ):
            if family:
                yield family
            family, num_members, num_bytes = {}, 0, 0
        if isinstance(member, SkipError):
            yield member
            continue
        family.setdefault(member.path, {})[member.ending] = member
        stem, num_members = member.stem, num_members + 1
        num_bytes += len(member.contents) if isinstance(member.contents, bytes) else 0
    if family:
        yield family


def _by_example(family: _Family, fields: _Fields) -> _Family:
    """Groups members by example and ending, such as "b.jpg" for the file a.b.jpg of example a."""
    examples: _Family = {}
    for path in sorted(family, key=len):  # what may be extended first
        base = path
        if not fields.is_whole(family[path]):
            base = max((name for name in examples if _extends(path, name)), key=len, default=path)
        more = path[len(base) + 1 :] + "." if base != path else ""
        own = examples.setdefault(base, {})
        own |= {more + ending: member for ending, member in family[path].items()}
    return {path: examples[path] for path in family if path in examples}


def _extends(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.")


def _members(path: pathlib.Path, fields: _Fields, tally: Tally) -> Iterator[_Member | SkipError]:
    """Yields the files in a tar, then a SkipError if the tar is damaged."""
    wanted = fields.images | fields.captions
    try:
        with open(path, "rb") as file, _Tar.open(fileobj=file, mode="r:*") as tar:
            while (member := tar.next_member()) is not None:
                if member.isdir() or _of_macos(member.name):
                    continue  # neither is a file of an example
                found = _member(tar, member, wanted)
                tally.found += 1
                yield found
            # tarfile stops silently at anything but a header; a complete archive ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                yield SkipError(_DAMAGED, f"{path.name} from byte {tar.offset}")
    except OSError as error:
        if error.errno is not None:  # from the system, not from the contents
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        yield SkipError(_DAMAGED, f"{path.name}: {error}")
    # tarfile and the decompressors fail in many ways on damaged files: tarfile.TarError, EOFError,
    # ValueError, zlib.error, lzma.LZMAError, struct.error, RecursionError, KeyError.
    except Exception as error:
        yield SkipError(_DAMAGED, f"{path.name}: {type(error).__name__}: {error}")


def _member(tar: "_Tar", member: tarfile.TarInfo, wanted: frozenset[str]) -> _Member:
    folder, slash, name = member.name.rpartition("/")
    name, ending = _split(name, wanted)
    if ending not in wanted:
        contents = None
    elif not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "a device"
        contents = SkipError("tar member not a file", kind)
    elif ".." in folder.split("/") or member.name.startswith("/"):
        contents = SkipError("tar member outside of the archive", member.name)
    elif member.size > _MAX_MEMBER:
        contents = SkipError("tar member too large", f"{member.size:,} bytes")
    else:
        contents = tar.read_member(member)
    return _Member(f"{folder}{slash}{name}", ending, contents)


def _split(name: str, wanted: frozenset[str]) -> tuple[str, str]:
    """(name, ending) at the first dot whose ending is wanted, or at the last of all."""
    dots = [place for place, char in enumerate(name) if char == "."]
    at = next((dot for dot in dots if name[dot + 1 :].lower() in wanted), max(dots, default=None))
    return (name, "") if at is None else (name[:at], name[at + 1 :].lower())


def _of_macos(name: str) -> bool:
    """Returns whether macOS added this file to the archive."""
    folder, _, name = name.rpartition("/")
    return name.startswith("._") or name == ".DS_Store" or "__MACOSX" in folder.split("/")


class _Tar(tarfile.TarFile):
    """Reads a tar file; a header of more than _MAX_HEADERS bytes, unpacked, is an error."""

    def __init__(self, name=None, mode="r", fileobj=None, **options):
        super().__init__(name, mode, _Allowance(fileobj), **options)

    def next_member(self) -> tarfile.TarInfo | None:
        """Returns the next member and forgets earlier ones."""
        self.members = []  # it would keep every header
        self.fileobj.allowed = _MAX_HEADERS
        return self.next()

    def read_member(self, member: tarfile.TarInfo) -> bytes:
        """Reads the contents of a regular file."""
        self.fileobj.allowed = member.size + _MAX_HEADERS
        return self.extractfile(member).read()


class _Allowance:
    """A file from which no more than `allowed` bytes are read."""

    def __init__(self, file):
        self._file = file
        self.allowed = _MAX_HEADERS
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        self.allowed -= size
        if self.allowed < 0:
            raise tarfile.ReadError(f"headers of more than {_MAX_HEADERS:,} bytes")
        return self._file.read(size)
