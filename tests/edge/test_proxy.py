"""The hot route as a client and a provider see it, byte for byte, and the event each call leaves."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from schemas.event import Body
from schemas.settings import MIB
from tests.edge.conftest import Edge, Provider, http

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "user": "body-user"}
ANSWER = json.dumps({"model": "gpt-4o-mini-2024-07-18", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def post(edge: Edge, path: str = "/v1/chat/completions", **options: object) -> httpx.Response:
    options.setdefault("json", CHAT)
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(edge.url + path, **options)  # type: ignore[arg-type]


async def test_request_and_answer_pass_byte_for_byte(edge: Edge, provider: Provider) -> None:
    body = '{"model":"gpt-4o-mini",   "odd":"  spaces \\u00e9 é", "n":1.0}'.encode()
    provider.answers(
        http(
            ANSWER + b"  \n",
            b"application/json; charset=utf-8",
            b"200 OK",
            b"X-Request-Id: req_1",
            b"X-Twice: a",
            b"X-Twice: b",
        )
    )
    answer = await post(
        edge, "/v1/chat/completions?api-version=2&x=%20y", content=body, json=None,
        headers={"Content-Type": "application/json", "Authorization": "Bearer sk-provider-123", "X-Own": "1"},
    )  # fmt: skip
    assert answer.content == ANSWER + b"  \n"
    assert answer.headers["x-request-id"] == "req_1"
    assert answer.headers.get_list("x-twice") == ["a", "b"]
    (request,) = provider.requests
    head, _, sent = request.partition(b"\r\n\r\n")
    assert sent == body
    assert head.startswith(b"POST /v1/chat/completions?api-version=2&x=%20y HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer sk-provider-123\r\n" in head  # names too as they were written
    assert b"\r\nX-Own: 1\r\n" in head
    assert b"host: 127.0.0.1:%d" % provider.port in head
    event = edge.event()
    assert (event.provider, event.api, event.path) == ("openai", "openai.chat", "/v1/chat/completions")
    assert event.request is not None
    assert event.request.head == body
    assert event.response is not None
    assert event.response.head == ANSWER + b"  \n"


async def test_a_call_is_recorded_with_all_that_was_said_of_it(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER))
    answer = await post(
        edge,
        headers={
            "Helicone-User-Id": "u1", "Helicone-Session-Id": "s1", "Helicone-Session-Path": "/a/b",
            "Helicone-Session-Name": "talk", "Helicone-Property-Environment": "production", "Helicone-Request-Name": "greet",
            "Helicone-Request-Id": "0193A1B2-C3D4-7e5f-8a6b-7c8d9e0f1a2b", "Helicone-Cache-Enabled": "true",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        },
    )  # fmt: skip
    event = edge.event()
    assert answer.headers["helicone-id"] == event.id == "0193a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
    assert answer.headers["helicone-status"] == "success"
    assert (event.user_id, event.session_id, event.session_path, event.session_name) == ("u1", "s1", "/a/b", "talk")
    assert (event.properties, event.name, event.features) == (
        {"environment": "production"}, "greet", {"cache-enabled": "true"},
    )  # fmt: skip
    assert (event.trace_id, event.parent_id) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert (event.status, event.outcome, event.requested_model, event.stream) == (200, "success", "gpt-4o-mini", False)
    assert event.project_id == "default"
    assert event.attempts[0].status == 200
    assert 0 < (event.overhead_ms or 0) <= event.latency_ms
    assert not any(b"helicone" in request.lower() for request in provider.requests)


async def test_the_user_of_the_body_counts_when_no_header_names_one(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER))
    await post(edge)
    assert edge.event().user_id == "body-user"


async def test_a_stream_passes_chunk_by_chunk(edge: Edge, provider: Provider) -> None:
    provider.answers(
        SSE_HEAD,
        0.05,
        chunk(b"data: one\n\n"),
        0.2,
        chunk(b"data: two\n\n"),
        0.2,
        chunk(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    )
    arrived: list[tuple[float, bytes]] = []
    async with httpx.AsyncClient() as client:
        started = time.monotonic()
        async with client.stream("POST", edge.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            headed = time.monotonic() - started
            async for piece in answer.aiter_raw():
                arrived.append((time.monotonic() - started, piece))
    assert [piece for _, piece in arrived] == [b"data: one\n\n", b"data: two\n\n", b"data: [DONE]\n\n"]
    assert headed < 0.15  # the head does not wait for the body
    assert arrived[1][0] - arrived[0][0] > 0.15
    event = edge.event()
    assert event.stream
    assert event.first_token_ms is not None
    assert event.first_token_ms < event.latency_ms - 300
    assert event.response is not None
    assert event.response.head == b"data: one\n\ndata: two\n\ndata: [DONE]\n\n"


async def test_a_compressed_answer_passes_as_it_is_and_is_recorded_readable(edge: Edge, provider: Provider) -> None:
    packed = gzip.compress(ANSWER)
    provider.answers(http(packed, b"application/json", b"200 OK", b"Content-Encoding: gzip"))
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", edge.url + "/v1/chat/completions", json=CHAT) as answer,
    ):
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert raw == packed
    event = edge.event()
    assert event.response is not None
    assert event.response.head == ANSWER


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"])
async def test_every_method_passes(edge: Edge, provider: Provider, method: str) -> None:
    provider.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"" if method == "HEAD" else b"{}"))
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, edge.url + "/openai/v1/models/x")
    assert answer.status_code == 200
    assert provider.requests[0].startswith(method.encode() + b" /v1/models/x ")
    assert edge.event().method == method


async def test_a_file_streams_through_and_is_logged_by_its_size(edge: Edge, provider: Provider) -> None:
    content = bytes(range(256)) * 20_000  # five times the bound of a JSON body
    provider.answers(http(b'{"id": "file-1"}'))
    answer = await post(edge, "/v1/files", json=None, files={"file": ("a.bin", content)}, data={"purpose": "x"})
    assert answer.json() == {"id": "file-1"}
    assert content in provider.requests[0]
    event = edge.event()
    assert event.request is not None
    assert (event.request.left_out, event.request.head) == ("content_type", b"")
    assert event.request.size > len(content)


async def test_malformed_json_is_the_providers_to_judge(edge: Edge, provider: Provider) -> None:
    provider.answers(http(b'{"error": {"message": "bad json"}}', status=b"400 Bad Request"))
    answer = await post(edge, json=None, content=b"{broken", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "bad json")
    event = edge.event()
    assert (event.status, event.outcome, event.error_code) == (400, "error", None)
    assert event.request is not None
    assert event.request.head == b"{broken"


async def test_a_providers_own_error_passes_unchanged(edge: Edge, provider: Provider) -> None:
    body = b'{"error": {"message": "Rate limit", "code": "rate_limit_exceeded"}}'
    provider.answers(http(body, b"application/json", b"429 Too Many Requests", b"Retry-After: 7"))
    answer = await post(edge)
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (429, body, "7")
    assert "helicone-error" not in answer.headers
    assert answer.headers["helicone-status"] == "failed"
    assert edge.event().outcome == "error"


# What the edge refuses.


async def test_a_bad_header_is_refused_in_the_callers_shape_and_has_a_row(edge: Edge, provider: Provider) -> None:
    answer = await post(edge, "/v1/messages", headers={"Helicone-Cache-Enabled": "maybe"})
    assert (answer.status_code, answer.headers["helicone-error"]) == (400, "true")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "maybe" in answer.json()["error"]["message"]
    assert provider.requests == []
    event = edge.event()
    assert (event.outcome, event.status, event.error_code) == ("refused", 400, "bad_header")


async def test_an_unknown_provider_is_404_with_near_names(edge: Edge, provider: Provider) -> None:
    answer = await post(edge, "/mistrall/v1/chat/completions")
    assert answer.status_code == 404
    assert "mistral" in answer.json()["error"]["message"]
    assert edge.event().error_code == "unknown_provider"


async def test_a_target_nobody_listed_is_403(edge: Edge, provider: Provider) -> None:
    answer = await post(edge, "/gateway/v1/x", headers={"Helicone-Target-Url": "http://127.0.0.1:9"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "target_not_allowed")
    assert provider.requests == []
    edge.event()


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "found out"])
async def test_a_body_too_large_is_413(edge: Edge, provider: Provider, announced: bool) -> None:
    body = b"{" + b" " * 1_000_001

    async def pieces() -> object:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    headers = {"Content-Type": "application/json"}
    answer = await post(edge, json=None, content=body if announced else pieces(), headers=headers)
    assert answer.status_code == 413
    assert "1000000" in answer.json()["error"]["message"]
    assert provider.requests == []
    assert edge.event().error_code == "body_too_large"


async def test_a_path_too_long_is_414(edge: Edge, provider: Provider) -> None:
    assert (await post(edge, "/v1/" + "x" * 8200)).status_code == 414
    assert edge.event().error_code == "path_too_long"


async def test_a_head_too_large_is_431(edge: Edge, provider: Provider) -> None:
    assert (await post(edge, headers={"X-Big": "x" * 66_000})).status_code == 431
    assert edge.event().error_code == "headers_too_large"


async def test_a_websocket_is_refused_in_words(edge: Edge, provider: Provider) -> None:
    answer = edge.raw(
        b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: abcd\r\n\r\n", timeout_s=0.5,
    )  # fmt: skip
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"WebSocket" in answer
    edge.event()


@pytest.mark.parametrize(
    ("head", "has_row"),
    [
        (b"Content-Length: 5\r\nContent-Length: 6", False),
        (b"Transfer-Encoding: xchunked", True),
        (b"Content-Length: 5, 6", False),
        (b"Content-Length: -1", False),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip", False),
        (b"Bad Name: x", False),
    ],
)
def test_a_request_with_two_meanings_is_refused(edge: Edge, provider: Provider, head: bytes, has_row: bool) -> None:
    answer = edge.raw(b"POST /v1/x HTTP/1.1\r\nHost: x\r\n" + head + b'\r\n\r\n{"a":1}')
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"bad_framing"' in answer
    assert answer.endswith(b"<closed>")
    assert provider.requests == []
    if has_row:  # its head was whole
        assert edge.event().error_code == "bad_framing"


def test_a_request_framed_twice_is_refused_and_what_follows_is_never_a_request(edge: Edge, provider: Provider) -> None:
    answer = edge.raw(
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\nGET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"bad_framing"' in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.endswith(b"<closed>")
    assert provider.requests == []


async def test_a_client_that_stalls_in_its_body_is_let_go(edge: Edge, provider: Provider) -> None:
    answer = await asyncio.to_thread(
        edge.raw,
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{",
        timeout_s=4,
    )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b"<closed>")
    event = edge.event()
    assert (event.outcome, event.error_code) == ("timeout", "body_timeout")


# What providers do.


async def test_a_provider_nobody_listens_for_is_502(edge: Edge, provider: Provider) -> None:
    answer = await post(edge, "/mistral/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
    event = edge.event()
    assert (event.outcome, event.error_code, event.status) == ("error", "upstream_unreachable", 502)
    assert (event.attempts[0].status, event.attempts[0].reason) == (None, "upstream_unreachable")


async def test_a_provider_that_says_nothing_is_504(edge: Edge, provider: Provider) -> None:
    provider.answers(3.0)
    answer = await post(edge)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    assert edge.event().outcome == "timeout"


async def test_a_provider_that_resets_is_502(edge: Edge, provider: Provider) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await provider.read(reader)
        writer.transport.abort()

    provider.script = reset
    answer = await post(edge, "/v1/messages")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_broken")
    assert answer.json()["error"]["type"] == "api_error"
    assert edge.event().outcome == "error"


@pytest.mark.parametrize(
    "answer",
    [b"rubbish\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
     b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n"],
    ids=["not HTTP", "two lengths", "a huge head"],
)  # fmt: skip
async def test_an_answer_that_cannot_be_believed_is_502(edge: Edge, provider: Provider, answer: bytes) -> None:
    provider.answers(answer)
    told = await post(edge)
    assert (told.status_code, told.json()["error"]["code"]) == (502, "upstream_broken")
    assert edge.event().error_code == "upstream_broken"


async def test_a_stream_cut_off_ends_with_an_error_event(edge: Edge, provider: Provider) -> None:
    provider.answers(SSE_HEAD, chunk(b"data: one\n\n"), 0.1)
    answer = await post(edge, json={**CHAT, "stream": True})
    first, _, rest = answer.content.partition(b"data: one\n\n")
    assert first == b""
    assert rest.startswith(b"event: error\ndata: ")
    assert json.loads(rest.split(b"data: ", 1)[1])["error"]["code"] == "upstream_cut"
    event = edge.event()
    assert (event.status, event.outcome, event.error_code) == (200, "error", "upstream_cut")
    assert event.response is not None
    assert event.response.head == b"data: one\n\n"


async def test_a_stream_that_falls_silent_ends_with_an_error_event(edge: Edge, provider: Provider) -> None:
    provider.answers(SSE_HEAD, chunk(b"data: one\n\n"), 3.0)
    answer = await post(edge, "/v1/messages", json={**CHAT, "stream": True})
    told = json.loads(answer.content.split(b"event: error\ndata: ", 1)[1])
    assert (told["type"], told["error"]["type"], told["error"]["code"]) == (
        "error",
        "timeout_error",
        "upstream_timeout",
    )
    assert edge.event().outcome == "timeout"


async def test_a_plain_answer_cut_off_is_never_ended_cleanly(edge: Edge, provider: Provider) -> None:
    provider.answers(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{half")
    with pytest.raises(httpx.RemoteProtocolError):
        await post(edge)
    event = edge.event()
    assert (event.outcome, event.error_code) == ("error", "upstream_cut")


async def test_a_chunked_answer_cut_off_is_never_ended_cleanly(edge: Edge, provider: Provider) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    provider.answers(head, chunk(b"{half"), 0.05)
    with pytest.raises(httpx.RemoteProtocolError):
        await post(edge)
    assert edge.event().error_code == "upstream_cut"


async def test_bytes_beyond_an_answers_length_are_not_passed_on(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER) + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", keep=True)
    assert (await post(edge)).content == ANSWER
    assert (await post(edge)).content == ANSWER
    edge.events(2)


# Clients that leave, and clients that do not read.


@pytest.mark.parametrize("streaming", [True, False], ids=["in a stream", "before an answer"])
async def test_when_the_client_leaves_the_provider_is_let_go(edge: Edge, provider: Provider, streaming: bool) -> None:
    left_at = 0.0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left_at
        await provider.read(reader)
        if streaming:
            writer.write(SSE_HEAD + chunk(b"data: one\n\n"))
        await reader.read(1)  # until the edge closes
        left_at = time.monotonic()

    provider.script = script
    body = json.dumps({**CHAT, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    if streaming:
        await reader.readuntil(b"one\n\n")
    else:
        await asyncio.sleep(0.2)
    leaving = time.monotonic()
    writer.close()
    await asyncio.wait_for(provider.closed.wait(), 2)
    assert left_at - leaving < 0.05  # design §5 says 10 ms; load_tests measures it on a quiet machine
    event = edge.event()
    assert (event.outcome, event.error_code) == ("cancelled", "client_gone")
    assert event.status == (200 if streaming else None)


async def test_a_client_that_does_not_read_holds_the_provider_back(edge: Edge, provider: Provider) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await provider.read(reader)
        writer.write(SSE_HEAD)
        piece = chunk(b"x" * 65536)
        while sent < 200_000_000:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    provider.script = flood
    client = socket.create_connection(("127.0.0.1", edge.port))
    client.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    await asyncio.sleep(1.0)
    stuck = sent
    await asyncio.sleep(0.5)
    client.close()
    assert sent == stuck < 40_000_000
    await asyncio.wait_for(provider.closed.wait(), 3)
    event = edge.event()
    assert event.outcome == "cancelled"
    assert event.response is not None
    assert len(event.response.head) == 200_000
    assert len(event.response.tail) == 65536


async def test_a_long_answer_keeps_its_head_and_its_end(edge: Edge, provider: Provider) -> None:
    body = b"[" + b"0," * 300_000 + b'0, {"usage": 1}]'
    provider.answers(http(body))
    assert (await post(edge, "/v1/embeddings")).content == body
    event = edge.event()
    assert event.response is not None
    assert event.response.size == len(body)
    assert event.response.head == body[:200_000]
    assert event.response.tail == body[-65536:]


# Secrets, and what must not leave.


async def test_no_credential_is_in_an_event_even_when_the_provider_echoes_it(edge: Edge, provider: Provider) -> None:
    secret = "sk-planted-secret-0001"
    provider.answers(http(b'{"error": "Incorrect API key provided: %s"}' % secret.encode(), status=b"401 Unauthorized"))
    answer = await post(
        edge, f"/v1/chat/completions?key={secret}-q", headers={"Authorization": f"Bearer {secret}"},
        json={**CHAT, "echo": secret},
    )  # fmt: skip
    assert secret in answer.text  # the client gets its bytes
    event = edge.event()
    assert event.response is not None
    assert event.response.head == b'{"error": "Incorrect API key provided: ***"}'
    everything = b"".join(path.read_bytes() for path in edge.log.parent.rglob("*") if path.is_file())
    assert secret.encode() not in everything


async def test_a_compressed_echo_is_masked_too(edge: Edge, provider: Provider) -> None:
    secret = b"sk-planted-secret-0002"
    provider.answers(http(gzip.compress(b"you sent " + secret), b"text/plain", b"200 OK", b"Content-Encoding: gzip"))
    await post(edge, headers={"x-api-key": secret.decode()})
    event = edge.event()
    assert event.response is not None
    assert event.response.head == b"you sent ***"


async def test_an_omitted_body_never_leaves_the_edge_and_its_counts_do(edge: Edge, provider: Provider) -> None:
    provider.answers(http(ANSWER))
    await post(edge, headers={"Helicone-Omit-Response": "true", "Helicone-Omit-Request": "true"})
    event = edge.event()
    assert event.request is not None
    assert event.response is not None
    assert (event.request.head, event.request.left_out) == (b"", "asked")
    assert (event.response.head, event.response.left_out) == (b"", "asked")
    assert event.reading is not None
    assert event.reading.model == "gpt-4o-mini-2024-07-18"
    assert (event.reading.usage.source, event.reading.usage.input_tokens, event.reading.usage.output_tokens) == (
        "reported", 3, 2,
    )  # fmt: skip


async def test_what_an_answer_used_is_read_before_a_nearly_full_spool_leaves_its_body_out(
    edge_with: Callable[..., Edge], provider: Provider
) -> None:
    edge = edge_with(HELIOGRAPH_SPOOL__BYTES_MAX=str(16 * MIB), EDGE_CAPTURE__HEAD_BYTES="1000000")
    provider.answers(http(ANSWER))
    large = {**CHAT, "odd": "x" * 900_000}
    for _ in range(17):
        await post(edge, json=large)
    deadline = time.monotonic() + 5
    while "nearly full" not in edge.log.read_text():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await post(edge)
    event = edge.events(18)[-1]
    assert event.response == Body(size=len(ANSWER), left_out="spool_full")
    assert event.reading is not None
    assert (event.reading.usage.source, event.reading.usage.input_tokens) == ("reported", 3)


async def test_its_own_paths_are_health_alone(edge: Edge, provider: Provider) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(edge.url + "/healthz")).json() == {"status": "ok"}
        assert (await client.get(edge.url + "/readyz")).json() == {"status": "ready"}
