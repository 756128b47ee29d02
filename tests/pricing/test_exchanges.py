"""Every recorded exchange, against what was read from it by other hands.

The oracle below goes from the recorded usage to our classes by each provider's documentation, without the readers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from pricing.cost import cost
from pricing.prices import PriceBook
from pricing.settle import settle

if TYPE_CHECKING:
    from tests.pricing.conftest import Exchange

_AT_MS = 1_795_000_000_000  # 2026-11-18


def _openai(usage: dict[str, Any], exchange: Exchange) -> dict[str, int | None]:
    into = usage.get("prompt_tokens_details") or usage.get("prompt_token_details") or {}
    into = into or usage.get("input_tokens_details") or {}
    out = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    input_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))
    output_tokens = usage.get("completion_tokens", usage.get("output_tokens"))
    reasoning = out.get("reasoning_tokens")
    if exchange.api in ("openai.embeddings", "rerank"):
        input_tokens = usage["total_tokens"] if input_tokens is None else input_tokens
        output_tokens = output_tokens or 0
    if exchange.provider == "google":  # Gemini's thoughts are in the total alone.
        reasoning = usage["total_tokens"] - input_tokens - output_tokens
        output_tokens += reasoning
    cached = [into.get("cached_tokens"), usage.get("prompt_cache_hit_tokens")]
    cached += [usage.get("cached_tokens"), usage.get("num_cached_tokens")]
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_tokens": next((count for count in cached if count is not None), None),
        "cache_write_tokens": into.get("cache_write_tokens"),
        "reasoning_tokens": reasoning,
        "input_audio_tokens": into.get("audio_tokens"),
        "output_audio_tokens": out.get("audio_tokens"),
        "input_image_tokens": into.get("image_tokens"),
        "output_image_tokens": out.get("image_tokens"),
    }


def _anthropic(usage: dict[str, Any]) -> dict[str, int | None]:
    read, written = usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")
    return {
        "input_tokens": usage["input_tokens"] + (read or 0) + (written or 0),
        "output_tokens": usage["output_tokens"],
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "cache_write_1h_tokens": usage.get("cache_creation", {}).get("ephemeral_1h_input_tokens"),
        "reasoning_tokens": usage.get("output_tokens_details", {}).get("thinking_tokens"),
        "web_searches": usage.get("server_tool_use", {}).get("web_search_requests"),
    }


def _converse(usage: dict[str, Any]) -> dict[str, int | None]:
    read = usage.get("cacheReadInputTokens", usage.get("cacheReadInputTokenCount"))
    written = usage.get("cacheWriteInputTokens", usage.get("cacheWriteInputTokenCount"))
    return {
        "input_tokens": usage["inputTokens"] + (read or 0) + (written or 0),
        "output_tokens": usage["outputTokens"],
        "cache_read_tokens": read,
        "cache_write_tokens": written,
    }


def _gemini(usage: dict[str, Any]) -> dict[str, int | None]:
    def modality(name: str, kind: str) -> int | None:
        counts = [entry["tokenCount"] for entry in usage.get(name, []) if entry["modality"] == kind]
        return sum(counts) if counts else None

    prompt = usage["promptTokenCount"] + usage.get("toolUsePromptTokenCount", 0)
    return {
        "input_tokens": prompt,
        "output_tokens": usage["totalTokenCount"] - prompt if "totalTokenCount" in usage else 0,
        "cache_read_tokens": usage.get("cachedContentTokenCount"),
        "reasoning_tokens": usage.get("thoughtsTokenCount"),
        "input_audio_tokens": modality("promptTokensDetails", "AUDIO"),
        "input_image_tokens": modality("promptTokensDetails", "IMAGE") or modality("promptTokenDetails", "IMAGE"),
        "output_image_tokens": modality("candidatesTokensDetails", "IMAGE"),
        "input_tool_tokens": usage.get("toolUsePromptTokenCount"),
    }


def _cohere(usage: dict[str, Any]) -> dict[str, int | None]:
    return {
        "input_tokens": usage["tokens"]["input_tokens"],
        "output_tokens": usage["tokens"]["output_tokens"],
        "cache_read_tokens": usage.get("cached_tokens"),
        "billed_input_tokens": usage["billed_units"]["input_tokens"],
        "billed_output_tokens": usage["billed_units"]["output_tokens"],
    }


def expected(exchange: Exchange) -> dict[str, int | None]:
    usage = exchange.usage
    assert usage is not None
    if "promptTokenCount" in usage:
        return _gemini(usage)
    if "inputTokens" in usage:
        return _converse(usage)
    if "billed_units" in usage:
        return _cohere(usage)
    if exchange.api in ("anthropic.messages", "bedrock.invoke"):
        return _anthropic(usage)
    return _openai(usage, exchange)


def test_every_reported_class_is_read_as_documented(exchanges: list[Exchange]) -> None:
    wrong = []
    for exchange in exchanges:
        if not exchange.usage:
            continue
        usage = exchange.answer().usage
        for name, count in expected(exchange).items():
            if getattr(usage, name, "no usage") != count:
                wrong.append((exchange.id, exchange.provider, name, count, usage))
    assert wrong == []


def test_where_the_recording_holds_no_usage_only_documented_other_places_give_any(exchanges: list[Exchange]) -> None:
    """Binary streams and native shapes the recorder did not know; each was checked by eye."""
    found = Counter(
        (exchange.provider, exchange.api)
        for exchange in exchanges
        if not exchange.usage and exchange.answer().usage is not None
    )
    assert found == {
        ("alephalpha", "other"): 1,
        ("bedrock", "bedrock.converse_stream"): 9,
        ("bedrock", "bedrock.invoke"): 4,
        ("bedrock", "bedrock.invoke_stream"): 2,
        ("cohere", "cohere.chat"): 10,
        ("cohere", "embed"): 4,
        ("cohere", "rerank"): 2,
        ("ollama", "other"): 5,
        ("vertex", "other"): 1,
        ("watsonx", "other"): 2,
    }


def test_the_answered_model_is_read(exchanges: list[Exchange]) -> None:
    wrong = [
        (exchange.id, exchange.model_answered, exchange.answer().model)
        for exchange in exchanges
        if exchange.model_answered and exchange.answer().model != exchange.model_answered
    ]
    assert wrong == []


def test_the_stop_reason_is_read_in_the_providers_words(exchanges: list[Exchange]) -> None:
    wrong = [
        (exchange.id, exchange.stop_reason, exchange.answer().stop_reason)
        for exchange in exchanges
        if exchange.stop_reason and exchange.answer().stop_reason != exchange.stop_reason
    ]
    assert wrong == []


def test_an_error_is_read_from_every_error_body_and_from_no_other(exchanges: list[Exchange]) -> None:
    wrong = [
        (exchange.id, exchange.status, exchange.answer().error)
        for exchange in exchanges
        if (exchange.status >= 400) != (exchange.answer().error is not None)
    ]
    assert wrong == []


def test_every_recorded_stream_was_complete(exchanges: list[Exchange]) -> None:
    """Titan's stream alone has no last word: a guardrail ended it."""
    open_ended = [e.id for e in exchanges if e.stream and e.status == 200 and not e.answer().complete]
    assert open_ended == ["0c1493995e0aa947"]


def test_the_routers_own_price_is_the_cost(exchanges: list[Exchange], book: PriceBook) -> None:
    declared = [e for e in exchanges if e.usage and "cost" in e.usage]
    assert len(declared) == 19
    for exchange in declared:
        usage = exchange.answer().usage
        assert usage is not None
        assert exchange.usage is not None
        found = cost(None, usage, at_ms=_AT_MS)
        assert found is not None
        assert found.source == "provider"
        assert float(found.usd) == pytest.approx(exchange.usage["cost"], abs=1e-9)


def test_table_of_sources(
    exchanges: list[Exchange],
    book: PriceBook,
    genai_ids: dict[str, str | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prints (with `-s`) how usage and cost were found, by provider; holds that no reported one is lost."""
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    for exchange in exchanges:
        answer = exchange.answer()
        model = answer.model or exchange.model_requested or _model_in(exchange.path)
        settled = settle(
            exchange.api,
            provider=exchange.provider,
            model=model,
            status=exchange.status,
            answer=answer,
            request_body=exchange.request,
        )
        counts = sources[exchange.provider]
        counts[settled.source] += 1
        if settled.source == "none":
            counts["none, error"] += exchange.status >= 400
            continue
        price = book.find(provider=exchange.provider, genai_prices_id=genai_ids.get(exchange.provider), model=model)
        priced = cost(price, settled.usage, at_ms=_AT_MS)
        counts["no cost" if priced is None else "cost"] += 1
    columns = ("reported", "counted", "estimated", "none", "none, error", "cost", "no cost")
    with capsys.disabled():
        print("\n" + "".join(f"{name:>13}" for name in ("", *columns)))
        for provider, counts in sorted(sources.items()):
            print(f"{provider:>13}" + "".join(f"{counts[name]:>13}" for name in columns))
        total = sum(sources.values(), Counter[str]())
        print(f"{'all':>13}" + "".join(f"{total[name]:>13}" for name in columns))
    assert total["reported"] == sum(bool(e.answer().usage) for e in exchanges) - 1  # Ollama once, without its input


def _model_in(path: str) -> str | None:
    for mark in ("/models/", "/model/", "/deployments/"):
        if mark in path:
            return path.split(mark)[1].split("/")[0].split(":")[0].replace("%3A", ":")
    return None
