"""A request as the bytes of HTTP/1.1, and the few things about an answer's head the parser leaves to us. Pure."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from edge.upstream.protocol import RequestMalformed, UpstreamRequest

Headers = Sequence[tuple[bytes, bytes]]

WRITE_WHOLE_BYTES = 256 * 1024
"""A body up to here is written in one piece with its head; a larger one in such pieces, as fast as they are taken."""


class Encoded(NamedTuple):
    """What to write first, then the rest, framed by `length` (None: chunked)."""

    opening: bytes
    rest: AsyncIterator[bytes] | None
    length: int | None


def encode(request: UpstreamRequest) -> Encoded:
    """Check a request and turn it into bytes.

    Raises:
        RequestMalformed: a part holds what would end its line, or the headers do not frame the body truly.
    """
    headers = request.headers
    target = request.target
    body = request.body
    # Joined twice rather than line by line: 12 headers take 1.0 µs this way, 2.6 in a loop.
    head = b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (request.method, target, b"\r\n".join(map(b": ".join, headers)))
    breaks = len(headers) + 2
    if not headers or head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        raise RequestMalformed("a header or the target holds a line break")
    if not target or b" " in target or b" " in request.method:
        raise RequestMalformed("the method or the target is empty or holds a blank")
    length = content_length(headers)
    if not isinstance(body, bytes):
        if length == 0:
            raise RequestMalformed("a streamed body needs content-length or transfer-encoding")
        return Encoded(head, body, length)
    if length is not None and length != len(body):
        raise RequestMalformed(f"content-length does not match the body's {len(body)} bytes")
    if len(body) > WRITE_WHOLE_BYTES:
        return Encoded(head, _slices(body), length)
    if length is None:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return Encoded(head + body, None, length)


def content_length(headers: Headers) -> int | None:
    """How a request's headers frame its body: the length, 0 when they say nothing, None when it is chunked."""
    length: int | None = None
    is_chunked = False
    for name, value in headers:
        if len(name) == 14 and name.lower() == b"content-length":
            if length is not None or not value.isdigit():
                raise RequestMalformed("content-length is given twice or is no number")
            length = int(value)
        elif len(name) == 17 and name.lower() == b"transfer-encoding":
            if is_chunked or value.lower() != b"chunked":
                raise RequestMalformed("the one transfer-encoding we speak is chunked")
            is_chunked = True
    if is_chunked and length is not None:
        raise RequestMalformed("content-length beside transfer-encoding")
    return None if is_chunked else length or 0


def is_readable_framing(headers: Headers) -> bool:
    """Is an answer framed in a way we can read? A transfer coding beside chunked would reach the client still coded."""
    codings = [value for name, value in headers if len(name) == 17 and name.lower() == b"transfer-encoding"]
    return not codings or [value.strip().lower() for value in codings] == [b"chunked"]


def says_its_end(headers: Headers) -> bool:
    """Does an answer's body end by itself, rather than with its connection?"""
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers)


def size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), WRITE_WHOLE_BYTES):
        yield body[start : start + WRITE_WHOLE_BYTES]
