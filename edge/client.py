"""One call as its client sees it: the request that came, the answer that goes back, and whether anybody is still there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Protocol

from edge.capture import Capture
from edge.errors import BodyTooLarge, EdgeError
from edge.upstream.protocol import Header
from edge.upstream.wire import head_of

HELD_BYTES = 256 * 1024
"""As much of a body waits here for whoever reads it; beyond that the client has to wait."""
_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_S = 2.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {s.value: b"HTTP/1.1 %d %b" % (s.value, s.phrase.encode()) for s in HTTPStatus}


class ClientGone(Exception):
    """The client closed its connection while it was still sending."""


class Wire(Protocol):
    """What a call needs of the connection it came in on."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[None] | None
    """Serves the call."""
    is_writable: bool
    paused: bool

    def write(self, data: bytes) -> None: ...

    def resume(self) -> None:
        """Read on, after `hold`."""

    def hold(self) -> None:
        """Read no more for now."""

    def allow(self, seconds: float | None) -> None:
        """The client's next step may take this long; None: nothing is expected of it."""

    def cut(self, *, visibly: bool) -> None:
        """Close. `visibly`: with a reset, where nothing else tells the client that its answer is unfinished."""


class Client:
    """A request whose head has arrived, and the way back to its client."""

    # What most calls leave as it is stands here, once for all of them.
    is_old = False
    """HTTP/1.0."""
    keep = False
    """The connection may carry another call after this one."""
    read_whole = False
    """The last byte of the request has arrived."""
    headed = False
    """The answer has begun."""
    answered = False
    """And it has ended."""
    gone = False
    stopped = False
    """The server could not wait for the call's end."""
    broken: EdgeError | None = None
    """The request's body is not valid HTTP."""
    timed_out: str | None = None
    """What took the client too long: to send its `body`, to `read` its answer."""
    buffered = 0
    _hold_at = HELD_BYTES
    _arrival: asyncio.Future[None] | None = None
    _room: asyncio.Future[None] | None = None
    _is_chunked = False
    _ends_by_close = False
    _bodyless = False

    def __init__(self, wire: Wire, method: bytes = b"", target: bytes = b"", headers: Sequence[Header] = ()) -> None:
        self.method = method
        self.target = target
        """As sent: path and query, or a whole URL."""
        self.headers = headers
        """As received: order, case and repetitions kept."""
        self._wire = wire
        self._pieces: list[bytes] = []

    # The request.

    async def body(self, *, limit: int, timeout_s: float) -> bytes:
        """The whole body. `timeout_s` bounds the silence between its pieces.

        Raises:
            BodyTooLarge, BadFraming, ClientGone.
        """
        self._hold_at = limit
        self._says_continue()
        while not self.read_whole and self.buffered <= limit:
            await self._arrives(timeout_s)
        return self.whole(limit)

    def whole(self, limit: int) -> bytes:
        """The body of a request that is `read_whole`.

        Raises:
            BodyTooLarge.
        """
        if self.buffered > limit:
            raise too_large(self.buffered, limit)
        return self._taken()

    async def pieces(self, capture: Capture, *, limit: int, timeout_s: float) -> AsyncIterator[bytes]:
        """The body piece by piece, as the upstream takes it."""
        size = 0
        self._says_continue()
        while True:
            while not self.buffered and not self.read_whole:
                await self._arrives(timeout_s)
            piece = self._taken()
            if not piece:
                return
            size += len(piece)
            if size > limit:
                raise too_large(size, limit)
            capture.feed(piece)
            yield piece

    async def drained(self) -> bool:
        """Take what the client still sends, so that it hears the answer and not a reset. Bounded in bytes and time."""
        if self.timed_out or self.gone or self.stopped or self.broken or self._expects_continue():
            return self.read_whole
        left = _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_S):
                while left > 0:
                    left -= len(self._taken())
                    if self.read_whole:
                        return True
                    await self._arrives(2 * _DRAIN_S)
        except (TimeoutError, EdgeError):
            pass
        return False

    # The answer.

    def answer(self, status: int, headers: list[Header], body: bytes, *, framed: bool) -> None:
        """A whole answer in one write. `framed`: its content-length is among the headers already."""
        has_body = self._may_have_body(status)
        if not framed and has_body:
            headers.append((b"content-length", b"%d" % len(body)))
        head = self._head(status, headers)
        self.headed = self.answered = True
        self._wire.write(head + body if has_body else head)

    def begin(self, status: int, headers: list[Header], first: bytes, *, framed: bool) -> None:
        """An answer's head, with what has arrived of its body."""
        self._bodyless = not self._may_have_body(status)
        if not framed and not self._bodyless:
            if self.is_old:
                self.keep, self._ends_by_close = False, True
            else:
                self._is_chunked = True
                headers.append((b"transfer-encoding", b"chunked"))
        head = self._head(status, headers)
        self.headed = True
        self._wire.write(head + self._framed(first) if first else head)

    def write(self, piece: bytes) -> bool:
        """A further piece. False: the client does not read as fast, wait for `room`."""
        wire = self._wire
        if self._is_chunked:
            wire.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif not self._bodyless:
            wire.write(piece)
        return wire.is_writable

    async def room(self, timeout_s: float) -> None:
        """Wait until the client has read."""
        if self._wire.is_writable:
            return
        self._room = self._wire.loop.create_future()
        self._wire.allow(timeout_s)
        try:
            await self._room
        finally:
            self._wire.allow(None)
            self._room = None

    def end(self) -> None:
        """The answer's last byte has been written."""
        if self._is_chunked:
            self._wire.write(b"0\r\n\r\n")
        self.answered = True

    def cut(self) -> None:
        """Break the answer off, so that nobody takes it for a whole one."""
        self._wire.cut(visibly=self._ends_by_close)

    # How it ends.

    def ended_it(self) -> bool:
        """Whether the call was cancelled by `left`, `dawdled` or `stop`; then the cancelling is over."""
        if not (self.gone or self.timed_out or self.stopped):
            return False
        if self._wire.task is not None:
            self._wire.task.uncancel()
        return True

    # For the connection alone.

    def take(self, pieces: list[bytes]) -> None:
        """Move what the parser has left in `pieces` here."""
        self.buffered += sum(map(len, pieces))
        self._pieces += pieces
        pieces.clear()
        if self.buffered > self._hold_at and not self.read_whole:
            self._wire.hold()

    def arrived(self) -> None:
        waiting = self._arrival
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def writable(self) -> None:
        waiting = self._room
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def left(self) -> None:
        """The connection is gone. Without this a provider would go on being paid."""
        if not self.answered:
            self.gone = True
            if self._wire.task is not None:
                self._wire.task.cancel()

    def stop(self) -> None:
        self.stopped = True
        if self._wire.task is not None:
            self._wire.task.cancel()

    def dawdled(self) -> None:
        self.timed_out = "read" if self._room is not None else "body"
        if self._wire.task is not None:
            self._wire.task.cancel()

    # Inside.

    async def _arrives(self, timeout_s: float) -> None:
        if self.gone:
            raise ClientGone
        if self.broken is not None:
            raise self.broken
        wire = self._wire
        if wire.paused:
            wire.resume()
        self._arrival = wire.loop.create_future()
        wire.allow(timeout_s)
        try:
            await self._arrival
        finally:
            wire.allow(None)
            self._arrival = None

    def _taken(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.buffered = 0
        return data

    def _expects_continue(self) -> bool:
        return any(name.lower() == b"expect" and value.lower() == b"100-continue" for name, value in self.headers)

    def _says_continue(self) -> None:
        if not self.read_whole and not self.buffered and self._expects_continue():
            self._wire.write(_CONTINUE)
            self.headers = [header for header in self.headers if header[0].lower() != b"expect"]

    def _may_have_body(self, status: int) -> bool:
        return status >= 200 and status not in (204, 304) and self.method != b"HEAD"

    def _head(self, status: int, headers: list[Header]) -> bytes:
        if not (self.keep and self.read_whole):
            self.keep = False
            headers.append((b"connection", b"close"))
        return head_of(_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, headers)

    def _framed(self, piece: bytes) -> bytes:
        if self._bodyless:
            return b""
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece


def too_large(size: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request's body has {size} bytes or more; at most {limit} are accepted.")
