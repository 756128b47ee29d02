"""AWS event streams: binary frames of headers and a payload, each with two checksums.

Frame: total length (4 bytes), length of headers (4), CRC of these eight bytes (4), headers, payload, CRC of all
before it (4). After a hole the reader looks for the next place where a frame's own checksum holds.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_PRELUDE = struct.Struct(">III")
_FRAME_BYTES_MIN = 16
_FRAME_BYTES_MAX = 24 * 1024 * 1024
"""AWS allows 16 MiB of payload and 128 KiB of headers."""


class Frame(NamedTuple):
    kind: str
    """`:event-type`, or `:exception-type` of an error."""
    is_error: bool
    payload: bytes


def frames(body: bytes) -> Iterator[Frame]:
    """All whole frames; broken pieces are passed over."""
    place: int | None = 0
    while place is not None:
        length = _frame_length(body, place)
        end = place + length if length is not None else len(body) + 1
        if end <= len(body) and zlib.crc32(body[place : end - 4]) == int.from_bytes(body[end - 4 : end], "big"):
            yield _parse(body[place:end])
            place = end
        else:
            place = _next_frame(body, place + 1)


def is_frame(body: bytes) -> bool:
    """Whether `body` begins with a frame."""
    return _frame_length(body, 0) is not None


def _frame_length(body: bytes, place: int) -> int | None:
    if place + 12 > len(body):
        return None
    length, _, crc = _PRELUDE.unpack_from(body, place)
    if not _FRAME_BYTES_MIN <= length <= _FRAME_BYTES_MAX or zlib.crc32(body[place : place + 8]) != crc:
        return None
    return int(length)


def _next_frame(body: bytes, place: int) -> int | None:
    # Lengths are below 2^25, so a frame begins with a zero or one byte: `find` skips the rest quickly.
    while (place := body.find(b"\x00", place)) >= 0:
        if _frame_length(body, place) is not None:
            return place
        place += 1
    return None


def _parse(frame: bytes) -> Frame:
    headers_length = int.from_bytes(frame[4:8], "big")
    headers = _headers(frame[12 : 12 + headers_length])
    payload = frame[12 + headers_length : -4]
    if headers.get(":message-type") in ("exception", "error"):
        return Frame(headers.get(":exception-type") or headers.get(":error-code") or "error", True, payload)
    return Frame(headers.get(":event-type", ""), False, payload)


_FIXED_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


def _headers(block: bytes) -> dict[str, str]:
    """Text headers by name; other types are stepped over, an unknown one ends the reading."""
    found: dict[str, str] = {}
    place = 0
    while place < len(block):
        name_end = place + 1 + block[place]
        if name_end >= len(block):
            break
        name, kind = block[place + 1 : name_end], block[name_end]
        place = name_end + 1
        if kind in (6, 7):
            length = int.from_bytes(block[place : place + 2], "big")
            if kind == 7:
                found[name.decode("utf-8", "replace")] = block[place + 2 : place + 2 + length].decode(
                    "utf-8", "replace"
                )
            place += 2 + length
        elif kind in _FIXED_BYTES:
            place += _FIXED_BYTES[kind]
        else:
            break
    return found
