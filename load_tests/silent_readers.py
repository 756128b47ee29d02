"""Readers that never read: a provider that sends without end, callers that ask and then look away.

What they cost is what the edge holds for each, by its memory before and with them; the kernel's socket buffers are not
in it.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

SETTLE_S = 4.0
PIECE = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * 16_000 + b'"}}]}' + b"\n\n"
_CHUNK = b"%x\r\n%s\r\n" % (len(PIECE), PIECE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Cost(NamedTuple):
    readers: int
    mb_each: float
    sent_mb: float
    """What the provider got rid of for each before it was held up."""
    closed: bool
    """Whether the provider's connections were closed once the readers were gone."""


class _Provider(threading.Thread):
    """Answers every call with a stream that has no end."""

    def __init__(self, port: int) -> None:
        super().__init__(name="endless provider", daemon=True)
        self._listener = socket.create_server(("127.0.0.1", port))
        self._lock = threading.Lock()
        self.sent = 0
        self.streaming = 0

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while not connection.recv(65536).endswith(b"}"):
                pass
            with self._lock:
                self.streaming += 1
            try:
                connection.sendall(_HEAD)
                while True:
                    connection.sendall(_CHUNK)
                    with self._lock:
                        self.sent += len(_CHUNK)
            finally:
                with self._lock:
                    self.streaming -= 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def endless_provider(port: int) -> Iterator[_Provider]:
    provider = _Provider(port)
    provider.start()
    try:
        yield provider
    finally:
        provider.close()


def cost_of_silence(
    edge_port: int, path: str, provider_port: int, memory_mb: Callable[[], float], *, readers: int = 8
) -> Cost:
    """Open `readers` streams, never read, and compare the edge's memory."""
    with endless_provider(provider_port) as provider:
        before_mb = memory_mb()
        with ExitStack() as stack:
            for _ in range(readers):
                stack.enter_context(_silent_reader(edge_port, path))
            time.sleep(SETTLE_S)
            with_mb, sent, streaming = memory_mb(), provider.sent, provider.streaming
        deadline = time.monotonic() + 5
        while provider.streaming and time.monotonic() < deadline:
            time.sleep(0.02)
        if streaming != readers:
            raise AssertionError(f"{streaming} of {readers} streams were open")
        return Cost(readers, max(0.0, with_mb - before_mb) / readers, sent / readers / 1e6, provider.streaming == 0)


@contextmanager
def _silent_reader(port: int, path: str) -> Iterator[socket.socket]:
    body = b'{"model": "gpt-4o-mini", "stream": true, "messages": []}'
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer sk-test-silent\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as reader:
        reader.sendall(head.encode() + body)
        yield reader
