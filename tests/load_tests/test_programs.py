"""The two C programs against each other: every call is answered once, and what goes wrong is counted, not hidden."""

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from load_tests.build import Programs, programs
from load_tests.candidates import CALL, STREAM_CALL
from load_tests.processes import child

CORE = min(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def made() -> Programs:
    return programs()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def mock(made: Programs, port: int, tmp_path: Path) -> Iterator[int]:
    command: list[str | Path] = [made.mock, "--port", str(port), "--chunks", "5", "--interval-us", "1000"]
    with child(command, core=CORE, log=tmp_path / "mock.log") as process:
        while True:
            process.assert_alive()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield port


def post(port: int, path: str, body: Any, **how: Any) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("POST", path, body, {"Content-Type": "application/json"}, **how)
        answer = connection.getresponse()
        return answer, answer.read()


def load(made: Programs, port: int, folder: Path, body: Any, *more: str) -> dict[str, Any]:
    (folder / "body").write_text(json.dumps(body, separators=(",", ":")))
    command: list[str | Path] = [
        made.load,
        "--port",
        str(port),
        "--path",
        "/v1/chat/completions",
        "--body",
        folder / "body",
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=20, check=True)
    *windows, figures = map(json.loads, done.stdout.splitlines())
    assert windows == [{"window": "start"}, {"window": "end"}]
    assert isinstance(figures, dict)
    return figures


def test_plain_answers_are_json_with_usage_in_both_shapes(mock: int) -> None:
    _, openai = post(mock, "/v1/chat/completions", json.dumps(CALL))
    _, anthropic = post(mock, "/v1/messages", json.dumps(CALL))

    assert json.loads(openai)["usage"]["prompt_tokens"] == 212
    assert json.loads(anthropic)["usage"]["input_tokens"] == 212


def test_a_chunked_request_is_read_whole(mock: int) -> None:
    pieces = iter([json.dumps(STREAM_CALL)[:100].encode(), json.dumps(STREAM_CALL)[100:].encode()])

    answer, body = post(mock, "/v1/chat/completions", pieces, encode_chunked=True)

    assert answer.getheader("content-type", "").startswith("text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")


def test_every_event_of_a_stream_is_json_and_usage_comes_last(mock: int) -> None:
    _, body = post(mock, "/v1/chat/completions", json.dumps(STREAM_CALL))

    events = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line and line != "data: [DONE]"]
    assert sum("T#" in json.dumps(event) for event in events) == 5
    assert events[-1]["usage"]["completion_tokens"] == 92


def test_an_anthropic_stream_ends_with_its_usage_and_message_stop(mock: int) -> None:
    _, body = post(mock, "/v1/messages", json.dumps({"stream": True}))

    names = [line[7:] for line in body.decode().splitlines() if line.startswith("event: ")]
    assert names[0] == "message_start"
    assert names.count("content_block_delta") == 5
    assert names[-2:] == ["message_delta", "message_stop"]


def test_the_closed_loop_counts_every_answer_of_the_mock_once(made: Programs, mock: int, tmp_path: Path) -> None:
    figures = load(made, mock, tmp_path, CALL, "--connections", "4", "--seconds", "0.2")

    with closing(http.client.HTTPConnection("127.0.0.1", mock, timeout=5)) as connection:
        connection.request("GET", "/stats")
        assert figures["ok_total"] == json.loads(connection.getresponse().read())["plain"] > 0
    assert figures["non_2xx_total"] == 0


def test_streams_are_counted_whole_with_every_chunk_timed(made: Programs, mock: int, tmp_path: Path) -> None:
    figures = load(made, mock, tmp_path, STREAM_CALL, "--connections", "4", "--seconds", "0.3")

    assert figures["errors"]["cut"] == 0
    assert figures["chunk_latency_us"]["n"] >= 5 * figures["ok"] > 0


def test_callers_that_are_spread_begin_one_by_one(made: Programs, mock: int, tmp_path: Path) -> None:
    figures = load(made, mock, tmp_path, CALL, "--connections", "4", "--spread", "40", "--seconds", "0.2")

    assert figures["connects"] == 1


def test_the_open_loop_makes_the_calls_that_are_due_and_no_more(made: Programs, mock: int, tmp_path: Path) -> None:
    figures = load(made, mock, tmp_path, CALL, "--connections", "8", "--rate", "200", "--seconds", "0.5")

    assert figures["due"] == figures["ok_total"] == 100


def test_calls_that_find_nobody_are_counted_and_none_is_called_answered(
    made: Programs, port: int, tmp_path: Path
) -> None:
    ids = tmp_path / "ids"

    figures = load(made, port, tmp_path, CALL, "--rate", "200", "--seconds", "0.2", "--ids", str(ids))

    assert figures["ok_total"] == 0
    assert figures["errors"]["unsent"] == figures["due"] == 40
    assert ids.read_text() == ""


@pytest.mark.parametrize(
    ("answer", "figure"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "reset", id="shorter than it says"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            b"9\r\ndata: {}\n\r\n0\r\n\r\n",
            "cut",
            id="a stream without its end",
        ),
    ],
)
def test_a_broken_answer_is_an_error(made: Programs, tmp_path: Path, answer: bytes, figure: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "body").write_text("{}")
        command: list[str | Path] = [
            made.load,
            "--port",
            str(server.getsockname()[1]),
            "--body",
            tmp_path / "body",
            "--seconds",
            "0.3",
        ]
        with subprocess.Popen([*command, "--drain", "0"], stdout=subprocess.PIPE, text=True) as process:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)
            out, _ = process.communicate(timeout=10)

    assert json.loads(out.splitlines()[-1])["errors"][figure] == 1


def test_ids_of_answered_calls_are_written_one_a_line(made: Programs, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "body").write_text("{}")
        command: list[str | Path] = [
            made.load,
            "--port",
            str(server.getsockname()[1]),
            "--body",
            tmp_path / "body",
            "--seconds",
            "0.3",
        ]
        with subprocess.Popen([*command, "--ids", ids], stdout=subprocess.DEVNULL) as process:
            client, _ = server.accept()
            with client:
                for status, id_ in (("200 OK", "id-1"), ("500 No", "id-2"), ("200 OK", "id-3")):
                    client.recv(65536)
                    client.sendall(f"HTTP/1.1 {status}\r\nHelicone-Id: {id_}\r\ncontent-length: 0\r\n\r\n".encode())
            process.wait(timeout=10)

    assert ids.read_text().split() == ["id-1", "id-3"]
