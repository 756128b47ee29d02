"""The whole of Heliograph on this machine, as `heliograph up` runs it, and a provider that replays what was recorded."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from infra.local import clickhouse
from infra.local.ports import pick_free
from ingest.clickhouse import connect
from tests.servers import REPOSITORY, settings_of

_UP_S = 120.0
_SERVICES = ("edge", "ship", "worker", "plan", "control", "metrics")


class Answer:
    """What the provider says to one call."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, *, stream: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.stream = stream

    def wire(self) -> list[bytes]:
        """The pieces to write, one by one: a stream goes event by event."""
        lines = [f"HTTP/1.1 {self.status} Recorded", *(f"{k}: {v}" for k, v in self.headers.items())]
        if not self.stream:
            lines.append(f"content-length: {len(self.body)}")
            return ["\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body]
        lines.append("transfer-encoding: chunked")
        pieces = [piece for piece in self.body.split(b"\n\n") if piece]
        events = [piece + b"\n\n" for piece in pieces[:-1]] + pieces[-1:]
        # What stands between and after the events belongs to the body as well.
        if b"".join(events) != self.body:
            events = [self.body[start : start + 4096] for start in range(0, len(self.body), 4096)]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return [head, *(b"%x\r\n%s\r\n" % (len(event), event) for event in events), b"0\r\n\r\n"]


class Replay:
    """Answers each call with the answer under its `x-exchange` header, or with `next`."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.next: Answer | None = None
        self.requests: list[bytes] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int) -> None:
        self.port = port
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=64 * 1024 * 1024)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # the connections' tasks see it and end

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                body = await self._body(reader, headers)
                self.requests.append(head + body)
                answer = self.answers.get(headers.get(b"x-exchange", b"").decode()) or self.next
                assert answer is not None, "no answer was given for this call"
                for piece in answer.wire():
                    writer.write(piece)
                    await writer.drain()
                if head.startswith(b"HEAD"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _body(self, reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
            return body
        return await reader.readexactly(int(headers.get(b"content-length", b"0")))


class House:
    """A running `heliograph up`."""

    def __init__(self, folder: Path, ports: dict[str, int], process: "subprocess.Popen[bytes]") -> None:
        self.folder = folder
        self.data = folder / "data"
        self.edge = f"http://127.0.0.1:{ports['EDGE_PORT']}"
        self.control = f"http://127.0.0.1:{ports['CONTROL_PORT']}"
        self.metrics = f"http://127.0.0.1:{ports['METRICS_PORT']}/metrics"
        self.process = process
        self.environment: dict[str, str] = {}

    def get(self, path: str, **query: Any) -> Any:
        answer = httpx.get(self.control + path, params=query, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def row(self, id_: str, *, timeout_s: float = 15) -> Any:
        """One request as the API gives it, waited for."""
        return self.wait_for(lambda: self._row(id_), timeout_s=timeout_s, what=f"row {id_}")

    def _row(self, id_: str) -> Any:
        answer = httpx.get(f"{self.control}/v1/requests/{id_}", timeout=10)
        return answer.json() if answer.status_code == 200 else None

    def wait_for(self, look: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            if found := look():
                return found
            assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
            time.sleep(0.05)

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Straight from the embedded ClickHouse."""
        server = clickhouse.find(self.data)
        assert server is not None
        client = connect(settings_of(server))
        try:
            rows: list[tuple[Any, ...]] = client.execute(query)
            return rows
        finally:
            client.disconnect()

    def files_with(self, text: str) -> list[Path]:
        """Files of the house that hold it. What the servers delete meanwhile is passed over."""
        found = []
        for root, _, names in os.walk(self.folder):
            for path in (Path(root, name) for name in names):
                try:
                    if path.is_file() and text.encode() in path.read_bytes():
                        found.append(path)
                except FileNotFoundError:
                    continue
        return found

    def pids(self) -> dict[str, list[int]]:
        """Each program's processes, children included."""
        import psutil

        found: dict[str, list[int]] = {}
        supervisor = psutil.Process(self.process.pid).children()[0]
        for child in supervisor.children():
            words = child.cmdline()
            name = next((w for w in reversed(words) if w in _SERVICES), None)
            name = name or ("valkey" if "valkey" in " ".join(words) else "clickhouse")
            found[name] = [child.pid, *(grandchild.pid for grandchild in child.children(recursive=True))]
        return found

    def kill(self, name: str) -> float:
        """kill -9 of one program and its children.

        Returns:
            When, Unix time.
        """
        pids = self.pids()[name]
        killed_s = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return killed_s

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A `heliograph` command beside the running house."""
        return subprocess.run(
            [sys.executable, "-m", "cli", *words],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def stop(self) -> float:
        """Ctrl-C; gives the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        return time.monotonic() - began

    def stop_at_once(self) -> None:
        """Ctrl-C twice: nothing may finish."""
        self.process.send_signal(signal.SIGINT)
        self.wait_for(lambda: "Stopping" in self.output, timeout_s=10, what="the stop")
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    @property
    def output(self) -> str:
        return (self.folder / "up.log").read_text()


@contextmanager
def up(folder: Path, provider_port: int, *, providers: list[str], kafka: str = "", **settings: str) -> Iterator[House]:
    """`heliograph up` on free ports, its providers at `provider_port`; stopped at the end.

    Args:
        kafka: what `--kafka` is given; empty: no `--kafka`.
    """
    ports: dict[str, int] = {}
    for name in ("EDGE_PORT", "CONTROL_PORT", "METRICS_PORT"):
        ports[name] = pick_free(but=ports.values())
    prefixes = ("EDGE_", "HELIOGRAPH_", "PLANNER_", "SHIPPER_", "WORKER_", "CONTROL_", "METRICS_", "PROMETHEUS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    environment |= {"HELIOGRAPH_DATA_DIR": str(folder / "data"), "TERM": "dumb", "COLUMNS": "160"}
    environment |= {name: str(port) for name, port in ports.items()}
    environment |= {
        f"EDGE_PROVIDERS__{name.upper().replace('-', '_')}__BASE_URL": f"http://127.0.0.1:{provider_port}"
        for name in providers
    }
    environment |= settings
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up", *(["--kafka", kafka] if kafka else [])],
            env=environment,
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    house = House(folder, ports, process)
    house.environment = environment
    try:
        deadline = time.monotonic() + _UP_S
        while "Ctrl-C stops" not in house.output:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"heliograph up did not come up:\n{house.output}")
            time.sleep(0.1)
        yield house
    finally:
        if process.poll() is None:
            house.stop()
