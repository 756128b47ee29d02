"""Bedrock's Converse. Its `inputTokens` leaves out what was read from and written to a cache; the total tells."""

from collections.abc import Iterator
from typing import Any

import msgspec

from pricing.reading import Answer, Block, Piece, Shape, text_of
from pricing.tolerant import Count, Tolerant
from pricing.usage import Usage


class CacheDetail(msgspec.Struct, frozen=True):
    ttl: str | None = None
    inputTokens: Count | None = None


class ConverseUsage(msgspec.Struct, frozen=True):
    inputTokens: Count | None = None
    outputTokens: Count | None = None
    totalTokens: Count | None = None
    cacheReadInputTokens: Count | None = None
    cacheWriteInputTokens: Count | None = None
    cacheReadInputTokenCount: Count | None = None
    cacheWriteInputTokenCount: Count | None = None
    cacheDetails: list[CacheDetail] | None = None


class InvocationMetrics(msgspec.Struct, frozen=True):
    """What Bedrock adds to the last chunk of any model's invoke stream."""

    inputTokenCount: Count | None = None
    outputTokenCount: Count | None = None
    cacheReadInputTokenCount: Count | None = None
    cacheWriteInputTokenCount: Count | None = None


class Tier(msgspec.Struct, frozen=True):
    type: str | None = None


def usage_of(raw: ConverseUsage, *, tier: Tier | None = None) -> Usage | None:
    read = raw.cacheReadInputTokens
    read = raw.cacheReadInputTokenCount if read is None else read
    written = raw.cacheWriteInputTokens
    written = raw.cacheWriteInputTokenCount if written is None else written
    input_tokens, output_tokens, total = raw.inputTokens, raw.outputTokens, raw.totalTokens
    cached = (read or 0) + (written or 0)
    if input_tokens is not None and (
        total is None or input_tokens < cached or total > input_tokens + (output_tokens or 0)
    ):
        input_tokens += cached
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=_written_1h(raw.cacheDetails),
        service_tier=None if tier is None else tier.type,
    )
    return usage if usage else None


def _written_1h(details: list[CacheDetail] | None) -> int | None:
    if details is None:
        return None
    return sum(detail.inputTokens or 0 for detail in details if detail.ttl == "1h")


def usage_of_metrics(raw: InvocationMetrics) -> Usage | None:
    return usage_of(
        ConverseUsage(
            inputTokens=raw.inputTokenCount,
            outputTokens=raw.outputTokenCount,
            cacheReadInputTokens=raw.cacheReadInputTokenCount,
            cacheWriteInputTokens=raw.cacheWriteInputTokenCount,
        )
    )


class Document(msgspec.Struct, frozen=True):
    """A plain answer, or the payload of a `messageStop` or `metadata` frame."""

    stopReason: str | None = None
    usage: ConverseUsage | None = None
    serviceTier: Tier | None = None


def read(document: Document) -> Answer:
    return Answer(
        stop_reason=document.stopReason,
        usage=None if document.usage is None else usage_of(document.usage, tier=document.serviceTier),
    )


def fold(documents: list[Document], body: bytes) -> Answer:
    del body
    stop_reason = usage = None
    for document in documents:
        stop_reason = document.stopReason or stop_reason
        if document.usage is not None:
            usage = usage_of(document.usage, tier=document.serviceTier)
    return Answer(stop_reason=stop_reason, usage=usage, complete=stop_reason is not None)


def pieces(raw: Any) -> Iterator[Piece]:
    if isinstance(delta := raw.get("delta"), dict):
        yield from _content_pieces(raw.get("contentBlockIndex"), delta)
    elif isinstance(start := raw.get("start"), dict):
        yield from _content_pieces(raw.get("contentBlockIndex"), start)
    elif isinstance(output := raw.get("output"), dict) and isinstance(message := output.get("message"), dict):
        content = message.get("content")
        for index, block in enumerate(content if isinstance(content, list) else ()):
            if isinstance(block, dict):
                yield from _content_pieces(index, block)


def _content_pieces(index: object, block: dict[str, Any]) -> Iterator[Piece]:
    if isinstance(block.get("text"), str):
        yield Block(index), block["text"]
    if isinstance(tool := block.get("toolUse"), dict):
        for name in ("name", "input"):
            if tool.get(name):
                yield Block(index, is_tool=True), text_of(tool[name])
    if isinstance(thought := block.get("reasoningContent"), dict):
        inner = thought.get("reasoningText")
        text = inner.get("text") if isinstance(inner, dict) else thought.get("text")
        if isinstance(text, str):
            yield Block((index, "reasoning")), text


SHAPE = Shape(
    document=Tolerant(Document),
    read=read,
    torn_fields=("stopReason", "usage", "serviceTier"),
    needles=(b'"usage"', b'"stopReason"'),
    fold=fold,
    pieces=pieces,
)
