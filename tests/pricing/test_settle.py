"""Which number stands in the row, and what it is called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pricing.answer import Answer, Usage, read_answer
from pricing.settle import NOTHING, SettledUsage, settle

if TYPE_CHECKING:
    from tests.pricing.conftest import Exchange

_REQUEST = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}).encode()


def _settle(
    answer: Answer,
    *,
    api: str = "openai.chat",
    provider: str = "openai",
    model: str | None = "gpt-4o",
    status: int | None = 200,
    request: bytes = _REQUEST,
) -> SettledUsage:
    return settle(api, provider=provider, model=model, status=status, answer=answer, request_body=request)


def test_reported_usage_is_taken_as_it_is() -> None:
    usage = Usage(input_tokens=3, output_tokens=4)
    assert _settle(Answer(usage=usage)) == SettledUsage("reported", usage)


def test_reported_zero_is_reported() -> None:
    usage = Usage(input_tokens=0, output_tokens=0)
    assert _settle(Answer(usage=usage)).source == "reported"


def test_openais_text_is_counted_with_the_models_own_tokenizer() -> None:
    settled = _settle(Answer(output=("2 + 2 equals 4.",)))
    assert settled.source == "counted"
    assert (settled.usage.input_tokens, settled.usage.output_tokens) == (15, 8)
    assert settled.usage.cache_read_tokens is None


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        pytest.param("claude-sonnet-4-5", "anthropic", id="another family"),
        pytest.param("gpt-5-mini", "openai", id="reasoning that is billed and not shown"),
        pytest.param("gpt-3.5-turbo", "ollama", id="a local server under OpenAI's name"),
        pytest.param("a-deployment", "azure", id="a name that says nothing"),
    ],
)
def test_what_is_not_exact_is_an_estimate(model: str, provider: str) -> None:
    assert _settle(Answer(output=("text",)), model=model, provider=provider).source == "estimated"


def test_tool_calls_and_tools_make_it_an_estimate() -> None:
    assert _settle(Answer(output=("f{}",), called_tools=True)).source == "estimated"
    request = json.dumps({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}).encode()
    assert _settle(Answer(output=("x",)), request=request).source == "estimated"


def test_an_image_makes_it_an_estimate() -> None:
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    request = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    assert _settle(Answer(output=("x",)), request=request).source == "estimated"


def test_a_hole_in_the_answer_makes_it_an_estimate_scaled_to_the_whole() -> None:
    whole, half = _settle(Answer(output=("word " * 100,))), _settle(Answer(output=("word " * 100,), kept=0.5))
    assert half.source == "estimated"
    assert half.usage.output_tokens == 2 * (whole.usage.output_tokens or 0)


@pytest.mark.parametrize("status", [400, 401, 429, 500, None])
def test_an_error_without_usage_used_nothing_that_is_known(status: int | None) -> None:
    assert _settle(Answer(), status=status) == NOTHING
    assert _settle(Answer(output=("text in an error's body",)), status=status) == NOTHING


def test_usage_an_error_reports_is_reported() -> None:
    usage = Usage(input_tokens=3, output_tokens=0)
    assert _settle(Answer(usage=usage), status=500) == SettledUsage("reported", usage)


def test_a_cancelled_stream_counts_what_arrived() -> None:
    chunk = b'data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"content":"One two"},"finish_reason":null}]}\n\n'
    settled = _settle(read_answer("openai.chat", chunk, stream=True))
    assert settled.source == "counted"
    assert settled.usage.output_tokens == 2


def test_a_cancelled_anthropic_stream_keeps_its_reported_input_and_estimates_its_output(
    exchanges: list[Exchange],
) -> None:
    cut_streams = 0
    for exchange in exchanges:
        if exchange.api != "anthropic.messages" or not exchange.stream:
            continue
        final = exchange.body.find(b"event: message_delta")
        answer = read_answer(exchange.api, exchange.body[:final], stream=True)
        whole = exchange.answer().usage
        assert whole is not None
        assert not answer.complete
        settled = _settle(answer, api=exchange.api, provider="anthropic", model=answer.model)
        assert settled.source == "estimated"
        assert answer.usage is not None
        assert settled.usage.input_tokens == answer.usage.input_tokens
        assert settled.usage.output_tokens is not None
        assert settled.usage.output_tokens > (answer.usage.output_tokens or 0) or whole.output_tokens == 5
        cut_streams += 1
    assert cut_streams == 18


def test_an_embedding_through_bedrock_without_usage_has_input_and_no_output() -> None:
    settled = settle(
        "bedrock.invoke",
        provider="bedrock",
        model="cohere.embed-english-v3",
        status=200,
        answer=read_answer("bedrock.invoke", b'{"embeddings":[[0.1]],"response_type":"embeddings_floats"}'),
        request_body=b'{"texts":["hello there"],"input_type":"search_document"}',
    )
    assert settled.source == "estimated"
    assert (settled.usage.input_tokens, settled.usage.output_tokens) == (2, 0)


def test_an_embedding_without_usage_has_input_and_no_output() -> None:
    settled = _settle(
        read_answer("gemini.embed", b'{"embedding":{"values":[0.1]}}'),
        api="gemini.embed",
        model="gemini-embedding-001",
        provider="google",
        request=b'{"content":{"parts":[{"text":"some words here"}]}}',
    )
    assert settled.source == "estimated"
    assert (settled.usage.input_tokens, settled.usage.output_tokens) == (3, 0)


def test_a_listing_is_not_an_answer() -> None:
    listing = read_answer("other", b'{"object":"list","data":[{"id":"gpt-4o"}]}')
    assert _settle(listing, api="other", request=b"") == NOTHING


def test_images_and_searches_are_not_counted_as_text() -> None:
    for api in ("openai.images", "rerank"):
        assert _settle(Answer(output=("x",)), api=api) == NOTHING


def test_a_search_reports_no_tokens() -> None:
    answer = read_answer("rerank", b'{"results":[],"meta":{"billed_units":{"search_units":1}}}')
    settled = _settle(answer, api="rerank", provider="cohere", model="rerank-v3.5")
    assert settled.source == "reported"
    assert (settled.usage.rerank_searches, settled.usage.input_tokens) == (1, None)


def test_a_request_that_is_not_there_leaves_its_tokens_unknown() -> None:
    settled = _settle(Answer(output=("x",)), request=b"")
    assert settled.usage.input_tokens is None
    assert settled.usage.output_tokens == 1


def test_counts_agree_with_what_openai_reported(exchanges: list[Exchange]) -> None:
    """Recorded answers with their usage taken away; within one token of what was reported, where called counted."""
    compared = 0
    for exchange in exchanges:
        answer = exchange.answer()
        plain = not exchange.stream and answer.usage is not None and answer.error is None
        if exchange.provider not in ("openai", "azure") or not plain or exchange.status != 200:
            continue
        assert answer.usage is not None
        body = json.loads(exchange.body)
        body.pop("usage", None)
        settled = settle(
            exchange.api,
            provider=exchange.provider,
            model=answer.model,
            status=200,
            answer=read_answer(exchange.api, json.dumps(body).encode()),
            request_body=exchange.request,
        )
        if settled.source != "counted" or exchange.id in _SEARCHING:
            continue
        assert settled.usage.input_tokens == answer.usage.input_tokens, exchange.id
        assert settled.usage.output_tokens is not None
        assert answer.usage.output_tokens is not None
        assert abs(settled.usage.output_tokens - answer.usage.output_tokens) <= 1, exchange.id
        compared += 1
    assert compared >= 55


_SEARCHING = {"ffbf0769658df916"}
"""A search model: what it was sent is not what it read."""
