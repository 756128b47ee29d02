"""What a careless or hostile client, or a provider that breaks off, cannot do to others, to the record or to the memory."""

import asyncio
import gzip
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable

import psutil
import pytest

from edge.errors import InvalidKey
from edge.headers import read_headers
from edge.policies.auth import Auth
from edge.policies.snapshots import KeySnapshots
from edge.sockets import has_left
from schemas.settings import BoundSettings
from tests.edge.conftest import Edge, Provider, http
from tests.edge.upstream.calls import until

ANSWER = b'{"ok": true}'
CALL = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
MIB = 1 << 20


async def raw(edge: Edge, data: bytes, *, timeout_s: float = 1) -> bytes:
    return await asyncio.to_thread(edge.raw, data, timeout_s=timeout_s)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def rss(edge: Edge) -> int:
    return int(psutil.Process(edge.pid).memory_info().rss)


async def flood(edge: Edge, data: bytes, *, seconds: float) -> int:
    """Send `data` over and over and read nothing; gives how many bytes went out."""
    sent, end = 0, time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", edge.port)) as client:
        client.setblocking(False)
        while time.monotonic() < end:
            try:
                sent += client.send(data)
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except ConnectionError:
                break
    return sent


# A stop.


async def test_a_stop_takes_the_rest_of_an_upload(edge_with: Callable[..., Edge], provider: Provider) -> None:
    edge = edge_with()
    provider.answers(http(ANSWER))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(CALL[:-1])
    await asyncio.sleep(0.2)
    os.kill(edge.pid, signal.SIGTERM)
    await asyncio.sleep(0.2)
    writer.write(CALL[-1:])
    assert (await reader.read()).endswith(ANSWER)
    writer.close()
    assert edge.event().outcome == "success"


async def test_a_stop_puts_calls_on_record_that_wait_for_their_client(
    edge_with: Callable[..., Edge], provider: Provider
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await provider.read(reader)
        writer.write(STREAM + b"\r\n")
        while True:
            writer.write(b"data: " + b"x" * 65536 + b"\n\n")
            await writer.drain()

    provider.script = script
    edge = edge_with(EDGE_STOP_TIMEOUT_S="1", EDGE_BOUNDS__BODY_TIMEOUT_S="60", EDGE_UPSTREAM__IDLE_TIMEOUT_S="60")
    _, slow = await asyncio.open_connection("127.0.0.1", edge.port, limit=1024)
    slow.transport.pause_reading()  # type: ignore[attr-defined]
    slow.write(CALL)
    _, stalled = await asyncio.open_connection("127.0.0.1", edge.port)
    stalled.write(CALL[:-1])
    await asyncio.sleep(0.5)

    os.kill(edge.pid, signal.SIGTERM)

    events = await asyncio.to_thread(edge.events, 2, timeout_s=10)
    assert sorted(event.outcome for event in events) == ["error", "error"]
    assert {event.error_code for event in events} <= {"stopped", "upstream_cut"}
    assert "client_gone" not in {attempt.reason for event in events for attempt in event.attempts}
    for writer in (slow, stalled):
        writer.close()


# Calls sent ahead.


@pytest.mark.parametrize("one", [b"GET /abcdefghijklmnopqrst HTTP/1.1\r\nHost: x\r\n\r\n", HEALTH])
async def test_thousands_of_calls_sent_at_once_hold_up_nobody_else(edge_with: Callable[..., Edge], one: bytes) -> None:
    edge = edge_with()
    with socket.create_connection(("127.0.0.1", edge.port)) as client:
        client.sendall(one * 5000)
        started = time.monotonic()
        assert (await raw(edge, HEALTH, timeout_s=0.3)).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - started < 1


async def test_calls_sent_ahead_of_a_slow_provider_do_not_pile_up(
    edge_with: Callable[..., Edge], provider: Provider
) -> None:
    edge = edge_with()
    provider.answers(0.3, http(ANSWER), keep=True)
    before = rss(edge)
    sent = await flood(edge, CALL * 50, seconds=3)
    assert sent < 16 * MIB
    assert rss(edge) - before < 16 * MIB


# Heads and trailers.


async def test_trailers_have_a_bound(edge: Edge, provider: Provider) -> None:
    before = rss(edge)
    head = CALL.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked").removesuffix(b"{}")
    with socket.create_connection(("127.0.0.1", edge.port)) as client:
        client.sendall(head + b"2\r\n{}\r\n0\r\n")
        client.settimeout(2)
        try:
            for _ in range(2000):
                client.sendall(b"a:b\r\n" * 2000)
            answer = b""
        except OSError:
            answer = b"closed"
    assert answer == b"closed"
    assert rss(edge) - before < 16 * MIB
    assert edge.event().error_code == "headers_too_large"


async def test_a_head_without_end_has_a_bound_behind_a_call_under_way_too(
    edge_with: Callable[..., Edge], provider: Provider
) -> None:
    edge = edge_with(EDGE_UPSTREAM__FIRST_BYTE_TIMEOUT_S="60")
    provider.answers(5.0, http(ANSWER))
    before = rss(edge)
    with socket.create_connection(("127.0.0.1", edge.port)) as client:
        client.sendall(CALL + b"GET / HTTP/1.1\r\n")
        client.setblocking(False)
        sent, end = 0, time.monotonic() + 2
        while time.monotonic() < end:
            try:
                sent += client.send(b"a:b\r\n" * 2000)
            except BlockingIOError:
                await asyncio.sleep(0.01)
        assert rss(edge) - before < 16 * MIB


async def test_heads_and_bodies_sent_apart_add_up_to_nothing(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER), keep=True)
    head = CALL.replace(b"Host: x", b"Host: x\r\nX-Long: " + b"x" * 2000)
    chunked = CALL.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2]
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    known = (head[:-2], b"{}")
    empty = (chunked, b"0;beside=" + b"x" * 2000 + b"\r\n", b"\r\n")
    for parts in [known] * 50 + [empty] * 50:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.002)
        assert (await reader.readuntil(ANSWER)).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    edge.events(100)


@pytest.mark.parametrize(
    ("name", "value"), [("Helicone-Prompt-Variables", "[" * 5000), ("Helicone-Retry-Num", "9" * 5000)]
)
def test_a_value_that_no_parser_survives_is_a_bad_header(name: str, value: str) -> None:
    said = read_headers([(name.encode(), value.encode())], BoundSettings())
    assert said.problem is not None
    assert said.problem.code == "bad_header"


def test_a_head_of_many_credentials_is_read_in_no_time() -> None:
    headers = [(b"api-key", b"sk-helio-")] * 9000
    started = time.process_time()
    said = read_headers(headers, BoundSettings())
    assert time.process_time() - started < 0.2
    assert said.problem is not None
    assert said.forward == []


def test_names_in_all_connection_headers_stay_here() -> None:
    said = read_headers(
        [(b"Connection", b"X-Foo"), (b"X-Foo", b"1"), (b"Connection", b"close"), (b"X-Bar", b"2")], BoundSettings()
    )
    assert said.forward == [(b"X-Bar", b"2")]


async def test_headers_of_the_providers_hop_are_not_passed_back(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER, b"application/json", b"200 OK", b"Connection: X-Hop", b"X-Hop: 1", b"X-End: 2"))
    answer = (await raw(edge, CALL)).lower()
    assert b"x-end: 2" in answer
    assert b"x-hop" not in answer
    edge.event()


async def test_a_coding_beside_chunked_is_refused(edge: Edge, provider: Provider) -> None:
    head = CALL.replace(b"Content-Length: 2", b"Transfer-Encoding: gzip, chunked").removesuffix(b"{}")
    answer = await raw(edge, head + b"2\r\n{}\r\n0\r\n\r\n")
    assert b'"code":"bad_framing"' in answer
    assert answer.endswith(b"<closed>")
    assert provider.requests == []
    edge.event()


# Keys and other secrets.


def test_a_key_longer_than_any_is_unknown_and_not_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshots = KeySnapshots("redis://127.0.0.1:1", tmp_path_factory.mktemp("keys") / "keys.json", poll_s=1)
    snapshots.keys = {}
    auth = Auth(snapshots, required=True)
    with pytest.raises(InvalidKey):
        auth.check("sk-helio-" + "x" * 100_000)
    assert auth._hashes == {}


@pytest.mark.parametrize("hosts", [b"", b"Host: groq.x\r\nHost: anthropic.x\r\n", b"Host: a b/../c\r\n"])
async def test_a_call_has_one_host_and_it_is_one(edge: Edge, provider: Provider, hosts: bytes) -> None:
    answer = await raw(edge, CALL.replace(b"Host: x\r\n", hosts))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"bad_framing" in answer
    assert b"Host" in answer
    assert provider.requests == []
    event = edge.event()
    assert (event.error_code, event.path) == ("bad_framing", "/v1/chat/completions")


@pytest.mark.parametrize("head", [b"Content-Length: 3\r\nContent-Length: 4\r\n", b"X Y: b\r\n"])
async def test_a_head_that_is_none_is_refused_in_the_callers_shape(edge: Edge, head: bytes) -> None:
    answer = await raw(edge, b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: x\r\nX-Last: 1\r\n" + head + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"type":"error"' in answer
    assert b"after the header" in answer


@pytest.mark.parametrize("path", ["//sk-helio-inside/v1/chat/completions", "/v1/sk-helio-inside/v1/chat/completions"])
async def test_a_key_inside_the_path_is_refused_and_never_recorded_or_sent(
    edge: Edge, provider: Provider, path: str
) -> None:
    answer = await raw(edge, CALL.replace(b"/v1/chat/completions", path.encode()))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"very front" in answer
    assert provider.requests == []
    event = edge.event()
    assert "sk-helio-inside" not in event.path
    assert "***" in event.path


async def test_a_secret_that_begins_another_does_not_leave_the_rest_of_it(edge: Edge, provider: Provider) -> None:
    provider.answers(http(b'{"echo": "sk-abcdef-suffix-0001"}'))
    keys = b"Authorization: Bearer sk-abcdef\r\nX-Api-Key: sk-abcdef-suffix-0001\r\n"
    await raw(edge, CALL.replace(b"Host: x\r\n", b"Host: x\r\n" + keys))
    event = edge.event()
    assert event.response is not None
    assert event.response.head == b'{"echo": "***"}'


# Answers that break off.


@pytest.mark.parametrize(
    ("more", "body"),
    [
        (b"Content-Length: 1000\r\n\r\n", b"data: one\n\n"),
        (b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(gzip.compress(b"data: one\n\n"))),
    ],
)
async def test_a_stream_that_has_no_place_for_words_is_cut(
    edge: Edge, provider: Provider, more: bytes, body: bytes
) -> None:
    provider.answers(STREAM + more + body, 0.1)
    answer = await raw(edge, CALL + HEALTH)
    assert b"event: error" not in answer
    assert b'"status":"ok"' not in answer
    assert answer.endswith((b"<closed>", b"<reset>"))
    assert edge.event().error_code == "upstream_cut"


async def test_an_error_event_stands_apart_from_half_an_event(edge: Edge, provider: Provider) -> None:
    provider.answers(STREAM + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b'data: {"par'), 0.1)
    answer = await raw(edge, CALL)
    assert b'data: {"par' in answer
    assert b"\n\nevent: error\ndata: {" in answer
    edge.event()


async def test_an_answer_that_breaks_off_looks_so_to_http_1_0_too(edge: Edge, provider: Provider) -> None:
    provider.answers(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"{half"),
        0.2,
    )
    answer = await raw(edge, CALL.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert answer.endswith(b"<reset>")
    assert edge.event().error_code == "upstream_cut"


async def test_a_client_of_http_1_0_that_leaves_a_stream_has_a_row(edge: Edge, provider: Provider) -> None:
    provider.answers(STREAM + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"data: one\n\n"), 0.9)
    with socket.create_connection(("127.0.0.1", edge.port)) as client:
        client.sendall(CALL.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert await asyncio.to_thread(client.recv, 1024)
    event = edge.event()
    assert (event.outcome, event.error_code) == ("cancelled", "client_gone")


async def test_a_client_that_leaves_while_its_upload_is_held_back_is_noticed(
    edge_with: Callable[..., Edge], provider: Provider
) -> None:
    edge = edge_with(EDGE_UPSTREAM__IDLE_TIMEOUT_S="60")
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: has_left(writer.transport))  # type: ignore[arg-type]
        left.set()

    provider.script = script
    head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\nContent-Length: 90000000\r\n\r\n"
    client = socket.create_connection(("127.0.0.1", edge.port))
    client.setblocking(False)
    client.send(head)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        try:
            client.send(b"x" * 65536)
        except BlockingIOError:
            await asyncio.sleep(0.01)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    await asyncio.wait_for(left.wait(), 2)
    assert edge.event().error_code == "client_gone"


# Whose words a refusal speaks.


@pytest.mark.parametrize("path", [b"/anthropic/v1/messages", b"/v1/messages"])
async def test_a_refusal_before_routing_speaks_the_callers_api(edge: Edge, path: bytes) -> None:
    call = CALL.replace(b"/v1/chat/completions", path).replace(b"Host: x", b"Host: x\r\nHelicone-Cache-Enabled: maybe")
    answer = await raw(edge, call)
    told = json.loads(answer.partition(b"\r\n\r\n")[2].removesuffix(b"<closed>"))
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    edge.event()
