"""One connection in this process, its calls served by a script: answers wait for their client, and a client that was slow
once has all its time again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from edge.client import Client
from edge.connection import ClientConnection, Front
from edge.deadlines import Deadlines
from edge.outbox import Outbox
from schemas.settings import BoundSettings

CALL = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = b"x" * (1 << 20)


@asynccontextmanager
async def connection(
    serve: Callable[[Client], Coroutine[Any, Any, None]], **bounds: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The client's end of a connection whose calls `serve` answers."""

    connections: set[ClientConnection] = set()
    deadlines = Deadlines(connections)
    front = Front(serve, {}, BoundSettings(**bounds), deadlines, connections, Outbox(asyncio.get_running_loop()))
    state = SimpleNamespace(connections=set())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ClientConnection(None, state, {"front": front}), "127.0.0.1")
    deadlines.start()
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)
        yield reader, writer
        writer.close()
    finally:
        server.close()
        await deadlines.close()


async def test_answers_that_nobody_reads_do_not_pile_up() -> None:
    served = 0

    async def serve(client: Client) -> None:
        nonlocal served
        served += 1
        client.answer(200, [], LONG, framed=False)

    async with connection(serve) as (_, writer):
        writer.write(CALL * 60)
        await asyncio.sleep(0.5)
    assert 1 <= served < 15  # what the sockets between take is a few MiB


async def test_a_slow_reader_of_one_answer_has_all_the_time_for_the_next() -> None:
    async def serve(client: Client) -> None:
        if client.target == b"/v1/second":
            await asyncio.sleep(2.5)
            client.answer(200, [], b"second", framed=False)
        else:
            client.answer(200, [], 16 * LONG, framed=False)

    async with connection(serve, send_timeout_s=1) as (reader, writer):
        writer.write(CALL + CALL.replace(b"/v1/models", b"/v1/second"))
        await asyncio.sleep(0.3)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(16 * len(LONG))
        second = await reader.readuntil(b"second")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert second.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("how", ["answered and closed", "cut", "its client has sent its last"])
async def test_what_waits_for_the_end_of_the_turn_goes_out_before_the_connection_closes(how: str) -> None:
    async def serve(client: Client) -> None:
        client.keep = how == "its client has sent its last"
        client.begin(200, [], b"first", framed=False)  # the turn's first goes at once, what follows waits
        client.write(b"second")
        if how == "cut":
            client.cut()
        else:
            client.end()

    async with connection(serve) as (reader, writer):
        writer.write(CALL)
        if how == "its client has sent its last":
            writer.write_eof()
        received = await reader.read()
    last = b"" if how == "cut" else b"0\r\n\r\n"
    assert received.endswith(b"\r\n\r\n5\r\nfirst\r\n6\r\nsecond\r\n" + last)
