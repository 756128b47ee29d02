"""`heliograph tail` reads with the key and from the control that its variables name."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app


class Control(HTTPServer):
    """Answers with no rows, and keeps the Authorization that each call came with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.authorizations: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Control)
        self.server.authorizations.append(self.headers["Authorization"])
        body = b'{"requests": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def control() -> Iterator[Control]:
    with Control() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A data folder with nothing beside it; what a .env file puts into the environment goes with the test."""
    before = dict(os.environ)
    monkeypatch.setenv("HELIOGRAPH_DATA_DIR", str(tmp_path / "data"))
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def tail(**variables: str) -> None:
    done = CliRunner().invoke(app, ["tail", "--no-follow"], env=variables)
    assert done.exit_code == 0, done.output


def test_the_key_and_the_address_may_be_variables(control: Control) -> None:
    tail(HELIOGRAPH_KEY="sk-helio-1", HELIOGRAPH_CONTROL_URL=control.url)

    assert control.authorizations == ["Bearer sk-helio-1"]


def test_the_key_and_the_address_may_stand_in_the_env_file(control: Control, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"HELIOGRAPH_KEY=sk-helio-2\nHELIOGRAPH_CONTROL_URL={control.url}\n")

    tail()

    assert control.authorizations == ["Bearer sk-helio-2"]
