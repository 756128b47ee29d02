"""One HTTP/1.1 connection. `pool.py` opens connections and hands them out, `answer.py` is what one is reading.

A call on a resting connection is one write, one future and, when the body came along with the head, one wake-up. Hence
some unusual shapes below: the parser appends headers and body pieces to plain lists with no method of ours between,
deadlines are numbers that one sweep of the pool's looks at rather than a timer per call, and what has arrived is handed
over once per wake-up. Measured without sockets, 9 headers out and 13 in: 15 µs a call, where a bare parser and a list
of connections, with no bound, timeout or check at all, take 9.
"""

import asyncio
import select
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

import httptools

from edge.outbox import Outbox
from edge.sockets import reset
from edge.upstream import wire
from edge.upstream.answer import PoolAnswer
from edge.upstream.protocol import (
    Origin,
    Phase,
    RequestMalformed,
    UpstreamBroken,
    UpstreamCut,
    UpstreamError,
    UpstreamRequest,
    UpstreamTimeout,
)

NEVER = float("inf")

PROBE_AFTER_S = 0.5
"""Rested longer than this, a connection's socket is looked at before it is used: its server may just have closed it."""

_TIMEOUTS: dict[Phase, str] = {
    "connect": "no connection in time",
    "first_byte": "no answer in time",
    "idle": "silent for too long",
    "total": "the call took too long in all",
}


class Limits(NamedTuple):
    first_byte_s: float
    idle_s: float
    total_s: float
    head_bytes: int
    buffer_bytes: int


class Host:
    """The pool's book of one origin: its resting connections, newest last, and who waits for one, oldest first."""

    __slots__ = ("idle", "name", "open", "origin", "waiting")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.name = f"{origin.host}:{origin.port}"
        self.open = 0
        self.idle: dict[Connection, None] = {}
        self.waiting: OrderedDict[asyncio.Future[Connection | None], int] = OrderedDict()


class Owner(Protocol):
    """What a connection needs of its pool."""

    limits: Limits
    outbox: Outbox
    sweep_at: float

    def watch(self, deadline: float) -> None:
        """Sweep no later than `deadline`; for one that is before `sweep_at`."""

    def released(self, connection: "Connection") -> None: ...

    def closed(self, connection: "Connection") -> None: ...


class _Refused(Exception):
    """Raised inside a parser's callback: valid HTTP that we do not accept."""


class Connection(asyncio.Protocol):
    __slots__ = (
        "_answer",
        "_drained",
        "_ended",
        "_ends",
        "_extra",
        "_fd",
        "_first_byte_s",
        "_head_bytes",
        "_head_left",
        "_headers",
        "_idle_s",
        "_is_head",
        "_keep",
        "_now",
        "_owner",
        "_parser",
        "_phase",
        "_pieces",
        "_probe_from",
        "_sender",
        "_sent_all",
        "_transport",
        "_waiter",
        "_writable",
        "busy",
        "deadline",
        "host",
        "is_closed",
        "loop",
        "on_body",
        "on_header",
        "paused",
    )

    def __init__(self, owner: Owner, host: Host) -> None:
        self.host = host
        self.loop = asyncio.get_running_loop()
        self._now = self.loop.time
        self._idle_s = owner.limits.idle_s
        self._head_bytes = owner.limits.head_bytes
        self.busy = False
        self.is_closed = False
        self.deadline = NEVER
        self.paused = False
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._answer: PoolAnswer | None = None
        self._waiter: asyncio.Future[PoolAnswer] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._writable = True
        self._sent_all = True
        self._first_byte_s = self._ends = self._probe_from = NEVER
        self._phase: Phase = "first_byte"
        self._head_left = 0
        self._is_head = False
        self._ended = False  # the answer's last byte has been parsed
        self._extra = False  # and bytes came after it
        self._keep = False  # and the server will take another request
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        # The parser looks its callbacks up once, when it is made.
        add = self._headers.append
        self.on_header = lambda name, value: add((name, value))
        self.on_body = self._pieces.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "active" if self.busy else "idle"
        return f"<Connection {self.host.name} {state}>"

    # For the pool and the answer.

    def call(
        self, request: UpstreamRequest, encoded: wire.Encoded, now: float, ends: float
    ) -> "asyncio.Future[PoolAnswer]":
        """Write one request. The future holds its answer once the head is here, or says why there is none."""
        assert self._transport is not None
        assert not self.busy
        assert not self.is_closed
        limits = self._owner.limits
        first_byte_s = limits.first_byte_s
        if request.first_byte_timeout_s is not None and request.first_byte_timeout_s < first_byte_s:
            first_byte_s = request.first_byte_timeout_s
        self.busy = True
        self._waiter = waiter = self.loop.create_future()
        self._head_left = limits.head_bytes
        self._is_head = request.method == b"HEAD"
        self._ended = False
        self._extra = False
        self._first_byte_s = first_byte_s
        self._ends = ends
        opening, rest, length = encoded
        if rest is None:
            self._owner.outbox.post(self, opening)
            self._sent_all = True
            self._expect("first_byte", now + first_byte_s)
        else:
            self._transport.write(opening)
            self._sent_all = False
            self._expect("total", ends)
            self._sender = self.loop.create_task(self._send_rest(rest, length))
        return waiter

    def send(self, data: bytes) -> None:
        """For the outbox alone."""
        if self._transport is not None and not self.is_closed:
            self._transport.write(data)

    def drop(self, call: "asyncio.Future[PoolAnswer]") -> None:
        """Whoever waited for this call is gone. By now the connection may already be another call's: leave it then."""
        if self._waiter is call:
            self.close()
        if call.done() and not call.cancelled():
            call.exception()  # has been seen

    def peer(self) -> str | None:
        """The address at the other end; None when that has closed already."""
        assert self._transport is not None
        name = self._transport.get_extra_info("peername")
        return None if name is None else str(name[0])

    def expect_more(self) -> None:
        """A reader waits: silence counts from now. While nobody waits, a slow client is no fault of the upstream."""
        self._phase = "idle"
        deadline = self._now() + self._idle_s
        self.deadline = deadline if deadline < self._ends else self._ends
        if self.deadline < self._owner.sweep_at:
            self._owner.watch(self.deadline)

    def resume(self) -> None:
        assert self._transport is not None
        self.paused = False
        self._transport.resume_reading()

    def rest(self, now: float, deadline: float) -> None:
        """No call for now: to be used again, or closed at the deadline."""
        self._probe_from = now + PROBE_AFTER_S
        self.deadline = deadline

    def usable(self, now: float) -> bool:
        """May this resting connection carry a call? Not if its server has closed it, as far as can be known."""
        assert self._transport is not None
        if self.is_closed or now >= self.deadline or self._transport.is_closing():
            return False
        return now < self._probe_from or not _readable(self._fd)

    def expire(self, now: float) -> None:
        """The deadline has passed."""
        if self.busy:
            phase: Phase = "total" if now >= self._ends else self._phase
            self.fail(UpstreamTimeout(f"{self.host.name}: {_TIMEOUTS[phase]}", phase=phase, sent=True))
        else:
            self.close()

    def fail(self, error: Exception) -> None:
        """End the call with this error, and the connection. What has arrived may still be read before it."""
        answer = self._answer
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        elif answer is not None:
            if not isinstance(error, UpstreamError):
                error = UpstreamBroken(f"{self.host.name}: the request's body failed", sent=True)
            answer.fail(error)
        self.close()

    def close(self) -> None:
        """Close now, whatever is under way. May be repeated."""
        if self.is_closed:
            return
        self.is_closed = True
        was_busy = self.busy
        self.busy = False
        self.deadline = NEVER
        self._answer = None
        self._parser = None  # it holds our methods: without this only the garbage collector would free us
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        if self._transport is not None:
            # Aborted alone, the end would wait behind what a provider that does not read has not taken.
            if was_busy:
                reset(self._transport)
            else:
                self._transport.abort()
        self._owner.closed(self)

    # What the transport tells us.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is none of asyncio's classes
        raw = transport.get_extra_info("socket")
        self._fd = raw.fileno()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # TCP_NODELAY is set by asyncio and uvloop
        if self.is_closed:
            transport.abort()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if not self.busy or parser is None:
            # A server that speaks unasked: the next call must not take this for its answer.
            self.close()
            return
        answer = self._answer
        headed = answer is not None
        if not headed:
            self._head_left -= len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._ended:
                self._malformed(error)
                return
            self._extra = True
        if answer is None:
            answer = self._answer
            if answer is None:
                if self._head_left < 0:
                    self._broken("the answer's head is too large")
                return
            # The read that completed the head may carry body too; only then is it worth adding up exactly.
            limit = self._owner.limits.head_bytes
            if self._head_left < 0 and wire.size(answer.headers) > limit:
                self._broken("the answer's head is too large")
                return
            self._head_left = limit
            self.deadline = self._ends
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(answer)
                self._owner.outbox.expect()
        if self._ended:
            self._complete(answer)
            if headed:
                self._owner.outbox.expect()
        elif self._pieces:
            self._head_left = self._head_bytes
            to = answer.to
            if to is not None:
                # A streamed piece, the usual case: each call and each look that is not made here counts.
                pieces = self._pieces
                piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces.clear()
                deadline = self._ends
                if not to(piece):
                    answer.stop_flow()
                elif (silent := self._now() + self._idle_s) < deadline:
                    deadline = silent  # later than the one before, so the pool need not be told
                self.deadline = deadline
                return
            answer.take(self._pieces)
            if answer.buffered > self._owner.limits.buffer_bytes and not self.paused:
                assert self._transport is not None
                self.paused = True
                self._transport.pause_reading()
            self.deadline = self._ends
            answer.wake()
        elif headed:
            # Neither body nor end: chunk extensions or trailers. They are dropped, and they have a bound.
            self._head_left -= len(data)
            if self._head_left < 0:
                self._broken("the answer's trailers are too large")

    def eof_received(self) -> None:
        # Not left to the transport, which would first try to write out the rest of our request.
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_closed:
            return
        answer = self._answer
        if not self.busy:
            self.close()
        elif answer is None:
            how = "was closed" if exc is None else "was reset"
            self._broken(f"the connection {how} before an answer")
        elif exc is None and not wire.says_its_end(answer.headers):
            self._keep = False
            self._complete(answer)
        else:
            self.fail(UpstreamCut(f"{self.host.name}: the connection ended inside the answer's body", sent=True))

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # What the parser tells us, besides on_header and on_body.

    def on_message_begin(self) -> None:
        if self._ended:
            self._extra = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._ended:
            return
        status = self._parser.get_status_code()
        headers = self._headers
        if status < 200:
            if status < 100 or status == 101:
                raise _Refused(f"status {status}")  # we never ask for an upgrade
            headers.clear()
            return
        if not wire.only_chunked(headers):
            raise _Refused("a transfer-encoding beside chunked")
        self._answer = PoolAnswer(self, status, headers.copy())
        headers.clear()
        if self._is_head:
            # The parser would go on to wait for the body that the headers announce.
            self._ended = True
            self._keep = False
        if status >= 300 and self._sender is not None:
            self._sender.cancel()  # whatever is left of the request is no longer wanted

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or self._ended:
            return
        assert self._parser is not None
        self._ended = True
        self._keep = self._parser.should_keep_alive()
        if self._pieces:
            answer.take(self._pieces)

    # Inside.

    def _expect(self, phase: Phase, deadline: float) -> None:
        if deadline > self._ends:
            deadline = self._ends
        self._phase = phase
        self.deadline = deadline
        if deadline < self._owner.sweep_at:
            self._owner.watch(deadline)

    def _complete(self, answer: PoolAnswer) -> None:
        """The whole answer is here: the connection is free again before the reader has even woken."""
        answer.complete()
        self._answer = None
        self._waiter = None
        if self._keep and self._sent_all and not self._extra and not self._pieces:
            self.busy = False
            self._sender = None
            self._headers.clear()  # of trailers
            if self.paused:
                self.resume()
            self._owner.released(self)
        else:
            self.close()

    def _malformed(self, error: httptools.HttpParserError) -> None:
        refusal = error.__context__
        reason = refusal if isinstance(refusal, _Refused) else error
        if self._answer is not None and self._pieces:
            self._answer.take(self._pieces)
        self._broken(f"not a valid answer: {reason}")

    def _broken(self, what: str) -> None:
        self.fail(UpstreamBroken(f"{self.host.name}: {what}", sent=True))

    async def _send_rest(self, rest: AsyncIterator[bytes], length: int | None) -> None:
        """Write a large or streamed body, in a task of its own, since the answer may come before it is through."""
        assert self._transport is not None
        left = length
        try:
            async for piece in rest:
                if not piece:
                    continue
                if left is None:
                    # Not writelines: in asyncio of 3.12 and 3.13.0 it never pauses the writer.
                    self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                elif len(piece) > left:
                    raise RequestMalformed("the body is longer than its content-length", sent=True)
                else:
                    left -= len(piece)
                    self._transport.write(piece)
                if not self._writable:
                    await self._drain()
            if left is None:
                self._transport.write(b"0\r\n\r\n")
            elif left > 0:
                raise RequestMalformed("the body is shorter than its content-length", sent=True)
            self._sent_all = True
            self._sender = None
            if self._answer is None:
                self._expect("first_byte", self.loop.time() + self._first_byte_s)
        except Exception as error:
            self._sender = None
            self.fail(error)
        finally:
            close = getattr(rest, "aclose", None)
            if close is not None:
                await close()

    async def _drain(self) -> None:
        self._drained = self.loop.create_future()
        if self._answer is None:
            self._expect("idle", self.loop.time() + self._owner.limits.idle_s)
        await self._drained
        if self._answer is None:
            self.deadline = self._ends  # how long the next piece takes is its source's affair


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
