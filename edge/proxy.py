"""The hot route: who calls, where to, ask the provider, pass the answer on, put it on record.

Never waits on Kafka, ClickHouse or control.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple
from urllib.parse import parse_qsl

from edge import errors, metrics
from edge.body import read_body
from edge.call import Call
from edge.capture import capture_of
from edge.client import Client, ClientGone, too_large
from edge.headers import Said, media_type, read_headers
from edge.policies.auth import Auth
from edge.recorder import Recorder
from edge.upstream.protocol import Header, Origin, Upstream, UpstreamAnswer, UpstreamError, UpstreamRequest
from edge.upstream.targets import Target, Targets, is_anthropic
from schemas.apis import api_of, model_in_path
from schemas.event import Attempt
from schemas.keys import KEY_MARKS
from schemas.settings import EdgeSettings

log = logging.getLogger("heliograph.edge")

_WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")
_JSON_TYPES = ("application/json", "")
_EVENT_STREAM = "text/event-stream"
_STREAM_TYPES = (_EVENT_STREAM, "application/x-ndjson", "application/vnd.amazon.eventstream")
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
_name_of = itemgetter(0)
_KEYS_INSIDE = tuple("/" + mark for mark in KEY_MARKS)
_NOWHERE = Target("unknown", "openai", Origin("https", "invalid", 443), "/")


class Proxy:
    def __init__(
        self, settings: EdgeSettings, *, auth: Auth, targets: Targets, upstream: Upstream, recorder: Recorder
    ) -> None:
        self._settings = settings
        self._auth = auth
        self._targets = targets
        self._upstream = upstream
        self._recorder = recorder
        self._call_soon = asyncio.get_running_loop().call_soon
        self.in_flight = 0

    async def serve(self, client: Client) -> None:
        path, mark, query = _path(client.target).partition(b"?")
        call = Call(client.method.decode("latin-1"), path.decode("latin-1"))
        self.in_flight += 1
        try:
            try:
                await self._serve(call, client, mark + query)
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
            if not client.answered:
                client.cut()
            if call.key is not None and call.said is not None:
                if call.target is None:
                    call.target = self._asked(call)
                    call.api = api_of(call.target.shape, call.target.path)
                self._call_soon(self._recorder.record, call, time.perf_counter())  # behind the answer's last bytes
                if self._recorder.crowded:
                    await self._recorder.room()
            elif call.error_code is not None:
                metrics.refused.labels(call.error_code).inc()

    async def _serve(self, call: Call, client: Client, query: bytes) -> None:
        """`query`: with its question mark; empty: there is none."""
        settings = self._settings
        said = call.said = read_headers(client.headers, settings.bounds)
        call.secrets = said.secrets
        if not said.has_host and not client.is_old:
            said.problem = said.problem or errors.BadFraming("The request has no Host header; HTTP/1.1 needs one.")
        bounds = settings.bounds
        query = _without_keys(call, said, query, bounds.path_bytes)
        try:
            call.key = self._auth.check(said.key)
        except errors.KeyRefused as refusal:
            call.key = refusal.key  # the row is its project's
            raise
        if said.problem is not None:
            raise said.problem
        if len(call.path) + len(query) > bounds.path_bytes:
            raise errors.PathTooLong(
                f"The path and query have {len(call.path) + len(query)} bytes; at most {bounds.path_bytes} are accepted."
            )
        if said.request_id is not None:
            call.id = said.request_id
        target = call.target = self._targets.find(
            call.path, said.host, target_url=said.target_url, speaks_anthropic=said.speaks_anthropic
        )
        call.api = api_of(target.shape, target.path)
        if said.upgrade:
            raise errors.NotBuilt("WebSocket upgrades are not supported by this version; use the HTTP API.")
        if self.in_flight > bounds.calls:
            raise errors.Busy(f"This process already carries {bounds.calls} calls. Try again shortly.")

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
            method=client.method,
            target=path + query,
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
            call.requested_model = model_in_path(call.path)
            return b""
        bounds = self._settings.bounds
        capture = call.request = capture_of(self._settings.capture, said.request_coding)
        if said.content_type in _JSON_TYPES or said.content_type.endswith("+json"):
            if length is not None and length > bounds.body_bytes:
                raise too_large(length, bounds.body_bytes)
            limit = bounds.body_bytes
            body = (
                client.whole(limit)
                if client.read_whole
                else await client.body(limit=limit, timeout_s=bounds.body_timeout_s)
            )
            capture.feed(body)
            facts = read_body(body if not said.request_coding else capture.body().head, bounds.property_bytes)
            call.requested_model = facts.model or model_in_path(call.path)
            call.stream = facts.stream
            call.body_user_id = facts.user_id
            return body
        if length is not None and length > bounds.streamed_body_bytes:
            raise too_large(length, bounds.streamed_body_bytes)
        call.requested_model = model_in_path(call.path)
        return client.pieces(capture, limit=bounds.streamed_body_bytes, timeout_s=bounds.body_timeout_s)

    async def _forward(self, call: Call, client: Client, request: UpstreamRequest, target: Target) -> None:
        answer: UpstreamAnswer | None = None
        asked = call.waits()
        attempt = Attempt(target.provider, call.created_ms + int((asked - call.started) * 1000), 0.0)
        call.attempts.append(attempt)
        try:
            answer = await self._upstream.send(request)
            call.goes_on()
            attempt.status = answer.status
            await self._pass_on(call, client, answer)
            if not client.read_whole:
                await client.drained()
        except UpstreamError as error:
            attempt.reason = error.code
            raise
        except (asyncio.CancelledError, ClientGone):
            attempt.reason = "stopped" if client.stopped else "client_gone"
            raise
        finally:
            if answer is not None:
                answer.abort()
            attempt.latency_ms = round((call.goes_on() - asked) * 1000, 3)

    async def _pass_on(self, call: Call, client: Client, answer: UpstreamAnswer) -> None:
        headed = call.at
        headers, coding, framed = _answer_headers(call, answer)
        status = call.status = answer.status
        streamed = call.answer_type in _STREAM_TYPES
        call.takes_words = call.answer_type == _EVENT_STREAM and not framed and coding in (b"", b"identity")
        call.stream = streamed or (call.stream and status < 400)
        if status >= 400:
            call.outcome = "error"
        capture = call.response = capture_of(self._settings.capture, coding)
        overhead_ms = (headed - call.started - call.upstream_s) * 1000
        headers += (
            (b"helicone-id", call.id.encode()),
            (b"helicone-status", b"success" if status < 400 else b"failed"),
            (b"helicone-provider", call.target.provider.encode("latin-1") if call.target else b""),
            (b"helicone-overhead-ms", b"%.2f" % overhead_ms),
        )
        # What came with the head goes on with the head: the rest piece by piece, as it arrives.
        piece = answer.arrived()
        if streamed and piece:
            call.first_byte = headed
        capture.feed(piece)
        if answer.body_complete:
            client.answer(status, headers, piece, framed=framed)
            return
        client.begin(status, headers, piece, framed=framed)
        feed, write, clock = capture.feed, client.write, time.perf_counter

        def pass_on(piece: bytes) -> bool:
            began = clock()
            if call.first_byte is None and streamed:
                call.first_byte = began
            feed(piece)
            is_writable = write(piece)
            call.upstream_s -= clock() - began  # what lies between `waits` and `goes_on` counts as waited, this was not
            return is_writable

        call.waits()
        while not await answer.flow(pass_on):
            call.goes_on()
            await client.room(self._settings.bounds.send_timeout_s)
            call.waits()
        call.goes_on()
        client.end()

    async def _end(self, call: Call, client: Client) -> None:
        """A client that left, or was too slow, has ended its call."""
        if client.timed_out == "body":
            seconds = self._settings.bounds.body_timeout_s
            await self._fail(call, client, errors.BodyTimeout(f"The request's body stalled for {seconds:g} s."))
            call.outcome = "timeout"
        elif client.timed_out == "read":
            call.outcome, call.error_code = "timeout", "client_read_timeout"
        elif client.stopped:
            await self._fail(call, client, errors.Stopped("The gateway was stopped before the call's end. Try again."))
            call.outcome = "error"
        else:
            call.outcome, call.error_code = "cancelled", "client_gone"

    async def _fail(self, call: Call, client: Client, error: errors.EdgeError) -> None:
        """Say what went wrong in the caller's shape: as an answer while there is none, else as the stream's last event."""
        call.error_code, call.error_message = error.code, error.message
        call.outcome = (
            "timeout" if error.status == 504 else "error" if isinstance(error, errors.FAILURES) else "refused"
        )
        shape = (call.target or self._asked(call)).shape
        if isinstance(error, errors.BadFraming):
            client.keep = False  # where the next request would begin is not sure
        if not client.headed:
            call.status = error.status
            body = errors.error_body(error, shape, call.id)
            await client.drained()
            client.answer(error.status, errors.error_headers(error, call.id), body, framed=False)
        elif call.takes_words:
            assert call.response is not None
            event = errors.error_event(error, shape, call.id)
            client.write(event if call.response.ends_with(b"\n\n") else b"\n\n" + event)
            client.end()
        # Any other answer that breaks off has no place for words, and ending it cleanly would be a lie: it is cut.

    def _asked(self, call: Call) -> Target:
        """Where a call wanted to go that was refused before, as far as its path and host tell."""
        said = call.said
        if said is not None:
            try:
                return self._targets.find(
                    call.path, said.host, target_url=said.target_url, speaks_anthropic=said.speaks_anthropic
                )
            except errors.EdgeError:
                pass
        return _NOWHERE._replace(path=call.path, shape="anthropic" if is_anthropic(call.path) else "openai")


class _AnswerShape(NamedTuple):
    """What an answer's header names say, worked out once: a provider sends the same names in the same order every time."""

    kept: list[int] | None
    """Places of the headers that are passed back; None: all are."""
    content_type: int | None
    content_encoding: int | None
    framed: bool
    """A content-length is among them."""
    connection: int | None
    """Where one names further headers of that one hop."""


_shapes: dict[tuple[bytes, ...], _AnswerShape] = {}
_SHAPES_MAX = 2000
_SHAPE_BYTES_MAX = 4096


def _shape(names: tuple[bytes, ...]) -> _AnswerShape:
    lowered = [name.lower() for name in names]
    kept = [
        place
        for place, name in enumerate(lowered)
        if name not in _NOT_PASSED_BACK and not name.startswith((b"helicone-", b"heliograph-"))
    ]
    places = {name: place for place, name in enumerate(lowered)}
    shape = _AnswerShape(
        kept if len(kept) < len(names) else None,
        places.get(b"content-type"),
        places.get(b"content-encoding"),
        b"content-length" in places,
        places.get(b"connection"),
    )
    if len(_shapes) >= _SHAPES_MAX:
        _shapes.clear()
    if sum(map(len, names)) <= _SHAPE_BYTES_MAX:
        _shapes[names] = shape
    return shape


def _answer_headers(call: Call, answer: UpstreamAnswer) -> tuple[list[Header], bytes, bool]:
    """The provider's headers for the client; the content coding among them, and whether a content-length is."""
    headers = answer.headers
    names = tuple(map(_name_of, headers))
    shape = _shapes.get(names) or _shape(names)
    if shape.content_type is not None:
        call.answer_type = media_type(headers[shape.content_type][1])
    coding = b"" if shape.content_encoding is None else headers[shape.content_encoding][1].strip().lower()
    kept = headers.copy() if shape.kept is None else [headers[place] for place in shape.kept]
    if shape.connection is not None and headers[shape.connection][1].lower() not in (b"keep-alive", b"close"):
        hop = {part.strip().lower() for part in headers[shape.connection][1].split(b",")}
        kept = [header for header in kept if header[0].lower() not in hop]
    return kept, coding, shape.framed


def _path(target: bytes) -> bytes:
    """Path and query of a request's target, which may be a whole URL (RFC 9112, 3.2.2)."""
    if target[:1] == b"/":
        return target
    _, separator, rest = target.partition(b"://")
    return b"/" + rest.partition(b"/")[2] if separator else b"/" + target


@lru_cache(maxsize=1000)
def _host_header(origin: Origin) -> bytes:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port == (443 if origin.scheme == "https" else 80):
        return host.encode()
    return f"{host}:{origin.port}".encode()


def _without_keys(call: Call, said: Said, query: bytes, longest: int) -> bytes:
    """Take the keys out of a call's path and query, and note the credentials in them for masking; gives the query.

    One of our keys where a provider's belongs is taken as ours, and no provider ever sees it.
    """
    if call.path.startswith(_KEYS_INSIDE):
        in_path, slash, rest = call.path[1:].partition("/")
        call.secrets.append(in_path.encode("latin-1"))
        said.key, call.path = said.key or in_path, slash + rest
    if "/sk-" in call.path and (inside := [part for part in call.path.split("/") if part.startswith(KEY_MARKS)]):
        call.secrets += [part.encode("latin-1") for part in inside]
        said.problem = said.problem or errors.UnknownProvider(
            "A Heliograph key stands inside the path. It belongs at its very front, as in /<key>/v1/…, or better into the "
            "header Helicone-Auth."
        )
    if not 1 < len(query) <= longest:
        return query
    pairs = _pairs(query[1:])
    call.secrets += [value.encode() for name, value in pairs if name.lower() in _QUERY_CREDENTIALS]
    if not (ours := [value for _, value in pairs if value.startswith(KEY_MARKS)]):
        return query
    said.key = said.key or ours[0]
    call.secrets += [key.encode() for key in ours]
    kept = b"&".join([part for part in query[1:].split(b"&") if not _holds_key(part)])
    return b"?" + kept if kept else b""


def _pairs(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def _holds_key(part: bytes) -> bool:
    return any(value.startswith(KEY_MARKS) for _, value in _pairs(part))
