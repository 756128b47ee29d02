"""The client's side of a call: reads its body with bounds, and notices when it leaves.

What a server offers an ASGI application is little: `receive`, `send`, and an exception to end a connection with.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from edge.capture import Capture
from edge.deadlines import Deadlines
from edge.errors import BodyTooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_S = 2.0
_NO_CONTEXT = contextvars.Context()


class ConnectionCut(Exception):
    """Raised out of the application, which is how a server is told to close a connection at once."""


class ClientGone(Exception):
    """The client closed its connection while it was still sending."""


class Client:
    """The ASGI connection: reads the body with bounds, and notices when the client leaves."""

    __slots__ = (
        "_deadlines",
        "_future",
        "_receive",
        "_stopped",
        "_task",
        "_watching",
        "cut",
        "gone",
        "headed",
        "read_whole",
        "send",
        "timed_out",
    )

    def __init__(self, receive: Receive, send: Send, deadlines: Deadlines) -> None:
        self._receive = receive
        self.send = send
        self._deadlines = deadlines
        self._task = asyncio.current_task(deadlines.loop)  # asking for the loop again would take 2 µs
        self._future: Any = None
        self._stopped = self._watching = False
        self.read_whole = False
        self.headed = False
        self.gone = False
        self.cut = False
        self.timed_out: str | None = None

    async def body(self, *, limit: int, length: int | None, timeout_s: float) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge, ClientGone.
        """
        first = b""
        parts: list[bytes] | None = None
        size = 0
        with self._deadlines.within(timeout_s, self.sent_too_slowly) as deadline:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece: bytes = message.get("body", b"")
                size += len(piece)
                if size > limit:
                    raise too_large(size, limit)
                if parts is not None:
                    parts.append(piece)
                elif first:
                    parts = [first, piece]
                else:
                    first = piece
                # With a length known, the end is known too: no need to be told.
                if size == length or not message.get("more_body", False):
                    break
                deadline.extend(timeout_s)
        self.read_whole = True
        return first if parts is None else b"".join(parts)

    async def pieces(self, capture: Capture, *, limit: int, timeout_s: float) -> AsyncIterator[bytes]:
        """The body piece by piece, as the upstream takes it."""
        size = 0
        while True:
            with self._deadlines.within(timeout_s, self.sent_too_slowly):
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise too_large(size, limit)
            if piece:
                capture.feed(piece)
                yield piece
            if not message.get("more_body", False):
                break
        self.read_whole = True
        self.watch()

    async def drained(self) -> bool:
        """Take what the client still sends, so that it hears the refusal and not a reset. Bounded in bytes and time."""
        left = 0 if self.timed_out else _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not self.read_whole and left > 0:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    left -= len(message.get("body", b""))
                    self.read_whole = not message.get("more_body", False)
        except TimeoutError:
            return False
        return self.read_whole

    async def skip_body(self) -> None:
        """Take the empty body of a call that announced none."""
        if (await self._receive())["type"] == "http.disconnect":
            raise ClientGone

    def watch(self) -> None:
        """From now on, cancel the call when the client leaves. Without this a provider would go on being paid."""
        if self._watching or self._stopped:
            return
        self._watching = self.read_whole = True
        self._arm()

    def ended_it(self) -> bool:
        """Whether the call was cancelled for this client's sake; then the cancelling is over."""
        if not (self.gone or self.timed_out):
            return False
        if self._task is not None:
            self._task.uncancel()
        return True

    def finished(self) -> None:
        self._stopped = True
        waiting, self._future, self._task = self._future, None, None
        if waiting is not None and not waiting.done():
            # Granian's future is not the garbage collector's to look into: a circle through it would stay for ever.
            waiting.remove_done_callback(self._received)
            waiting.cancel()

    def sent_too_slowly(self) -> None:
        self._end("body")

    def read_too_slowly(self) -> None:
        self._end("read")

    def _end(self, late: str) -> None:
        self.timed_out = late
        if self._task is not None:
            self._task.cancel()

    def _arm(self) -> None:
        # Granian's receive() gives a future: a callback on it costs a tenth of a task that waits for it.
        waiting: Any = self._receive()
        if not hasattr(waiting, "add_done_callback"):
            waiting = asyncio.ensure_future(waiting)
        self._future = waiting
        waiting.add_done_callback(self._received, context=_NO_CONTEXT)

    def _received(self, future: Any) -> None:
        if self._stopped or future.cancelled():
            return
        try:
            message = future.result()
        except Exception:  # the connection is gone in some other way
            message = {"type": "http.disconnect"}
        if message["type"] != "http.disconnect":
            self._arm()
            return
        self.gone = True
        if self._task is not None:
            self._task.cancel()


def too_large(size: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request's body has {size} bytes or more; at most {limit} are accepted.")
