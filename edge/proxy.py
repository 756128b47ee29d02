"""The hot route: who calls, where to, ask the provider, pass the answer on, put it on record.

Never waits on Kafka, ClickHouse or control. A raw ASGI callable: Starlette's Request and Response would cost 42 µs a call.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from edge import errors, metrics
from edge.body import read_body
from edge.call import Call
from edge.capture import Capture
from edge.client import Client, ClientGone, ConnectionCut, Receive, Send, too_large
from edge.deadlines import Deadlines
from edge.headers import Header, media_type, read_headers
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
_NOWHERE = Target("unknown", "openai", Origin("https", "invalid", 443), "/")


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
        client = Client(receive, send, self._deadlines)
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

    async def _serve(self, call: Call, client: Client, scope: MutableMapping[str, Any]) -> None:
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

    async def _take_body(self, call: Call, client: Client) -> bytes | AsyncIterator[bytes]:
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
                raise too_large(length, limit)
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
            raise too_large(length, limit)
        call.requested_model = model_in_path(call.path)
        return client.pieces(capture, limit=limit, timeout_s=self._settings.bounds.body_timeout_s)

    async def _forward(self, call: Call, client: Client, request: UpstreamRequest, target: Target) -> None:
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

    async def _pass_on(self, call: Call, client: Client, answer: UpstreamAnswer) -> None:
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

    async def _end(self, call: Call, client: Client) -> None:
        """A client that left, or was too slow, has ended its call."""
        if client.timed_out == "body":
            seconds = self._settings.bounds.body_timeout_s
            await self._fail(call, client, errors.BodyTimeout(f"The request's body stalled for {seconds:g} s."))
            call.outcome = "timeout"
        elif client.timed_out == "read":
            call.outcome, call.error_code, client.cut = "timeout", "client_read_timeout", True
        else:
            call.outcome, call.error_code = "cancelled", "client_gone"

    async def _fail(self, call: Call, client: Client, error: errors.EdgeError) -> None:
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
            call.answer_type = media_type(header[1])
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
