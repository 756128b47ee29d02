import gzip
import os
import zlib

import pytest

from edge.capture import capture_of
from schemas.event import Body
from schemas.settings import MIB, CaptureSettings

SMALL = CaptureSettings(head_bytes=100, tail_bytes=50)


def captured(pieces: list[bytes], settings: CaptureSettings = SMALL, coding: bytes = b"") -> Body:
    capture = capture_of(settings, coding)
    for piece in pieces:
        capture.feed(piece)
    return capture.body()


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 149, 150], ids=lambda size: f"{size} bytes")
@pytest.mark.parametrize("step", [1, 7, 1000], ids=lambda step: f"in pieces of {step}")
def test_a_body_that_fits_is_kept_whole(size: int, step: int) -> None:
    data = os.urandom(size)
    body = captured([data[i : i + step] for i in range(0, size, step)])
    assert body.head == data
    assert (body.tail, body.size) == (b"", size)


@pytest.mark.parametrize("size", [151, 1000, 100_000])
@pytest.mark.parametrize("step", [1, 33, 200_000])
def test_a_long_body_keeps_its_head_and_its_very_end(size: int, step: int) -> None:
    data = os.urandom(size)
    body = captured([data[i : i + step] for i in range(0, size, step)])
    assert (body.head, body.tail, body.size) == (data[:100], data[-50:], size)


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        (b"gzip", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", lambda data: zlib.compress(data)[2:-4]),
    ],
    ids=["gzip", "deflate", "deflate without its header"],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_a_content_coding_is_undone_for_the_record(coding: bytes, encode: object, step: int) -> None:
    data = b"usage at the end " * 400
    packed: bytes = encode(data)  # type: ignore[operator]
    body = captured([packed[i : i + step] for i in range(0, len(packed), step)], coding=coding)
    assert (body.head, body.tail, body.size) == (data[:100], data[-50:], len(data))


def test_a_coding_nobody_can_read_is_told() -> None:
    body = captured([b"\x00" * 1000], coding=b"br")
    assert (body.left_out, body.head, body.size) == ("encoding", b"", 1000)


def test_a_body_that_is_not_what_its_coding_says_is_told() -> None:
    assert captured([b"plainly not gzip"], coding=b"gzip").left_out == "encoding"


def test_a_bomb_is_unpacked_only_so_far() -> None:
    bomb = gzip.compress(b"\x00" * (8 * MIB))
    body = captured([bomb], CaptureSettings(decoded_bytes_max=MIB, head_bytes=1000, tail_bytes=10), b"gzip")
    assert body.left_out == "encoding"
    assert body.size < 2 * MIB


def test_a_bomb_holds_up_the_loop_for_no_more_than_a_few_megabytes() -> None:
    bomb = gzip.compress(b"\x00" * (16 * MIB))
    body = captured([bomb], CaptureSettings(head_bytes=1000, tail_bytes=10), b"gzip")
    assert body.left_out == "encoding"
    assert body.size < 6 * MIB


def test_a_body_that_repeats_itself_is_no_bomb() -> None:
    data = b'data: {"choices":[{"delta":{"content":"again"}}]}\n\n' * 20_000
    assert captured([gzip.compress(data)], coding=b"gzip").size == len(data)


def test_what_is_asked_to_be_left_out_keeps_only_its_size() -> None:
    capture = capture_of(SMALL)
    capture.feed(b"secret")
    assert capture.body("asked") == Body(size=6, left_out="asked")
