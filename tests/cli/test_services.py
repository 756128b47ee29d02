"""How single services and the commands beside them end when something is wrong."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from ingest.log import LogError

KAFKA = {
    "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "HELIOGRAPH_KAFKA__SECURITY_PROTOCOL": "SSL",
    "HELIOGRAPH_KAFKA__TLS__CA_FILE": "/nowhere/ca.pem",
}


def run(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(app, [*words], env=variables)


def test_resume_names_the_kafka_setting_that_is_wrong(offline: Path) -> None:
    done = run("plan", "resume", **KAFKA)

    assert done.exit_code == 2
    assert "HELIOGRAPH_KAFKA__TLS__CA_FILE = '/nowhere/ca.pem'" in done.stderr


def test_resume_shows_an_error_as_it_is_though_it_looks_like_markup(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resume(_: object) -> list[str]:
        raise LogError("no [bold] broker [/] answers")

    monkeypatch.setattr("ingest.planner.resume", resume)

    done = run("plan", "resume")

    assert done.exit_code == 1
    assert "no [bold] broker [/] answers" in done.stderr
