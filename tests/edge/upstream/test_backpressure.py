"""A client that reads slowly pauses its provider instead of filling our memory."""

import asyncio

import pytest

from edge.upstream.protocol import UpstreamCut
from tests.edge.upstream.calls import body_of, fetch, get, origin_of, read, settle, until
from tests.edge.upstream.conftest import MakePool, MakeUpstream
from tests.edge.upstream.wire_server import Peer, WireServer

KIB = 1024
MIB = 1024 * KIB


class Flood:
    """Sends a chunked body as fast as it is taken, and counts."""

    def __init__(self, total: int, piece: int = 16 * KIB) -> None:
        self.sent = 0
        self._total = total
        self._chunk = b"%x\r\n%b\r\n" % (piece, b"x" * piece)
        self._piece = piece

    async def __call__(self, peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while self.sent < self._total:
            await peer.send(self._chunk)
            self.sent += self._piece
        await peer.send(b"0\r\n\r\n")
        await peer.answer()

    async def stands_still(self) -> int:
        before = -1
        while before != self.sent:
            before = self.sent
            await asyncio.sleep(0.1)
        return before


async def test_reader_that_never_reads_costs_bounded_memory(make_upstream: MakeUpstream) -> None:
    flood = Flood(100 * MIB)
    async with WireServer(flood) as server:
        upstream = make_upstream(buffer_bytes=64 * KIB)
        answer = await upstream.send(get(origin_of(server)))
        sent = await flood.stands_still()
        assert sent < 16 * MIB  # most of it is the kernel's two socket buffers
        assert getattr(answer, "buffered", 0) < 64 * KIB + 256 * KIB  # the bound, and the read that went beyond it
        answer.abort()


async def test_paused_provider_goes_on_when_the_reader_does(make_upstream: MakeUpstream) -> None:
    flood = Flood(8 * MIB)
    async with WireServer(flood) as server:
        upstream = make_upstream(buffer_bytes=16 * KIB)
        answer = await upstream.send(get(origin_of(server)))
        await settle(20)
        assert len(await body_of(answer)) == 8 * MIB
        assert await fetch(upstream, get(origin_of(server))) == b"ok"
        assert server.connections == 1


async def test_body_that_ends_beyond_the_bound_leaves_the_connection_reading(make_pool: MakePool) -> None:
    body = b"x" * 40 * KIB

    async def script(peer: Peer) -> None:
        while True:
            await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with WireServer(script) as server:
        pool = make_pool(buffer_bytes=16 * KIB)
        answers = [await pool.send(get(origin_of(server))) for _ in range(3)]
        assert [len(await body_of(answer)) for answer in answers] == [len(body)] * 3


async def test_pause_ends_with_its_answer(make_pool: MakePool) -> None:
    # TLS may hand over what it had decrypted already after the pause, the end of the answer included.
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 20001\r\n\r\n" + b"x" * 20000)
        await peer.answer()

    async with WireServer(script) as server:
        pool = make_pool(buffer_bytes=16 * KIB)
        answer = await pool.send(get(origin_of(server)))
        (connection,) = pool._connections
        await until(lambda: connection.paused)
        connection.data_received(b"y")
        assert len(await body_of(answer)) == 20001
        assert await fetch(pool, get(origin_of(server))) == b"ok"


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_cut_behind_a_pause_is_seen_after_what_arrived(make_pool: MakePool, end: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 100 * KIB)
        getattr(peer, end)()
        await settle()

    async with WireServer(script) as server:
        answer = await make_pool(buffer_bytes=16 * KIB).send(get(origin_of(server)))
        await settle(20)
        received = 0
        try:
            while piece := await read(answer):
                received += len(piece)
        except UpstreamCut:
            pass
        else:
            pytest.fail("a cut body passed for a whole one")
        assert received == 100 * KIB if end == "close" else received <= 100 * KIB
