"""How a request is written: as it stands, framed truly, as fast as it is taken."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from edge.upstream.protocol import RequestMalformed, UpstreamBroken, UpstreamRequest
from tests.edge.upstream.calls import body_of, fetch, get, origin_of, pieces, post, read, settle, until, upload
from tests.edge.upstream.conftest import MakePool, MakeUpstream
from tests.edge.upstream.wire_server import OK, Peer, WireServer, answering


async def test_request_is_written_as_it_stands(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        headers = [
            (b"Host", b"provider.test"),
            (b"X-Case", b"Kept"),
            (b"x-twice", b"1"),
            (b"accept-encoding", b""),
            (b"X-Twice", b"2"),
            (b"Content-Length", b"3"),
        ]
        target = b"/v1//a/../%7Eb/%2f?q=%20+%C3%A4&x[]=1&&y"
        await fetch(make_upstream(), UpstreamRequest(origin_of(server), b"POST", target, headers, b"a\0b"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        assert server.peers[0].requests == [b"POST " + target + b" HTTP/1.1\r\n" + lines + b"\r\na\0b"]


async def test_streamed_body_of_known_length(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        assert await fetch(make_upstream(), upload(origin_of(server), pieces(b"ab", b"", b"cd"), 4)) == b"ok"
        assert server.peers[0].requests[0].endswith(b"content-length: 4\r\n\r\nabcd")


async def test_streamed_body_may_be_empty(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        upstream = make_upstream()
        for request in (upload(origin_of(server), pieces(), 0), get(origin_of(server), body=pieces(b""))):
            assert await fetch(upstream, request) == b"ok"


async def test_streamed_body_of_unknown_length_is_chunked(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        assert await fetch(make_upstream(), upload(origin_of(server), pieces(b"ab", b"", b"c" * 17))) == b"ok"
        assert server.peers[0].requests[0].endswith(b"2\r\nab\r\n11\r\n" + b"c" * 17 + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("body", [b"", b"{}"], ids=["empty", "small"])
async def test_whole_body_is_chunked_when_the_headers_say_so(make_upstream: MakeUpstream, body: bytes) -> None:
    async with WireServer(answering()) as server:
        request = upload(origin_of(server), pieces())
        request.body = body
        assert await fetch(make_upstream(), request) == b"ok"
        sent = server.peers[0].requests[0].partition(b"\r\n\r\n")[2]
        assert sent == (b"2\r\n{}\r\n0\r\n\r\n" if body else b"0\r\n\r\n")


async def test_large_body_arrives_whole_and_the_connection_is_kept(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        upstream = make_upstream()
        body = bytes(range(256)) * 12_000
        for _ in range(2):
            assert await fetch(upstream, post(origin_of(server), body)) == b"ok"
        assert [received.partition(b"\r\n\r\n")[2] for received in server.peers[0].requests] == [body, body]


@pytest.mark.parametrize(
    ("headers", "target", "body"),
    [
        pytest.param([(b"x", b"a\r\nx-key: b")], b"/", b"", id="line break in a value"),
        pytest.param([(b"x", b"a\nx-key: b")], b"/", b"", id="bare LF in a value"),
        pytest.param([(b"x", b"a\rb")], b"/", b"", id="bare CR in a value"),
        pytest.param([(b"x", b"a\0b")], b"/", b"", id="NUL in a value"),
        pytest.param([(b"x\r\ny", b"a")], b"/", b"", id="line break in a name"),
        pytest.param([], b"/ HTTP/1.1\r\nx: y", b"", id="line break in the target"),
        pytest.param([], b"/a b", b"", id="blank in the target"),
        pytest.param([], b"", b"", id="empty target"),
        pytest.param([(b"content-length", b"3")], b"/", b"ab", id="length too long"),
        pytest.param([(b"content-length", b"1")], b"/", b"ab", id="length too short"),
        pytest.param([(b"Content-Length", b"2"), (b"content-length", b"2")], b"/", b"ab", id="length twice"),
        pytest.param([(b"content-length", b"+2")], b"/", b"ab", id="length with a sign"),
        pytest.param([], b"/", b"ab", id="body without a length"),
        pytest.param([(b"transfer-encoding", b"gzip, chunked")], b"/", b"ab", id="another coding"),
        pytest.param([(b"transfer-encoding", b"chunked"), (b"content-length", b"2")], b"/", b"ab", id="both framings"),
    ],
)
async def test_request_that_could_be_read_in_two_ways_is_never_sent(
    make_upstream: MakeUpstream, headers: list[tuple[bytes, bytes]], target: bytes, body: bytes
) -> None:
    async with WireServer(answering()) as server:
        request = UpstreamRequest(origin_of(server), b"POST", target, [(b"host", b"h"), *headers], body)
        with pytest.raises(RequestMalformed) as caught:
            await fetch(make_upstream(), request)
        assert not caught.value.sent
        assert "x-key" not in str(caught.value)
        assert server.connections == 0


@pytest.mark.parametrize("parts", [pytest.param((b"abc",), id="too long"), pytest.param((b"a",), id="too short")])
async def test_streamed_body_of_the_wrong_length_closes_the_connection(
    make_upstream: MakeUpstream, parts: tuple[bytes, ...]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()
        gone.set()

    gone = asyncio.Event()
    async with WireServer(script) as server:
        with pytest.raises(RequestMalformed) as caught:
            await fetch(make_upstream(), upload(origin_of(server), pieces(*parts), 2))
        assert caught.value.sent
        async with asyncio.timeout(2):
            await gone.wait()


async def test_failing_body_raises_its_own_exception_and_closes(make_upstream: MakeUpstream) -> None:
    class ClientGone(Exception):
        pass

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        raise ClientGone

    async def script(peer: Peer) -> None:
        await peer.gone()
        gone.set()

    gone = asyncio.Event()
    async with WireServer(script) as server:
        with pytest.raises(ClientGone):
            await fetch(make_upstream(), upload(origin_of(server), body()))
        async with asyncio.timeout(2):
            await gone.wait()


class Endless:
    """A body without end that counts what was taken of it."""

    def __init__(self, size: int = 65536) -> None:
        self.taken = 0
        self.closed = False
        self._piece = b"x" * size

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        self.taken += len(self._piece)
        return self._piece

    async def aclose(self) -> None:
        self.closed = True


async def test_body_is_taken_only_as_fast_as_the_provider_reads(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await release.wait()

    release = asyncio.Event()
    async with WireServer(script) as server:
        body = Endless()
        call = asyncio.create_task(fetch(make_upstream(), upload(origin_of(server), body)))
        taken = -1
        while taken != body.taken:
            taken = body.taken
            await asyncio.sleep(0.05)
        assert taken < 16_000_000  # what the two sockets and the server's own buffer hold
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert body.closed


@pytest.mark.pool_only("httpcore writes the whole body before it looks at the answer")
async def test_early_refusal_is_answered_at_once_and_the_body_is_closed(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await release.wait()  # and never reads a byte of the body

    release = asyncio.Event()
    async with WireServer(script) as server:
        upstream = make_upstream()
        body = Endless()
        answer = await upstream.send(upload(origin_of(server), body))
        assert answer.status == 413
        assert await body_of(answer) == b"big"
        await until(lambda: body.closed)
        await settle()
        assert upstream.open == 0, "half a request has been written: the connection must not be used again"  # type: ignore[union-attr]


@pytest.mark.pool_only("httpcore writes the whole body before it looks at the answer")
async def test_refused_body_is_closed_before_the_refusal_has_ended(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nb")
        await release.wait()
        await peer.send(b"ig")

    release = asyncio.Event()
    async with WireServer(script) as server:
        body = Endless()
        answer = await make_upstream().send(upload(origin_of(server), body))
        await until(lambda: body.closed)
        release.set()
        assert await body_of(answer) == b"big"


async def test_early_success_lets_the_body_go_on(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(2):
            echoed = await peer.some(6)
            await peer.send(echoed)
        await peer.some(5)
        await peer.send(b"0\r\n\r\n")
        await peer.answer()

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await heard.wait()
        yield b"b"

    heard = asyncio.Event()
    async with WireServer(script) as server:
        pool = make_pool()
        answer = await pool.send(upload(origin_of(server), body()))
        assert await read(answer) == b"a"
        heard.set()
        assert await body_of(answer) == b"b"
        assert await fetch(pool, get(origin_of(server))) == b"ok"
        assert server.connections == 1


async def test_answer_that_ends_before_the_request_frees_its_source(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await peer.gone()

    async with WireServer(script) as server:
        pool = make_pool()
        body = Endless()
        assert await fetch(pool, upload(origin_of(server), body)) == b"ok"
        await until(lambda: body.closed)
        assert pool.open == 0


async def test_provider_that_says_no_more_while_we_send_is_broken_at_once(make_pool: MakePool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.sleep(0.1)  # until every buffer on the way is full
        peer.say_no_more()
        await asyncio.Event().wait()  # and never reads what is under way to it

    async with WireServer(script) as server:
        with pytest.raises(UpstreamBroken):
            await fetch(make_pool(), upload(origin_of(server), Endless()))


async def test_connection_lost_while_sending_is_broken(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.some(100_000)
        peer.reset()

    async with WireServer(script) as server:
        body = Endless()
        with pytest.raises(UpstreamBroken):
            await fetch(make_upstream(), upload(origin_of(server), body))
        await until(lambda: body.closed)
