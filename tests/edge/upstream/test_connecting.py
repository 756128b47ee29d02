"""Opening a connection, and how long anything may take."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_network

import pytest

from edge.upstream.protocol import PoolFull, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tests.edge.upstream.calls import body_of, fetch, get, names, origin_of, read, settle, upload
from tests.edge.upstream.conftest import Certificates, MakePool, MakeUpstream
from tests.edge.upstream.test_requests import Endless
from tests.edge.upstream.wire_server import Peer, WireServer, answering

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n"


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.gone()


async def begun(peer: Peer) -> None:
    await peer.answer(STREAM)
    await peer.gone()


async def test_refused_connection_is_unreachable(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        origin = origin_of(server)
    with pytest.raises(UpstreamUnreachable) as caught:
        await fetch(make_upstream(), get(origin, b"/v1?key=sk-secret"))
    assert (caught.value.code, caught.value.status, caught.value.sent) == ("upstream_unreachable", 502, False)
    assert "secret" not in str(caught.value)


async def test_name_without_an_address_is_unreachable(make_upstream: MakeUpstream) -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with WireServer(answering()) as server:
        with pytest.raises(UpstreamUnreachable, match="resolved") as caught:
            await fetch(make_upstream(lookup=lookup), get(origin_of(server, host="none.test")))
        assert not caught.value.sent


async def test_next_address_is_tried_when_one_refuses(make_pool: MakePool) -> None:
    async with WireServer(answering()) as server:
        pool = make_pool(lookup=names("127.0.0.2", "::1", "127.0.0.1"))
        assert await fetch(pool, get(origin_of(server, host="several.test"))) == b"ok"
        assert (pool.connects, pool.open) == (1, 1)


async def test_ipv6_is_connected_to(make_upstream: MakeUpstream) -> None:
    try:
        server = await WireServer(answering(), host="::1").__aenter__()
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        assert await fetch(make_upstream(), get(origin_of(server, host="::1"))) == b"ok"
    finally:
        await server.__aexit__(None, None, None)


async def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listening socket whose queue is full: further connections hang."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    await settle()
    return listener, fillers


async def test_connection_that_is_never_accepted_times_out(make_upstream: MakeUpstream) -> None:
    listener, fillers = await full_listener()
    try:
        async with WireServer(answering()) as server:
            origin = origin_of(server)._replace(port=listener.getsockname()[1])
            with pytest.raises(UpstreamTimeout) as caught:
                await fetch(make_upstream(connect_timeout_s=0.1), get(origin))
        assert (caught.value.phase, caught.value.sent) == ("connect", False)
    finally:
        for opened in (listener, *fillers):
            opened.close()


async def test_address_that_hangs_leaves_time_for_the_next(make_pool: MakePool) -> None:
    listener, fillers = await full_listener()
    port = listener.getsockname()[1]
    try:
        async with WireServer(answering(), host="127.0.0.2", port=port) as server:
            pool = make_pool(connect_timeout_s=0.4, lookup=names("127.0.0.1", "127.0.0.2"))
            assert await fetch(pool, get(origin_of(server, host="half.test"))) == b"ok"
    finally:
        for opened in (listener, *fillers):
            opened.close()


async def test_look_up_that_hangs_times_out(make_upstream: MakeUpstream) -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    async with WireServer(answering()) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(lookup=lookup, connect_timeout_s=0.05), get(origin_of(server, host="slow.test")))
        assert (caught.value.phase, caught.value.sent) == ("connect", False)


async def test_tls_handshake_that_hangs_times_out(make_upstream: MakeUpstream) -> None:
    async with WireServer(Peer.gone) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(connect_timeout_s=0.1), get(origin_of(server, scheme="https")))
        assert (caught.value.phase, caught.value.sent) == ("connect", False)


async def test_first_byte_times_out(make_upstream: MakeUpstream) -> None:
    async with WireServer(silent) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(first_byte_timeout_s=0.05), get(origin_of(server)))
        assert (caught.value.phase, caught.value.sent) == ("first_byte", True)
        assert (caught.value.code, caught.value.status) == ("upstream_timeout", 504)


async def test_first_byte_is_waited_for_from_the_end_of_a_streamed_body(make_upstream: MakeUpstream) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.15)
        yield b"b"

    async with WireServer(silent) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(first_byte_timeout_s=0.1), upload(origin_of(server), slow()))
        assert caught.value.phase == "first_byte"
        assert server.peers[0].requests[0].endswith(b"1\r\nb\r\n0\r\n\r\n")


async def test_call_may_shorten_its_own_first_byte(make_upstream: MakeUpstream) -> None:
    async with WireServer(silent) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(), get(origin_of(server), first_byte_timeout_s=0.05))
        assert caught.value.phase == "first_byte"


async def test_silence_inside_the_body_times_out(make_upstream: MakeUpstream) -> None:
    async with WireServer(begun) as server:
        answer = await make_upstream(idle_timeout_s=0.05).send(get(origin_of(server)))
        assert await read(answer) == b"begun"
        with pytest.raises(UpstreamTimeout) as caught:
            await read(answer)
        assert caught.value.phase == "idle"


async def test_stream_that_keeps_talking_is_not_silent(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(STREAM)
        for _ in range(6):
            await asyncio.sleep(0.05)
            await peer.send(b"1\r\n.\r\n")
        await peer.send(b"0\r\n\r\n")

    async with WireServer(script) as server:
        upstream = make_upstream(idle_timeout_s=0.2, first_byte_timeout_s=0.2)
        assert await fetch(upstream, get(origin_of(server))) == b"begun......"


async def test_slow_reader_is_not_the_providers_silence(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(STREAM)
        await waiting.wait()
        await peer.send(b"4\r\nmore\r\n")
        await rested.wait()
        await peer.send(b"3\r\nend\r\n0\r\n\r\n")

    waiting, rested = asyncio.Event(), asyncio.Event()
    async with WireServer(script) as server:
        answer = await make_upstream(idle_timeout_s=0.1).send(get(origin_of(server)))
        await asyncio.sleep(0.2)  # with something to read
        assert await read(answer) == b"begun"
        reader = asyncio.create_task(read(answer))
        await settle(3)
        waiting.set()
        assert await reader == b"more"
        await asyncio.sleep(0.2)  # with nothing to read, but nobody asks
        rested.set()
        assert await body_of(answer) == b"end"


async def test_silence_while_sending_times_out(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.Event().wait()

    async with WireServer(script) as server:
        body = Endless()
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(idle_timeout_s=0.1), upload(origin_of(server), body))
        assert caught.value.phase == "idle"
        await settle()
        assert body.closed


@pytest.mark.parametrize("script", [silent, begun], ids=["before the head", "inside the body"])
async def test_whole_call_times_out(make_upstream: MakeUpstream, script: object) -> None:
    async with WireServer(script) as server:  # type: ignore[arg-type]
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(total_timeout_s=0.5), get(origin_of(server)))
        assert (caught.value.phase, caught.value.sent) == ("total", True)


async def test_call_may_shorten_its_own_total(make_upstream: MakeUpstream) -> None:
    async with WireServer(begun) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(), get(origin_of(server), total_timeout_s=0.05))
        assert caught.value.phase == "total"


async def test_total_covers_a_body_that_trickles(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(STREAM)
        while True:
            await asyncio.sleep(0.01)
            await peer.send(b"1\r\n.\r\n")

    async with WireServer(script) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(make_upstream(total_timeout_s=0.15), get(origin_of(server)))
        assert caught.value.phase == "total"


async def test_no_timer_is_left_when_nothing_is_open(make_pool: MakePool) -> None:
    async with WireServer(answering()) as server:
        pool = make_pool(keep_alive_s=0.03)
        await fetch(pool, get(origin_of(server)))
        assert pool._sweeper is not None
        await asyncio.sleep(0.1)
        assert pool._sweeper is None


async def test_tls_is_verified_against_the_name_though_the_address_is_dialled(
    make_pool: MakePool, certificates: Certificates
) -> None:
    async with WireServer(answering(), tls=certificates.server) as server:
        pool = make_pool(ca_file=certificates.authority, lookup=names("127.0.0.1"))
        named = origin_of(server, scheme="https", host="provider.test")
        for _ in range(2):
            assert await fetch(pool, get(named)) == b"ok"
        assert await fetch(pool, get(named._replace(host="provider.test."))) == b"ok"
        with pytest.raises(UpstreamUnreachable, match="certificate") as caught:
            await fetch(pool, get(named._replace(host="other.test")))
        assert not caught.value.sent
        assert server.connections == 2


async def test_unknown_authority_is_not_trusted(make_upstream: MakeUpstream, certificates: Certificates) -> None:
    async with WireServer(answering(), tls=certificates.server) as server:
        with pytest.raises(UpstreamUnreachable):
            await fetch(make_upstream(), get(origin_of(server, scheme="https", host="localhost")))


async def test_http_1_1_is_the_only_protocol_offered(make_pool: MakePool, certificates: Certificates) -> None:
    chosen: list[str | None] = []

    async def script(peer: Peer) -> None:
        chosen.append(peer.tls_protocol)
        await peer.answer()

    async with WireServer(script, tls=certificates.server) as server:
        pool = make_pool(ca_file=certificates.authority, lookup=names("127.0.0.1"))
        await fetch(pool, get(origin_of(server, scheme="https", host="provider.test")))
        assert chosen == ["http/1.1"]


async def test_plain_server_behind_https_is_unreachable(make_upstream: MakeUpstream) -> None:
    async with WireServer(lambda peer: peer.send(b"HTTP/1.1 400 Bad\r\n\r\n")) as server:
        with pytest.raises(UpstreamError) as caught:
            await fetch(make_upstream(), get(origin_of(server, scheme="https")))
        assert isinstance(caught.value, UpstreamUnreachable)
        assert not caught.value.sent


async def test_sockets_do_not_wait_to_fill_packets_and_notice_dead_peers(make_pool: MakePool) -> None:
    async with WireServer(answering()) as server:
        pool = make_pool()
        await fetch(pool, get(origin_of(server)))
        (connection,) = pool._connections
        assert connection._transport is not None
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_closed_pool_refuses(make_pool: MakePool) -> None:
    async with WireServer(silent) as server:
        pool = make_pool()
        call = asyncio.create_task(pool.send(get(origin_of(server))))
        await settle()
        await pool.close()
        with pytest.raises(UpstreamError):
            await call
        with pytest.raises(PoolFull):
            await pool.send(get(origin_of(server)))


async def test_answers_are_never_logged(make_upstream: MakeUpstream, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with WireServer(answering(b"HTTP/1.1 200 OK\r\nSet-Cookie: secret\r\nContent-Length: 0\r\n\r\n")) as server:
        request = get(origin_of(server), b"/?key=secret")
        request.headers.append((b"authorization", b"Bearer secret"))
        await fetch(make_upstream(allowed_networks=[ip_network("127.0.0.0/8")]), request)
    assert "secret" not in caplog.text
