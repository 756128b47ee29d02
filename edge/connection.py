"""A client's HTTP/1.1 connection: its bytes become calls, and the answers bytes.

uvicorn listens, makes one of these for each connection and stops them; there is no ASGI between here and the proxy. A call
that came in one piece and is answered in one piece takes one task and one write, and a client that leaves is known at
once. What an ASGI server cannot be told is bounded here too: how long a head may take and be, how long a connection may
rest.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

import httptools

from edge import errors, metrics
from edge.client import Client
from edge.deadlines import NEVER, Deadlines
from edge.outbox import Outbox
from edge.sockets import has_left, reset
from edge.upstream.targets import is_anthropic
from schemas.apis import Shape
from schemas.ids import new_id
from schemas.settings import BoundSettings

_HEADS = 2
"""A head may be this many times as large as the settings say before the connection is closed unread: up to there the
refusal knows its caller and has a row."""
_PIPELINED_AHEAD = 8
"""No more is read of a client that has sent this many calls ahead."""
_PIPELINED_MAX = 64
"""One read may hold more than that. With more than this the connection ends when the call under way does."""
_WRITE_BUFFER_BYTES = 256 * 1024

Own = Callable[[], tuple[int, bytes]]
"""Answers one of the edge's own paths: status and JSON."""


class Front(NamedTuple):
    """What every connection hands its calls to."""

    serve: Callable[[Client], Coroutine[Any, Any, None]]
    own: Mapping[bytes, Own]
    bounds: BoundSettings
    deadlines: Deadlines
    connections: "set[ClientConnection]"
    outbox: Outbox


class _Unwanted(Exception):
    """Raised inside the parser's callback: a call that is not taken any more."""


class ClientConnection(asyncio.Protocol):
    """Implements `client.Wire`, and what uvicorn asks of a protocol."""

    __slots__ = (
        "_beside",
        "_client",
        "_connections",
        "_front",
        "_head_bytes",
        "_headers",
        "_is_closed",
        "_parser",
        "_pieces",
        "_reading",
        "_stops",
        "_target",
        "_transport",
        "_waiting",
        "_wanted",
        "deadline",
        "is_writable",
        "loop",
        "on_body",
        "on_header",
        "paused",
        "send",
        "task",
    )

    def __init__(
        self, config: object, server_state: Any, app_state: Mapping[str, Any], _loop: object = None
    ) -> None:  # uvicorn's words
        self._front: Front = app_state["front"]
        self._connections: set[object] = server_state.connections
        self.loop = asyncio.get_running_loop()
        self.deadline = NEVER
        self.is_writable = True
        self.paused = False
        self._is_closed = False
        self._stops = False  # no further call is taken
        self._transport: asyncio.Transport | None = None
        self.send: Callable[[bytes], None] = _to_nobody
        # One task serves all of a connection's calls, one after another: a task for each would cost 6 µs a call.
        self.task: asyncio.Task[None] | None = None
        self._wanted: asyncio.Future[None] | None = None  # what that task waits for while there is no call
        self._client: Client | None = None  # whose call is served
        self._waiting: deque[Client] = deque()  # those that came behind it before it was answered
        self._reading: Client | None = None  # whose request has not all arrived
        self._head_bytes = 0
        self._beside = 0  # bytes since the last piece of a body that were none of it: trailers, chunk extensions
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        # The parser looks its callbacks up once, when it is made.
        add = self._headers.append
        self.on_header = lambda name, value: add((name, value))
        self.on_body = self._pieces.append
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)

    @property
    def serves(self) -> bool:
        return self._client is not None

    # What uvicorn and the event loop tell us.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is always one
        self._transport = transport
        self.send = transport.write
        front = self._front
        if len(front.connections) >= front.bounds.connections:
            metrics.refused.labels("connections").inc()
            transport.abort()
            return
        self._connections.add(self)
        front.connections.add(self)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.allow(front.bounds.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self.send = _to_nobody
        self.deadline = NEVER
        self._connections.discard(self)
        self._front.connections.discard(self)
        self._parser = None  # it holds our methods: without this only the garbage collector would free us
        self._waiting.clear()
        if self._client is not None:
            self._client.left()
        else:
            self._wake()

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            return
        was_reading = self._reading
        if self._client is None and self._head_bytes == 0:
            self.allow(self._front.bounds.head_timeout_s)
        self._head_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_reading()  # the request stands as it is; what would follow is another protocol
        except httptools.HttpParserError as error:
            self._end_reading()
            if isinstance(error.__context__, _Unwanted):
                if self._client is None:
                    self._next()
            else:
                after = f" after the header {_shown(self._headers[-1][0])}" if self._headers else ""
                self._malformed(errors.BadFraming(f"The request is not valid HTTP/1.1: {error}{after}."))
            return
        reading = self._reading
        if reading is not None:
            if self._pieces:
                self._beside = 0
                reading.take(self._pieces)
                reading.arrived()
            elif reading is was_reading:
                self._beside += len(data)
                most = self._front.bounds.header_bytes
                if self._beside > most:
                    self._end_reading()
                    self._malformed(errors.HeadersTooLarge(f"The request's trailers have more than {most} bytes."))
                    return
        elif self._head_bytes > (most := _HEADS * (self._front.bounds.header_bytes + self._front.bounds.path_bytes)):
            self._refuse(errors.HeadersTooLarge(f"The request's head has more than {most} bytes."))
            return
        if self._client is None:
            self._next()

    def eof_received(self) -> None:
        self._front.outbox.flush()  # the transport closes when this returns

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        if self._client is not None:
            self._client.writable()
        else:
            self._wake()

    def shutdown(self) -> None:
        """The server stops: a call under way may end, nothing else begins."""
        self._stops = True
        if self._client is not None:
            self._client.keep = False
        elif not self._waiting:
            self._close()

    def end_call(self) -> None:
        """The server has waited long enough for the call under way: it ends here, and is put on record."""
        if self._client is not None:
            self._client.stop()

    def look(self) -> None:
        """While nothing is read of a client, the event loop does not see it leave."""
        if self.paused and self._transport is not None and has_left(self._transport):
            self._transport.abort()

    def late(self) -> None:
        self.deadline = NEVER
        if self._transport is not None and self._transport.is_closing():
            self._transport.abort()
        elif self._client is not None:
            self._client.dawdled()
        elif not self.is_writable and self._transport is not None:
            self._transport.abort()
        elif self._head_bytes:
            self._refuse(errors.HeadTimeout("The request's head took too long to arrive."))
        else:
            self._close()

    # What the parser tells us, besides on_header and on_body.

    def on_message_begin(self) -> None:
        self._head_bytes = self._head_bytes or 1

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        if self._stops or len(self._waiting) >= _PIPELINED_MAX:
            self._stops = True
            raise _Unwanted
        self._reading = client = Client(self, parser.get_method(), self._target, self._headers.copy())
        client.keep = parser.should_keep_alive() and not parser.should_upgrade()
        if parser.get_http_version() == "1.0":
            client.is_old, client.keep = True, False
        self._target = b""
        self._headers.clear()
        self._waiting.append(client)

    def on_message_complete(self) -> None:
        client = self._reading
        assert client is not None
        self._reading = None
        self._head_bytes = self._beside = 0
        self._headers.clear()  # of trailers
        client.read_whole = True
        if self._pieces:
            client.take(self._pieces)
        client.arrived()
        if len(self._waiting) > _PIPELINED_AHEAD:
            self.hold()

    # For the call.

    def write(self, data: bytes) -> None:
        self._front.outbox.post(self, data)

    def hold(self) -> None:
        if self._transport is not None and not self.paused:
            self.paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self.paused:
            self.paused = False
            self._transport.resume_reading()

    def allow(self, seconds: float | None) -> None:
        self.deadline = NEVER if seconds is None else self._front.deadlines.now + seconds

    def cut(self, *, visibly: bool) -> None:
        if self._transport is None:
            return
        if visibly:
            reset(self._transport)
        elif self.is_writable:
            self._close()
        else:
            self._transport.abort()

    # Inside.

    def _next(self) -> None:
        """Have the call that came first served, if one has."""
        if not self._waiting:
            return
        self.deadline = NEVER
        if self.task is None:
            self.task = self.loop.create_task(self._serve())
        else:
            self._wake()
        self._front.outbox.expect()

    async def _serve(self) -> None:
        front = self._front
        while not self._is_closed:
            if not self.is_writable:
                # Answers that nobody reads must not pile up: the next call waits for its client.
                self.hold()
                self.allow(front.bounds.send_timeout_s)
                await self._wakes()
                self.allow(None)
                self._reads_on()
                continue
            if not self._waiting:
                await self._wakes()
                continue
            self._client = client = self._waiting.popleft()
            try:
                own = front.own.get(client.target)
                if own is None:
                    await front.serve(client)
                else:
                    status, body = own()
                    client.answer(status, [(b"content-type", b"application/json")], body, framed=False)
            finally:
                self._client = None
                self._goes_on(client)

    async def _wakes(self) -> None:
        self._wanted = self.loop.create_future()
        try:
            await self._wanted
        finally:
            self._wanted = None

    def _wake(self) -> None:
        wanted = self._wanted
        if wanted is not None and not wanted.done():
            wanted.set_result(None)

    def _goes_on(self, client: Client) -> None:
        """The call is over: the connection may carry the next one."""
        if not self._is_closed and (not client.answered or not client.keep or self._stops):
            self._close()
        else:
            self._reads_on()

    def _reads_on(self) -> None:
        if self._is_closed:
            return
        if self.paused and len(self._waiting) <= _PIPELINED_AHEAD:
            self.resume()
        if not self._waiting:
            bounds = self._front.bounds
            self.allow(bounds.head_timeout_s if self._head_bytes else bounds.keep_alive_s)

    def _end_reading(self) -> None:
        self._stops = True
        self._parser = None

    def _malformed(self, refusal: errors.EdgeError) -> None:
        reading = self._reading
        if reading is None:
            self._refuse(refusal)
        else:
            reading.broken = refusal
            reading.arrived()
            if self._client is None:
                self._next()

    def _refuse(self, error: errors.EdgeError) -> None:
        """Refuse what never became a call: nobody is known to have asked, so there is no row, only a count."""
        self._end_reading()
        if self._client is not None:
            return  # closed when that one is answered
        metrics.refused.labels(error.code).inc()
        stranger = Client(self)
        id_ = new_id()
        shape: Shape = "anthropic" if is_anthropic(self._target.partition(b"?")[0].decode("latin-1")) else "openai"
        body = errors.error_body(error, shape, id_)
        stranger.answer(error.status, errors.error_headers(error, id_), body, framed=False)
        self._close()

    def _close(self) -> None:
        """Close once all is written; a client that will not take it is waited for no longer than for any answer."""
        if self._transport is not None:
            self._front.outbox.flush()
            self._transport.close()
            if not self._is_closed:
                self.allow(self._front.bounds.send_timeout_s)


def _shown(name: bytes) -> str:
    return repr(name[:100].decode("latin-1"))


def _to_nobody(_data: bytes) -> None:
    """Where the bytes go before there is a connection and after its end."""
