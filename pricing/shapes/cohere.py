"""Cohere's chat (both versions), embed and rerank.

`tokens` is what was used, `billed_units` what is charged: prompts Cohere adds itself are not billed. Embed and
rerank tell billed units alone; an embedding's are what it used. Rerank is charged by the search.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from pricing.reading import Answer, Block, Piece, ProviderError, Shape, text_of
from pricing.tolerant import Count, Tolerant
from pricing.usage import Usage


class Tokens(msgspec.Struct, frozen=True, gc=False):
    input_tokens: Count | None = None
    output_tokens: Count | None = None


class BilledUnits(msgspec.Struct, frozen=True, gc=False):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    image_tokens: Count | None = None
    search_units: Count | None = None


class CohereUsage(msgspec.Struct, frozen=True):
    """`usage` of version 2, `meta` of version 1 and of embed and rerank."""

    tokens: Tokens | None = None
    billed_units: BilledUnits | None = None
    cached_tokens: Count | None = None


def usage_of(raw: CohereUsage, *, embeds: bool = False) -> Usage | None:
    used, billed = raw.tokens or Tokens(), raw.billed_units or BilledUnits()
    input_tokens, output_tokens = used.input_tokens, used.output_tokens
    if input_tokens is None and billed.input_tokens is not None:
        input_tokens = billed.input_tokens + (billed.image_tokens or 0)
    if output_tokens is None:
        output_tokens = billed.output_tokens
    if output_tokens is None and input_tokens is not None and embeds:
        output_tokens = 0
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=raw.cached_tokens,
        input_image_tokens=billed.image_tokens,
        rerank_searches=billed.search_units,
        billed_input_tokens=None if embeds else billed.input_tokens,
        billed_output_tokens=None if embeds else billed.output_tokens,
    )
    return usage if usage else None


class Final(msgspec.Struct, frozen=True):
    """The end of a stream: version 2's `delta`, version 1's `response`."""

    finish_reason: str | None = None
    usage: CohereUsage | None = None
    meta: CohereUsage | None = None
    error: str | None = None


class Document(msgspec.Struct, frozen=True):
    finish_reason: str | None = None
    usage: CohereUsage | None = None
    meta: CohereUsage | None = None
    model: str | None = None
    type: str | None = None
    event_type: str | None = None
    delta: Final | None = None
    response: Final | None = None


def read(document: Document) -> Answer:
    raw = document.usage or document.meta
    return Answer(
        model=document.model,
        stop_reason=document.finish_reason,
        usage=None if raw is None else usage_of(raw),
    )


def fold(documents: list[Document], body: bytes) -> Answer:
    stop_reason = usage = error = None
    complete = b"[DONE]" in body[-256:]
    for document in documents:
        complete = complete or document.type == "message-end" or document.event_type == "stream-end"
        final = document.delta or document.response
        if final is None:
            continue
        stop_reason = final.finish_reason or document.finish_reason or stop_reason
        raw = final.usage or final.meta
        usage = usage_of(raw) if raw is not None else usage
        if final.error and error is None:
            error = ProviderError(message=final.error)
    if error is None and stop_reason in ("ERROR", "ERROR_TOXIC"):
        error = ProviderError(code=stop_reason)
    return Answer(stop_reason=stop_reason, usage=usage, error=error, complete=complete)


def pieces(raw: Any) -> Iterator[Piece]:
    kind = raw.get("type") or raw.get("event_type")
    if isinstance(raw.get("text"), str) and kind != "stream-start":
        yield Block("text"), raw["text"]
    message = raw.get("message")
    if isinstance(delta := raw.get("delta"), dict):
        message = delta.get("message")
    if not isinstance(message, dict):
        return
    if isinstance(message.get("tool_plan"), str):
        yield Block("plan"), message["tool_plan"]
    for part in _as_list(message.get("content")):
        for name in ("text", "thinking"):
            if isinstance(part.get(name), str):
                yield Block((raw.get("index"), name)), part[name]
    for place, call in enumerate(_as_list(message.get("tool_calls"))):
        if isinstance(function := call.get("function"), dict):
            for name in ("name", "arguments"):
                if function.get(name) is not None:
                    yield Block((raw.get("index"), place), is_tool=True), text_of(function[name])


def _as_list(raw: Any) -> list[dict[str, Any]]:
    """Whole messages hold lists, deltas a single part."""
    items = raw if isinstance(raw, list) else [raw]
    return [item for item in items if isinstance(item, dict)]


SHAPE = Shape(
    document=Tolerant(Document),
    read=read,
    torn_fields=("finish_reason", "usage", "meta", "model"),
    needles=(b'"usage"', b'"finish_reason"', b'"meta"'),
    fold=fold,
    pieces=pieces,
)
