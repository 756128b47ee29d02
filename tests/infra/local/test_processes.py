"""What supervisor restarts, and what it leaves ended."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.local.processes import Processes, Program, State

FINAL = 3
_LIVES_S = 1.2  # a process that ends within a second of its start is always tried again


def ending(folder: Path, how: str) -> list[str]:
    """A process that notes each of its starts and, each time, soon does `how`."""
    code = f"import os, signal, time; open({str(folder / 'starts')!r}, 'a').write('x'); time.sleep({_LIVES_S}); {how}"
    return [sys.executable, "-c", code]


def starts(folder: Path) -> int:
    noted = folder / "starts"
    return len(noted.read_text()) if noted.exists() else 0


def state_once(processes: Processes, holds: Callable[[State], bool]) -> State:
    deadline = time.monotonic() + 20
    while not holds(state := processes.states()[0]):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str, int | None], Processes]]:
    """Starts one program that ends as told, under supervisor."""
    entered: list[Processes] = []

    def start(how: str, final_status: int | None) -> Processes:
        program = Program("ends", ending(tmp_path, how), lambda: starts(tmp_path) > 0, final_status=final_status)
        processes = Processes([program], folder=tmp_path, environment=os.environ)
        entered.append(processes.__enter__())
        processes.start(program, timeout_s=20)
        return processes

    yield start
    for processes in entered:
        processes.stop(lambda _: None)
        processes.__exit__()


def test_a_process_that_ends_with_its_final_status_stays_ended(
    run: Callable[[str, int | None], Processes], tmp_path: Path
) -> None:
    processes = run(f"raise SystemExit({FINAL})", FINAL)

    state = state_once(processes, lambda state: state.final)

    assert (state.running, state.exit) == (False, f"exit status {FINAL}")
    time.sleep(1.5)
    assert starts(tmp_path) == 1


@pytest.mark.parametrize(
    ("how", "final_status"),
    [
        pytest.param("raise SystemExit(1)", FINAL, id="a failure"),
        pytest.param("raise SystemExit(0)", FINAL, id="an end without a failure"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", FINAL, id="killed"),
        pytest.param(f"raise SystemExit({FINAL})", None, id="that status, where it is nothing special"),
    ],
)
def test_a_process_that_ends_in_another_way_is_restarted(
    run: Callable[[str, int | None], Processes], tmp_path: Path, how: str, final_status: int | None
) -> None:
    processes = run(how, final_status)
    first = processes.states()[0].pid

    again = state_once(processes, lambda state: state.running and state.pid != first)

    assert not again.final
    assert starts(tmp_path) >= 2
