"""`heliograph tail` reads with the key and from the control that its variables name."""

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


def tail(**variables: str) -> None:
    done = CliRunner().invoke(app, ["tail", "--no-follow"], env=variables)
    assert done.exit_code == 0, done.output


def test_the_key_and_the_address_may_be_variables(control: Control, offline: Path) -> None:
    tail(HELIOGRAPH_KEY="sk-helio-1", HELIOGRAPH_CONTROL_URL=control.url)

    assert control.authorizations == ["Bearer sk-helio-1"]


def test_the_key_and_the_address_may_stand_in_the_env_file(control: Control, offline: Path) -> None:
    (offline.parent / ".env").write_text(f"HELIOGRAPH_KEY=sk-helio-2\nHELIOGRAPH_CONTROL_URL={control.url}\n")

    tail()

    assert control.authorizations == ["Bearer sk-helio-2"]
