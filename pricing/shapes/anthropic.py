"""Anthropic's Messages API, at Anthropic, on Vertex and inside Bedrock's invoke.

`input_tokens` is what was neither read from nor written to a cache, so the three are added. A stream gives usage
twice: `message_start` has the input and a first count of the output, `message_delta` the final counts; a later
word corrects an earlier one.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from pricing.reading import Answer, Block, Piece, Shape, error_of, text_of
from pricing.tolerant import Count, Tolerant
from pricing.usage import Usage


class CacheCreation(msgspec.Struct, frozen=True, gc=False):
    ephemeral_1h_input_tokens: Count | None = None
    ephemeral_5m_input_tokens: Count | None = None


class ServerTools(msgspec.Struct, frozen=True, gc=False):
    web_search_requests: Count | None = None


class OutputDetails(msgspec.Struct, frozen=True, gc=False):
    thinking_tokens: Count | None = None


class Iteration(msgspec.Struct, frozen=True):
    """One sampling step of a call that had several. A compaction is billed and not part of the sums above it."""

    type: str | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None


class AnthropicUsage(msgspec.Struct, frozen=True):
    input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation: CacheCreation | None = None
    output_tokens: Count | None = None
    output_tokens_details: OutputDetails | None = None
    server_tool_use: ServerTools | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    iterations: list[Iteration] | None = None


def usage_of(raw: AnthropicUsage) -> Usage | None:
    read, written = raw.cache_read_input_tokens, raw.cache_creation_input_tokens
    by_ttl = raw.cache_creation
    written_1h = None if by_ttl is None else by_ttl.ephemeral_1h_input_tokens
    if written is None and by_ttl is not None:
        written = (by_ttl.ephemeral_1h_input_tokens or 0) + (by_ttl.ephemeral_5m_input_tokens or 0)
    output_tokens = raw.output_tokens
    input_tokens = None if raw.input_tokens is None else raw.input_tokens + (read or 0) + (written or 0)
    for step in raw.iterations or ():
        if step.type == "compaction" and input_tokens is not None and output_tokens is not None:
            input_tokens += step.input_tokens or 0
            output_tokens += step.output_tokens or 0
            if step.cache_read_input_tokens:
                read = (read or 0) + step.cache_read_input_tokens
                input_tokens += step.cache_read_input_tokens
            if step.cache_creation_input_tokens:
                written = (written or 0) + step.cache_creation_input_tokens
                input_tokens += step.cache_creation_input_tokens
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=written_1h,
        reasoning_tokens=None if raw.output_tokens_details is None else raw.output_tokens_details.thinking_tokens,
        web_searches=None if raw.server_tool_use is None else raw.server_tool_use.web_search_requests,
        service_tier=raw.service_tier,
        speed=raw.speed,
        inference_geo=raw.inference_geo,
    )
    return usage if usage else None


class Message(msgspec.Struct, frozen=True):
    model: str | None = None
    usage: AnthropicUsage | None = None


class Delta(msgspec.Struct, frozen=True):
    stop_reason: str | None = None


class Document(msgspec.Struct, frozen=True):
    """A plain message, or one event."""

    type: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: AnthropicUsage | None = None
    message: Message | None = None
    delta: Delta | None = None
    error: Any = None


def read(document: Document) -> Answer:
    return Answer(
        model=document.model,
        stop_reason=document.stop_reason,
        usage=None if document.usage is None else usage_of(document.usage),
        error=error_of(document.error) if document.error else None,
    )


def fold(documents: list[Document], body: bytes) -> Answer:
    model = stop_reason = error = usage = None
    final = False
    for document in documents:
        if document.type == "message_start" and document.message is not None:
            model = document.message.model or model
            usage = merged(usage, document.message.usage)
        elif document.type == "message_delta":
            if document.usage is not None:
                usage = merged(usage, document.usage)
                final = True
            if document.delta is not None:
                stop_reason = document.delta.stop_reason or stop_reason
        elif document.type == "error" or document.error:
            error = error or error_of(document.error)
    complete = b'"message_stop"' in body[-1024:]
    return Answer(
        model=model,
        stop_reason=stop_reason,
        usage=None if usage is None else usage_of(usage),
        usage_is_final=final,
        error=error,
        complete=complete or stop_reason is not None,
    )


def merged(earlier: AnthropicUsage | None, later: AnthropicUsage | None) -> AnthropicUsage | None:
    """Fields of both, the later word where both speak."""
    if earlier is None or later is None:
        return later or earlier
    said = {name: value for name in later.__struct_fields__ if (value := getattr(later, name)) is not None}
    return msgspec.structs.replace(earlier, **said)


def pieces(raw: Any) -> Iterator[Piece]:
    kind = raw.get("type")
    if kind == "content_block_delta" and isinstance(delta := raw.get("delta"), dict):
        for name in ("text", "thinking", "partial_json"):
            if isinstance(delta.get(name), str):
                yield Block(raw.get("index"), is_tool=name == "partial_json"), delta[name]
    elif kind == "content_block_start" and isinstance(block := raw.get("content_block"), dict):
        yield from _block_pieces(raw.get("index"), block)
    elif isinstance(blocks := raw.get("content"), list):
        for index, block in enumerate(blocks):
            if isinstance(block, dict):
                yield from _block_pieces(index, block)
    elif isinstance(raw.get("completion"), str):  # The old text completions.
        yield Block("completion"), raw["completion"]


def _block_pieces(index: object, block: dict[str, Any]) -> Iterator[Piece]:
    for name in ("text", "thinking", "name"):
        if isinstance(block.get(name), str):
            yield Block(index, is_tool=name == "name"), block[name]
    # A stream begins a tool's block with empty input and sends it piece by piece.
    if block.get("input"):
        yield Block(index, is_tool=True), text_of(block["input"])


SHAPE = Shape(
    document=Tolerant(Document),
    read=read,
    torn_fields=("type", "model", "stop_reason", "usage"),
    needles=(b'"usage"', b'"stop_reason"', b'"error"'),
    fold=fold,
    pieces=pieces,
)
