"""The hot route: who calls, where to, ask the provider, pass the answer on, put it on record.

Never waits on Kafka, ClickHouse or control. A raw ASGI callable: Starlette's Request and Response would cost 42 µs a call.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from edge import errors, metrics
from edge.body import read_body
from edge.call import Call
from edge.capture import Capture
from edge.deadlines import Deadlines
from edge.headers import Header, read_headers
from edge.policies.auth import Auth
from edge.recorder import Recorder
from edge.upstream.protocol import Origin, Upstream, UpstreamAnswer, UpstreamError, UpstreamRequest
from edge.upstream.targets import Target, Targets
from schemas.apis import api_of, model_in_path
from schemas.event import Attempt
from schemas.ids import new_id
from schemas.keys import KEY_PREFIX
from schemas.settings import EdgeSettings

log = logging.getLogger("heliograph.edge")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")
_JSON_TYPES = ("application/json", "")
_STREAM_TYPES = ("text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream")
_NOT_PASSED_BACK = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
_QUERY_CREDENTIALS = ("key", "api_key", "apikey", "api-key", "access_token", "token", "subscription-key")
_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_S = 2.0
_NOWHERE = Target("unknown", "openai", Origin("https", "invalid", 443), "/")


class ConnectionCut(Exception):
    """Raised out of the application, which is how a server is told to close a connection at once."""


class ClientGone(Exception):
    """The client closed its connection while it was still sending."""


class Proxy:
    def __init__(
        self, settings: EdgeSettings, *, auth: Auth, targets: Targets, upstream: Upstream, recorder: Recorder,
        deadlines: Deadlines,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._auth = auth
        self._targets = targets
        self._upstream = upstream
        self._recorder = recorder
        self._deadlines = deadlines
        self.in_flight = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1")
        call = Call(new_id(), scope["method"], path)
        client = _Client(receive, send, self._deadlines)
        self.in_flight += 1
        try:
            try:
                await self._serve(call, client, scope)
            except UpstreamError as error:
                await self._fail(call, client, errors.of_upstream(error))
            except errors.EdgeError as error:
                await self._fail(call, client, error)
            except Exception:
                log.exception("a call failed inside the edge", extra={"id": call.id})
                await self._fail(call, client, errors.Internal(f"The gateway failed; its log says why (id {call.id})."))
        except (asyncio.CancelledError, ClientGone) as reason:
            if isinstance(reason, asyncio.CancelledError) and not client.ended_it():
                raise  # the server is stopping, not the client
            await self._end(call, client)
        finally:
            self.in_flight -= 1
            client.finished()
            if call.key is not None and call.said is not None:
                call.target = call.target or _NOWHERE._replace(path=call.path)
                await self._recorder.record(call)
            elif call.error_code is not None:
                metrics.refused.labels(call.error_code).inc()
        if client.cut:
            raise ConnectionCut

    async def _serve(self, call: Call, client: "_Client", scope: MutableMapping[str, Any]) -> None:
        settings = self._settings
        query: bytes = scope["query_string"]
        said = call.said = read_headers(scope["headers"], settings.bounds)
        call.secrets = said.secrets
        if call.path.startswith("/" + KEY_PREFIX):
            in_path, slash, rest = call.path[1:].partition("/")
            call.secrets.append(in_path.encode("latin-1"))
            said.key, call.path = said.key or in_path, slash + rest
        if query:
            call.secrets += _query_credentials(query)
        call.key = self._auth.check(said.key)
        if said.problem is not None:
            raise said.problem
        if len(call.path) + len(query) > settings.bounds.path_bytes:
            raise errors.PathTooLong(
                f"The path and query have {len(call.path) + len(query)} bytes; "
                f"at most {settings.bounds.path_bytes} are accepted."
            )
        if said.request_id is not None:
            call.id = said.request_id
        target = call.target = self._targets.find(
            call.path, said.host, target_url=said.target_url, speaks_anthropic=said.speaks_anthropic
        )
        call.api = api_of(target.shape, target.path)
        if said.upgrade:
            raise errors.NotBuilt("WebSocket upgrades are not supported by this version; use the HTTP API.")
        if self.in_flight > settings.bounds.calls:
            raise errors.Busy(f"This process already carries {settings.bounds.calls} calls. Try again shortly.")

        body = await self._take_body(call, client)
        origin = target.origin
        headers = said.forward
        headers.append((b"host", _host_header(origin)))
        if said.accepts is not None:
            headers.append((b"accept-encoding", said.accepts or b"identity"))
        if isinstance(body, bytes):
            if body or call.method not in _WITHOUT_BODY:
                headers.append((b"content-length", b"%d" % len(body)))
        elif said.content_length is not None:
            headers.append((b"content-length", b"%d" % said.content_length))
        else:
            headers.append((b"transfer-encoding", b"chunked"))
        path = target.path.encode("latin-1")
        request = UpstreamRequest(
            origin=origin,
            method=call.method.encode(),
            target=path + b"?" + query if query else path,
            headers=headers,
            body=body,
        )
        await self._forward(call, client, request, target)

    async def _take_body(self, call: Call, client: "_Client") -> bytes | AsyncIterator[bytes]:
        """A JSON body whole, any other as a stream."""
        said = call.said
        assert said is not None
        length = said.content_length
        if not said.transfer_coding and not length:
            if call.method not in _WITHOUT_BODY and length is None:
                await client.skip_body()
            client.watch()
            call.requested_model = model_in_path(call.path)
            return b""
        capture = call.request = Capture(self._settings.capture, said.request_coding)
        if said.content_type in _JSON_TYPES or said.content_type.endswith("+json"):
            limit = self._settings.bounds.body_bytes
            if length is not None and length > limit:
                raise _too_large(length, limit)
            body = await client.body(limit=limit, length=length, timeout_s=self._settings.bounds.body_timeout_s)
            client.watch()
            capture.feed(body)
            facts = read_body(body if not said.request_coding else capture.body().head)
            call.requested_model = facts.model or model_in_path(call.path)
            call.stream = facts.stream
            call.body_user_id = facts.user_id
            return body
        limit = self._settings.bounds.streamed_body_bytes
        if length is not None and length > limit:
            raise _too_large(length, limit)
        call.requested_model = model_in_path(call.path)
        return client.pieces(capture, limit=limit, timeout_s=self._settings.bounds.body_timeout_s)

    async def _forward(self, call: Call, client: "_Client", request: UpstreamRequest, target: Target) -> None:
        attempt = Attempt(target.provider, time.time_ns() // 1_000_000, 0.0)
        call.attempts.append(attempt)
        answer: UpstreamAnswer | None = None
        asked = call.waits()
        try:
            answer = await self._upstream.send(request)
            call.goes_on()
            attempt.status = answer.status
            client.watch()
            await self._pass_on(call, client, answer)
        except UpstreamError as error:
            attempt.reason = error.code
            raise
        except (asyncio.CancelledError, ClientGone):
            attempt.reason = "client_gone"
            raise
        finally:
            if answer is not None:
                answer.abort()
            attempt.latency_ms = round((call.goes_on() - asked) * 1000, 3)

    async def _pass_on(self, call: Call, client: "_Client", answer: UpstreamAnswer) -> None:
        headed = call.at
        headers, coding = _answer_headers(call, answer)
        call.status = answer.status
        streamed = call.answer_type in _STREAM_TYPES
        call.stream = streamed or (call.stream and answer.status < 400)
        if answer.status >= 400:
            call.outcome = "error"
        capture = call.response = Capture(self._settings.capture, coding)
        overhead_ms = (headed - call.started - call.upstream_s) * 1000
        headers += (
            (b"helicone-id", call.id.encode()),
            (b"helicone-status", b"success" if answer.status < 400 else b"failed"),
            (b"helicone-provider", call.target.provider.encode("latin-1") if call.target else b""),
            (b"helicone-overhead-ms", b"%.2f" % overhead_ms),
        )
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        if answer.body_complete:
            # The whole answer is here: one head, one body, nothing to wait for.
            piece = await answer.read()
            if streamed:
                call.first_byte = headed
            capture.feed(piece)
            await client.send(start)
            await client.send({"type": "http.response.body", "body": piece, "more_body": False})
            return
        await client.send(start)
        client.headed = True
        while True:
            call.waits()
            piece = await answer.read()
            arrived = call.goes_on()
            if not piece:
                break
            if streamed and call.first_byte is None:
                call.first_byte = arrived
            capture.feed(piece)
            with self._deadlines.within(self._settings.bounds.send_timeout_s, client.read_too_slowly):
                await client.send({"type": "http.response.body", "body": piece, "more_body": True})
        await client.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end(self, call: Call, client: "_Client") -> None:
        """A client that left, or was too slow, has ended its call."""
        if client.timed_out == "body":
            seconds = self._settings.bounds.body_timeout_s
            await self._fail(call, client, errors.BodyTimeout(f"The request's body stalled for {seconds:g} s."))
            call.outcome = "timeout"
        elif client.timed_out == "read":
            call.outcome, call.error_code, client.cut = "timeout", "client_read_timeout", True
        else:
            call.outcome, call.error_code = "cancelled", "client_gone"

    async def _fail(self, call: Call, client: "_Client", error: errors.EdgeError) -> None:
        """Say what went wrong in the caller's shape: as an answer while there is none, else as the stream's last event."""
        call.error_code, call.error_message = error.code, error.message
        call.outcome = (
            "timeout" if error.status == 504 else "error" if isinstance(error, errors.FAILURES) else "refused"
        )
        shape = (
            call.target.shape if call.target else ("anthropic" if call.path.startswith("/v1/messages") else "openai")
        )
        if not client.headed:
            call.status = error.status
            body = errors.error_body(error, shape, call.id)
            headers: list[Header] = [
                (b"content-type", b"application/json"),
                (b"helicone-id", call.id.encode()),
                (b"helicone-status", b"failed"),
                (b"helicone-error", b"true"),
            ]
            if error.status == 503:
                headers.append((b"retry-after", b"1"))
            client.cut = not await client.drained()
            # With a body half read the server does not always close when asked to, but it does when an answer breaks
            # off: so this one is left without its length and without its end.
            headers.append((b"connection", b"close") if client.cut else (b"content-length", b"%d" % len(body)))
            await client.send({"type": "http.response.start", "status": error.status, "headers": headers})
            await client.send({"type": "http.response.body", "body": body, "more_body": client.cut})
        elif call.answer_type == "text/event-stream":
            event = errors.error_event(error, shape, call.id)
            await client.send({"type": "http.response.body", "body": event, "more_body": True})
            await client.send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            # A plain answer that breaks off has no place for words. Ending it cleanly would be a lie, so the
            # connection is cut: the server does that for an application that fails.
            client.cut = True


class _Client:
    """The ASGI connection: reads the body with bounds, and notices when the client leaves."""

    __slots__ = (
        "_deadlines",
        "_future",
        "_receive",
        "_stopped",
        "_task",
        "_watching",
        "cut",
        "gone",
        "headed",
        "read_whole",
        "send",
        "timed_out",
    )

    def __init__(self, receive: Receive, send: Send, deadlines: Deadlines) -> None:
        self._receive = receive
        self.send = send
        self._deadlines = deadlines
        self._task = asyncio.current_task()
        self._future: Any = None
        self._stopped = self._watching = False
        self.read_whole = False
        self.headed = False
        self.gone = False
        self.cut = False
        self.timed_out: str | None = None

    async def body(self, *, limit: int, length: int | None, timeout_s: float) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge, ClientGone.
        """
        first = b""
        parts: list[bytes] | None = None
        size = 0
        with self._deadlines.within(timeout_s, self.sent_too_slowly) as deadline:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece: bytes = message.get("body", b"")
                size += len(piece)
                if size > limit:
                    raise _too_large(size, limit)
                if parts is not None:
                    parts.append(piece)
                elif first:
                    parts = [first, piece]
                else:
                    first = piece
                # With a length known, the end is known too: no need to be told.
                if size == length or not message.get("more_body", False):
                    break
                deadline.extend(timeout_s)
        self.read_whole = True
        return first if parts is None else b"".join(parts)

    async def pieces(self, capture: Capture, *, limit: int, timeout_s: float) -> AsyncIterator[bytes]:
        """The body piece by piece, as the upstream takes it."""
        size = 0
        while True:
            with self._deadlines.within(timeout_s, self.sent_too_slowly):
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise _too_large(size, limit)
            if piece:
                capture.feed(piece)
                yield piece
            if not message.get("more_body", False):
                break
        self.read_whole = True
        self.watch()

    async def drained(self) -> bool:
        """Take what the client still sends, so that it hears the refusal and not a reset. Bounded in bytes and time."""
        left = 0 if self.timed_out else _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not self.read_whole and left > 0:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    left -= len(message.get("body", b""))
                    self.read_whole = not message.get("more_body", False)
        except TimeoutError:
            return False
        return self.read_whole

    async def skip_body(self) -> None:
        """Take the empty body of a call that announced none."""
        if (await self._receive())["type"] == "http.disconnect":
            raise ClientGone

    def watch(self) -> None:
        """From now on, cancel the call when the client leaves. Without this a provider would go on being paid."""
        if self._watching or self._stopped:
            return
        self._watching = self.read_whole = True
        self._arm()

    def ended_it(self) -> bool:
        """Whether the call was cancelled for this client's sake; then the cancelling is over."""
        if not (self.gone or self.timed_out):
            return False
        if self._task is not None:
            self._task.uncancel()
        return True

    def finished(self) -> None:
        self._stopped = True
        waiting, self._future, self._task = self._future, None, None
        if waiting is not None and not waiting.done():
            # Granian's future is not the garbage collector's to look into: a circle through it would stay for ever.
            waiting.remove_done_callback(self._received)
            waiting.cancel()

    def sent_too_slowly(self) -> None:
        self._end("body")

    def read_too_slowly(self) -> None:
        self._end("read")

    def _end(self, late: str) -> None:
        self.timed_out = late
        if self._task is not None:
            self._task.cancel()

    def _arm(self) -> None:
        # Granian's receive() gives a future: a callback on it costs a tenth of a task that waits for it.
        waiting: Any = self._receive()
        if not hasattr(waiting, "add_done_callback"):
            waiting = asyncio.ensure_future(waiting)
        self._future = waiting
        waiting.add_done_callback(self._received, context=_NO_CONTEXT)

    def _received(self, future: Any) -> None:
        if self._stopped or future.cancelled():
            return
        try:
            message = future.result()
        except Exception:  # the connection is gone in some other way
            message = {"type": "http.disconnect"}
        if message["type"] != "http.disconnect":
            self._arm()
            return
        self.gone = True
        if self._task is not None:
            self._task.cancel()


_NO_CONTEXT = contextvars.Context()


def _answer_headers(call: Call, answer: UpstreamAnswer) -> tuple[list[Header], bytes]:
    """The provider's headers for the client, and the content coding among them."""
    kept: list[Header] = []
    coding = b""
    for header in answer.headers:
        known = _answer_names.get(header[0])
        name = known if known is not None else _answer_name(header[0])
        if not name:
            continue
        if name is _CONTENT_TYPE:
            call.answer_type = header[1].split(b";", 1)[0].strip().lower().decode("latin-1")
        elif name is _CONTENT_ENCODING:
            coding = header[1].strip().lower()
        kept.append((name, header[1]))
    return kept, coding


_CONTENT_TYPE = b"content-type"
_CONTENT_ENCODING = b"content-encoding"
_answer_names: dict[bytes, bytes] = {}
"""Header names met in answers, in lower case; empty: not passed back."""
_NAMES_MAX = 2000


def _answer_name(sent: bytes) -> bytes:
    name = sent.lower()
    if name in _NOT_PASSED_BACK or name.startswith((b"helicone-", b"heliograph-")):
        name = b""
    for special in (_CONTENT_TYPE, _CONTENT_ENCODING):
        name = special if name == special else name
    if len(_answer_names) < _NAMES_MAX:
        _answer_names[sent] = name
    return name


def _host_header(origin: Origin) -> bytes:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port == (443 if origin.scheme == "https" else 80):
        return host.encode()
    return f"{host}:{origin.port}".encode()


def _query_credentials(query: bytes) -> list[bytes]:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return [value.encode() for name, value in pairs if name.lower() in _QUERY_CREDENTIALS]


def _too_large(size: int, limit: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"The request's body has {size} bytes or more; at most {limit} are accepted.")
