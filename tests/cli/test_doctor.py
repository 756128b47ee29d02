"""What `heliograph doctor` says of a service that is not ready: what is wrong, and what to do about it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from cli.doctor import Finding, _running, _service, _show
from control.models import Part, Ready
from edge.app import _ready
from schemas.settings import EdgeSettings


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A service that says this to everybody; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/readyz"
        finally:
            server.shutdown()
            thread.join()


def asked(status: int, body: bytes) -> Finding:
    with answering(status, body) as url:
        return _service(url, "heliograph x")


def test_of_control_each_failing_part_is_named_with_its_problem_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    page = Ready(
        ready=False,
        parts={
            "clickhouse": Part(ok=False, problem="its tables are missing", remedy="run `heliograph migrate`"),
            "redis": Part(ok=True, problem=None, remedy=None),
            "database": Part(ok=False, problem="no answer within [2] s", remedy="see HELIOGRAPH_DATABASE_URL"),
        },
    )

    finding = asked(503, page.model_dump_json().encode())
    _show("control", finding)

    assert finding.saw.endswith("answers 503")
    shown = capsys.readouterr().out
    assert [line.partition("→ ")[2] for line in shown.splitlines() if "→" in line] == [
        "clickhouse: its tables are missing; run `heliograph migrate`",
        "database: no answer within [2] s; see HELIOGRAPH_DATABASE_URL",
    ]


def test_of_the_edge_each_problem_is_named() -> None:
    spool: Any = SimpleNamespace(level="full", failing=False)
    snapshots: Any = SimpleNamespace(keys=None)
    status, page = _ready(spool, snapshots, EdgeSettings(auth="required"))

    keys, full = asked(status, page).remedy.splitlines()

    assert keys.startswith("keys: no key snapshot yet")
    assert full.startswith("spool: the spool is full")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(b"Bad Gateway", "Bad Gateway", id="another's text"),
        pytest.param(b"[1]", "[1]", id="JSON of another shape"),
        pytest.param(b"", "see the log of: heliograph x", id="nothing"),
    ],
)
def test_an_answer_in_no_form_of_ours_is_shown_as_it_is(body: bytes, told: str) -> None:
    assert asked(502, body).remedy == told


def test_a_service_that_answers_well_needs_no_remedy() -> None:
    assert asked(200, b"{}").remedy == ""


def test_what_runs_is_what_counts_itself_on_the_metrics_page() -> None:
    page = b"# TYPE heliograph_planners gauge\nheliograph_planners 1.0\nheliograph_worker_processes 0.0\n"
    with answering(200, page) as url:
        assert _running(url, "heliograph_planners", "heliograph plan") == Finding("1 runs")
        none = _running(url, "heliograph_worker_processes", "heliograph worker")
    assert none.saw == "none runs here"
    assert none.remedy.endswith("this alone: heliograph worker")
