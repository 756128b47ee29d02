"""Children of the benchmark: started each in a session of its own, pinned to a core, and always ended.

A child's session is its process tree: whatever it starts belongs to it, is counted with it and ends with it.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_TIMEOUT_S = 5
LOG_TAIL_CHARS = 600


class ChildFailed(Exception):
    """A child ended by itself or never became ready. The message holds the end of its log."""


@dataclass(frozen=True)
class Cores:
    """Client, mock and everything a proxy only talks to on one core; the measured proxy alone on the other."""

    client: int
    proxy: int


def two_cores() -> Cores:
    """The first two cores this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise ChildFailed("the benchmark needs two cores: one for client and mock, one for the proxy")
    return Cores(client=allowed[0], proxy=allowed[1])


@dataclass(frozen=True)
class Stat:
    """What one `/proc/PID/stat` says."""

    session: int
    state: str
    cpu_ticks: int
    rss_pages: int


def parse_stat(text: str) -> Stat:
    # The program's name stands in brackets and may itself hold brackets and spaces.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(
        session=int(fields[3]),
        state=fields[0],
        cpu_ticks=int(fields[11]) + int(fields[12]),
        rss_pages=int(fields[21]),
    )


def session_stats(session: int) -> dict[int, Stat]:
    """The living processes of a session, by pid."""
    stats = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = parse_stat(Path("/proc", entry, "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended between the listing and the reading
            if stat.session == session and stat.state not in "ZX":
                stats[int(entry)] = stat
    return stats


class CoreTimes(NamedTuple):
    """A core's time since boot, s."""

    busy: float
    """Of everything that ran there, interrupts included."""
    stolen: float
    """In which something was to run and the hypervisor ran another machine."""


def core_times(core: int) -> CoreTimes:
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, values[:8])
            return CoreTimes((user + nice + system + irq + softirq) / TICKS_PER_S, steal / TICKS_PER_S)
    raise LookupError(f"/proc/stat has no cpu{core}")


class Child:
    """A process of ours with its tree."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_s(self) -> float:
        return sum(stat.cpu_ticks for stat in session_stats(self.pid).values()) / TICKS_PER_S

    def rss_mb(self) -> float:
        return sum(stat.rss_pages for stat in session_stats(self.pid).values()) * PAGE_BYTES / 1e6

    def has_ended(self) -> bool:
        # WNOWAIT leaves the zombie in place, so that its number stays ours until the whole group has been ended.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def assert_alive(self) -> None:
        """Raises ChildFailed, with the end of the log, when the process has ended."""
        if self.has_ended():
            raise ChildFailed(f"ended by itself: {self.log_tail()}")

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip() or "(nothing logged)"

    def wait_until_idle(self, *, timeout_s: float = 10) -> None:
        """Wait until the tree uses hardly any CPU, so that one window's left-over work is not the next one's."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            before = self.cpu_s()
            time.sleep(0.2)
            if self.cpu_s() - before <= 0.02:
                return

    def stop(self) -> None:
        """End the whole tree: ask, wait, then insist. An impatient second Ctrl-C goes straight to insisting."""
        try:
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while not self.has_ended() and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            self._signal(signal.SIGKILL)
            for pid in session_stats(self.pid):  # of the session, but in a process group of its own
                _kill(pid, signal.SIGKILL)
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextmanager
def child(
    command: Sequence[str | Path],
    *,
    core: int,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pipe: bool = False,
) -> Iterator[Child]:
    """Run a command on one core until the block ends. With `pipe`, its output is read by the caller, else logged."""
    with log.open("w") as out:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else out,
            stderr=out,
            env=env,
            cwd=cwd,
            text=True,
            start_new_session=True,
        )
    running = Child(process, log)
    try:
        yield running
    finally:
        running.stop()


def assert_free(port: int) -> None:
    """Raises ChildFailed when something listens on that loopback port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ChildFailed(f"port {port} is taken; choose others with --port-base") from error


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
