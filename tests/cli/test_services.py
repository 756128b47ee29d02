"""How single services and the commands beside them end when something is wrong."""

import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner, Result

from cli import up
from cli.main import app
from cli.services import FENCED_STATUS
from infra.local.processes import State
from ingest.log import LogError
from ingest.shipper import Fenced, Shipper, ship_all
from ingest.spool_plan import spool_owner
from schemas.settings import (
    ControlSettings,
    EdgeSettings,
    KafkaSettings,
    MetricsSettings,
    SharedSettings,
    ShipperSettings,
)

KAFKA = {
    "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "HELIOGRAPH_KAFKA__SECURITY_PROTOCOL": "SSL",
    "HELIOGRAPH_KAFKA__TLS__CA_FILE": "/nowhere/ca.pem",
}


@pytest.fixture
def handlers() -> Iterator[None]:
    """What a service sets up for its process goes with the test: signals and the log."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    root.handlers[:] = before
    root.setLevel(level)


def run(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(app, [*words], env=variables)


def test_resume_names_the_kafka_setting_that_is_wrong(offline: Path) -> None:
    done = run("plan", "resume", **KAFKA)

    assert done.exit_code == 2
    assert "HELIOGRAPH_KAFKA__TLS__CA_FILE = '/nowhere/ca.pem'" in done.stderr


def test_a_second_planner_says_that_there_is_one(offline: Path, handlers: None) -> None:
    with spool_owner(offline / "spool"):
        done = run("plan")

    assert done.exit_code == 1
    assert "another planner" in done.stderr
    assert "Traceback" not in done.output


def test_resume_shows_an_error_as_it_is_though_it_looks_like_markup(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resume(_: object) -> list[str]:
        raise LogError("no [bold] broker [/] answers")

    monkeypatch.setattr("ingest.planner.resume", resume)

    done = run("plan", "resume")

    assert done.exit_code == 1
    assert "no [bold] broker [/] answers" in done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(Fenced("another shipper has claimed the spool"), FENCED_STATUS, id="fenced"),
        pytest.param(LogError("another shipper already ships"), 1, id="another trouble"),
    ],
)
def test_a_shipper_that_was_fenced_ends_with_the_status_that_is_not_restarted(
    offline: Path, handlers: None, monkeypatch: pytest.MonkeyPatch, error: LogError, status: int
) -> None:
    def ship_all(*_: object) -> None:
        raise error

    monkeypatch.setattr("ingest.shipper.ship_all", ship_all)

    assert run("ship", HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1").exit_code == status


def test_up_restarts_a_shipper_unless_it_was_fenced(offline: Path) -> None:
    kafka = SharedSettings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    programs = up._programs(kafka, EdgeSettings(), ControlSettings(), MetricsSettings(), ShipperSettings(), set())

    final = {program.name: program.final_status for program in programs}

    assert final.pop("ship") == FENCED_STATUS
    assert set(final.values()) == {None}


def test_up_says_of_a_process_that_has_ended_for_good_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    runs = State("ship", running=True, pid=7, started_at=1.0, exit="")
    ended = runs._replace(running=False, pid=0, exit="exit status 3", final=True)
    down: set[str] = set()

    up._report(runs, ended, down, Path("logs/ship.log"))
    up._report(ended, ended, down, Path("logs/ship.log"))

    told = capsys.readouterr().err
    assert told.count("ended for good (exit status 3)") == 1
    assert "logs/ship.log" in told
    assert "restarted" not in told


def test_a_fenced_shipper_is_told_of_though_another_failed_before_it(tmp_path: Path) -> None:
    for name in ("edge-0", "edge-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "id").write_text(name)

    with pytest.raises(Fenced):
        ship_all(tmp_path, lambda folder: cast(Shipper, Failing(folder)), threading.Event())


class Failing:
    """A shipper of which the one of `edge-1` is fenced, and any other fails when it is stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stopped = threading.Event()

    def run(self) -> None:
        if self.folder.name == "edge-1":
            raise Fenced("another shipper has claimed the spool")
        self._stopped.wait(10)
        raise LogError("broke off")

    def stop(self) -> None:
        self._stopped.set()
