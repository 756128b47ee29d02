"""The spool's file format: framed records one after another, each file named by the offset of its first.

A frame is the payload's length and CRC-32 (little-endian, 4 bytes each), then the payload, which is never empty: power
loss can leave a file with zeros at its end, and eight of them would else be a record whose checksum holds.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

_HEADER = struct.Struct("<II")
HEADER_BYTES = _HEADER.size
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024
"""A length beyond this is damage, not a record."""
_CHUNK_BYTES = 1024 * 1024


class Segment(NamedTuple):
    """One file of a spool."""

    first: int
    path: Path


class Place(NamedTuple):
    """Where the record of an offset begins in its segment's file."""

    offset: int
    position: int


def header(payload: bytes) -> bytes:
    assert payload
    return _HEADER.pack(len(payload), crc32(payload))


def segments(folder: Path) -> list[Segment]:
    """The folder's segments, oldest first."""
    return sorted(Segment(int(path.stem), path) for path in folder.glob("*.seg"))


def segment_path(folder: Path, first: int) -> Path:
    return folder / f"{first:020d}.seg"


def places(descriptor: int, start: Place) -> Iterator[Place]:
    """Where each whole record after `start` ends, which is where the next begins. Payloads are not read.

    Ends before a record that is not wholly there yet, or whose length is damage.
    """
    size = os.fstat(descriptor).st_size
    offset, position = start
    while position + HEADER_BYTES <= size:
        length, _ = _HEADER.unpack(os.pread(descriptor, HEADER_BYTES, position))
        end = position + HEADER_BYTES + length
        if end > size or not _possible(length):
            return
        offset, position = offset + 1, end
        yield Place(offset, position)


def last_whole(descriptor: int, start: Place) -> Place:
    """Where the last record ends whose checksum holds; damaged ones before it are passed by their lengths."""
    found = at = start
    for end in places(descriptor, start):
        if _holds(descriptor, at.position, end.position):
            found = end
        at = end
    return found


def payloads(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Each whole record in `data` with whether its checksum holds."""
    position = 0
    while position + HEADER_BYTES <= len(data):
        length, checksum = _HEADER.unpack_from(data, position)
        start = position + HEADER_BYTES
        if start + length > len(data) or not _possible(length):
            return
        payload = data[start : start + length]
        yield payload, crc32(payload) == checksum
        position = start + length


def wanted_bytes(data: bytes) -> int:
    """How many bytes the first record takes, by its header; of a damaged length, what there is."""
    if len(data) < HEADER_BYTES:
        return HEADER_BYTES
    length, _ = _HEADER.unpack_from(data)
    return HEADER_BYTES + length if _possible(length) else len(data)


def _possible(length: int) -> bool:
    return 0 < length <= PAYLOAD_BYTES_MAX


def _holds(descriptor: int, position: int, end: int) -> bool:
    """Whether the checksum of the record from `position` to `end` does. Read in pieces: a damaged length may be any."""
    _, checksum = _HEADER.unpack(os.pread(descriptor, HEADER_BYTES, position))
    found = 0
    for at in range(position + HEADER_BYTES, end, _CHUNK_BYTES):
        found = crc32(os.pread(descriptor, min(_CHUNK_BYTES, end - at), at), found)
    return bool(found == checksum)
