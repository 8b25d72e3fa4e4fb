"""Checks the lengths of the records in a TFRecord file before TensorFlow reads it.

TensorFlow allocates as much memory as a record's header asks for, so that a damaged file of 112
bytes can crash the process.

A file is plain or compressed by gzip. A record in it is: its length L (8 bytes, little-endian), a
masked CRC-32C of these (4 bytes), L bytes, and a masked CRC-32C of them (4 bytes).
"""

import gzip
import os
import struct
from collections.abc import Iterator

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_MAX_RECORD = 256 << 20  # bytes, in compressed files, whose length is not known
_GZIP = b"\x1f\x8b\x08"


def is_gzip(path: str | os.PathLike[str]) -> bool:
    """Returns whether a TFRecord file is compressed; a plain one may begin with the same bytes."""
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if not header.startswith(_GZIP):
        return False
    return len(header) < _HEADER.size or _masked_crc(header[:8]) != _HEADER.unpack(header)[1]


def record_lengths(path: str | os.PathLike[str]) -> Iterator[int]:
    """Yields the length of each record in bytes; stops at a header that is cut short.

    Raises:
      ValueError: a record is longer than the rest of the file, or than 256 MiB in a compressed one.
    """
    compressed = is_gzip(path)
    num_bytes = os.path.getsize(path)
    with gzip.open(path) if compressed else open(path, "rb") as file:
        start = 0
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, _ = _HEADER.unpack(header)
            start += _HEADER.size
            most = _MAX_RECORD if compressed else num_bytes - start - _FOOTER_BYTES
            if length > most:
                raise ValueError(f"the record at byte {start} has {length:,} bytes by its header")
            yield length
            start += length + _FOOTER_BYTES
            file.seek(start)


def _masked_crc(contents: bytes) -> int:
    """Returns the CRC-32C (Castagnoli), rotated and shifted as in TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in contents:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
