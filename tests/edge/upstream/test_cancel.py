"""Whoever gives up, in whichever phase, closes the connection at once: tokens nobody reads cost money."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from edge.upstream.protocol import UpstreamCut, UpstreamError
from tests.edge.upstream.calls import body_of, fetch, get, origin_of, pieces, read, settle, until, upload
from tests.edge.upstream.conftest import Certificates, MakePool, MakeUpstream
from tests.edge.upstream.test_requests import Endless
from tests.edge.upstream.wire_server import OK, Peer, WireServer, answering

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n"


class Watch:
    """A script that plays a beginning, then notes the client's leaving."""

    def __init__(self, begin: Callable[[Peer], Awaitable[object]]) -> None:
        self.begun = asyncio.Event()
        self.gone = asyncio.Event()
        self._begin = begin

    async def __call__(self, peer: Peer) -> None:
        await self._begin(peer)
        self.begun.set()
        await peer.gone()
        self.gone.set()

    async def sees_the_client_leave(self) -> None:
        # Design §5 says 10 ms; no timer of ours is involved, so half a second is only for a busy machine.
        async with asyncio.timeout(0.5):
            await self.gone.wait()


async def cancelled(call: "asyncio.Task[object]") -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_cancelled_while_waiting_for_the_head(make_upstream: MakeUpstream) -> None:
    watch = Watch(Peer.request)
    async with WireServer(watch) as server:
        call = asyncio.create_task(make_upstream().send(get(origin_of(server))))
        await watch.begun.wait()
        await cancelled(call)
        await watch.sees_the_client_leave()


async def test_cancelled_between_interim_and_final_answer(make_upstream: MakeUpstream) -> None:
    watch = Watch(lambda peer: peer.answer(b"HTTP/1.1 100 Continue\r\n\r\n"))
    async with WireServer(watch) as server:
        call = asyncio.create_task(make_upstream().send(get(origin_of(server))))
        await watch.begun.wait()
        await settle()
        await cancelled(call)
        await watch.sees_the_client_leave()


async def test_cancelled_while_reading_the_body(make_upstream: MakeUpstream) -> None:
    watch = Watch(lambda peer: peer.answer(STREAM))
    async with WireServer(watch) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        assert await read(answer) == b"begun"
        call = asyncio.create_task(read(answer))
        await settle()
        await cancelled(call)
        await watch.sees_the_client_leave()
        with pytest.raises(UpstreamCut):
            await read(answer)


async def test_aborted_between_two_reads(make_upstream: MakeUpstream) -> None:
    watch = Watch(lambda peer: peer.answer(STREAM))
    async with WireServer(watch) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        assert await read(answer) == b"begun"
        answer.abort()
        await watch.sees_the_client_leave()
        answer.abort()
        with pytest.raises(UpstreamCut):
            await read(answer)


async def test_aborted_while_another_task_reads(make_upstream: MakeUpstream) -> None:
    watch = Watch(lambda peer: peer.answer(STREAM))
    async with WireServer(watch) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        assert await read(answer) == b"begun"
        reader = asyncio.create_task(read(answer))
        await settle()
        answer.abort()
        await watch.sees_the_client_leave()
        with pytest.raises(UpstreamCut):
            await reader


async def test_cancelled_while_the_body_waits_for_its_source(make_upstream: MakeUpstream) -> None:
    class Stuck(Endless):
        async def __anext__(self) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

    watch = Watch(Peer.head)
    async with WireServer(watch) as server:
        body = Stuck()
        call = asyncio.create_task(make_upstream().send(upload(origin_of(server), body)))
        await watch.begun.wait()
        await settle()
        await cancelled(call)
        await watch.sees_the_client_leave()
        await until(lambda: body.closed)


async def test_cancelled_while_the_body_waits_for_the_provider(make_upstream: MakeUpstream) -> None:
    async def unread(peer: Peer) -> None:
        await peer.head()
        await full.wait()

    full = asyncio.Event()
    watch = Watch(unread)
    async with WireServer(watch) as server:
        body = Endless()
        call = asyncio.create_task(make_upstream().send(upload(origin_of(server), body)))
        await asyncio.sleep(0.1)
        await cancelled(call)
        full.set()  # the server reads on only now, to see the end
        await watch.sees_the_client_leave()
        await until(lambda: body.closed)


async def test_cancelled_inside_the_tls_handshake(make_upstream: MakeUpstream) -> None:
    watch = Watch(lambda peer: peer.some(1))  # takes the client's hello and says nothing
    async with WireServer(watch) as server:
        call = asyncio.create_task(make_upstream().send(get(origin_of(server, scheme="https"))))
        await watch.begun.wait()
        await cancelled(call)
        await watch.sees_the_client_leave()


async def test_cancelled_inside_a_tls_answer(make_upstream: MakeUpstream, certificates: Certificates) -> None:
    watch = Watch(lambda peer: peer.answer(STREAM))

    async def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with WireServer(watch, tls=certificates.server) as server:
        upstream = make_upstream(ca_file=certificates.authority, lookup=lookup)
        origin = origin_of(server, scheme="https", host="provider.test")
        if "Stock" in repr(upstream):
            pytest.skip("stock httpx resolves for itself, and provider.test has no address")
        answer = await upstream.send(get(origin))
        assert await read(answer) == b"begun"
        answer.abort()
        await watch.sees_the_client_leave()


@pytest.mark.parametrize("begun", [b"", STREAM], ids=["before the head", "inside the body"])
@pytest.mark.parametrize("end", ["reset", "close"])
async def test_a_tls_connection_that_its_server_ends_gives_its_place_back(
    make_pool: MakePool, certificates: Certificates, begun: bytes, end: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(begun)
        await settle()
        getattr(peer, end)()

    async def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with WireServer(script, tls=certificates.server) as server:
        pool = make_pool(ca_file=certificates.authority, lookup=lookup, connections_per_host=1)
        for _ in range(3):
            with pytest.raises(UpstreamError) as caught:
                await fetch(pool, get(origin_of(server, scheme="https", host="provider.test")))
            assert caught.value.code in ("upstream_broken", "upstream_cut")
        assert pool.open == 0


async def test_cancelled_while_resolving(make_pool: MakePool) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    asked = asyncio.Event()
    async with WireServer(answering()) as server:
        pool = make_pool(lookup=lookup)
        call = asyncio.create_task(pool.send(get(origin_of(server, host="slow.test"))))
        await asked.wait()
        assert pool.open == 1
        await cancelled(call)
        assert pool.open == 0


async def test_cancelled_in_the_moment_of_the_answer_spares_the_next_call(make_pool: MakePool) -> None:
    # The answer frees the connection, another call takes it, and only then does the cancelled task wake.
    async with WireServer(answering()) as server:
        pool = make_pool()
        assert await fetch(pool, get(origin_of(server))) == b"ok"
        host = pool._hosts[origin_of(server)]
        connection = next(iter(host.idle))
        call = asyncio.create_task(pool.send(get(origin_of(server))))
        await asyncio.sleep(0)
        call.cancel()
        connection.data_received(OK)
        assert host.idle, "the answer has freed the connection"
        following = asyncio.create_task(pool.send(get(origin_of(server))))
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not connection.is_closed
        answer = await following
        assert await body_of(answer) == b"ok"


async def test_cancelled_calls_leave_nothing_behind(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.002)
            await peer.send(STREAM)
            await asyncio.sleep(0.002)
            await peer.send(b"0\r\n\r\n")

    async with WireServer(script) as server:
        pool = make_pool(connections_per_host=3)
        for delay in range(60):
            body = upload(origin_of(server), pieces(b"a", b"b"))
            calls = [asyncio.create_task(fetch(pool, request)) for request in (get(origin_of(server)), body)]
            await asyncio.sleep(delay / 10_000)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await settle()
        assert (pool.open - pool.idle, pool.waiting) == (0, 0)
        assert len(await fetch(pool, get(origin_of(server)))) == 5
