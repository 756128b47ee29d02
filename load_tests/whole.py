"""A whole `heliograph up` of the benchmark's own: its processes can be found, killed, kept down and started again.

It runs in a folder of its own, on ports given to it, its provider the mock. It ends with its parent, in order; what a
kill has orphaned is ended at the close, found by its session.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.client import Fault, ServerProxy

import psutil
from clickhouse_driver import Client
from clickhouse_driver.errors import NetworkError, SocketTimeoutError
from pydantic import SecretStr
from supervisor.xmlrpc import SupervisorTransport

from infra.local import clickhouse, valkey
from infra.local.errors import NotReady
from infra.local.ports import pick_free
from ingest.clickhouse import connect
from load_tests.processes import ChildFailed, session_stats
from schemas.settings import ClickHouseSettings

PROGRAMS = ("valkey", "clickhouse", "worker", "planner", "metrics", "control", "edge")
REPOSITORY = Path(__file__).parents[1]
UP_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 90.0
POLL_S = 0.05

_UP = "Ctrl-C stops"
_READY_WORDS = {"worker": b" ready.", "planner": b"planner is ready"}
_OURS = ("HELIOGRAPH_", "EDGE_", "PLANNER_", "WORKER_", "CONTROL_", "METRICS_", "SHIPPER_", "PROMETHEUS_")

UNREACHABLE = (OSError, EOFError, NetworkError, SocketTimeoutError)
"""What asking a ClickHouse raises that has just been killed."""


class Ports(NamedTuple):
    edge: int
    control: int
    metrics: int


def free_ports(count: int) -> list[int]:
    """Picked anew for each run."""
    found: list[int] = []
    for _ in range(count):
        found.append(pick_free(but=found))
    return found


class Whole:
    """Use as a context manager: leaving it stops everything."""

    def __init__(self, folder: Path, ports: Ports, providers: Mapping[str, int], **settings: str) -> None:
        """
        Args:
            providers: the port on loopback at which each provider of the catalogue is taken to be.
            settings: more of the environment.
        """
        self.data = folder / "data"
        self.ports = ports
        self.log = folder / "up.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_OURS)},
            "HELIOGRAPH_DATA_DIR": str(self.data),
            "EDGE_PORT": str(ports.edge),
            "CONTROL_PORT": str(ports.control),
            "METRICS_PORT": str(ports.metrics),
            **{
                f"EDGE_PROVIDERS__{name.upper().replace('-', '_')}__BASE_URL": f"http://127.0.0.1:{port}"
                for name, port in providers.items()
            },
            "TERM": "dumb",
            "COLUMNS": "160",
            **settings,
        }
        self.edge_url = f"http://127.0.0.1:{ports.edge}"
        self.control_url = f"http://127.0.0.1:{ports.control}"
        self.killed_s = 0.0
        """When something was last killed, Unix time."""
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions: set[int] = set()
        self._client: Client | None = None

    def __enter__(self) -> "Whole":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- up as a whole ----

    def start(self) -> float:
        """Start `up` and wait until it says that everything is; gives the seconds it took.

        Raises:
            ChildFailed: it ended, or was not up in time. The message holds what it said.
        """
        began, said_before = time.monotonic(), self._size(self.log)
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "infra.local.tethered", sys.executable, "-m", "cli", "up"],
                env=self.environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._sessions.add(process.pid)
        while _UP not in (said := self.log.read_text(errors="replace")[said_before:]):
            self._note_sessions()
            if process.poll() is not None or time.monotonic() - began > UP_TIMEOUT_S:
                raise ChildFailed(f"heliograph up did not come up:\n{said.strip()[-1500:]}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def start_again(self) -> float:
        """Start `up` as a service manager would: again and again until it stays. Gives the seconds it took in all.

        Raises:
            ChildFailed: what it said the last time.
        """
        began = time.monotonic()
        while True:
            try:
                self.wait_ended()
                self.start()
                return time.monotonic() - began
            except ChildFailed:
                if time.monotonic() - began > UP_TIMEOUT_S:
                    raise
                time.sleep(0.5)

    def wait_ended(self) -> None:
        """Wait until `up` itself has ended; what it started may still be ending."""
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Ctrl-C, then an end to whatever a kill has orphaned."""
        self.disconnect()
        try:
            if self._process is not None and self._process.poll() is None:
                self._note_sessions()
                self._process.send_signal(signal.SIGINT)
                self._process.wait(STOP_TIMEOUT_S)
        finally:
            for session in self._sessions:
                for pid in session_stats(session):
                    _kill(pid)

    # ---- its processes ----

    @property
    def up_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def supervisor_pid(self) -> int:
        (supervisor,) = psutil.Process(self.up_pid).children()
        return int(supervisor.pid)

    def pids(self, name: str) -> list[int]:
        """A program's process and its children's."""
        pid = self._states()[name]["pid"]
        if not pid:
            return []
        try:
            return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        except psutil.NoSuchProcess:  # it has just ended
            return []

    def all_pids(self) -> list[int]:
        """Everything, `up` first."""
        supervisor = psutil.Process(self.supervisor_pid)
        return [self.up_pid, supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))]

    def kill(self, pids: Sequence[int]) -> None:
        """kill -9, all of them within a millisecond or so."""
        self.disconnect()
        self._note_sessions()
        self.killed_s = time.time()
        for pid in pids:
            _kill(pid)
        if self.up_pid in pids:
            self.wait_ended()

    def hold_down(self, names: Sequence[str]) -> None:
        """kill -9, and no restart until `let_up`."""
        deadline = time.monotonic() + 20
        while held := [name for name in names if self._states()[name]["statename"] != "STOPPED"]:
            if time.monotonic() > deadline:
                raise ChildFailed(f"the process manager does not stop {', '.join(held)}")
            for name in held:
                self.kill(self.pids(name))
                with suppress(Fault):  # it is between two starts
                    self._rpc.supervisor.stopProcess(name, False)
            time.sleep(POLL_S)

    def let_up(self, names: Sequence[str]) -> None:
        for name in names:
            self._rpc.supervisor.startProcess(name, False)

    def readiness(self, name: str) -> Callable[[], bool]:
        """Asked now, before a kill: a function that says whether the program, restarted since, is ready again."""
        before = self._states()[name]["pid"]
        log, said_before = self.data / "logs" / f"{name}.log", self._size(self.data / "logs" / f"{name}.log")

        def ready() -> bool:
            state = self._states()[name]
            if not state["pid"] or state["pid"] == before:
                return False
            words = _READY_WORDS.get(name)
            return words in _tail(log, said_before) if words else self.answers(name)

        return ready

    def answers(self, name: str) -> bool:
        """Whether a server of ours answers now."""
        try:
            if name == "clickhouse":
                server = clickhouse.find(self.data)
                assert server is not None
                clickhouse.wait_ready(server, 0)
            elif name == "valkey":
                redis = valkey.find(self.data)
                assert redis is not None
                valkey.wait_ready(redis, 0)
            else:
                port, path = {
                    "edge": (self.ports.edge, "/readyz"),
                    "control": (self.ports.control, "/healthz"),
                    "metrics": (self.ports.metrics, "/metrics"),
                }[name]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
                    return bool(answer.status == 200)
        except (NotReady, OSError):
            return False
        return True

    # ---- its store ----

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Straight from the embedded ClickHouse; a connection that a kill has cut is made anew."""
        for attempt in range(2):
            if self._client is None:
                self._client = connect(self.clickhouse_settings())
            try:
                rows: list[tuple[Any, ...]] = self._client.execute(query)
                return rows
            except UNREACHABLE:
                self.disconnect()
                if attempt:
                    raise
        raise AssertionError

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.disconnect()
        self._client = None

    def clickhouse_settings(self) -> ClickHouseSettings:
        server = clickhouse.find(self.data)
        assert server is not None
        password = SecretStr(server.password)
        return ClickHouseSettings(
            host=server.host, port=server.port, user=server.user, password=password, database=server.database
        )

    # ----

    def _states(self) -> dict[str, dict[str, Any]]:
        return {info["name"]: info for info in self._rpc.supervisor.getAllProcessInfo()}

    @property
    def _rpc(self) -> Any:
        config = RawConfigParser()
        config.read(self.data / "run" / "supervisor.conf")
        socket = config["unix_http_server"]["file"].replace("%%", "%")
        return ServerProxy("http://localhost", SupervisorTransport("", "", f"unix://{socket}"))

    def _note_sessions(self) -> None:
        # The process manager leads a session of its own, which its programs stay in when it is gone.
        with suppress(psutil.Error):
            self._sessions |= {child.pid for child in psutil.Process(self.up_pid).children()}

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start if path.stat().st_size >= start else 0)  # a log that grew too long begins anew
        return file.read()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
