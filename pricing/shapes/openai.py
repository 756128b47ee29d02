"""OpenAI's chat, completions, embeddings, images, audio and assistants, and everyone who speaks like them.

What differs between those who do, all seen in recorded answers or documented by the provider:
cached tokens as `prompt_tokens_details.cached_tokens`, as `prompt_cache_hit_tokens` (DeepSeek), `cached_tokens`
(Together, Moonshot), `num_cached_tokens` (Mistral), `prompt_token_details` (assistants); reasoning within
`completion_tokens` (most) or beside it (xAI; Gemini, which does not even name it); reads beside `prompt_tokens`
instead of within; usage under `x_groq`; a cost of the provider's own.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec

from pricing.reading import Answer, Block, Piece, Shape, error_of, text_of
from pricing.tolerant import COUNT_MAX, Count, Tolerant, money
from pricing.usage import Usage

_USD_TICKS = Decimal(10) ** 10
"""xAI counts money in ten-thousand-millionths of a dollar."""


class Cached(msgspec.Struct, frozen=True, gc=False):
    audio_tokens: Count | None = None
    image_tokens: Count | None = None


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None
    video_tokens: Count | None = None
    cached_tokens_details: Cached | None = None


class OutputDetails(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None
    video_tokens: Count | None = None


class ServerTools(msgspec.Struct, frozen=True, gc=False):
    web_search_requests: Count | None = None


class CostDetails(msgspec.Struct, frozen=True):
    upstream_inference_cost: Decimal | None = None


class DeclaredCost(msgspec.Struct, frozen=True):
    """Perplexity's."""

    total_cost: Decimal | None = None


class OpenAIUsage(msgspec.Struct, frozen=True):
    """Every field of usage these APIs send that says something of tokens or money."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None
    prompt_cache_hit_tokens: Count | None = None
    cached_tokens: Count | None = None
    num_cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    prompt_token_details: InputDetails | None = None
    input_token_details: InputDetails | None = None
    output_token_details: OutputDetails | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    citation_tokens: Count | None = None
    num_search_queries: Count | None = None
    seconds: float | None = None
    prompt_audio_seconds: float | None = None
    cost: Decimal | DeclaredCost | None = None
    cost_details: CostDetails | None = None
    is_byok: bool | None = None
    estimated_cost: Decimal | None = None
    cost_in_usd_ticks: Count | None = None
    server_tool_use: ServerTools | None = None
    server_tool_use_details: ServerTools | None = None


_NO_INPUT = InputDetails()
_NO_OUTPUT = OutputDetails()
_NO_CACHED = Cached()


def usage_of(
    raw: OpenAIUsage,
    *,
    model: str | None = None,
    service_tier: str | None = None,
    embeds: bool = False,
) -> Usage | None:
    """These counts in our words; `None` when there is not one among them.

    `embeds`: an API out of which no tokens come, so that what it does not say of them is 0.
    """
    into = raw.prompt_tokens_details or raw.input_tokens_details or raw.prompt_token_details
    into = into or raw.input_token_details or _NO_INPUT
    out = raw.completion_tokens_details or raw.output_tokens_details or raw.output_token_details or _NO_OUTPUT
    cached = into.cached_tokens_details or _NO_CACHED
    input_tokens = _first(raw.prompt_tokens, raw.input_tokens)
    output_tokens = _first(raw.completion_tokens, raw.output_tokens)
    if input_tokens is None and (embeds or output_tokens is None):
        input_tokens = raw.total_tokens  # Voyage: an embedding's total is its input.
        embeds = embeds or input_tokens is not None
    is_gemini = model is not None and "gemini" in model
    if output_tokens is None and input_tokens is not None:
        if embeds:
            output_tokens = 0
        elif raw.total_tokens is not None and raw.total_tokens > input_tokens:
            # Google leaves out what is 0: all that came out were thoughts.
            output_tokens = 0 if is_gemini else raw.total_tokens - input_tokens
    read = _first(
        into.cached_tokens,
        raw.prompt_cache_hit_tokens,
        raw.cached_tokens,
        raw.num_cached_tokens,
        raw.cache_read_input_tokens,
    )
    written = _first(
        into.cache_write_tokens,
        into.cache_creation_input_tokens,
        into.cache_creation_tokens,
        raw.cache_creation_input_tokens,
    )
    reasoning = _first(out.reasoning_tokens, raw.reasoning_tokens)
    if input_tokens is not None and (read or written) and (read or 0) + (written or 0) > input_tokens:
        input_tokens += (read or 0) + (written or 0)  # Counted beside the input, as Anthropic does.
    if raw.total_tokens is not None and input_tokens is not None and output_tokens is not None:
        beside = raw.total_tokens - input_tokens - output_tokens
        if beside > 0:
            if beside == reasoning:
                output_tokens += beside
            elif not reasoning and is_gemini:
                reasoning = beside
                output_tokens += beside
    if reasoning is not None and output_tokens is not None and reasoning > output_tokens:
        fits = raw.total_tokens is not None and raw.total_tokens <= (input_tokens or 0) + output_tokens
        if not fits or raw.reasoning_tokens is not None:
            output_tokens += reasoning
    tools = raw.server_tool_use_details or raw.server_tool_use
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        citation_tokens=raw.citation_tokens,
        input_audio_tokens=into.audio_tokens,
        output_audio_tokens=out.audio_tokens,
        cache_audio_read_tokens=cached.audio_tokens,
        input_image_tokens=into.image_tokens,
        output_image_tokens=out.image_tokens,
        cache_image_read_tokens=cached.image_tokens,
        input_video_tokens=into.video_tokens,
        output_video_tokens=out.video_tokens,
        audio_seconds=_first_seconds(raw.seconds, raw.prompt_audio_seconds),
        web_searches=raw.num_search_queries if tools is None else tools.web_search_requests,
        declared_cost_usd=_declared(raw),
        service_tier=service_tier,
    )
    return usage if usage else None


def _first(*counts: int | None) -> int | None:
    for count in counts:
        if count is not None:
            return count
    return None


def _first_seconds(*counts: float | None) -> float | None:
    return next((count for count in counts if count is not None and 0 <= count <= COUNT_MAX), None)


def _declared(raw: OpenAIUsage) -> Decimal | None:
    """What the provider itself says the call cost."""
    if raw.cost is not None:
        if isinstance(raw.cost, DeclaredCost):
            return money(raw.cost.total_cost)
        charged = money(raw.cost)
        # With a key of one's own OpenRouter charges its fee, and the provider behind it charges the rest.
        if charged is not None and raw.is_byok and raw.cost_details is not None:
            return charged + (money(raw.cost_details.upstream_inference_cost) or 0)
        return charged
    if raw.cost_in_usd_ticks is not None:
        return raw.cost_in_usd_ticks / _USD_TICKS
    return money(raw.estimated_cost)


class Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None
    usage: OpenAIUsage | None = None
    """Moonshot's, in a stream."""


class Groq(msgspec.Struct, frozen=True):
    usage: OpenAIUsage | None = None


class Document(msgspec.Struct, frozen=True):
    """A plain answer or one chunk."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: OpenAIUsage | None = None
    service_tier: str | None = None
    x_groq: Groq | None = None
    error: Any = None
    object: str | None = None
    message: Any = None
    """Of an error that is the whole event (vLLM, Mistral)."""


def _stop_reason(document: Document) -> str | None:
    for choice in reversed(document.choices or ()):
        if choice.finish_reason:
            return choice.finish_reason
    return None


def _reported(document: Document) -> OpenAIUsage | None:
    if document.usage is not None:
        return document.usage
    if document.x_groq is not None:
        return document.x_groq.usage
    return document.choices[-1].usage if document.choices else None


def read(document: Document) -> Answer:
    raw = _reported(document)
    usage = None
    if raw is not None:
        usage = usage_of(
            raw,
            model=document.model,
            service_tier=document.service_tier,
            embeds=document.object == "list",
        )
    return Answer(
        model=document.model or None,
        stop_reason=_stop_reason(document),
        usage=usage,
        error=error_of(document.error) if document.error else None,
    )


def fold(documents: list[Document], body: bytes) -> Answer:
    model = stop_reason = tier = error = raw = None
    for document in documents:
        model = model or document.model or None
        stop_reason = _stop_reason(document) or stop_reason
        tier = document.service_tier or tier
        raw = _reported(document) or raw
        if document.error and error is None:
            error = error_of(document.error)
        elif document.object == "error" and error is None:
            error = error_of({"message": document.message})
    complete = b"[DONE]" in body[-256:] or (stop_reason is not None and error is None)
    return Answer(
        model=model,
        stop_reason=stop_reason,
        usage=None if raw is None else usage_of(raw, model=model, service_tier=tier),
        usage_is_final=complete,
        error=error,
        complete=complete,
    )


def pieces(raw: Any) -> Iterator[Piece]:
    """Texts of choices, whether whole messages or deltas."""
    for choice in _dicts(raw.get("choices")):
        index = choice.get("index")
        if isinstance(choice.get("text"), str):
            yield Block((index, "text")), choice["text"]
        for name in ("message", "delta"):
            if isinstance(message := choice.get(name), dict):
                yield from message_pieces(index, message)
    if isinstance(raw.get("text"), str) and "choices" not in raw and "type" not in raw:
        yield Block("text"), raw["text"]  # A transcription.


def message_pieces(index: object, message: dict[str, Any]) -> Iterator[Piece]:
    content = message.get("content")
    if isinstance(content, str):
        yield Block((index, "content")), content
    for part in _dicts(content):
        if isinstance(part.get("text"), str):
            yield Block((index, "content")), part["text"]
        for thought in _dicts(part.get("thinking")):  # Mistral
            if isinstance(thought.get("text"), str):
                yield Block((index, "reasoning")), thought["text"]
    # Some send their reasoning under two names at once: the first counts.
    for name in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(message.get(name), str) and message[name]:
            yield Block((index, "reasoning")), message[name]
            break
    if isinstance(message.get("refusal"), str):
        yield Block((index, "refusal")), message["refusal"]
    calls = [*_dicts(message.get("tool_calls"))]
    for place, call in enumerate(calls):
        if isinstance(function := call.get("function") or call.get("custom"), dict):
            block = Block((index, call.get("index", place)), is_tool=True)
            yield from _call_pieces(block, function)
    if isinstance(function := message.get("function_call"), dict):
        yield from _call_pieces(Block((index, 0), is_tool=True), function)


def _call_pieces(block: Block, function: dict[str, Any]) -> Iterator[Piece]:
    if isinstance(function.get("name"), str):
        yield block, function["name"]
    arguments = function.get("arguments", function.get("input"))
    if arguments is not None:
        yield block, text_of(arguments)


def _dicts(raw: Any) -> Iterator[dict[str, Any]]:
    if isinstance(raw, list):
        yield from (item for item in raw if isinstance(item, dict))


SHAPE = Shape(
    document=Tolerant(Document),
    read=read,
    torn_fields=("model", "usage", "service_tier", "x_groq", "object", "finish_reason", "error"),
    needles=(b'"usage"', b'"finish_reason"', b'"error"', b'"message"'),
    fold=fold,
    pieces=pieces,
)
