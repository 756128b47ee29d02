"""What an upstream makes of the bytes a provider sends. Both implementations, both event loops."""

import asyncio

import pytest

from edge.upstream.protocol import UpstreamBroken, UpstreamCut
from tests.edge.upstream.calls import body_of, fetch, get, origin_of, post, read, settle, until
from tests.edge.upstream.conftest import MakeUpstream
from tests.edge.upstream.wire_server import OK, Peer, WireServer, answering, once

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_head_and_body_pass_as_received(make_upstream: MakeUpstream) -> None:
    head = b"HTTP/1.1 207 Odd\r\nX-B: 1\r\nx-a: two words\r\nX-B: 3\r\nX-Empty:\r\nContent-Length: 4\r\n\r\n"
    async with WireServer(answering(head + b"\0\xff\r\n")) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        assert answer.status == 207
        assert answer.headers == [
            (b"X-B", b"1"),
            (b"x-a", b"two words"),
            (b"X-B", b"3"),
            (b"X-Empty", b""),
            (b"Content-Length", b"4"),
        ]
        assert await body_of(answer) == b"\0\xff\r\n"
        assert await read(answer) == b""
        assert answer.body_complete


async def test_compressed_body_is_not_unpacked(make_upstream: MakeUpstream) -> None:
    packed = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8bXX"
    async with WireServer(answering(packed)) as server:
        assert await fetch(make_upstream(), get(origin_of(server))) == b"\x1f\x8bXX"


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_answer_may_come_in_pieces_of_any_size(make_upstream: MakeUpstream, size: int) -> None:
    whole = CHUNKED.replace(b"\r\n\r\n", b"\r\nX-Long: a b c\r\n\r\n") + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"

    async def script(peer: Peer) -> None:
        await peer.request()
        for start in range(0, len(whole), size):
            await peer.send(whole[start : start + size])
            await asyncio.sleep(0)
        await peer.gone()

    async with WireServer(script) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        assert answer.headers == [(b"Transfer-Encoding", b"chunked"), (b"X-Long", b"a b c")]
        assert await body_of(answer) == b"hello world"


async def test_trailers_are_dropped_and_the_connection_is_kept(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering(CHUNKED + b"2\r\nhi\r\n0\r\nX-Trailer: a\r\nX-More: b\r\n\r\n")) as server:
        upstream = make_upstream()
        for _ in range(2):
            answer = await upstream.send(get(origin_of(server)))
            assert await body_of(answer) == b"hi"
            assert answer.headers == [(b"Transfer-Encoding", b"chunked")]
        assert server.connections == 1


async def test_body_without_length_ends_with_its_connection(make_upstream: MakeUpstream) -> None:
    async with WireServer(once(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nall there is")) as server:
        assert await fetch(make_upstream(), get(origin_of(server))) == b"all there is"


async def test_body_without_length_that_is_reset_is_cut(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nall there")
        await settle()
        peer.reset()

    async with WireServer(script) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        with pytest.raises(UpstreamCut):
            await body_of(answer)


@pytest.mark.parametrize(
    ("method", "head"),
    [
        pytest.param(b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", id="HEAD"),
        pytest.param(b"HEAD", CHUNKED, id="HEAD of a chunked body"),
        pytest.param(b"GET", b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", id="204"),
        pytest.param(b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", id="304"),
        pytest.param(b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="length 0"),
    ],
)
async def test_answer_that_has_no_body_waits_for_none(make_upstream: MakeUpstream, method: bytes, head: bytes) -> None:
    async with WireServer(answering(head)) as server:
        upstream = make_upstream()
        for _ in range(2):
            assert await fetch(upstream, get(origin_of(server), method=method)) == b""


async def test_interim_answers_are_skipped(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await settle()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK)
        await peer.gone()

    async with WireServer(script) as server:
        answer = await make_upstream().send(post(origin_of(server)))
        assert (answer.status, answer.headers) == (200, [(b"Content-Length", b"2")])
        assert await body_of(answer) == b"ok"


async def test_body_is_sent_without_waiting_for_100_continue(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        request = post(origin_of(server))
        request.headers.append((b"expect", b"100-continue"))
        assert await fetch(make_upstream(), request) == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"<html>not HTTP</html>\r\n\r\n", id="no HTTP at all"),
        pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no status"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="an upgrade"),
        pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n", id="101 without an upgrade"),
        pytest.param(b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n", id="a status below 100"),
        pytest.param(b"HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n", id="a blank in a header's name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", id="NUL in a header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", id="two lengths in one"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", id="a negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok", id="a length that is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", id="gzip too"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", id="gzip alone"),
    ],
)
async def test_head_that_cannot_be_believed_is_broken(make_upstream: MakeUpstream, answer: bytes) -> None:
    async with WireServer(answering(answer)) as server:
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(make_upstream(), post(origin_of(server)))
        assert caught.value.sent
        assert (caught.value.code, caught.value.status) == ("upstream_broken", 502)


@pytest.mark.pool_only("h11 lets transfer-encoding win, as RFC 9112 permits")
@pytest.mark.parametrize("length_first", [True, False])
async def test_length_beside_transfer_encoding_is_broken(make_upstream: MakeUpstream, length_first: bool) -> None:
    both = [b"Content-Length: 12", b"Transfer-Encoding: chunked"]
    head = b"HTTP/1.1 200 OK\r\n%b\r\n%b\r\n\r\n" % tuple(both if length_first else reversed(both))
    async with WireServer(answering(head + b"2\r\nok\r\n0\r\n\r\n")) as server:
        with pytest.raises(UpstreamBroken):
            await fetch(make_upstream(), get(origin_of(server)))


async def test_transfer_encoding_without_chunked_is_never_a_whole_body(make_upstream: MakeUpstream) -> None:
    async with WireServer(once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nXX")) as server:
        with pytest.raises(UpstreamBroken):
            await fetch(make_upstream(), get(origin_of(server)))


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_connection_lost_before_an_answer_is_broken(make_upstream: MakeUpstream, end: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        getattr(peer, end)()

    async with WireServer(script) as server:
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(make_upstream(), post(origin_of(server)))
        assert caught.value.sent
        assert server.connections == 1, "a call whose bytes left must not be repeated"


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun", id="content-length"),
        pytest.param(CHUNKED + b"5\r\nbegun\r\n", id="between chunks"),
        pytest.param(CHUNKED + b"a\r\nbegun", id="inside a chunk"),
    ],
)
async def test_body_shorter_than_promised_is_cut_after_what_arrived(
    make_upstream: MakeUpstream, head: bytes, end: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(head)
        await taken.wait()
        getattr(peer, end)()
        await settle()

    taken = asyncio.Event()
    async with WireServer(script) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        assert await read(answer) == b"begun"
        taken.set()
        for _ in range(2):
            with pytest.raises(UpstreamCut) as caught:
                await read(answer)
        assert caught.value.code == "upstream_cut"
        assert not answer.body_complete


async def test_malformed_chunk_breaks_the_body(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering(CHUNKED + b"2\r\nhi\r\nzz\r\n")) as server:
        with pytest.raises(UpstreamBroken):
            await fetch(make_upstream(), get(origin_of(server)))


async def test_endless_head_is_refused(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await peer.send(b"y" * 4096)

    async with WireServer(script) as server:
        with pytest.raises(UpstreamBroken):
            await fetch(make_upstream(head_bytes=16384), get(origin_of(server)))


@pytest.mark.pool_only("httpcore's bound is its own, 100 KiB")
@pytest.mark.parametrize(("size", "passes"), [(16384, True), (16385, False)])
async def test_head_is_bounded_to_the_byte(make_upstream: MakeUpstream, size: int, passes: bool) -> None:
    # The bound counts header lines; the body, which comes in the same read, does not count.
    length = b"Content-Length: 70000\r\n"
    filler = b"X: " + b"y" * (size - len(length) - 5) + b"\r\n"
    async with WireServer(answering(b"HTTP/1.1 200 OK\r\n" + length + filler + b"\r\n" + b"z" * 70000)) as server:
        upstream = make_upstream(head_bytes=16384)
        if passes:
            assert len(await fetch(upstream, get(origin_of(server)))) == 70000
        else:
            with pytest.raises(UpstreamBroken, match="too large"):
                await fetch(upstream, get(origin_of(server)))


@pytest.mark.pool_only("h11 keeps trailers up to its own bound")
@pytest.mark.parametrize(
    "flood", [b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", b"y"], ids=["many trailers", "one trailer"]
)
async def test_endless_trailers_are_refused(make_upstream: MakeUpstream, flood: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"2\r\nhi\r\n0\r\nX: ")
        while True:
            await peer.send(flood * 1000)

    async with WireServer(script) as server:
        with pytest.raises(UpstreamBroken, match="trailers"):
            await fetch(make_upstream(head_bytes=16384), get(origin_of(server)))


@pytest.mark.pool_only("httpcore hands the body over separately")
async def test_small_answer_is_complete_with_its_head(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        assert answer.body_complete
        assert await read(answer) == b"ok"
        assert await read(answer) == b""


@pytest.mark.pool_only("httpcore gives each piece singly")
async def test_pieces_that_arrived_meanwhile_are_joined(make_upstream: MakeUpstream) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"1\r\na\r\n")
        await peer.send(b"1\r\nb\r\n")
        await settle()
        await peer.send(b"1\r\nc\r\n0\r\n\r\n")
        sent.set()
        await peer.gone()

    sent = asyncio.Event()
    async with WireServer(script) as server:
        answer = await make_upstream().send(get(origin_of(server)))
        await sent.wait()
        await until(lambda: answer.body_complete)
        assert await read(answer) == b"abc"
