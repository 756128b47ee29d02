"""Children are found by their session, counted whole, and ended whole."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from load_tests.processes import ChildFailed, child, parse_stat, session_stats

STAT = (
    "4711 (a) name (x) S 1 4711 4700 0 -1 4194560 2212 0 0 0 150 50 0 0 20 0 3 0 91265 412639232 5000 "
    "18446744073709551615 1 1 0 0 0 0 0 4096 81 0 0 0 17 1 0 0 0 0 0"
)
CORE = min(os.sched_getaffinity(0))


def test_a_program_name_with_brackets_and_spaces_does_not_shift_the_fields() -> None:
    stat = parse_stat(STAT)

    assert (stat.session, stat.state, stat.cpu_ticks, stat.rss_pages) == (4700, "S", 200, 5000)


def test_what_a_child_starts_belongs_to_it_and_ends_with_it_even_in_a_group_of_its_own(tmp_path: Path) -> None:
    grandchild = "import os, time; os.setpgid(0, 0); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"

    with child([sys.executable, "-c", parent], core=CORE, log=tmp_path / "log") as process:
        session = process.pid
        deadline = time.monotonic() + 10
        while len(session_stats(session)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(session_stats(session)) == 2
        assert process.rss_mb() > 1

    assert session_stats(session) == {}


def test_a_child_that_ignores_being_asked_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("load_tests.processes.STOP_TIMEOUT_S", 0.2)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )

    with child([sys.executable, "-c", stubborn], core=CORE, log=tmp_path / "log", pipe=True) as process:
        assert process.process.stdout is not None
        process.process.stdout.readline()

    assert process.process.returncode == -signal.SIGKILL


def test_a_child_that_ended_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    failing = "import sys; sys.exit('the port is taken')"

    with child([sys.executable, "-c", failing], core=CORE, log=tmp_path / "log") as process:
        deadline = time.monotonic() + 10
        while not process.has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(ChildFailed, match="the port is taken"):
            process.assert_alive()
