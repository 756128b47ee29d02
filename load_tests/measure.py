"""One window of load on one candidate, and what is taken from it."""

import http.client
import json
import math
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.build import Programs
from load_tests.candidates import CALL, STREAM_CALL, Place, Target
from load_tests.processes import ChildFailed, child, core_times

DRAIN_S = 2
LEAVE_TRIALS = 9
CALM_SHARE = 0.01
"""Up to here a window counts as calm; a calmer one is not looked for."""
NEVER_MS = 500.0
"""A stream of the mock lasts 200 ms: after this long it has ended by itself."""


@dataclass(frozen=True)
class Phase:
    """One kind of load."""

    name: str
    connections: int
    stream: bool
    spread_s: float = 0.0
    """The callers begin over so long; begun together, they would go on arriving in waves."""
    longest_s: float = math.inf
    """No window of it is longer. A p99 shows nothing but the hypervisor where a hundredth of the time is stolen, and half a
    second in which nothing is stolen is found sooner than two."""

    def windows(self, seconds: float, tries: int) -> tuple[float, int]:
        """Length of a window in seconds, and how many there may be: of shorter ones as many more."""
        shorter = min(seconds, self.longest_s)
        return shorter, tries * math.ceil(seconds / shorter)


PHASES = (
    Phase("one", 1, stream=False, longest_s=0.5),
    Phase("eight", 8, stream=False),
    Phase("busy", 64, stream=False),
    Phase("streams", 8, stream=True, longest_s=0.5),
    Phase("many_streams", 128, stream=True, spread_s=0.2),
)


@dataclass(frozen=True)
class Window:
    """What was seen in one measured window."""

    candidate: str
    phase: str
    figures: Mapping[str, Any]
    """The load generator's own JSON."""
    cpu_s: float
    """CPU time of the candidate's process tree within the window."""
    other_share: float
    """Share of the proxy's core that others used meanwhile: a disturbed window shows here."""
    stolen_share: float
    """Share of the window in which the hypervisor kept the proxy's core or the client's, whichever it kept longer."""
    upstream_calls: int
    """Calls that reached the mock, warm-up and drain included."""

    @property
    def disturbance(self) -> float:
        """The larger of the two shares that were not the candidate's doing."""
        return max(self.other_share, self.stolen_share)


def run_window(
    programs: Programs, place: Place, target: Target, phase: Phase, *, warmup_s: float, seconds: float
) -> Window:
    """Load one candidate for `warmup_s` + `seconds`, then wait until it has worked off what it still had.

    Raises:
        ChildFailed: the candidate or the load generator ended by itself.
    """
    headers, body = place.folder / "headers", place.folder / "body"
    headers.write_text("".join(f"{name}: {value}\n" for name, value in target.headers.items()))
    body.write_text(json.dumps(STREAM_CALL if phase.stream else CALL, separators=(",", ":")))
    calls_before = upstream_calls(place)
    command: list[str | Path] = [programs.load, "--port", str(target.port)]
    command += ["--path", target.stream_path if phase.stream else target.path, "--headers", headers, "--body", body]
    command += ["--connections", str(phase.connections), "--warmup", str(warmup_s), "--seconds", str(seconds)]
    command += ["--spread", str(phase.spread_s), "--drain", str(DRAIN_S)]
    with child(command, core=place.cores.client, log=place.folder / "load.log", pipe=True) as load:
        assert load.process.stdout is not None
        _expect_line(load.process.stdout.readline(), "start", load.log)
        began, cpu_before = time.monotonic(), _cpu_s(target)
        proxy_before, client_before = core_times(place.cores.proxy), core_times(place.cores.client)
        _expect_line(load.process.stdout.readline(), "end", load.log)
        wall_s, cpu_s = time.monotonic() - began, _cpu_s(target) - cpu_before
        proxy, client = core_times(place.cores.proxy), core_times(place.cores.client)
        figures = json.loads(load.process.stdout.readline())
    if target.child:
        target.child.assert_alive()
        target.child.wait_until_idle()
    return Window(
        candidate=target.name,
        phase=phase.name,
        figures=figures,
        cpu_s=cpu_s,
        other_share=max(0.0, (proxy.busy - proxy_before.busy - cpu_s) / wall_s),
        stolen_share=max(proxy.stolen - proxy_before.stolen, client.stolen - client_before.stolen) / wall_s,
        upstream_calls=upstream_calls(place) - calls_before,
    )


def calmest(measured: Callable[[], Window], tries: int) -> tuple[Window, int]:
    """The first calm window, or the calmest of `tries`; and how many were set aside for it.

    What is looked at is what others took of the cores, never a figure of the candidate's.
    """
    windows = [measured()]
    while len(windows) < tries and windows[-1].disturbance > CALM_SHARE:
        windows.append(measured())
    return min(windows, key=lambda window: window.disturbance), len(windows) - 1


def problem_of(window: Window) -> str | None:
    """Why a window's figures must not be trusted, or None."""
    figures = window.figures
    errors = {name: count for name, count in figures["errors"].items() if count}
    where = f"{window.candidate}, {window.phase}"
    if figures["non_2xx_total"] or errors:
        return f"{where}: not every call was answered: {figures['statuses']} {errors or ''}".strip()
    if figures["ok_total"] > window.upstream_calls:
        return f"{where}: {figures['ok_total']} answers, but only {window.upstream_calls} calls reached the mock"
    return None


def upstream_calls(place: Place) -> int:
    stats = mock_stats(place)
    return int(stats["plain"]) + int(stats["streams"])


def mock_stats(place: Place) -> dict[str, int]:
    connection = http.client.HTTPConnection("127.0.0.1", place.mock_port, timeout=5)
    try:
        connection.request("GET", "/stats")
        stats: dict[str, int] = json.loads(connection.getresponse().read())
        return stats
    finally:
        connection.close()


def client_gone_ms(place: Place, target: Target) -> float:
    """How long after a client left its stream the mock saw its connection closed: median, ms.

    `NEVER_MS` when the stream went on to its end for nobody.
    """
    body = json.dumps(STREAM_CALL).encode()
    lines = [f"POST {target.stream_path} HTTP/1.1", f"Host: 127.0.0.1:{target.port}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in target.headers.items()] + [f"Content-Length: {len(body)}", "", ""]
    return statistics.median(_leave_ms(place, target, "\r\n".join(lines).encode() + body) for _ in range(LEAVE_TRIALS))


def _leave_ms(place: Place, target: Target, call: bytes) -> float:
    before = mock_stats(place)["streams_left"]
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as client:
        client.sendall(call)
        received = b""
        while received.count(b"T#") < 3 and (data := client.recv(65536)):
            received += data
        left_ns = time.monotonic_ns()
    deadline = time.monotonic() + NEVER_MS / 1000
    while time.monotonic() < deadline:
        if (stats := mock_stats(place))["streams_left"] > before:
            return (stats["last_left_ns"] - left_ns) / 1e6
        time.sleep(0.005)
    return NEVER_MS


def _cpu_s(target: Target) -> float:
    return target.child.cpu_s() if target.child else 0.0


def _expect_line(line: str, window: str, log: Path) -> None:
    if window not in line:
        raise ChildFailed(f"the load generator ended early: {log.read_text().strip()[-500:]}")
