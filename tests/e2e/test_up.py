"""How `heliograph up` refuses to start, and how it stops."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from infra.local.ports import pick_free
from tests.e2e.house import House, up
from tests.servers import REPOSITORY


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with up(tmp_path_factory.mktemp("up"), pick_free(), providers=["openai"]) as house:
        yield house


def refused(environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """`heliograph up` where it must not start."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "up"], env=dict(environment), cwd=REPOSITORY, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr
    return done


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_second_start_on_the_same_folder_says_who_holds_it_and_disturbs_nothing(running: House) -> None:
    before = running.pids()

    done = refused(running.environment)

    assert f"{running.data} is in use by pid {running.process.pid} since" in one_line(done.stderr)
    assert running.pids() == before
    assert httpx.get(running.edge + "/readyz").status_code == 200


@pytest.mark.parametrize("name", ["EDGE_PORT", "CONTROL_PORT", "METRICS_PORT"])
def test_a_taken_port_is_named_with_its_setting_and_its_holder(running: House, tmp_path: Path, name: str) -> None:
    others = {other: str(pick_free()) for other in ("EDGE_PORT", "CONTROL_PORT", "METRICS_PORT")}
    taken = running.environment[name]

    done = refused({**running.environment, **others, name: taken, "HELIOGRAPH_DATA_DIR": str(tmp_path / "data")})

    assert re.search(rf"port {taken} \({name}\) is taken by \S+.* \(pid \d+", one_line(done.stderr)), done.stderr


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        pytest.param("EDGE_PROT", "EDGE_PORT", id="a mistyped setting"),
        pytest.param("HELIOGRAPH_SPOOL__LINGR_MS", "HELIOGRAPH_SPOOL__LINGER_MS", id="a mistyped setting of a group"),
        pytest.param("EDGE_UPSTERAM__CLIENT", "EDGE_UPSTREAM__CLIENT", id="a mistyped group"),
        pytest.param("WORKER_PROCESES", "WORKER_PROCESSES", id="a setting of another process"),
        pytest.param("PLANNER_LINGERMS", "PLANNER_LINGER_MS", id="a setting of the planner"),
    ],
)
def test_an_unknown_setting_stops_the_start_with_the_nearest_right_name(
    running: House, tmp_path: Path, wrong: str, right: str
) -> None:
    ports = {name: str(pick_free()) for name in ("EDGE_PORT", "CONTROL_PORT", "METRICS_PORT")}
    folder = tmp_path / "data"

    done = refused({**running.environment, **ports, "HELIOGRAPH_DATA_DIR": str(folder), wrong: "1"})

    assert wrong in done.stderr
    assert right in done.stderr
    assert not (folder / "run").exists(), "something was started"


def test_ctrl_c_stops_everything_last_started_first_and_leaves_no_process(running: House) -> None:
    processes = [psutil.Process(pid) for pids in running.pids().values() for pid in pids]
    started = re.findall(r"✓ (\w+)", running.output)

    running.stop()

    assert running.process.returncode == 0
    assert re.findall(r"stopped (\w+)", running.output) == started[::-1]
    assert len(started) == 7
    assert "nothing is lost" in running.output
    assert not [process for process in processes if process.is_running()]
