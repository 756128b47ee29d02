"""Small builders for the tests of this folder."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from edge.upstream.protocol import Origin, Upstream, UpstreamAnswer, UpstreamRequest
from tests.edge.upstream.wire_server import WireServer

SOON_S = 2.0
"""Long enough on a busy machine for what takes a millisecond; nothing waits this long when all is well."""


def origin_of(server: WireServer, host: str = "127.0.0.1", scheme: str = "http", private: bool = True) -> Origin:
    return Origin(scheme, host, server.port, private)


def get(origin: Origin, target: bytes = b"/", method: bytes = b"GET", **more: Any) -> UpstreamRequest:
    return UpstreamRequest(origin, method, target, [(b"host", b"provider.test")], **more)


def post(origin: Origin, body: bytes = b"{}", **more: Any) -> UpstreamRequest:
    headers = [(b"host", b"provider.test"), (b"content-length", b"%d" % len(body))]
    return UpstreamRequest(origin, b"POST", b"/v1/chat/completions", headers, body, **more)


def upload(origin: Origin, body: AsyncIterator[bytes], length: int | None = None, **more: Any) -> UpstreamRequest:
    framing = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)
    return UpstreamRequest(origin, b"POST", b"/v1/files", [(b"host", b"provider.test"), framing], body, **more)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(answer: UpstreamAnswer) -> bytes:
    """The next piece, or all that has gathered; `b""` at the body's end."""
    taken: list[bytes] = []

    def once(piece: bytes) -> bool:
        taken.append(piece)
        return False

    await answer.flow(once)
    return b"".join(taken)


async def body_of(answer: UpstreamAnswer) -> bytes:
    parts = []
    while piece := await read(answer):
        parts.append(piece)
    return b"".join(parts)


async def fetch(upstream: Upstream, request: UpstreamRequest) -> bytes:
    async with asyncio.timeout(SOON_S * 2):
        return await body_of(await upstream.send(request))


async def settle(rounds: int = 10) -> None:
    """Let everything that is ready run."""
    for _ in range(rounds):
        await asyncio.sleep(0.001)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def names(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """A name server that gives every name these addresses."""

    async def lookup(host: str, port: int) -> Sequence[str]:
        return addresses

    return lookup
