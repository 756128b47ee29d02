"""Connections have caps, and who must wait for one waits in a line: bounded, fair, and not for ever."""

import asyncio

import pytest

from edge.upstream.pool import Pool
from edge.upstream.protocol import Origin, PoolFull
from tests.edge.upstream.calls import body_of, fetch, get, origin_of, settle, until
from tests.edge.upstream.conftest import MakePool, MakeUpstream
from tests.edge.upstream.wire_server import OK, Peer, WireServer, answering


class Gate:
    """A script that answers a request when told to, and tells in which order they came."""

    def __init__(self) -> None:
        self.order: list[bytes] = []
        self._turns = asyncio.Semaphore(0)

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._turns.release()

    async def __call__(self, peer: Peer) -> None:
        while True:
            received = await peer.request()
            self.order.append(received.split(b" ")[1])
            await self._turns.acquire()
            await peer.send(OK)


class Calls:
    """Starts numbered calls one after the other."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.tasks: list[asyncio.Task[bytes]] = []

    async def start(self, origin: Origin, count: int = 1) -> None:
        for _ in range(count):
            target = b"/%d" % len(self.tasks)
            self.tasks.append(asyncio.create_task(fetch(self._pool, get(origin, target))))
            await settle(2)


async def test_line_is_first_come_first_served(make_pool: MakePool) -> None:
    gate = Gate()
    async with WireServer(gate) as server:
        pool = make_pool(connections_per_host=1)
        calls = Calls(pool)
        await calls.start(origin_of(server), 5)
        assert repr(pool) == "<Pool 1 active, 0 idle, 4 waiting, 1 hosts>"
        gate.let(5)
        assert await asyncio.gather(*calls.tasks) == [b"ok"] * 5
        assert gate.order == [b"/0", b"/1", b"/2", b"/3", b"/4"]
        assert server.connections == 1
        assert (pool.connects, pool.reuses, pool.waiting) == (1, 4, 0)


async def test_newcomer_does_not_overtake_the_line(make_pool: MakePool) -> None:
    gate = Gate()
    async with WireServer(gate) as server:
        pool = make_pool(connections_per_host=1)
        calls = Calls(pool)
        await calls.start(origin_of(server), 2)
        gate.let()
        await calls.tasks[0]
        await calls.start(origin_of(server))
        gate.let(2)
        await asyncio.gather(*calls.tasks)
        assert gate.order == [b"/0", b"/1", b"/2"]


async def test_full_line_refuses_at_once(make_pool: MakePool) -> None:
    gate = Gate()
    async with WireServer(gate) as server:
        pool = make_pool(connections_per_host=1, waiting=2)
        calls = Calls(pool)
        await calls.start(origin_of(server), 3)
        with pytest.raises(PoolFull) as caught:
            await pool.send(get(origin_of(server)))
        assert (caught.value.code, caught.value.status, caught.value.sent) == ("pool_full", 503, False)
        gate.let(3)
        await asyncio.gather(*calls.tasks)


async def test_no_line_at_all_refuses_at_once(make_upstream: MakeUpstream) -> None:
    gate = Gate()
    async with WireServer(gate) as server:
        upstream = make_upstream(connections=1, waiting=0)
        first = asyncio.create_task(fetch(upstream, get(origin_of(server))))
        await until(lambda: len(gate.order) == 1)
        with pytest.raises(PoolFull):
            await upstream.send(get(origin_of(server)))
        gate.let(2)
        assert await first == b"ok"
        assert await fetch(upstream, get(origin_of(server))) == b"ok"


async def test_waiting_too_long_is_refused(make_upstream: MakeUpstream) -> None:
    gate = Gate()
    async with WireServer(gate) as server:
        upstream = make_upstream(connections=1, connect_timeout_s=0.1)
        first = asyncio.create_task(fetch(upstream, get(origin_of(server))))
        await until(lambda: len(gate.order) == 1)
        with pytest.raises(PoolFull) as caught:
            await upstream.send(get(origin_of(server)))
        assert not caught.value.sent
        gate.let()
        assert await first == b"ok"


async def test_who_leaves_the_line_does_not_hold_it_up(make_pool: MakePool) -> None:
    gate = Gate()
    async with WireServer(gate) as server:
        pool = make_pool(connections_per_host=1)
        calls = Calls(pool)
        await calls.start(origin_of(server), 4)
        calls.tasks[1].cancel()
        await settle(2)
        assert pool.waiting == 2
        gate.let(3)
        await asyncio.gather(*calls.tasks, return_exceptions=True)
        assert gate.order == [b"/0", b"/2", b"/3"]


async def test_who_leaves_in_the_moment_of_being_served_passes_it_on(make_pool: MakePool) -> None:
    gate = Gate()
    async with WireServer(gate) as server:
        pool = make_pool(connections_per_host=1)
        calls = Calls(pool)
        await calls.start(origin_of(server), 3)
        (connection,) = pool._connections
        connection.data_received(OK)  # serves the first in line, whose task has not run yet
        calls.tasks[1].cancel()
        assert await calls.tasks[0] == b"ok"
        await settle(2)
        assert (connection.busy, pool.waiting) == (True, 0), "the last in line has it"
        gate.let()  # the server's own answer to the first request, which serves the last as well
        assert await calls.tasks[2] == b"ok"
        assert calls.tasks[1].cancelled()
        assert server.connections == 1


async def test_dead_connection_makes_room_for_the_line(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await fail.wait()
            peer.reset()
        else:
            await peer.send(OK)
            await peer.gone()

    fail = asyncio.Event()
    async with WireServer(script) as server:
        pool = make_pool(connections_per_host=1)
        calls = Calls(pool)
        await calls.start(origin_of(server), 2)
        fail.set()
        first, second = await asyncio.gather(*calls.tasks, return_exceptions=True)
        assert isinstance(first, Exception)
        assert second == b"ok"


async def test_failed_connect_makes_room_for_the_line(make_pool: MakePool) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        await go_on.wait()
        raise OSError("no name server")

    asked: list[str] = []
    go_on = asyncio.Event()
    async with WireServer(answering()) as server:
        pool = make_pool(connections=1, lookup=lookup)
        calls = Calls(pool)
        await calls.start(origin_of(server, host="broken.test"))
        await calls.start(origin_of(server))
        assert (pool.open, pool.waiting) == (1, 1)
        go_on.set()
        first, second = await asyncio.gather(*calls.tasks, return_exceptions=True)
        assert isinstance(first, Exception)
        assert second == b"ok"


async def test_cap_in_all_is_shared_in_order_of_arrival(make_pool: MakePool) -> None:
    gate = Gate()
    async with WireServer(gate) as a, WireServer(gate) as b:
        pool = make_pool(connections=1)
        calls = Calls(pool)
        for server in (a, b, a, b):
            await calls.start(origin_of(server))
        assert (pool.open, pool.waiting) == (1, 3)
        for _ in range(4):
            gate.let()
            await settle(3)
            assert pool.open == 1
        await asyncio.gather(*calls.tasks)
        assert gate.order == [b"/0", b"/1", b"/2", b"/3"]


async def test_resting_connection_gives_way_to_another_host(make_pool: MakePool) -> None:
    async with WireServer(answering()) as a, WireServer(answering()) as b, WireServer(answering()) as c:
        pool = make_pool(connections=2)
        for server in (a, b, c):
            assert await fetch(pool, get(origin_of(server))) == b"ok"
        assert (pool.open, pool.idle) == (2, 2)
        assert set(pool._hosts) == {origin_of(b), origin_of(c)}, "the one that rested longest has gone"


async def test_full_host_does_not_hold_up_another(make_pool: MakePool) -> None:
    gate = Gate()
    async with WireServer(gate) as a, WireServer(answering()) as b:
        pool = make_pool(connections_per_host=1, connections=2)
        calls = Calls(pool)
        await calls.start(origin_of(a), 3)
        for _ in range(3):
            assert await fetch(pool, get(origin_of(b))) == b"ok"
        gate.let(3)
        await asyncio.gather(*calls.tasks)


async def test_caps_hold_under_a_crowd(make_pool: MakePool) -> None:
    most = 0

    async def script(peer: Peer) -> None:
        nonlocal most
        while True:
            await peer.request()
            most = max(most, pool.open)
            await asyncio.sleep(0)
            await peer.send(OK)

    async with WireServer(script) as a, WireServer(script) as b:
        pool = make_pool(connections_per_host=3, connections=4)
        done = await asyncio.gather(*[fetch(pool, get(origin_of(s))) for s in [a, b] * 100])
        assert done == [b"ok"] * 200
        assert most == 4
        assert pool.waiting == 0


async def test_answer_that_is_not_read_keeps_its_place(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await go_on.wait()
        await peer.send(b"0\r\n\r\n")
        await peer.answer()

    go_on = asyncio.Event()
    async with WireServer(script) as server:
        pool = make_pool(connections_per_host=1)
        answer = await pool.send(get(origin_of(server)))
        calls = Calls(pool)
        await calls.start(origin_of(server))
        assert pool.waiting == 1
        go_on.set()
        assert await body_of(answer) == b"a"
        assert await calls.tasks[0] == b"ok"
