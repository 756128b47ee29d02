"""Reading answers: streams, holes, cuts, errors, and bytes that are nothing at all."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from pricing.answer import read_answer

if TYPE_CHECKING:
    from tests.pricing.conftest import Exchange


def _sse(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


_APIS = (
    *("openai.chat", "openai.responses", "openai.completions", "openai.embeddings", "openai.images"),
    *("anthropic.messages", "gemini.generate", "gemini.stream", "gemini.embed", "cohere.chat"),
    *("bedrock.converse", "bedrock.converse_stream", "bedrock.invoke", "bedrock.invoke_stream"),
    *("embed", "rerank", "other", "an.api.of.tomorrow"),
)


def test_no_bytes_make_it_raise(exchanges: list[Exchange]) -> None:
    """Recorded answers cut, spliced, bit-flipped and read as the wrong API."""
    chance = random.Random(7)
    bodies = [exchange for exchange in exchanges if len(exchange.body) < 20_000]
    for _ in range(4_000):
        exchange = chance.choice(bodies)
        body = bytearray(exchange.body)
        for _ in range(chance.randrange(0, 6)):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        cut = chance.randrange(len(body) + 1)
        other = chance.choice(bodies).body
        pieces = (bytes(body), bytes(body[:cut]), bytes(body[cut:]), bytes(body[:cut]) + other[cut:])
        read_answer(
            chance.choice((exchange.api, chance.choice(_APIS))),
            chance.choice(pieces),
            tail=chance.choice((b"", b"", other[-500:])),
            size=chance.choice((None, 0, 10**6)),
            stream=chance.random() < 0.5,
            content_type=chance.choice(("", exchange.content_type, "application/vnd.amazon.eventstream")),
        )


def test_values_of_any_type_in_any_field_do_not_make_it_raise(exchanges: list[Exchange]) -> None:
    """The structure stays JSON, single values become something else."""
    chance = random.Random(8)
    odd: tuple[object, ...] = (None, True, -1, 1.5, 10**30, "x", "", [], [1], {}, {"a": []}, [None], "3", 1e300)

    def mangled(value: object) -> object:
        if chance.random() < 0.06:
            return chance.choice(odd)
        if isinstance(value, dict):
            return {name: mangled(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [mangled(inner) for inner in value]
        return value

    plain = [e for e in exchanges if not e.stream and e.body[:1] == b"{" and len(e.body) < 8_000]
    for exchange in plain:
        for _ in range(10):
            try:
                whole = json.loads(exchange.body)
            except ValueError:
                break
            body = json.dumps(mangled(whole)).encode()
            for api in (exchange.api, "other"):
                usage = read_answer(api, body).usage
                if usage is not None and usage.input_tokens is not None:
                    assert 0 <= usage.input_tokens < 10**13


@pytest.mark.parametrize("body", [b"", b" ", b"null", b"[]", b"{}", b"data:", b"\x00\x00\x00\x10", b"[" * 100_000])
@pytest.mark.parametrize("api", _APIS)
def test_nothing_says_nothing(api: str, body: bytes) -> None:
    answer = read_answer(api, body)
    assert answer.usage is None
    assert answer.model is None
    assert answer.error is None
    assert not answer.output


def test_usage_at_the_end_of_a_stream_with_a_hole_is_kept(exchanges: list[Exchange]) -> None:
    """Every recorded stream of some length, with its middle cut out at places that break events."""
    checked = 0
    for exchange in exchanges:
        if not exchange.stream or exchange.status != 200 or len(exchange.body) < 8_000:
            continue
        whole = exchange.answer()
        for head, tail in ((2_500, 3_001), (3_333, 2_222), (2_801, 4_000)):
            if "gemini" in exchange.api or exchange.api == "openai.responses":
                tail = max(tail, len(exchange.body) - exchange.body.rfind(b"\n", 0, -10) + 100)
            last = exchange.body.rfind(b'"usage"')
            if last >= 0:
                tail = max(tail, len(exchange.body) - exchange.body.rfind(b"\ndata:", 0, last) + 7)
            if head + tail >= len(exchange.body):
                continue
            answer = read_answer(
                exchange.api,
                exchange.body[:head],
                tail=exchange.body[-tail:],
                size=len(exchange.body),
                stream=True,
                content_type=exchange.content_type,
            )
            assert answer.usage == whole.usage, exchange.id
            assert answer.stop_reason == whole.stop_reason
            assert answer.model == whole.model
            assert answer.kept < 1
            checked += 1
    assert checked > 60


def test_a_tail_that_begins_with_an_event_is_not_lost_to_the_broken_one_before_it() -> None:
    head = b'data: {"model":"m","choices":[{"delta":{"content":"x"}}]}\n\ndata: {"model":"m","choi'
    tail = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    answer = read_answer("openai.chat", head, tail=tail, size=10_000, stream=True)
    assert answer.usage is not None
    assert (answer.usage.output_tokens, answer.complete) == (2, True)


def test_usage_after_a_cut_list_of_vectors_is_found(exchanges: list[Exchange]) -> None:
    embeddings = [e for e in exchanges if e.usage and e.api == "openai.embeddings"]
    assert embeddings
    for exchange in embeddings:
        answer = read_answer(exchange.api, exchange.body[:1_000], tail=exchange.body[-400:], size=len(exchange.body))
        assert answer.usage == exchange.answer().usage
        assert answer.model == exchange.model_answered


def test_head_and_tail_that_meet_are_one_body() -> None:
    body = b'{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    answer = read_answer("openai.chat", body[:30], tail=body[30:], size=len(body))
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.kept) == (3, 1.0)


def test_a_document_cut_in_the_middle_gives_its_text_and_is_not_complete() -> None:
    body = b'{"model":"gpt-4o","choices":[{"message":{"role":"assistant","content":"one two\\nthree fo'
    answer = read_answer("openai.chat", body)
    assert answer.model == "gpt-4o"
    assert answer.output == ("one two\nthree fo",)
    assert not answer.complete


def test_a_number_the_cut_runs_through_is_not_taken() -> None:
    answer = read_answer("other", b'{"prompt_eval_count":12,"eval_count":34')
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (12, None)


def test_an_error_event_in_a_200_stream_is_read() -> None:
    body = _sse(
        {"model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]},
        {"error": {"message": "upstream is gone", "type": "server_error", "code": 502}},
    )
    answer = read_answer("openai.chat", body, stream=True)
    assert answer.error is not None
    assert (answer.error.message, answer.error.type, answer.error.code) == ("upstream is gone", "server_error", "502")
    assert not answer.complete
    assert answer.output == ("Hel",)


def test_anthropics_overload_inside_a_stream_is_read() -> None:
    body = (
        b'event: message_start\ndata: {"type":"message_start","message":{"model":"claude-x",'
        b'"usage":{"input_tokens":10,"output_tokens":1}}}\n\n'
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    )
    answer = read_answer("anthropic.messages", body, stream=True)
    assert answer.error is not None
    assert answer.error.type == "overloaded_error"
    assert not answer.complete


def test_a_failed_response_names_its_error() -> None:
    failed = {"status": "failed", "error": {"code": "server_error", "message": "no"}, "model": "m", "usage": None}
    answer = read_answer("openai.responses", _sse({"type": "response.failed", "response": failed}), stream=True)
    assert answer.error is not None
    assert answer.error.code == "server_error"
    assert answer.stop_reason == "failed"
    assert answer.complete


@pytest.mark.parametrize(
    ("body", "message", "kind", "code"),
    [
        pytest.param(b'{"error":{"message":"m","type":"t","code":"c"}}', "m", "t", "c", id="OpenAI"),
        pytest.param(b'{"type":"error","error":{"type":"t","message":"m"}}', "m", "t", None, id="Anthropic"),
        pytest.param(b'{"error":{"code":400,"message":"m","status":"S"}}', "m", "S", "400", id="Google"),
        pytest.param(b'[{"error":{"code":400,"message":"m","status":"S"}}]', "m", "S", "400", id="Google, as a list"),
        pytest.param(b'{"message":"m"}', "m", None, None, id="Cohere, Bedrock"),
        pytest.param(b'{"__type":"T","Message":"m"}', "m", "T", None, id="AWS"),
        pytest.param(b'{"object":"error","message":"m","type":"t","code":3}', "m", "t", "3", id="vLLM, Mistral"),
        pytest.param(b'{"error":"m"}', "m", None, None, id="Ollama"),
        pytest.param(b'{"error":"m","error_type":"t"}', "m", None, None, id="TGI"),
        pytest.param(b'{"detail":"m"}', "m", None, None, id="FastAPI"),
        pytest.param(b'{"detail":[{"loc":["x"],"msg":"m","type":"t"}]}', "m", None, None, id="FastAPI, validation"),
        pytest.param(b'{"errors":[{"code":"c","message":"m"}],"trace":"x"}', "m", None, "c", id="watsonx"),
    ],
)
def test_each_shape_of_error_body_is_read(body: bytes, message: str, kind: str | None, code: str | None) -> None:
    for api in ("other", "openai.chat", "gemini.generate", "cohere.chat", "bedrock.converse"):
        error = read_answer(api, body).error
        assert error is not None, api
        assert (error.message, error.type, error.code) == (message, kind, code), api


def test_text_is_collected_only_when_usage_is_missing() -> None:
    chunk = {"model": "m", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    with_usage = _sse(chunk, {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    assert read_answer("openai.chat", with_usage, stream=True).output is None
    assert read_answer("openai.chat", _sse(chunk), stream=True).output == ("Hi",)


def test_pieces_of_one_choice_are_joined_and_choices_kept_apart() -> None:
    def delta(index: int, **fields: object) -> dict[str, object]:
        return {"choices": [{"index": index, "delta": fields, "finish_reason": None}]}

    call = {"index": 0, "function": {"name": "f", "arguments": ""}}
    body = _sse(
        delta(0, content="He"),
        delta(1, content="Wo"),
        delta(0, content="llo", reasoning_content="hm"),
        delta(1, content="rld"),
        delta(0, tool_calls=[call]),
        delta(0, tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}]),
    )
    answer = read_answer("openai.chat", body, stream=True)
    assert answer.output == ("Hello", "World", "hm", 'f{"a":1}')
    assert answer.called_tools


@pytest.mark.parametrize("ending", [b"\r\n", b"\r", b"\n"])
def test_any_line_ending_of_server_sent_events_is_read(ending: bytes) -> None:
    event = b'data:{"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    answer = read_answer("openai.chat", ending.join([b": hello", b"", event, b"", b"data: [DONE]", b"", b""]))
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2
    assert answer.complete


def test_an_event_over_several_data_lines_is_read() -> None:
    body = (
        b'data: {"model": "m",\ndata: "choices": [],\ndata: "usage": {"prompt_tokens": 5, "completion_tokens": 6}}\n\n'
    )
    usage = read_answer("openai.chat", body, stream=True).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (5, 6)


def test_usage_written_inside_generated_text_is_not_usage() -> None:
    text = 'data: {"usage": {"prompt_tokens": 999, "completion_tokens": 999}}'
    body = _sse({"model": "m", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
    assert read_answer("openai.chat", body, stream=True).usage is None


def test_a_json_array_as_a_stream_is_read_even_with_a_hole() -> None:
    chunks = [
        {"candidates": [{"content": {"parts": [{"text": f"word {i} "}]}}], "modelVersion": "gemini-x",
         "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": i, "totalTokenCount": 7 + i}}
        for i in range(1, 9)
    ]  # fmt: skip
    body = b"[" + b"\n,\r\n".join(json.dumps(chunk).encode() for chunk in chunks) + b"\n]"
    whole = read_answer("gemini.stream", body, stream=True)
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.model) == (7, 8, "gemini-x")
    torn = read_answer("gemini.stream", body[:200], tail=body[-250:], size=len(body), stream=True)
    assert torn.usage == whole.usage


def test_bedrock_frames_after_a_hole_are_found_again(exchanges: list[Exchange]) -> None:
    streams = [e for e in exchanges if e.api == "bedrock.converse_stream" and e.status == 200 and len(e.body) > 2_000]
    assert streams
    for exchange in streams:
        answer = read_answer(
            exchange.api,
            exchange.body[:701],
            tail=exchange.body[-800:],
            size=len(exchange.body),
            stream=True,
            content_type=exchange.content_type,
        )
        assert answer.usage == exchange.answer().usage


def test_counting_endpoints_report_no_usage() -> None:
    for api in ("anthropic.messages", "other"):
        for body in (b'{"input_tokens":671}', b'{"inputTokens":19}', b'{"totalTokens":12}'):
            assert read_answer(api, body).usage is None


def test_a_job_that_has_not_begun_is_not_complete_and_has_no_output() -> None:
    answer = read_answer("openai.responses", b'{"model":"m","status":"queued","output":[],"usage":null}')
    assert not answer.complete
    assert answer.output is None


def test_a_model_or_stop_reason_longer_than_any_name_is_none() -> None:
    body = b'{"model": "%s", "choices": [{"finish_reason": "%s"}]}'
    said = read_answer("openai.chat", body % (b"m" * 1024, b"r" * 1024))
    assert (said.model, said.stop_reason) == ("m" * 1024, "r" * 1024)
    said = read_answer("openai.chat", body % (b"m" * 1025, b"r" * 1025))
    assert (said.model, said.stop_reason) == (None, None)
