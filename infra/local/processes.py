"""Runs this machine's processes under supervisor: started in order, restarted when they die, stopped in reverse.

supervisor itself is a child of `heliograph up` and ends with it. Each process writes to a log file of bounded size.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

_LOG_BYTES = 10 * 1024 * 1024
_LOG_BACKUPS = 2
_SOCKET_PATH_MAX = 100
_START_TIMEOUT_S = 10.0
_ENDINGS_BYTES = 64 * 1024
_ORPHANS_TIMEOUT_S = 60.0


class Program(NamedTuple):
    """One process and when it counts as ready."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    """Asked again and again after the start; must not take long."""
    stop_wait_s: int = 15
    """From SIGTERM until SIGKILL."""
    final_status: int | None = None
    """The exit status after which it is not restarted, where it has one."""


class State(NamedTuple):
    name: str
    running: bool
    pid: int
    started_at: float
    """Seconds since 1970; a change says that it was restarted."""
    exit: str
    """How it last ended, in words; empty when it has not."""
    final: bool = False
    """It has ended with its final status and stays so."""


class StartFailed(Exception):
    """A process did not become ready. The message ends with the last lines of its log."""


class Processes:
    """The running set. Use as a context manager: leaving it stops everything."""

    def __init__(self, programs: Sequence[Program], *, folder: Path, environment: Mapping[str, str]) -> None:
        self._programs = list(programs)
        self._logs = folder / "logs"
        self._run = folder / "run"
        self._environment = dict(environment)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._socket_folder: str | None = None
        self._socket = self._run / "supervisor.sock"

    def __enter__(self) -> "Processes":
        self._logs.mkdir(parents=True, exist_ok=True)
        self._run.mkdir(parents=True, exist_ok=True)
        if len(str(self._socket.absolute())) > _SOCKET_PATH_MAX:
            self._socket_folder = tempfile.mkdtemp(prefix="heliograph-")
            self._socket = Path(self._socket_folder) / "supervisor.sock"
        self._socket.unlink(missing_ok=True)
        config = self._run / "supervisor.conf"
        config.touch(mode=0o600)
        config.write_text(_config(self._programs, socket=self._socket.absolute(), logs=self._logs.absolute()))
        self._supervisor = subprocess.Popen(  # noqa: S603 - our own configuration
            [sys.executable, "-m", "infra.local.tethered", sys.executable, "-m", "supervisor.supervisord",
             "--nodaemon", "--configuration", str(config.absolute())],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us to handle, in order
        )  # fmt: skip
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self._ask("getState")
                return self
            except (OSError, Fault) as error:
                if time.monotonic() > deadline or self._supervisor.poll() is not None:
                    self.kill()
                    raise StartFailed(
                        f"the process manager did not start: {error}\n{_tail(self._logs / 'supervisor.log')}"
                    ) from error
                time.sleep(0.05)

    def _ask(self, question: str, *words: object) -> Any:
        # A fresh connection for each question: the transport never recovers from one that failed.
        transport = SupervisorTransport("", "", f"unix://{self._socket.absolute()}")
        try:
            return getattr(ServerProxy("http://localhost", transport).supervisor, question)(*words)
        finally:
            transport.close()

    def start(self, program: Program, *, timeout_s: float) -> None:
        """Start one process and wait until it is ready.

        Raises:
            StartFailed: it died, or was not ready in time.
        """
        try:
            self._start(program, timeout_s)
        except OSError as error:
            told = _tail(self._logs / "supervisor.log")
            raise StartFailed(f"{program.name}: the process manager is gone; the end of its log:\n{told}") from error

    def _start(self, program: Program, timeout_s: float) -> None:
        self._ask("startProcess", program.name, False)
        deadline = time.monotonic() + timeout_s
        restarts: set[int] = set()
        while not program.ready():
            info = self._ask("getProcessInfo", program.name)
            restarts.add(info["pid"])
            died = len(restarts - {0}) > 2 or info["statename"] in ("FATAL", "EXITED")
            if died or time.monotonic() > deadline:
                what = "keeps ending" if died else f"was not ready after {timeout_s:g} s"
                raise StartFailed(f"{program.name} {what}; the end of its log:\n{_tail(self.log(program.name))}")
            time.sleep(0.05)

    def states(self) -> list[State]:
        """How each process is now."""
        found = self._ask("getAllProcessInfo")
        # Read after it was asked: it writes down an ending before it tells of it.
        endings = _endings(self._logs / "supervisor.log")
        final = {program.name: program.final_status for program in self._programs}
        return [
            State(
                info["name"],
                info["statename"] == "RUNNING",
                int(info["pid"]),
                float(info["start"]),
                endings.get(info["name"], "") if info["stop"] else "",
                info["statename"] == "EXITED" and info["exitstatus"] == final[info["name"]],
            )
            for info in found
        ]

    def stop(self, say: Callable[[str], None]) -> None:
        """Stop every process, last started first, each given its time."""
        for program in reversed(self._programs):
            try:
                self._ask("stopProcess", program.name, True)
                say(program.name)
            except (Fault, OSError):  # was not running, or supervisor is gone with it
                continue

    @property
    def manager_ended(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is not None

    def wait_orphans(self) -> None:
        """Once the process manager is gone, wait for what it has left: each process was told to end with it."""
        assert self._supervisor is not None
        session = self._supervisor.pid  # it led it, and nothing of ours leaves it
        deadline = time.monotonic() + _ORPHANS_TIMEOUT_S
        while left := _of_session(session):
            if time.monotonic() > deadline:
                for pid in left:
                    _kill_group(pid)
                return
            time.sleep(0.1)

    def kill(self) -> None:
        """End everything at once."""
        if self._supervisor is None or self._supervisor.poll() is not None:
            return
        for state in self._states_or_none():
            if state.pid:
                _kill_group(state.pid)
        _kill_group(self._supervisor.pid)
        self._supervisor.wait()

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def __exit__(self, *exc: object) -> None:
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._supervisor.terminate()
            try:
                self._supervisor.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._socket_folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _states_or_none(self) -> list[State]:
        try:
            return self.states()
        except (OSError, Fault):
            return []


def wait_predecessor(folder: Path, *, timeout_s: float) -> None:
    """Wait for the process manager of a killed `up` of this folder: its processes are ending, and hold ports until then."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    try:
        pid = int((folder / "run" / "supervisor.pid").read_text())
        process = psutil.Process(pid)
        if str((folder / "run").absolute()) in " ".join(process.cmdline()):
            process.wait(timeout_s)
    except (OSError, ValueError, psutil.Error):
        return


def _config(programs: Sequence[Program], *, socket: Path, logs: Path) -> str:
    lines = [
        "[supervisord]",
        f"logfile={logs / 'supervisor.log'}",
        "logfile_maxbytes=1MB",
        "logfile_backups=1",
        f"pidfile={logs.parent / 'run' / 'supervisor.pid'}",
        f"childlogdir={logs}",
        "[unix_http_server]",
        f"file={socket}",
        "chmod=0600",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for program in programs:
        lines += [
            f"[program:{program.name}]",
            "command=" + " ".join(_quoted(word) for word in program.command),
            "autostart=false",
            *(
                ["autorestart=true"]
                if program.final_status is None
                else ["autorestart=unexpected", f"exitcodes={program.final_status}"]
            ),
            "startsecs=1",
            "startretries=1000000",
            f"stopwaitsecs={program.stop_wait_s}",
            "stopasgroup=false",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={logs / program.name}.log",
            f"stdout_logfile_maxbytes={_LOG_BYTES}",
            f"stdout_logfile_backups={_LOG_BACKUPS}",
        ]
    # A percent sign is supervisor's own mark for a variable.
    return "\n".join(line.replace("%", "%%") for line in lines) + "\n"


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _endings(log: Path) -> dict[str, str]:
    """How each process last ended, from the newest part of supervisor's log: its RPC knows no signals, and forgets an
    exit status at the next start."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _ENDINGS_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return {}
    return dict(re.findall(r"(?:exited|stopped): (\S+) \(([^;)]+)", text))


def _of_session(session: int) -> list[int]:
    import psutil  # type: ignore[import-untyped,unused-ignore]  # only needed when the process manager has died

    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def _kill_group(pid: int) -> None:
    try:
        os.killpg(os.getpgid(pid), signal.SIGKILL)
    except ProcessLookupError:
        return
