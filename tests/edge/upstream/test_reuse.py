"""When a connection serves another call, and when it must not."""

import asyncio
from ipaddress import ip_network

import pytest

from edge.upstream import connection
from edge.upstream.protocol import UpstreamBroken
from tests.edge.upstream.calls import body_of, fetch, get, origin_of, post, settle, until
from tests.edge.upstream.conftest import MakePool, MakeUpstream
from tests.edge.upstream.wire_server import OK, Peer, WireServer, answering

FOLLOWED = pytest.mark.pool_only("httpcore takes bytes that follow an answer for the next one's")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK, id="content-length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", id="chunked"),
        pytest.param(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", id="1.0 keep-alive"),
    ],
)
async def test_connection_is_kept_for_the_next_call(make_pool: MakePool, answer: bytes) -> None:
    async with WireServer(answering(answer)) as server:
        pool = make_pool()
        for _ in range(3):
            assert await fetch(pool, post(origin_of(server))) == b"ok"
        assert server.connections == 1
        assert (pool.connects, pool.reuses, pool.open, pool.idle) == (1, 2, 1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", id="connection: close"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", id="HTTP/1.0"),
        pytest.param(OK + b"!", id="a byte too many", marks=FOLLOWED),
        pytest.param(OK + b"HTTP/1.1 200 OK\r\n", id="half an answer nobody asked for", marks=FOLLOWED),
        pytest.param(OK + OK, id="an answer nobody asked for", marks=FOLLOWED),
    ],
)
async def test_connection_in_doubt_is_not_used_again(make_upstream: MakeUpstream, answer: bytes) -> None:
    async with WireServer(answering(answer)) as server:
        upstream = make_upstream()
        for _ in range(2):
            assert await fetch(upstream, post(origin_of(server))) == b"ok"
        assert server.connections == 2


async def test_server_that_speaks_unasked_is_left(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await settle()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nforge")
        spoken.set()
        await peer.answer()
        await peer.gone()

    spoken = asyncio.Event()
    async with WireServer(script) as server:
        upstream = make_upstream()
        assert await fetch(upstream, get(origin_of(server))) == b"ok"
        await spoken.wait()
        await settle()
        assert await fetch(upstream, get(origin_of(server))) == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_idle_connection_closed_by_its_server_is_replaced(make_upstream: MakeUpstream, end: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        if peer.number == 0:
            await settle()
            getattr(peer, end)()
        await peer.gone()

    async with WireServer(script) as server:
        upstream = make_upstream()
        assert await fetch(upstream, get(origin_of(server))) == b"ok"
        await settle(30)
        assert await fetch(upstream, get(origin_of(server))) == b"ok"
        assert server.connections == 2


async def test_idle_connection_closed_unnoticed_is_found_by_looking(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server has closed, and the loop has not yet had a round to tell us of it.
    monkeypatch.setattr(connection, "PROBE_AFTER_S", 0.0)
    monkeypatch.setattr(connection.Connection, "eof_received", lambda self: True)

    async def script(peer: Peer) -> None:
        await peer.answer()
        if peer.number == 0:
            peer.close()
        await peer.gone()

    async with WireServer(script) as server:
        pool = make_pool()
        assert await fetch(pool, get(origin_of(server))) == b"ok"
        await settle()
        assert pool.idle == 1
        assert await fetch(pool, get(origin_of(server))) == b"ok"
        assert server.connections == 2


async def test_call_whose_bytes_met_a_closed_connection_is_not_repeated(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.request()  # and closes without an answer

    async with WireServer(script) as server:
        pool = make_pool()
        assert await fetch(pool, post(origin_of(server))) == b"ok"
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(pool, post(origin_of(server)))
        assert caught.value.sent
        assert server.connections == 1


async def test_the_connection_that_rested_last_is_used_first(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await gates[peer.number].wait()
            await peer.send(OK)

    gates = [asyncio.Event() for _ in range(3)]
    async with WireServer(script) as server:
        pool = make_pool()
        calls = [asyncio.create_task(fetch(pool, get(origin_of(server)))) for _ in range(3)]
        await until(lambda: sum(len(peer.requests) for peer in server.peers) == 3)
        for number in (2, 0, 1):
            gates[number].set()
            await settle()
        await asyncio.gather(*calls)
        for _ in range(3):
            await fetch(pool, get(origin_of(server)))
        assert [len(peer.requests) for peer in server.peers] == [1, 4, 1]


async def test_idle_connection_is_closed_when_its_time_is_over(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.gone()
        gone.set()

    gone = asyncio.Event()
    async with WireServer(script) as server:
        pool = make_pool(keep_alive_s=0.05)
        assert await fetch(pool, get(origin_of(server))) == b"ok"
        assert pool.idle == 1
        async with asyncio.timeout(2):
            await gone.wait()
        assert (pool.open, pool.idle) == (0, 0)
        assert repr(pool) == "<Pool 0 active, 0 idle, 0 waiting, 0 hosts>", "an unused host is forgotten"


async def test_connection_to_a_vouched_host_serves_no_other_word_for_it(make_upstream: MakeUpstream) -> None:
    # Same name and port, but one call comes from the operator's settings and the other from a caller's header.
    networks = [ip_network("127.0.0.0/8")]
    async with WireServer(answering()) as server:
        upstream = make_upstream(allowed_networks=networks)
        assert await fetch(upstream, get(origin_of(server, private=True))) == b"ok"
        assert await fetch(upstream, get(origin_of(server, private=False))) == b"ok"
        assert server.connections == 2


async def test_connection_is_free_before_its_body_has_been_read(make_pool: MakePool) -> None:
    async with WireServer(answering()) as server:
        pool = make_pool(connections_per_host=1)
        first = await pool.send(get(origin_of(server)))
        second = await pool.send(get(origin_of(server)))
        assert [await body_of(second), await body_of(first)] == [b"ok", b"ok"]
        assert server.connections == 1


async def test_late_abort_leaves_the_next_call_alone(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        upstream = make_upstream()
        first = await upstream.send(get(origin_of(server)))
        assert await body_of(first) == b"ok"
        second = await upstream.send(get(origin_of(server)))
        first.abort()
        first.abort()
        assert await body_of(second) == b"ok"
        assert server.connections == 1
