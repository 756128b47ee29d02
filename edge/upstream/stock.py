"""The same upstream over stock httpx: for cold paths (an outbound proxy), and the pool's oracle in the tests.

Transport level only: raw bytes pass unchanged, nothing is decompressed, added, redirected or read from the environment.
A call costs 1.8 ms and more. What it does not do as the pool does:

- connections are capped in all, not per host, and the line behind them is first come, first served over all hosts;
- the request's body is written to its end before the answer is looked at, so an early refusal may be seen late;
- the head's bound is httpcore's own 100 KiB, trailers have none of their own, and the `host` header goes first;
- `transfer-encoding` beside `content-length` is accepted, the former wins; bytes that follow an answer stay on the
  connection and are taken for the next one's beginning;
- the resolved address is checked before the call and again once connected, before anything is written; the pool does
  not even connect. Through an outbound proxy the proxy resolves, so only the first check is ours.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import httpx

from edge.upstream import wire
from edge.upstream.addresses import Addresses, Lookup, Network
from edge.upstream.pool import tls_context
from edge.upstream.protocol import (
    Origin,
    PoolFull,
    RequestMalformed,
    TargetNotAllowed,
    UpstreamBroken,
    UpstreamCut,
    UpstreamError,
    UpstreamRequest,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from schemas.settings import UpstreamSettings


class StockUpstream:
    """Implements `protocol.Upstream`."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        allowed_networks: Iterable[Network] = (),
        lookup: Lookup | None = None,
    ) -> None:
        # At level debug httpcore would log the heads of answers.
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        self._settings = settings
        self._addresses = Addresses(allowed_networks=allowed_networks, lookup=lookup)
        self._proxied = settings.proxy_url is not None
        # A connection to a host the operator vouches for is never one that a caller's own words can reach.
        self._transports = {allowed: _transport(settings) for allowed in (False, True)}
        self._calls = 0
        self._closing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<StockUpstream {self._calls} active>"

    async def send(self, request: UpstreamRequest) -> "StockAnswer":
        wire.encode(request)  # for its checks
        settings = self._settings
        if self._calls >= settings.connections + settings.waiting:
            raise PoolFull(f"{request.origin.host}: every connection is taken and the line is full")
        call = _Call(self, request)
        self._calls += 1
        try:
            return await self._send(call, request)
        except BaseException:
            self.ended(asyncio.create_task(call.close()))
            raise

    async def _send(self, call: "_Call", request: UpstreamRequest) -> "StockAnswer":
        origin = request.origin
        with call.errors():
            async with asyncio.timeout_at(call.ends):
                try:
                    async with asyncio.timeout(self._settings.connect_timeout_s):
                        await self._check(origin)
                except TimeoutError:
                    raise UpstreamTimeout(f"{call.name}: no address in time", phase="connect") from None
                response = await self._transports[origin.private_allowed].handle_async_request(call.httpx_request())
        if response.status_code == 101:
            await response.stream.aclose()  # type: ignore[union-attr]
            raise UpstreamBroken(f"{call.name}: not a valid answer: status 101", sent=True)
        return StockAnswer(call, response)

    async def close(self) -> None:
        self._addresses.close()
        for transport in self._transports.values():
            await transport.aclose()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _check(self, origin: Origin) -> None:
        """Raises what the pool's resolver raises; only the allowed addresses' existence matters here."""
        if not self._proxied:
            await self._addresses.of(origin)
        elif not origin.private_allowed:
            try:
                await self._addresses.of(origin)
            except UpstreamUnreachable:
                return  # a name that only the proxy can resolve

    def check_peer(self, origin: Origin, peer: str) -> None:
        if not self._proxied and not self._addresses.allows(origin, ip_address(peer.partition("%")[0])):
            raise TargetNotAllowed(f"{origin.host} is at a private address")

    def ended(self, closing: "asyncio.Task[None] | None" = None) -> None:
        self._calls -= 1
        if closing is not None:
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


class _Call:
    """One call's deadlines and how far it has come."""

    def __init__(self, upstream: StockUpstream, request: UpstreamRequest) -> None:
        settings = upstream._settings
        self.upstream = upstream
        self.request = request
        self.name = f"{request.origin.host}:{request.origin.port}"
        self.sent = False
        self.headed = False
        self._opened: Any = None  # the stream, if this call opened it
        self.idle_s = settings.idle_timeout_s
        self.first_byte_s = min(settings.first_byte_timeout_s, request.first_byte_timeout_s or float("inf"))
        self.ends = asyncio.get_running_loop().time() + min(
            settings.total_timeout_s, request.total_timeout_s or float("inf")
        )
        # httpcore looks at this anew for the head and for the body.
        self.timeouts = {
            "connect": settings.connect_timeout_s,
            "pool": settings.connect_timeout_s,
            "write": settings.idle_timeout_s,
            "read": self.first_byte_s,
        }

    def httpx_request(self) -> httpx.Request:
        request = self.request
        origin = request.origin
        return httpx.Request(
            request.method.decode("ascii"),
            httpx.URL(scheme=origin.scheme, host=origin.host, port=origin.port),
            headers=request.headers,
            stream=_Body(request.body, wire.content_length(request.headers)),
            extensions={"timeout": self.timeouts, "target": request.target, "trace": self._trace},
        )

    async def _trace(self, step: str, info: dict[str, Any]) -> None:
        if step == "connection.connect_tcp.complete":
            self._opened = info["return_value"]
            self.upstream.check_peer(self.request.origin, self._opened.get_extra_info("server_addr")[0])
        elif step.endswith("send_request_headers.started"):
            self.sent = True

    async def close(self) -> None:
        """After a failed call: httpcore leaves a stream open when TLS on it, or what `_trace` raises, ends the call."""
        if self._opened is not None:
            await self._opened.aclose()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """httpx's exceptions become ours here, and nowhere else."""
        try:
            yield
        except TimeoutError:
            raise UpstreamTimeout(
                f"{self.name}: the call took too long in all", phase="total", sent=self.sent
            ) from None
        except httpx.PoolTimeout:
            raise PoolFull(f"{self.name}: no connection was free in time") from None
        except httpx.ConnectTimeout:
            raise UpstreamTimeout(f"{self.name}: no connection in time", phase="connect") from None
        except httpx.TimeoutException as error:
            is_first = isinstance(error, httpx.ReadTimeout) and not self.headed
            raise UpstreamTimeout(
                f"{self.name}: {'no answer in time' if is_first else 'silent for too long'}",
                phase="first_byte" if is_first else "idle",
                sent=True,
            ) from None
        except httpx.LocalProtocolError as error:
            raise RequestMalformed(f"{self.name}: the request is not valid", sent=self.sent) from error
        except (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise UpstreamUnreachable(f"{self.name}: no connection") from error
        except httpx.TransportError as error:
            raise self._broken(error) from error

    def _broken(self, error: httpx.TransportError) -> UpstreamError:
        if not self.headed:
            return UpstreamBroken(f"{self.name}: no valid answer", sent=self.sent)
        if isinstance(error, httpx.NetworkError) or "peer closed" in str(error):
            return UpstreamCut(f"{self.name}: the connection ended inside the answer's body", sent=True)
        return UpstreamBroken(f"{self.name}: not a valid answer", sent=True)


class StockAnswer:
    def __init__(self, call: _Call, response: httpx.Response) -> None:
        call.headed = True
        call.timeouts["read"] = call.idle_s
        self.status = response.status_code
        self.headers = list(response.headers.raw)
        self.body_complete = False
        self._call = call
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._stream = response.stream
        self._pieces = response.stream.__aiter__()
        self._error: UpstreamError | None = None

    def arrived(self) -> bytes:
        return b""

    async def flow(self, to: Callable[[bytes], bool]) -> bool:
        while piece := await self._next():
            if not to(piece):
                return False
        return True

    async def _next(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self.body_complete:
            return b""
        try:
            with self._call.errors():
                async with asyncio.timeout_at(self._call.ends):
                    async for piece in self._pieces:
                        if piece:
                            return piece
                    await self._stream.aclose()
        except UpstreamError as error:
            self._drop(error)
            raise
        except BaseException:
            self.abort()
            raise
        self.body_complete = True
        self._call.upstream.ended()
        return b""

    def abort(self) -> None:
        self._drop(UpstreamCut("the answer was dropped before its end", sent=True))

    def _drop(self, error: UpstreamError) -> None:
        if self._error is None and not self.body_complete:
            self._error = error
            self._call.upstream.ended(asyncio.create_task(self._close()))

    async def _close(self) -> None:
        await self._stream.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, body: bytes | AsyncIterator[bytes], length: int | None) -> None:
        self._body = body
        self._left = length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self._body
        if isinstance(body, bytes):
            if body:
                yield body
            return
        left = self._left
        try:
            async for piece in body:
                if left is not None:
                    left -= len(piece)
                    if left < 0:
                        raise RequestMalformed("the body is longer than its content-length", sent=True)
                if piece:
                    yield piece
            if left:
                raise RequestMalformed("the body is shorter than its content-length", sent=True)
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()


def _transport(settings: UpstreamSettings) -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(
        verify=tls_context(settings.ca_file),
        trust_env=False,
        limits=httpx.Limits(
            max_connections=settings.connections,
            max_keepalive_connections=settings.connections,
            keepalive_expiry=settings.keep_alive_s,
        ),
        proxy=settings.proxy_url.get_secret_value() if settings.proxy_url is not None else None,
        retries=0,
        socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
    )
