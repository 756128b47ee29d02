"""What every call to the API goes through: a bound on its body, a count by route, and errors in one shape."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control import metrics
from control.errors import BodyTooLarge, ControlError, shown

log = logging.getLogger("heliograph.control")

_HELICONE = re.compile(r"/v1/request(/|$)")
_encode = msgspec.json.Encoder().encode

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 422: "bad_request"}


class Json(Response):
    """A dict as JSON: Decimal and UUID as text, `msgspec.Raw` as it is."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return _encode(content)


class Watch:
    """Counts calls, bounds their bodies, and answers what nobody caught. Raw ASGI: the body is never gathered here."""

    def __init__(self, app: ASGIApp, *, body_bytes_max: int) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        seen = 0

        async def counted_receive() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._body_bytes_max:
                raise HTTPException(413, f"a body here has at most {self._body_bytes_max} bytes")
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Rows of somebody's calls belong in no cache; what a browser may keep of the page, the page says.
                private = _PRIVATE if scope["path"].startswith("/v1/") else []
                message["headers"] = [*message["headers"], *_HEADERS, *private]
            await send(message)

        try:
            too_large = BodyTooLarge(f"a body here has at most {self._body_bytes_max} bytes")
            if _declared_length(scope) > self._body_bytes_max:
                await error_answer(scope["path"], too_large)(scope, receive, watched_send)
            else:
                await self._app(scope, counted_receive, watched_send)
        except Exception:
            log.exception("a call to %s failed", _route(scope))
            if status == 0:
                failed = ControlError("something is wrong on our side; the log says what")
                await error_answer(scope["path"], failed)(scope, receive, watched_send)
            else:
                raise
        finally:
            metrics.requests.labels(_route(scope), str(status)).inc()


_PRIVATE = [(b"cache-control", b"no-store")]
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def error_answer(path: str, error: ControlError) -> Response:
    """An error in the shape of the API that was called: Helicone's under /v1/request, ours elsewhere."""
    headers = {"retry-after": "1"} if error.status == 503 else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if _HELICONE.match(path):
        return Json({"data": None, "error": error.message}, error.status, headers)
    body = {"error": {"code": error.code, "message": error.message, **error.details()}}
    return Json(body, error.status, headers)


async def on_control_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ControlError)
    if error.status >= 500:
        log.warning("%s: %s", error.code, error.message)
    return error_answer(request.url.path, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the framework says itself: no such path, no such method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    problem = ControlError(str(error.detail))
    problem.status = error.status_code
    problem.code = _CODES.get(error.status_code, "http_error")
    answer = error_answer(request.url.path, problem)
    answer.headers.update(error.headers or {})
    return answer


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Pydantic's findings: the first of them named as field, value and what would be right."""
    assert isinstance(error, RequestValidationError)
    findings: Sequence[Any] = error.errors()
    finding: dict[str, Any] = findings[0] if findings else {"loc": ("body",), "msg": "is not as it should be"}
    where = [str(part) for part in finding["loc"] if part not in ("body", "query", "path")]
    field = ".".join(where) or str(finding["loc"][0])
    value = shown(finding.get("input"))
    expected = str(finding["msg"]).removeprefix("Value error, ")
    problem = ControlError(f"{shown(field)} = {value}: {expected}")
    problem.status = 422
    problem.code = "bad_request"
    if _HELICONE.match(request.url.path):
        problem.status = 400
        return error_answer(request.url.path, problem)
    details = {"field": shown(field), "value": value, "expected": expected}
    return Json({"error": {"code": problem.code, "message": problem.message, **details}}, 422)


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _route(scope: Scope) -> str:
    """The route's template, so that ids make no labels."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"
