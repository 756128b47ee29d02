"""An answer that is arriving on one of the pool's connections: the reader's side of it."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from edge.upstream.protocol import UpstreamCut, UpstreamError


class Source(Protocol):
    """What an answer needs of the connection it arrives on."""

    loop: asyncio.AbstractEventLoop
    paused: bool

    def resume(self) -> None: ...

    def expect_more(self) -> None: ...

    def close(self) -> None: ...


class PoolAnswer:
    __slots__ = ("_connection", "_error", "_pieces", "_reader", "body_complete", "buffered", "headers", "status", "to")

    def __init__(self, connection: Source, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.headers = headers
        self.body_complete = False
        self.buffered = 0
        self._connection: Source | None = connection  # None once the connection is no longer this answer's
        self._pieces: list[bytes] = []
        self._error: UpstreamError | None = None
        self._reader: asyncio.Future[None] | None = None
        self.to: Callable[[bytes], bool] | None = None
        """Takes each piece as it arrives; None: pieces gather here."""

    def __repr__(self) -> str:
        state = "complete" if self.body_complete else "failed" if self._error else "arriving"
        return f"<PoolAnswer {self.status} {state}, {self.buffered} bytes unread>"

    def arrived(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.buffered = 0
        connection = self._connection
        if connection is not None and connection.paused:
            connection.resume()
        return data

    async def flow(self, to: Callable[[bytes], bool]) -> bool:
        while True:
            if self._pieces and not to(self.arrived()):
                return False
            if self.body_complete:
                return True
            if self._error is not None:
                raise self._error
            assert self._reader is None, "an answer has one reader at a time"
            assert self._connection is not None
            self._reader = reader = self._connection.loop.create_future()
            self._connection.expect_more()
            self.to = to
            try:
                await reader
            except BaseException:
                self.abort()
                raise
            finally:
                self._reader = self.to = None
            if not self._pieces and not self.body_complete and self._error is None:
                return False  # `to` has had enough

    def abort(self) -> None:
        connection = self._connection
        if connection is not None:
            self.fail(UpstreamCut("the answer was dropped before its end", sent=True))
            connection.close()
        self._pieces.clear()
        self.buffered = 0

    # For the connection alone.

    def take(self, pieces: list[bytes]) -> None:
        """Move what the parser has left in `pieces` to the reader's side."""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._pieces.append(data)
        self.buffered += len(data)

    def stop_flow(self) -> None:
        """Whom it flows to has had enough."""
        self.to = None
        self.wake()

    def complete(self) -> None:
        self.body_complete = True
        self._connection = None
        self.wake()

    def fail(self, error: UpstreamError) -> None:
        self._error = error
        self._connection = None
        self.wake()

    def wake(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)
