"""What the edge asks of an upstream: send one request, read its answer piece by piece, or drop it.

    UpstreamError                status  code
    ├── UpstreamUnreachable      502     upstream_unreachable   no address, refused, TLS failed
    ├── UpstreamTimeout          504     upstream_timeout       connect, first byte, silence, total
    ├── UpstreamBroken           502     upstream_broken        no answer, or one that cannot be believed
    │   └── UpstreamCut          502     upstream_cut           the answer ended before its body did
    ├── TargetNotAllowed         403     target_not_allowed     every address of the host is private
    ├── RequestMalformed         400     bad_header             our request would not be valid HTTP
    └── PoolFull                 503     pool_full              no connection free, and the line is full or too slow

The pool (`pool.py`) is the hot path; stock httpx (`stock.py`) serves cold paths and is the pool's oracle in the tests.
"""

from collections.abc import AsyncIterator, Callable
from typing import ClassVar, Literal, NamedTuple, Protocol

import msgspec

Header = tuple[bytes, bytes]
Phase = Literal["connect", "first_byte", "idle", "total"]


class UpstreamError(Exception):
    """A call failed between us and its provider. The message names host and cause, never a header, a query or a body.

    `sent` is False only when not one byte of the request was written: such a call may be repeated without a thought.
    """

    code: ClassVar[str] = "upstream_error"
    status: ClassVar[int] = 502

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class UpstreamUnreachable(UpstreamError):
    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    code = "upstream_timeout"
    status = 504

    def __init__(self, message: str, *, phase: Phase, sent: bool = False) -> None:
        super().__init__(message, sent=sent)
        self.phase = phase


class UpstreamBroken(UpstreamError):
    code = "upstream_broken"


class UpstreamCut(UpstreamBroken):
    """Everything that arrived before the cut has been read; the rest will never come."""

    code = "upstream_cut"


class TargetNotAllowed(UpstreamError):
    code = "target_not_allowed"
    status = 403


class RequestMalformed(UpstreamError):
    code = "bad_header"
    status = 400


class PoolFull(UpstreamError):
    code = "pool_full"
    status = 503


class Origin(NamedTuple):
    """Where a request goes. Connections are shared within an origin only.

    `host` is lower-case ASCII without brackets. `private_allowed` is the operator's own word for this host; without it
    only public addresses (and the settings' `allowed_networks`) are connected to, whatever the name resolves to.
    """

    scheme: str
    host: str
    port: int
    private_allowed: bool = False


class UpstreamRequest(msgspec.Struct):
    """One HTTP request, written as it stands.

    `target` is the raw path with its query. `headers` are complete and in order, `host` included; they say how the body
    is framed: `content-length` (which must be true) or `transfer-encoding: chunked` (then we frame it). A streamed
    `body` is read by a task of the upstream's, one piece ahead of the socket at most, and closed (`aclose`) when it is
    no longer wanted. The two timeouts shorten the settings' for this call, they never lengthen them.
    """

    origin: Origin
    method: bytes
    target: bytes
    headers: list[Header]
    body: bytes | AsyncIterator[bytes] = b""
    first_byte_timeout_s: float | None = None
    total_timeout_s: float | None = None


class UpstreamAnswer(Protocol):
    """An answer whose head has arrived. Read it to its end or `abort()` it; otherwise its connection stays taken."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> list[Header]:
        """As received: order, case and repetitions kept. Hop-by-hop headers are still among them."""

    @property
    def body_complete(self) -> bool:
        """The whole body has arrived: `arrived()` gives all that is left."""

    def arrived(self) -> bytes:
        """What has arrived and went nowhere yet; `b""` when that is nothing."""

    async def flow(self, to: Callable[[bytes], bool]) -> bool:
        """Give each piece of the body to `to` as soon as it arrives. True at the body's end.

        False when `to` said False: it has had enough, and what arrives waits here until `flow` is called again. One
        `flow` at a time; one that is cancelled aborts the answer.

        Raises:
            UpstreamCut: the connection ended before the body did.
            UpstreamBroken: the rest of the body is not valid HTTP.
            UpstreamTimeout: silence for too long, or the call took too long in all.
        """

    def abort(self) -> None:
        """Close the connection now, unless the whole answer has arrived. May be repeated."""


class Upstream(Protocol):
    async def send(self, request: UpstreamRequest) -> UpstreamAnswer:
        """Send one request and wait for the head of its answer, interim (1xx) ones skipped.

        Cancelling it closes the connection. An exception of a streamed body's own is raised as it is.

        Raises:
            UpstreamError: one of the tree; `sent` says whether any byte of the request left.
        """

    async def close(self) -> None:
        """Close every connection, those in use included; calls in flight fail."""
