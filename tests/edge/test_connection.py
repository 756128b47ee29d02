"""A client's connection as a client sees it, byte by byte: what it may send, how long it may take, when it is closed."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.edge.conftest import Edge, Provider, http

ANSWER = b'{"ok": true}'
CALL = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def raw(edge: Edge, data: bytes, *, timeout_s: float = 1) -> bytes:
    return await asyncio.to_thread(edge.raw, data, timeout_s=timeout_s)


async def test_a_connection_carries_one_call_after_another(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER), keep=True)
    async with httpx.AsyncClient(base_url=edge.url) as client:
        for _ in range(3):
            assert (await client.post("/v1/chat/completions", json={})).content == ANSWER
    edge.events(3)


async def test_calls_sent_at_once_are_answered_in_order(edge: Edge, provider: Provider) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await provider.read(reader)
            writer.write(http(request.rpartition(b"\r\n\r\n")[2]))

    provider.script = script
    calls = b"".join(
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n%d" % number
        for number in range(5)
    )
    answer = await raw(edge, calls + HEALTH)
    bodies = [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [b"0", b"1", b"2", b"3", b"4", b'{"status":"ok"}']
    edge.events(5)


async def test_a_head_may_come_in_pieces(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    for place in range(0, len(CALL), 7):
        writer.write(CALL[place : place + 7])
        await asyncio.sleep(0.005)
    assert (await reader.readuntil(ANSWER)).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()
    edge.event()


async def test_the_newest_http_is_all_it_needs(edge: Edge, provider: Provider) -> None:
    """HTTP/1.0 gets its answer without chunks and its connection closed; a whole URL is as good as a path."""
    provider.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", 0.1, b"0\r\n\r\n")
    answer = await raw(edge, CALL.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"/v1", b"http://x:1/v1"))
    assert b"chunked" not in answer.lower()
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\n{}<closed>")
    assert provider.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    edge.event()


async def test_a_client_that_asks_is_told_to_go_on(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER))
    head, _, body = CALL.partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(ANSWER)).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()
    assert b"expect" not in provider.requests[0].lower()
    edge.event()


async def test_a_client_that_asks_and_is_refused_is_not_waited_for(edge: Edge, provider: Provider) -> None:
    head = CALL.partition(b"\r\n\r\n")[0].replace(b"/v1/", b"/nowhere/")
    started = time.monotonic()
    answer = await raw(edge, head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"<closed>")
    assert time.monotonic() - started < 0.5
    edge.event()


async def test_an_upgrade_nobody_needs_is_passed_over(edge: Edge, provider: Provider) -> None:
    """Java's own client offers HTTP/2 with every first call."""
    provider.answers(http(ANSWER))
    answer = await raw(
        edge,
        CALL.replace(
            b"Host: x", b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM"
        ),
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(ANSWER + b"<closed>")
    assert b"h2c" not in provider.requests[0]
    edge.event()


async def test_two_hundred_headers_pass_and_one_more_is_refused_with_a_row(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER))
    for more, status in ((197, b"200"), (198, b"431")):
        fields = b"".join(b"X-%d: y\r\n" % number for number in range(more))
        answer = await raw(edge, CALL.replace(b"Host: x\r\n", b"Host: x\r\n" + fields), timeout_s=0.5)
        assert answer.startswith(b"HTTP/1.1 " + status)
    assert [event.error_code for event in edge.events(2)] == [None, "headers_too_large"]


async def test_a_head_without_end_is_refused_and_not_kept(edge: Edge, provider: Provider) -> None:
    answer = await raw(edge, b"GET / HTTP/1.1\r\n" + b"X-Fill: y\r\n" * 100_000)
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b"<reset>"  # it may still be sending when it is closed


async def test_a_head_that_dawdles_is_let_go(edge_with: Callable[..., Edge], provider: Provider) -> None:
    edge = edge_with(EDGE_BOUNDS__HEAD_TIMEOUT_S="0.5")
    answer = await raw(edge, b"POST /v1/x HTTP/1.1\r\nHost: ", timeout_s=4)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2].removesuffix(b"<closed>"))["error"]["code"] == "head_timeout"
    assert await raw(edge, b"", timeout_s=4) == b"<closed>"


async def test_a_resting_connection_is_closed_in_the_end(edge_with: Callable[..., Edge], provider: Provider) -> None:
    edge = edge_with(EDGE_BOUNDS__KEEP_ALIVE_S="0.5")
    answer = await raw(edge, HEALTH, timeout_s=4)
    assert answer.endswith(b'{"status":"ok"}<closed>')


async def test_connections_have_a_bound(edge_with: Callable[..., Edge], provider: Provider) -> None:
    edge = edge_with(EDGE_BOUNDS__CONNECTIONS="3")
    held = [socket.create_connection(("127.0.0.1", edge.port)) for _ in range(3)]
    await asyncio.sleep(0.1)
    assert await raw(edge, HEALTH) in (b"<closed>", b"<reset>")
    held.pop().close()
    await asyncio.sleep(0.1)
    assert b"200 OK" in await raw(edge, HEALTH, timeout_s=0.3)
    for one in held:
        one.close()


async def test_an_answer_before_the_body_is_through_closes_the_connection(edge: Edge, provider: Provider) -> None:
    answer = await raw(edge, CALL.replace(b"/v1/", b"/nowhere/").replace(b"Length: 2", b"Length: 9000000"), timeout_s=4)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"<closed>")
    edge.event()


async def test_a_stop_lets_a_call_under_way_end_and_records_it(
    edge_with: Callable[..., Edge], provider: Provider
) -> None:
    edge = edge_with()
    provider.answers(0.8, http(ANSWER))
    call = asyncio.create_task(raw(edge, CALL, timeout_s=4))
    await asyncio.sleep(0.3)
    os.kill(edge.pid, signal.SIGTERM)
    answer = await call
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(ANSWER + b"<closed>")
    assert edge.event().outcome == "success"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_that_has_no_body_is_not_given_one(edge: Edge, provider: Provider, status: bytes) -> None:
    provider.answers(b"HTTP/1.1 " + status + b"\r\nX-Own: 1\r\n\r\n", keep=True)
    answer = await raw(edge, CALL + HEALTH, timeout_s=0.5)
    first, _, second = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 " + status)
    assert b"transfer-encoding" not in first.lower()
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    edge.event()


async def test_several_processes_share_the_port_and_end_with_the_first(
    edge_with: Callable[..., Edge], provider: Provider
) -> None:
    # One that lived on would hold port and spool beside its successor, and nobody would know.
    provider.answers(http(ANSWER), keep=True)
    edge = edge_with(EDGE_WORKERS="2")
    others = psutil.Process(edge.pid).children(recursive=True)
    for _ in range(20):
        assert (await raw(edge, CALL, timeout_s=0.05)).startswith(b"HTTP/1.1 200 OK")
    assert len(edge.events(20)) == 20
    assert len([*edge.folder.glob("spool/edge-*/id")]) == 2

    os.kill(edge.pid, signal.SIGKILL)

    assert psutil.wait_procs(others, timeout=15)[1] == []
