"""A provider made of raw bytes: each connection runs a script that reads, writes, waits and closes exactly as told."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """One connection as the server sees it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.requests: list[bytes] = []
        self.tls_protocol = self._negotiated(writer)
        self._reader = reader
        self._writer = writer

    @staticmethod
    def _negotiated(writer: asyncio.StreamWriter) -> str | None:
        tls = writer.get_extra_info("ssl_object")
        return None if tls is None else tls.selected_alpn_protocol()

    async def request(self) -> bytes:
        """The next whole request as received; EOFError when there is none."""
        received = await self.head()
        lines = received.lower().split(b"\r\n")
        for line in lines:
            if line.startswith(b"content-length:"):
                received += await self._reader.readexactly(int(line.partition(b":")[2]))
            elif line == b"transfer-encoding: chunked":
                received += await self._reader.readuntil(b"0\r\n\r\n")
        self.requests.append(received)
        return received

    async def head(self) -> bytes:
        return await self._reader.readuntil(b"\r\n\r\n")

    async def some(self, count: int) -> bytes:
        return await self._reader.readexactly(count)

    async def send(self, data: bytes) -> None:
        if self._writer.is_closing():  # uvloop's transport would say it with a RuntimeError
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, data: bytes = OK) -> bytes:
        """Read one request and send this."""
        received = await self.request()
        await self.send(data)
        return received

    async def gone(self) -> None:
        """Wait until the client has closed."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass

    def close(self) -> None:
        self._writer.close()

    def say_no_more(self) -> None:
        """Close our half only."""
        self._writer.write_eof()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class WireServer:
    """`async with WireServer(script) as server`: the script runs once per connection, then the connection is closed."""

    def __init__(
        self, script: Script, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._script = script
        self._host = host
        self.port = port
        self._tls = tls

    @property
    def connections(self) -> int:
        return len(self.peers)

    async def __aenter__(self) -> "WireServer":
        self._server = await asyncio.start_server(self._serve, self._host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        peer = Peer(len(self.peers), reader, writer)
        self.peers.append(peer)
        try:
            await self._script(peer)
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()


def answering(data: bytes = OK) -> Script:
    """Answers every request with the same bytes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.answer(data)

    return script


def once(data: bytes) -> Script:
    """Answers one request with these bytes, then closes."""

    async def script(peer: Peer) -> None:
        await peer.answer(data)

    return script
