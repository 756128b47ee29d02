"""Steady load beside something else that happens: started, left alone, ended when the other thing is over."""

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.build import Programs
from load_tests.candidates import CALL, PROVIDER_KEY, STREAM_CALL
from load_tests.freshness import read_answers
from load_tests.processes import ChildFailed, child

SECONDS_MAX = 3600
DRAIN_S = 10
HEADERS = {
    "Authorization": f"Bearer {PROVIDER_KEY}",
    "Helicone-User-Id": "user-4711",
    "Helicone-Session-Id": "session-4711",
    "Helicone-Session-Name": "chaos",
    "Helicone-Property-Environment": "production",
    "Helicone-Property-Feature": "assistant",
}


@dataclass(frozen=True)
class Outcome:
    answered: Mapping[str, float]
    """By id of each call answered with 2xx: when its answer ended, Unix time."""
    due: int
    figures: Mapping[str, Any]

    @property
    def failed(self) -> int:
        """Calls that were due and not answered with 2xx."""
        return self.due - int(self.figures["ok_total"])


class Load:
    """A running load generator."""

    def __init__(self, process: "subprocess.Popen[str]", ids: Path, log: Path) -> None:
        self._process = process
        self._ids = ids
        self._log = log

    def assert_alive(self) -> None:
        if self._process.poll() is not None:
            raise ChildFailed(f"the load generator ended early: {self._log.read_text().strip()[-500:]}")

    def end(self) -> Outcome:
        """No more calls; those under way are waited for."""
        self.assert_alive()
        self._process.send_signal(signal.SIGINT)
        assert self._process.stdout is not None
        figures = json.loads(self._process.stdout.readlines()[-1])
        answered = read_answers(self._ids.read_text()) if self._ids.exists() else {}
        if len(answered) != figures["ok_total"] and not figures.get("chunk_latency_us"):
            raise ChildFailed(f"{figures['ok_total']} answers, but {len(answered)} ids: one came without, or twice")
        return Outcome(answered, int(figures["due"] or figures["sent"]), figures)


@contextmanager
def load(
    programs: Programs,
    folder: Path,
    port: int,
    *,
    core: int,
    rate: float = 0,
    connections: int = 64,
    stream: bool = False,
    headers: Mapping[str, str] = HEADERS,
) -> Iterator[Load]:
    """Call an edge until told to end: `rate` calls a second, or with 0 as fast as `connections` callers can.

    Args:
        folder: for this load's files, its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "headers").write_text("".join(f"{name}: {value}\n" for name, value in headers.items()))
    (folder / "body").write_text(json.dumps(STREAM_CALL if stream else CALL, separators=(",", ":")))
    command: list[str | Path] = [programs.load, "--port", str(port), "--path", "/v1/chat/completions"]
    command += ["--headers", folder / "headers", "--body", folder / "body", "--connections", str(connections)]
    command += ["--rate", str(rate), "--seconds", str(SECONDS_MAX), "--drain", str(DRAIN_S)]
    command += ["--ids", folder / "ids", "--ids-with-time"]
    with child(command, core=core, log=folder / "load.log", pipe=True) as running:
        yield Load(running.process, folder / "ids", folder / "load.log")
