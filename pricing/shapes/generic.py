"""Answers whose shape is not known beforehand: Bedrock's invoke (each model family its own), embed and rerank,
native APIs (Ollama, watsonx, Replicate, Text Generation Inference, Aleph Alpha, Vertex predict), and anything else.

Every documented place of usage is looked at. A bare `{"input_tokens": 12}` is no usage: counting endpoints answer so.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from pricing.reading import Answer, Block, Piece, Shape, error_of
from pricing.shapes import anthropic, bedrock, cohere, gemini, openai, responses
from pricing.tolerant import ABSENT, Count, Tolerant, is_given
from pricing.usage import Usage

_anthropic_usage = Tolerant(anthropic.AnthropicUsage)
_anthropic_message = Tolerant(anthropic.Message)
_cohere_usage = Tolerant(cohere.CohereUsage)
_converse_usage = Tolerant(bedrock.ConverseUsage)
_interaction_usage = Tolerant(gemini.InteractionUsage)
_openai_usage = Tolerant(openai.OpenAIUsage)
_response = Tolerant(responses.Response)


class Delta(msgspec.Struct, frozen=True):
    stop_reason: str | None = None
    finish_reason: str | None = None
    usage: msgspec.Raw = ABSENT


class Result(msgspec.Struct, frozen=True):
    """watsonx's and Titan's."""

    input_token_count: Count | None = None
    generated_token_count: Count | None = None
    stop_reason: str | None = None
    tokenCount: Count | None = None
    completionReason: str | None = None


class Reasoned(msgspec.Struct, frozen=True):
    """A choice under any of its names: `completions`, `outputs`, `generations`."""

    finish_reason: str | None = None
    stop_reason: str | None = None
    finishReason: Any = None


class Metrics(msgspec.Struct, frozen=True):
    """Replicate's."""

    input_token_count: Count | None = None
    output_token_count: Count | None = None
    token_input_count: Count | None = None
    token_output_count: Count | None = None


class Details(msgspec.Struct, frozen=True):
    """Text Generation Inference's."""

    finish_reason: str | None = None
    generated_tokens: Count | None = None
    input_length: Count | None = None
    prefill: list[msgspec.Raw] | None = None


class Metadata(msgspec.Struct, frozen=True):
    usage: bedrock.ConverseUsage | None = None
    billableCharacterCount: Count | None = None


class Stop(msgspec.Struct, frozen=True):
    stopReason: str | None = None


class UsageInfo(msgspec.Struct, frozen=True):
    """Mistral's OCR."""

    pages_processed: Count | None = None


class Statistics(msgspec.Struct, frozen=True):
    token_count: Count | None = None


class Embedded(msgspec.Struct, frozen=True):
    statistics: Statistics | None = None


class Prediction(msgspec.Struct, frozen=True):
    embeddings: Embedded | None = None


class Document(msgspec.Struct, frozen=True):
    model: str | None = None
    model_id: str | None = None
    modelVersion: str | None = None
    type: str | None = None
    object: str | None = None
    usage: msgspec.Raw = ABSENT
    usage_info: UsageInfo | None = None
    usageMetadata: gemini.GeminiUsage | None = None
    meta: cohere.CohereUsage | None = None
    x_groq: openai.Groq | None = None
    message: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT
    interaction: "Document | None" = None
    choices: list[openai.Choice] | None = None
    candidates: list[gemini.Candidate] | None = None
    completions: list[Reasoned] | None = None
    generations: list[Reasoned] | None = None
    outputs: list[Reasoned] | None = None
    delta: Delta | None = None
    results: list[Result] | None = None
    stop_reason: str | None = None
    stopReason: str | None = None
    finish_reason: str | None = None
    done_reason: str | None = None
    done: bool | None = None
    completionReason: str | None = None
    prompt_eval_count: Count | None = None
    eval_count: Count | None = None
    inputTextTokenCount: Count | None = None
    totalOutputTextTokenCount: Count | None = None
    embedding: msgspec.Raw = ABSENT
    embeddings: msgspec.Raw = ABSENT
    prompt_token_count: Count | None = None
    generation_token_count: Count | None = None
    num_tokens_prompt_total: Count | None = None
    input_token_count: Count | None = None
    duration: float | None = None
    text: Any = None
    num_tokens_generated: Count | None = None
    metrics: Metrics | None = None
    details: Details | None = None
    metadata: Metadata | None = None
    messageStop: Stop | None = None
    predictions: list[Prediction] | None = None
    invocation: bedrock.InvocationMetrics | None = msgspec.field(name="amazon-bedrock-invocationMetrics", default=None)
    service_tier: str | None = None
    error: Any = None


def read(document: Document, *, embeds: bool = False) -> Answer:
    answer = fold([document], b"", embeds=embeds)
    embeds = is_given(document.embedding) or is_given(document.embeddings)
    return msgspec.structs.replace(answer, complete=True, usage_is_final=True, embeds=embeds)


def fold(documents: list[Document], body: bytes, *, embeds: bool = False) -> Answer:
    model = stop_reason = error = usage = None
    final = True
    complete = b"[DONE]" in body[-256:]
    started: anthropic.AnthropicUsage | None = None
    for document in [document.interaction or document for document in documents]:
        model = document.model or document.model_id or document.modelVersion or model
        stop_reason = _stop_reason(document) or stop_reason
        if document.error and error is None:
            error = error_of(document.error)
        complete = complete or document.done is True or document.type in ("message_stop", "message-end")
        if document.type == "message_start" and is_given(document.message):
            message = _anthropic_message.decode(document.message)
            if message is not None:
                model = message.model or model
                started = message.usage
                usage = anthropic.usage_of(started) if started is not None else usage
                final = False
        elif document.type == "message_delta" and is_given(document.usage):
            started = anthropic.merged(started, _anthropic_usage.decode(document.usage))
            usage = anthropic.usage_of(started) if started is not None else usage
            final = True
        elif document.invocation is not None and usage is not None:
            # What the model said itself is finer, but may be of the chunk before.
            counted = bedrock.usage_of_metrics(document.invocation) or Usage()
            usage = msgspec.structs.replace(
                usage,
                input_tokens=_larger(usage.input_tokens, counted.input_tokens),
                output_tokens=_larger(usage.output_tokens, counted.output_tokens),
            )
        elif found := _usage(document, embeds=embeds):
            usage = _later(usage, found)
        if _is_object(document.response) and (inner := _response.decode(document.response)) is not None:
            model = model or inner.model
            stop_reason = inner.status or stop_reason
            if inner.usage is not None:
                usage = openai.usage_of(inner.usage, model=model, service_tier=inner.service_tier)
    return Answer(
        model=model,
        stop_reason=stop_reason,
        usage=usage,
        usage_is_final=final,
        error=error,
        complete=complete or (stop_reason is not None and stop_reason != "in_progress"),
    )


def _is_object(raw: msgspec.Raw) -> bool:
    """Responses' events hold the whole answer under the name Ollama gives its text."""
    return raw is not ABSENT and bytes(memoryview(raw)[:1]) == b"{"


def _later(earlier: Usage | None, later: Usage) -> Usage:
    """Counts grow through a stream; one that falls back to 0 (watsonx's input) is not a correction."""
    if earlier is None:
        return later
    return msgspec.structs.replace(
        later,
        input_tokens=_larger(earlier.input_tokens, later.input_tokens),
        output_tokens=_larger(earlier.output_tokens, later.output_tokens),
    )


def _larger(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return max(left, right)


def _stop_reason(document: Document) -> str | None:
    for choice in reversed(document.choices or ()):
        if choice.finish_reason:
            return choice.finish_reason
    for candidate in reversed(document.candidates or ()):
        if candidate.finishReason:
            return candidate.finishReason
    for some in (*(document.completions or ()), *(document.generations or ()), *(document.outputs or ())):
        reason = some.finish_reason or some.stop_reason or _reason_of(some.finishReason)
        if reason:
            return reason
    for result in document.results or ():
        reason = result.stop_reason or result.completionReason
        if reason and reason != "not_finished":
            return reason
    if document.delta is not None and (document.delta.stop_reason or document.delta.finish_reason):
        return document.delta.stop_reason or document.delta.finish_reason
    if document.messageStop is not None:
        return document.messageStop.stopReason
    if document.details is not None and document.details.finish_reason:
        return document.details.finish_reason
    return (
        document.stop_reason
        or document.stopReason
        or document.finish_reason
        or document.done_reason
        or document.completionReason
    )


def _reason_of(raw: Any) -> str | None:
    """AI21 wraps it in an object."""
    reason = raw.get("reason") if isinstance(raw, dict) else raw
    return reason if isinstance(reason, str) else None


def _usage(document: Document, *, embeds: bool) -> Usage | None:
    """The usage of one document, from the first place that holds any."""
    embeds = embeds or document.object == "list"
    raw = document.usage
    if not is_given(raw) and document.delta is not None:
        raw = document.delta.usage
    if is_given(raw):
        return _usage_object(raw, document, embeds=embeds)
    if document.usageMetadata is not None:
        return gemini.usage_of(document.usageMetadata, embeds=embeds)
    if document.meta is not None and (found := cohere.usage_of(document.meta, embeds=embeds)):
        return found
    if document.x_groq is not None and document.x_groq.usage is not None:
        return openai.usage_of(document.x_groq.usage, model=document.model)
    if document.metadata is not None and document.metadata.usage is not None:
        return bedrock.usage_of(document.metadata.usage)
    if document.invocation is not None:
        return bedrock.usage_of_metrics(document.invocation)
    if document.usage_info is not None and document.usage_info.pages_processed is not None:
        return Usage(document_pages=document.usage_info.pages_processed)
    return _usage_beside(document, embeds=embeds)


def _usage_object(raw: msgspec.Raw, document: Document, *, embeds: bool) -> Usage | None:
    """A `usage` object of any provider, told apart by the names in it."""
    text = bytes(raw)
    if b'"inputTokens"' in text:
        converse = _converse_usage.decode(raw)
        return None if converse is None else bedrock.usage_of(converse)
    if b'"billed_units"' in text or b'"tokens":' in text.replace(b" ", b""):
        units = _cohere_usage.decode(raw)
        return None if units is None else cohere.usage_of(units, embeds=embeds)
    if b'"input_tokens"' in text and (b'"cache_creation' in text or b'"cache_read_input_tokens"' in text):
        messages = _anthropic_usage.decode(raw)
        return None if messages is None else anthropic.usage_of(messages)
    if b'"total_input_tokens"' in text and b'"total_output_tokens"' in text:
        interaction = _interaction_usage.decode(raw)
        return None if interaction is None else gemini.usage_of_interaction(interaction)
    found = _openai_usage.decode(raw)
    if found is None:
        return None
    return openai.usage_of(found, model=document.model, service_tier=document.service_tier, embeds=embeds)


def _usage_beside(document: Document, *, embeds: bool) -> Usage | None:
    """Counts that stand among an answer's other fields."""
    embeds = embeds or is_given(document.embedding) or is_given(document.embeddings)
    none_out = 0 if embeds else None
    if document.prompt_eval_count is not None or document.eval_count is not None:  # Ollama
        embedded = is_given(document.embeddings) and document.eval_count is None
        return Usage(input_tokens=document.prompt_eval_count, output_tokens=0 if embedded else document.eval_count)
    if document.inputTextTokenCount is not None:  # Titan
        return Usage(input_tokens=document.inputTextTokenCount, output_tokens=_titan_output(document))
    if document.generation_token_count is not None:  # Llama on Bedrock
        return Usage(input_tokens=document.prompt_token_count, output_tokens=document.generation_token_count)
    if document.num_tokens_generated is not None or document.num_tokens_prompt_total is not None:  # Aleph Alpha
        generated = none_out if document.num_tokens_generated is None else document.num_tokens_generated
        return Usage(input_tokens=document.num_tokens_prompt_total, output_tokens=generated)
    if document.input_token_count is not None:  # watsonx embeddings, rerank
        return Usage(input_tokens=document.input_token_count, output_tokens=none_out)
    if document.duration is not None and document.text is not None:  # Whisper
        return Usage(audio_seconds=document.duration)
    if document.results:  # watsonx
        into = [r.input_token_count for r in document.results if r.input_token_count is not None]
        out = [r.generated_token_count for r in document.results if r.generated_token_count is not None]
        if into or out:
            return Usage(input_tokens=sum(into) if into else None, output_tokens=sum(out) if out else None)
    if (metrics := document.metrics) is not None:  # Replicate
        found = Usage(
            input_tokens=_larger(metrics.input_token_count, metrics.token_input_count),
            output_tokens=_larger(metrics.output_token_count, metrics.token_output_count),
        )
        return found if found else None
    if (details := document.details) is not None and details.generated_tokens is not None:
        prompt = details.input_length
        if prompt is None and details.prefill:
            prompt = len(details.prefill)
        return Usage(input_tokens=prompt, output_tokens=details.generated_tokens)
    if document.predictions:  # Vertex's text embeddings
        counts = [p.embeddings.statistics for p in document.predictions if p.embeddings is not None]
        told = [s.token_count for s in counts if s is not None and s.token_count is not None]
        if told:
            characters = None if document.metadata is None else document.metadata.billableCharacterCount
            return Usage(input_tokens=sum(told), output_tokens=0, input_characters=characters)
    return None


def _titan_output(document: Document) -> int | None:
    if is_given(document.embedding):
        return 0
    if document.totalOutputTextTokenCount is not None:
        return document.totalOutputTextTokenCount
    counts = [r.tokenCount for r in document.results or () if r.tokenCount is not None]
    return sum(counts) if counts else None


def pieces(raw: Any) -> Iterator[Piece]:
    """Texts under the names any of these APIs use for what they generated."""
    if "choices" in raw:
        yield from openai.pieces(raw)
        return
    if "candidates" in raw:
        yield from gemini.pieces(raw)
        return
    if raw.get("type") in ("content_block_delta", "content_block_start", "message", "completion"):
        yield from anthropic.pieces(raw)
        return
    for name in ("contentBlockDelta", "contentBlockStart"):  # Nova's stream
        if isinstance(raw.get(name), dict):
            yield from bedrock.pieces(raw[name])
    if isinstance(raw.get("output"), dict):
        yield from bedrock.pieces(raw)
    if "done" in raw:  # Ollama
        yield from _own_pieces(raw, ("response", "thinking"))
        if isinstance(message := raw.get("message"), dict):
            yield from openai.message_pieces(0, message)
        return
    if "generation_id" in raw or "chat_history" in raw:  # Cohere on Bedrock
        yield from cohere.pieces(raw)
    yield from _own_pieces(raw, ("generation", "generated_text", "completion", "outputText"))
    for name in ("results", "completions", "generations", "outputs"):
        items = raw.get(name)
        for place, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict):
                for _, text in _own_pieces(item, ("generated_text", "outputText", "completion", "text")):
                    yield Block((name, place)), text
                if isinstance(data := item.get("data"), dict):  # AI21
                    yield from _own_pieces(data, ("text",))


def _own_pieces(raw: dict[str, Any], names: tuple[str, ...]) -> Iterator[Piece]:
    for name in names:
        if isinstance(raw.get(name), str):
            yield Block(name), raw[name]


def _no_pieces(raw: Any) -> Iterator[Piece]:
    del raw
    return iter(())


_document = Tolerant(Document)
_torn_fields = (
    *("model", "model_id", "usage", "usageMetadata", "meta", "metrics", "stop_reason", "finish_reason"),
    *("prompt_eval_count", "eval_count", "inputTextTokenCount", "generation_token_count", "prompt_token_count"),
    *("num_tokens_prompt_total", "num_tokens_generated", "amazon-bedrock-invocationMetrics", "done_reason"),
)
_needles = (
    *(b'"usage"', b'"usageMetadata"', b'"meta"', b'"x_groq"', b'"finish_reason"', b'"stop_reason"', b'"error"'),
    *(b'"eval_count"', b'"done_reason"', b'"details"', b'"metrics"', b'"generated_token_count"'),
    *(b'"generation_token_count"', b'"totalOutputTextTokenCount"', b'"num_tokens_generated"'),
)

SHAPE = Shape(document=_document, read=read, torn_fields=_torn_fields, needles=_needles, fold=fold, pieces=pieces)

EMBED = Shape(
    document=_document,
    read=partial(read, embeds=True),
    torn_fields=(*_torn_fields, "object"),
    needles=_needles,
    fold=partial(fold, embeds=True),
    pieces=_no_pieces,
)
"""APIs out of which no tokens come: embeddings and reranking."""
