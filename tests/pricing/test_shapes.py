"""Documented fields of each provider's usage that the recordings hold rarely or never."""

import json
from decimal import Decimal
from typing import Any

import pytest

from pricing.answer import Usage, read_answer


def _usage(api: str, document: dict[str, Any]) -> Usage:
    usage = read_answer(api, json.dumps(document).encode()).usage
    assert usage is not None
    return usage


def _said(usage: Usage) -> dict[str, Any]:
    values = {name: getattr(usage, name) for name in usage.__struct_fields__}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("api", "document", "said"),
    [
        pytest.param(
            "openai.chat",
            {"usage": {"prompt_tokens": 90, "completion_tokens": 60, "total_tokens": 150,
                       "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 30},
                       "completion_tokens_details": {"audio_tokens": 20, "reasoning_tokens": 10}}},
            {"input_tokens": 90, "output_tokens": 60, "cache_read_tokens": 40, "input_audio_tokens": 30,
             "output_audio_tokens": 20, "reasoning_tokens": 10},
            id="OpenAI: audio, cached and reasoning are parts",
        ),
        pytest.param(
            "openai.chat",
            {"model": "grok-4", "usage": {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
                       "completion_tokens_details": {"reasoning_tokens": 94}, "num_sources_used": 0,
                       "cost_in_usd_ticks": 2345000000}},
            {"input_tokens": 32, "output_tokens": 103, "reasoning_tokens": 94, "declared_cost_usd": Decimal("0.2345")},
            id="xAI: reasoning stands beside the completion",
        ),
        pytest.param(
            "openai.chat",
            {"model": "sonar", "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12,
                       "search_context_size": "low", "citation_tokens": 3, "num_search_queries": 2,
                       "reasoning_tokens": 4, "cost": {"input_tokens_cost": 0.1, "total_cost": 0.006}}},
            {"input_tokens": 5, "output_tokens": 7, "citation_tokens": 3, "web_searches": 2, "reasoning_tokens": 4,
             "declared_cost_usd": Decimal("0.006")},
            id="Perplexity",
        ),
        pytest.param(
            "openai.chat",
            {"usage": {"prompt_tokens": 50, "completion_tokens": 5, "cost": 0.001, "is_byok": True,
                       "cost_details": {"upstream_inference_cost": 0.02}}},
            {"input_tokens": 50, "output_tokens": 5, "declared_cost_usd": Decimal("0.021")},
            id="OpenRouter with a key of one's own: its fee and the provider's price",
        ),
        pytest.param(
            "openai.chat",
            {"usage": {"prompt_tokens": 50, "completion_tokens": 5, "estimated_cost": 0.0003}},
            {"input_tokens": 50, "output_tokens": 5, "declared_cost_usd": Decimal("0.0003")},
            id="DeepInfra",
        ),
        pytest.param(
            "openai.chat",
            {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details":
                       {"cached_tokens": 100, "cache_creation_input_tokens": 20}}},
            {"input_tokens": 130, "output_tokens": 5, "cache_read_tokens": 100, "cache_write_tokens": 20},
            id="a gateway that leaves cached tokens out of the prompt",
        ),
        pytest.param(
            "openai.chat",
            {"x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}},
            {"input_tokens": 3, "output_tokens": 4},
            id="Groq: usage in its own corner",
        ),
        pytest.param(
            "openai.embeddings",
            {"object": "list", "data": [{"embedding": [0.1]}], "usage": {"total_tokens": 18}},
            {"input_tokens": 18, "output_tokens": 0},
            id="Voyage: an embedding's total is its input",
        ),
        pytest.param(
            "openai.images",
            {"usage": {"total_tokens": 1100, "input_tokens": 100, "output_tokens": 1000,
                       "input_tokens_details": {"text_tokens": 60, "image_tokens": 40},
                       "output_tokens_details": {"image_tokens": 1000, "text_tokens": 0}}},
            {"input_tokens": 100, "output_tokens": 1000, "input_image_tokens": 40, "output_image_tokens": 1000},
            id="OpenAI images",
        ),
        pytest.param(
            "other",
            {"text": "hello", "usage": {"type": "duration", "seconds": 12}},
            {"audio_seconds": 12.0},
            id="transcription by the second",
        ),
        pytest.param(
            "other",
            {"text": "hello", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59,
                                        "input_token_details": {"text_tokens": 0, "audio_tokens": 14}}},
            {"input_tokens": 14, "output_tokens": 45, "input_audio_tokens": 14},
            id="transcription by the token",
        ),
        pytest.param(
            "other",
            {"type": "response.done", "response": {"model": "gpt-realtime", "status": "completed", "usage": {
                "input_tokens": 127, "output_tokens": 148, "total_tokens": 275,
                "input_token_details": {"cached_tokens": 64, "text_tokens": 119, "audio_tokens": 8,
                                        "cached_tokens_details": {"text_tokens": 56, "audio_tokens": 8}},
                "output_token_details": {"text_tokens": 36, "audio_tokens": 112}}}},
            {"input_tokens": 127, "output_tokens": 148, "cache_read_tokens": 64, "cache_audio_read_tokens": 8,
             "input_audio_tokens": 8, "output_audio_tokens": 112},
            id="realtime",
        ),
        pytest.param(
            "openai.responses",
            {"status": "completed", "output": [{"type": "web_search_call"}, {"type": "file_search_call"},
                                               {"type": "web_search_call"}, {"type": "message"}],
             "usage": {"input_tokens": 9, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 2}}},
            {"input_tokens": 9, "output_tokens": 3, "cache_read_tokens": 2, "web_searches": 2, "storage_searches": 1},
            id="Responses: searches are counted in the output",
        ),
        pytest.param(
            "anthropic.messages",
            {"type": "message", "usage": {
                "input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 5, "server_tool_use": {"web_search_requests": 3}, "service_tier": "priority",
                "inference_geo": "us", "speed": "fast"}},
            {"input_tokens": 140, "output_tokens": 5, "cache_read_tokens": 100, "cache_write_tokens": 30,
             "cache_write_1h_tokens": 20, "web_searches": 3, "service_tier": "priority", "inference_geo": "us",
             "speed": "fast"},
            id="Anthropic: cache, searches, tier, place and speed",
        ),
        pytest.param(
            "anthropic.messages",
            {"type": "message", "usage": {
                "input_tokens": 23_000, "output_tokens": 1_000, "iterations": [
                    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
                    {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000}]}},
            {"input_tokens": 203_000, "output_tokens": 4_500},
            id="Anthropic: a compaction is not in the sums above it",
        ),
        pytest.param(
            "gemini.generate",
            {"usageMetadata": {
                "promptTokenCount": 100, "cachedContentTokenCount": 60, "candidatesTokenCount": 20,
                "thoughtsTokenCount": 30, "toolUsePromptTokenCount": 15, "totalTokenCount": 165,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 50}, {"modality": "AUDIO", "tokenCount": 30},
                                        {"modality": "VIDEO", "tokenCount": 20}],
                "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}],
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 20}],
                "trafficType": "ON_DEMAND_FLEX"}},
            {"input_tokens": 115, "output_tokens": 50, "cache_read_tokens": 60, "reasoning_tokens": 30,
             "input_audio_tokens": 30, "input_video_tokens": 20, "cache_audio_read_tokens": 10,
             "output_image_tokens": 20, "input_tool_tokens": 15, "service_tier": "ON_DEMAND_FLEX"},
            id="Gemini: thoughts and tools beside the counts, modalities",
        ),
        pytest.param(
            "gemini.generate",
            {"promptFeedback": {"blockReason": "SAFETY"},
             "usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8}},
            {"input_tokens": 8, "output_tokens": 0},
            id="Gemini: a blocked prompt has no candidates, and the total says they are 0",
        ),
        pytest.param(
            "cohere.chat",
            {"finish_reason": "COMPLETE", "usage": {"billed_units": {"input_tokens": 1, "output_tokens": 9},
                                                    "tokens": {"input_tokens": 496, "output_tokens": 11}}},
            {"input_tokens": 496, "output_tokens": 11, "billed_input_tokens": 1, "billed_output_tokens": 9},
            id="Cohere: used and billed",
        ),
        pytest.param(
            "embed",
            {"embeddings": {"float": [[0.1]]}, "meta": {"billed_units": {"input_tokens": 4, "image_tokens": 7}}},
            {"input_tokens": 11, "output_tokens": 0, "input_image_tokens": 7},
            id="Cohere: an embedding of text and image",
        ),
        pytest.param(
            "bedrock.converse",
            {"usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 165, "cacheReadInputTokens": 100,
                       "cacheWriteInputTokens": 50, "cacheDetails": [{"ttl": "1h", "inputTokens": 50}]},
             "serviceTier": {"type": "priority"}},
            {"input_tokens": 160, "output_tokens": 5, "cache_read_tokens": 100, "cache_write_tokens": 50,
             "cache_write_1h_tokens": 50, "service_tier": "priority"},
            id="Converse: cache beside the input",
        ),
        pytest.param(
            "bedrock.converse",
            {"usage": {"inputTokens": 160, "outputTokens": 5, "totalTokens": 165, "cacheReadInputTokens": 100}},
            {"input_tokens": 160, "output_tokens": 5, "cache_read_tokens": 100},
            id="Converse: cache within the input, as the total says",
        ),
        pytest.param(
            "bedrock.invoke",
            {"generation": "x", "prompt_token_count": 5, "generation_token_count": 6, "stop_reason": "stop"},
            {"input_tokens": 5, "output_tokens": 6},
            id="Llama",
        ),
        pytest.param(
            "bedrock.invoke",
            {"inputTextTokenCount": 5, "results": [{"tokenCount": 6, "outputText": "x", "completionReason": "FINISH"}]},
            {"input_tokens": 5, "output_tokens": 6},
            id="Titan",
        ),
        pytest.param(
            "bedrock.invoke",
            {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 6}},
            {"input_tokens": 5, "output_tokens": 6},
            id="Mistral and others in OpenAI's shape",
        ),
        pytest.param(
            "other",
            {"model": "m", "response": "x", "done": True, "prompt_eval_count": 5, "eval_count": 6},
            {"input_tokens": 5, "output_tokens": 6},
            id="Ollama",
        ),
        pytest.param(
            "other",
            {"generated_text": "x", "details": {"finish_reason": "length", "generated_tokens": 6,
                                                "prefill": [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]}},
            {"input_tokens": 2, "output_tokens": 6},
            id="Text Generation Inference",
        ),
        pytest.param(
            "other",
            {"model": "meta/llama", "status": "succeeded", "output": ["x"],
             "metrics": {"input_token_count": 5, "output_token_count": 6, "predict_time": 1.5}},
            {"input_tokens": 5, "output_tokens": 6},
            id="Replicate",
        ),
        pytest.param(
            "other",
            {"model": "mistral-ocr", "pages": [], "usage_info": {"pages_processed": 3, "doc_size_bytes": 9}},
            {"document_pages": 3},
            id="Mistral's OCR",
        ),
        pytest.param(
            "other",
            {"usage": {"prompt_tokens": "5", "completion_tokens": 6.0, "total_tokens": "eleven"}},
            {"input_tokens": 5, "output_tokens": 6},
            id="counts as text and as decimals",
        ),
        pytest.param(
            "gemini.generate",
            {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 26, "thoughtsTokenCount": 20,
                               "totalTokenCount": 31}},
            {"input_tokens": 5, "output_tokens": 26, "reasoning_tokens": 20},
            id="Gemini: thoughts among the candidates",
        ),
        pytest.param(
            "gemini.generate",
            {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 6, "totalTokenCount": 50}},
            {"input_tokens": 5, "output_tokens": 45},
            id="Gemini: thoughts that only the total holds",
        ),
        pytest.param(
            "gemini.generate",
            {"usageMetadata": {"promptTokenCount": 5, "thoughtsTokenCount": 9}},
            {"input_tokens": 5, "output_tokens": 9, "reasoning_tokens": 9},
            id="Gemini: thoughts and no answer",
        ),
        pytest.param(
            "gemini.generate",
            {"usageMetadata": {"candidatesTokenCount": 6, "totalTokenCount": 50}},
            {"input_tokens": 44, "output_tokens": 6},
            id="Gemini: no prompt",
        ),
        pytest.param(
            "other",
            {"model": "gemini-3-pro", "status": "completed", "steps": [],
             "usage": {"total_input_tokens": 9, "total_output_tokens": 779, "total_thought_tokens": 912,
                       "total_cached_tokens": 4, "total_tokens": 1700}},
            {"input_tokens": 9, "output_tokens": 1691, "reasoning_tokens": 912, "cache_read_tokens": 4},
            id="Gemini's interactions",
        ),
        pytest.param(
            "openai.chat",
            {"model": "gemini-2.5-pro", "usage": {"prompt_tokens": 9, "total_tokens": 106}},
            {"input_tokens": 9, "output_tokens": 97, "reasoning_tokens": 97},
            id="Gemini by OpenAI's API: thoughts and no answer",
        ),
        pytest.param(
            "openai.chat",
            {"usage": {"prompt_tokens": 5, "total_tokens": 15}},
            {"input_tokens": 5, "output_tokens": 10},
            id="no completion, but a total",
        ),
        pytest.param(
            "openai.chat",
            {"usage": {"prompt_tokens": 32, "completion_tokens": 100, "total_tokens": 300,
                       "completion_tokens_details": {"reasoning_tokens": 112}}},
            {"input_tokens": 32, "output_tokens": 212, "reasoning_tokens": 112},
            id="reasoning beside the completion under a total of yet more",
        ),
        pytest.param(
            "openai.chat",
            {"usage": {"prompt_tokens": 5, "completion_tokens": 100, "total_tokens": 105,
                       "completion_tokens_details": {"reasoning_tokens": 112}}},
            {"input_tokens": 5, "output_tokens": 100, "reasoning_tokens": 112},
            id="reasoning that was only estimated adds nothing to a total that fits",
        ),
        pytest.param(
            "openai.responses",
            {"usage": {"input_tokens": 5, "output_tokens": 6}, "output": [
                {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
                {"type": "web_search_call", "action": {"type": "open_page", "url": "x"}}]},
            {"input_tokens": 5, "output_tokens": 6, "web_searches": 1},
            id="OpenAI: opening a page is no search",
        ),
        pytest.param(
            "other",
            {"task": "transcribe", "duration": 12.5, "text": "hi"},
            {"audio_seconds": 12.5},
            id="Whisper",
        ),
        pytest.param(
            "other",
            {"model_version": "2024", "embedding": [0.1], "num_tokens_prompt_total": 5},
            {"input_tokens": 5, "output_tokens": 0},
            id="Aleph Alpha's embedding",
        ),
        pytest.param(
            "embed",
            {"model_id": "slate", "results": [{"embedding": [0.1]}], "input_token_count": 10},
            {"input_tokens": 10, "output_tokens": 0},
            id="watsonx's embeddings",
        ),
    ],
)  # fmt: skip
def test_documented_usage_is_read(api: str, document: dict[str, Any], said: dict[str, Any]) -> None:
    assert _said(_usage(api, document)) == said


def test_what_is_not_said_is_unknown_and_not_zero() -> None:
    usage = _usage(
        "openai.chat", {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": None}}
    )
    assert usage.cache_read_tokens is None
    assert usage.reasoning_tokens is None
    zero = _usage("openai.chat", {"usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}})
    assert zero.cache_read_tokens == 0
    assert zero.output_tokens is None


def test_a_wrong_field_costs_only_itself() -> None:
    usage = _usage("openai.chat", {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "cost": "a lot"}})
    assert (usage.input_tokens, usage.output_tokens, usage.declared_cost_usd) == (1, 2, None)


@pytest.mark.parametrize("count", [-1, 10**13, 1.5, True, "x", None, [], {}])
def test_a_count_that_is_none_is_unknown(count: object) -> None:
    document = {"usage": {"prompt_tokens": count, "completion_tokens": 2}}
    assert _usage("openai.chat", document).input_tokens is None


def test_ollamas_lines_are_a_stream() -> None:
    lines = [{"model": "m", "message": {"content": word}, "done": False} for word in ("a", "b")]
    last = {"model": "m", "message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 2}
    whole = read_answer("other", b"\n".join(json.dumps(line).encode() for line in [*lines, last]), stream=True)
    assert (whole.model, whole.stop_reason, whole.complete) == ("m", "stop", True)
    assert whole.usage is not None
    assert whole.usage.output_tokens == 2
    cut = read_answer("other", b"\n".join(json.dumps(line).encode() for line in lines), stream=True)
    assert (cut.usage, cut.complete, cut.output) == (None, False, ("ab",))


def test_novas_stream_is_read_through_invoke() -> None:
    """Without frames here: what is in them is what matters."""
    body = b"".join(
        b"data: " + json.dumps(event).encode() + b"\n\n"
        for event in (
            {"messageStart": {"role": "assistant"}},
            {"contentBlockDelta": {"delta": {"text": "Hi"}, "contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"usage": {"inputTokens": 5, "outputTokens": 6, "totalTokens": 11}}},
        )
    )
    answer = read_answer("bedrock.invoke_stream", body, stream=True)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 6)


def _stream(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


@pytest.mark.parametrize(
    ("api", "events", "counts"),
    [
        pytest.param(
            "bedrock.invoke_stream",
            [{"generation": "a", "prompt_token_count": 15, "generation_token_count": 1},
             {"generation": "b", "prompt_token_count": None, "generation_token_count": 2},
             {"generation": "", "prompt_token_count": None, "generation_token_count": 3, "stop_reason": "stop",
              "amazon-bedrock-invocationMetrics": {"inputTokenCount": 15, "outputTokenCount": 3}}],
            (15, 3),
            id="Llama on Bedrock: the last chunk's are in its metrics too",
        ),
        pytest.param(
            "other",
            [{"type": "stream_summary", "finish_reason": "end_of_text"},
             {"type": "completion_summary", "num_tokens_prompt_total": 1, "num_tokens_generated": 7}],
            (1, 7),
            id="Aleph Alpha",
        ),
        pytest.param(
            "other",
            [{"event_type": "interaction.completed", "interaction": {"model": "gemini-3", "usage": {
                "total_input_tokens": 9, "total_output_tokens": 7, "total_tokens": 16}}}],
            (9, 7),
            id="Gemini's interactions",
        ),
        pytest.param(
            "openai.chat",
            [{"choices": [{"delta": {"content": "a"}}]},
             {"choices": [{"delta": {}, "finish_reason": "stop", "usage": {"prompt_tokens": 19,
                                                                           "completion_tokens": 13}}]}],
            (19, 13),
            id="Moonshot: in the choice",
        ),
    ],
)  # fmt: skip
def test_documented_usage_of_a_stream_is_read(api: str, events: list[object], counts: tuple[int, int]) -> None:
    usage = read_answer(api, _stream(*events), stream=True).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == counts


@pytest.mark.parametrize("place", ["usage", "choice"])
def test_what_a_chat_stream_had_reported_when_it_broke_off_is_not_its_last_word(place: str) -> None:
    counts = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    choice: dict[str, Any] = {"delta": {"content": "one"}}
    begun: dict[str, Any] = {"choices": [choice]}
    (begun if place == "usage" else choice)["usage"] = counts
    assert not read_answer("openai.chat", _stream(begun), stream=True).usage_is_final
    choice["finish_reason"] = "stop"
    assert read_answer("openai.chat", _stream(begun), stream=True).usage_is_final


@pytest.mark.parametrize(
    "document",
    [{"generated_text": "a b c", "input_token_count": 5}, {"completions": [{"completion": "a b"}],
     "num_tokens_prompt_total": 5}],
)  # fmt: skip
def test_a_generation_that_names_its_input_alone_is_not_said_to_have_no_output(document: dict[str, Any]) -> None:
    usage = _usage("other", document)
    assert (usage.input_tokens, usage.output_tokens) == (5, None)


def test_cohere_through_bedrock_is_read_for_its_text() -> None:
    answer = read_answer("bedrock.invoke", b'{"text": "Hello", "chat_history": [], "finish_reason": "COMPLETE"}')
    assert answer.output == ("Hello",)


def test_what_a_gemini_stream_had_reported_when_it_broke_off_is_not_its_last_word() -> None:
    begun = {"candidates": [{"content": {"parts": [{"text": "hello"}]}}], "usageMetadata": {"promptTokenCount": 5,
             "totalTokenCount": 5}}  # fmt: skip
    ended = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 5,
             "candidatesTokenCount": 1, "totalTokenCount": 6}}  # fmt: skip
    assert not read_answer("gemini.stream", _stream(begun), stream=True).usage_is_final
    assert read_answer("gemini.stream", _stream(begun, ended), stream=True).usage_is_final


@pytest.mark.parametrize(
    ("api", "event"),
    [
        ("openai.responses", {"type": "error", "code": "E", "message": "no", "param": None, "sequence_number": 1}),
        ("openai.chat", {"object": "error", "message": "no", "type": "BadRequest", "code": 400}),
    ],
)
def test_an_error_that_is_a_whole_event_is_read(api: str, event: object) -> None:
    before = {"model": "m", "choices": [], "response": {"model": "m"}}
    error = read_answer(api, _stream(before, event), stream=True).error
    assert error is not None
    assert error.message == "no"


def test_reasoning_beside_the_completion_is_added_even_when_it_is_the_smaller() -> None:
    document = {"usage": {"prompt_tokens": 32, "completion_tokens": 200, "total_tokens": 326,
                          "completion_tokens_details": {"reasoning_tokens": 94}}}  # fmt: skip
    assert _usage("openai.chat", document).output_tokens == 294


def test_a_count_that_falls_back_to_zero_in_a_stream_is_no_correction() -> None:
    """watsonx tells its input in the first event only."""
    body = b"".join(
        b"data: "
        + json.dumps({"results": [{"input_token_count": into, "generated_token_count": out}]}).encode()
        + b"\n\n"
        for into, out in ((8, 0), (0, 1), (0, 2))
    )
    usage = read_answer("other", body, stream=True).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (8, 2)
