"""What the edge refuses or fails with, and how it says so in the caller's own API shape.

EdgeError
├── BadHeader            400 bad_header
├── KeyRefused
│   ├── InvalidKey       401 invalid_key
│   └── Forbidden        403 forbidden
├── TargetRefused        403 target_not_allowed
├── UnknownProvider      404 unknown_provider
├── HeadTimeout          408 head_timeout
├── BodyTimeout          408 body_timeout
├── BodyTooLarge         413 body_too_large
├── PathTooLong          414 path_too_long
├── HeadersTooLarge      431 headers_too_large
├── BadFraming           400 bad_framing
├── Internal             500 internal
├── UpstreamFailed       of the upstream's error
├── NotBuilt             501 not_built
└── NotReady, Busy, Stopped  503 not_ready, busy, stopped
The upstream's own tree stands in upstream/protocol.py; `of_upstream` brings it here.
"""

from email.utils import formatdate

import msgspec

from edge.upstream.protocol import Header, PoolFull, RequestMalformed, TargetNotAllowed, UpstreamError
from schemas.apis import Shape
from schemas.keys import Key


class EdgeError(Exception):
    """A failure of ours to name. `code` is both the client's error code and the metric label."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class BadHeader(EdgeError):
    status, code = 400, "bad_header"

    def __init__(self, name: str, value: str, accepted: str) -> None:
        shown = value if len(value) <= 100 else value[:100] + "…"
        super().__init__(f"Header {name} has the value {shown!r}; accepted: {accepted}.", param=name)


def bare_url(url: str) -> str:
    """A URL as it may be shown and kept: not its query, and nothing of one that may hold a user and a password."""
    return "(not shown)" if "@" in url else url.partition("?")[0].partition("#")[0]


class BadFraming(EdgeError):
    status, code = 400, "bad_framing"


class KeyRefused(EdgeError):
    """`key` is the one that spoke, where it is known whose it is."""

    def __init__(self, message: str, *, key: Key | None = None) -> None:
        super().__init__(message)
        self.key = key


class InvalidKey(KeyRefused):
    status, code = 401, "invalid_key"


class Forbidden(KeyRefused):
    status, code = 403, "forbidden"


class TargetRefused(EdgeError):
    status, code = 403, "target_not_allowed"


class UnknownProvider(EdgeError):
    status, code = 404, "unknown_provider"


class HeadTimeout(EdgeError):
    status, code = 408, "head_timeout"


class BodyTimeout(EdgeError):
    status, code = 408, "body_timeout"


class BodyTooLarge(EdgeError):
    status, code = 413, "body_too_large"


class PathTooLong(EdgeError):
    status, code = 414, "path_too_long"


class HeadersTooLarge(EdgeError):
    status, code = 431, "headers_too_large"


class NotBuilt(EdgeError):
    status, code = 501, "not_built"


class NotReady(EdgeError):
    status, code = 503, "not_ready"


class Busy(EdgeError):
    status, code = 503, "busy"


class Stopped(EdgeError):
    status, code = 503, "stopped"


class Internal(EdgeError):
    """A mistake of ours."""


class UpstreamFailed(EdgeError):
    """The provider could not be asked, or its answer broke off."""


FAILURES = (Internal, UpstreamFailed)
"""Calls that went wrong; any other error is a call refused."""


_REFUSALS = (TargetNotAllowed, RequestMalformed, PoolFull)
"""What the upstream refuses by itself, no provider having been asked."""


def of_upstream(error: UpstreamError) -> EdgeError:
    ours = EdgeError(str(error)) if isinstance(error, _REFUSALS) else UpstreamFailed(str(error))
    ours.status, ours.code = error.status, error.code
    return ours


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(error: EdgeError, shape: Shape | None, request_id: str) -> bytes:
    """The error as JSON in the shape of the API that was called."""
    return msgspec.json.encode(_error_object(error, shape, request_id))


def error_headers(error: EdgeError, request_id: str) -> list[Header]:
    headers = [
        (b"content-type", b"application/json"),
        (b"date", formatdate(usegmt=True).encode()),
        (b"helicone-id", request_id.encode()),
        (b"helicone-status", b"failed"),
        (b"helicone-error", b"true"),
    ]
    if error.status == 503:
        headers.append((b"retry-after", b"1"))
    return headers


def error_event(error: EdgeError, shape: Shape | None, request_id: str) -> bytes:
    """The error as a server-sent event, for a stream that has begun."""
    data = error_body(error, shape, request_id)
    return b"event: error\ndata: " + data + b"\n\n"


def _error_object(error: EdgeError, shape: Shape | None, request_id: str) -> dict[str, object]:
    if shape == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": error.message, "code": error.code},
            "request_id": request_id,
        }
    if shape == "openai":
        kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    return {"error": {"code": error.code, "message": error.message}}
