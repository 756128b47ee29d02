"""The edge as it runs, in a process of its own, a real Valkey, a spool; and a provider scripted byte by byte."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from infra.local.ports import pick_free
from ingest import frames
from schemas.event import Event, unpack
from tests.servers import running_valkey

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Provider:
    """A raw server: `script` gets each connection; what it read is kept in `requests`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.script: Script = self.echo
        self.requests: list[bytes] = []
        self.closed = asyncio.Event()
        self.writers: set[asyncio.StreamWriter] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            self.closed.set()
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> bytes:
        """One request with a content-length, head and body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        request = head + await reader.readexactly(length)
        self.requests.append(request)
        return request

    def answers(self, *pieces: bytes | float, keep: bool = False) -> None:
        """Answer every request with these bytes, sleeping for each number; then close, unless told to keep."""

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await self.read(reader)
                for piece in pieces:
                    if isinstance(piece, bytes):
                        writer.write(piece)
                        await writer.drain()
                    else:
                        await asyncio.sleep(piece)
                if not keep:
                    return

        self.script = script

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await self.read(reader)
            writer.write(http(request, b"application/octet-stream"))
            await writer.drain()


def http(body: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK", *more: bytes) -> bytes:
    """A whole answer."""
    lines = [b"HTTP/1.1 " + status, b"Content-Type: " + content_type, b"Content-Length: %d" % len(body), *more]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Edge:
    def __init__(self, port: int, folder: Path, log: Path, pid: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.folder = folder
        self.log = log
        self.pid = pid
        self._seen = 0

    def events(self, count: int = 1, *, timeout_s: float = 5) -> list[Event]:
        """The next `count` events in the spool that no test has taken yet."""
        deadline = time.monotonic() + timeout_s
        while True:
            records = [
                record
                for folder in sorted(self.folder.glob("spool/edge-*"))
                for segment in frames.segments(folder)
                for record, _ in frames.payloads(segment.path.read_bytes())
            ]
            if len(records) >= self._seen + count or time.monotonic() > deadline:
                fresh = records[self._seen :]
                self._seen = len(records)
                assert len(fresh) >= count, f"{len(fresh)} of {count} events came"
                return [unpack(record) for record in fresh]
            time.sleep(0.01)

    def event(self) -> Event:
        (event,) = self.events(1)
        return event

    def raw(self, data: bytes, *, timeout_s: float = 2) -> bytes:
        """Send bytes as they are, read until the edge closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(data)
            client.settimeout(timeout_s)
            received = b""
            try:
                while piece := client.recv(65536):
                    received += piece
            except TimeoutError:
                return received
            except ConnectionResetError:
                return received + b"<reset>"
            return received + b"<closed>"


@pytest.fixture(scope="session")
def provider_port() -> int:
    return pick_free()


@pytest.fixture
async def provider(provider_port: int) -> AsyncIterator[Provider]:
    fake = Provider(provider_port)
    server = await asyncio.start_server(fake.connected, "127.0.0.1", provider_port, limit=64 * 1024 * 1024)
    yield fake
    server.close()
    for writer in fake.writers:
        writer.transport.abort()
    await asyncio.sleep(0)  # the connections' tasks see it and end


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


def start_edge(
    folder: Path, provider_port: int, redis_url: str, **settings: str
) -> tuple[Edge, "subprocess.Popen[bytes]"]:
    port = pick_free()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "HELIOGRAPH_"))},
        "HELIOGRAPH_DATA_DIR": str(folder),
        "HELIOGRAPH_REDIS__URL": redis_url,
        "HELIOGRAPH_SPOOL__LINGER_MS": "1",
        "EDGE_PORT": str(port),
        "EDGE_AUTH": "optional",
        "EDGE_BOUNDS__BODY_BYTES": "1000000",
        "EDGE_BOUNDS__BODY_TIMEOUT_S": "1",
        "EDGE_BOUNDS__HEAD_TIMEOUT_S": "2",
        "EDGE_UPSTREAM__IDLE_TIMEOUT_S": "1",
        "EDGE_UPSTREAM__FIRST_BYTE_TIMEOUT_S": "1",
        "EDGE_CAPTURE__HEAD_BYTES": "200000",
        **{
            f"EDGE_PROVIDERS__{name}__BASE_URL": f"http://127.0.0.1:{provider_port}/v1"
            for name in ("OPENAI", "ANTHROPIC", "GOOGLE", "GROQ")
        },
        "EDGE_PROVIDERS__MISTRAL__BASE_URL": f"http://127.0.0.1:{pick_free()}/v1",  # nobody listens there
        **settings,
    }
    log = folder / "edge.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "edge", "--tethered"], env=environment, stdout=output, stderr=output
        )
    edge = Edge(port, folder, log, process.pid)
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(f"{edge.url}/healthz").status_code == 200:
                return edge, process
        except httpx.TransportError:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise AssertionError(f"the edge did not start:\n{log.read_text()}") from None
            time.sleep(0.05)


def stop_edge(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory, provider_port: int, redis_url: str) -> Iterator[Edge]:
    edge, process = start_edge(tmp_path_factory.mktemp("edge"), provider_port, redis_url)
    yield edge
    stop_edge(process)


@pytest.fixture
def edge_with(tmp_path: Path, provider_port: int, redis_url: str) -> Iterator[Callable[..., Edge]]:
    """Starts an edge of the test's own, with these settings."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: str) -> Edge:
        edge, process = start_edge(tmp_path, provider_port, redis_url, **settings)
        started.append(process)
        return edge

    yield start
    for process in started:
        stop_edge(process)
