"""OpenAI's Responses API: usage stands in the response object, in a stream in the last event's `response`."""

from collections.abc import Iterator
from typing import Any

import msgspec

from pricing.reading import Answer, Block, Piece, Shape, error_of, text_of
from pricing.shapes.openai import OpenAIUsage, ServerTools, usage_of
from pricing.tolerant import Tolerant
from pricing.usage import Usage

_PENDING = ("queued", "in_progress")
_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})


class Action(msgspec.Struct, frozen=True):
    type: str | None = None


class Item(msgspec.Struct, frozen=True):
    type: str | None = None
    action: Action | None = None

    @property
    def is_search(self) -> bool:
        """Opening a page or looking within one is a `web_search_call` too, and costs nothing."""
        return self.type == "web_search_call" and (self.action is None or self.action.type in (None, "search"))


class Response(msgspec.Struct, frozen=True):
    model: str | None = None
    status: str | None = None
    output: list[Item] | None = None
    usage: OpenAIUsage | None = None
    service_tier: str | None = None
    background: bool | None = None
    error: Any = None


class Document(msgspec.Struct, frozen=True):
    """A plain answer, or one event around it. An error event holds its fields at the top."""

    model: str | None = None
    status: str | None = None
    output: list[Item] | None = None
    usage: OpenAIUsage | None = None
    service_tier: str | None = None
    background: bool | None = None
    error: Any = None
    type: str | None = None
    response: Response | None = None
    code: Any = None
    message: Any = None


def _usage(raw: Response | Document) -> Usage | None:
    if raw.usage is None:
        return None
    counted = raw.usage
    if raw.output and counted.server_tool_use is None and counted.server_tool_use_details is None:
        # OpenAI bills its searches by the call and counts them nowhere but in the output.
        searches = sum(item.is_search for item in raw.output)
        if searches and counted.cost is None:
            counted = msgspec.structs.replace(counted, server_tool_use=ServerTools(searches))
    usage = usage_of(counted, model=raw.model, service_tier=raw.service_tier)
    if usage is not None and raw.output and (found := sum(i.type == "file_search_call" for i in raw.output)):
        usage = msgspec.structs.replace(usage, storage_searches=found)
    return usage


def read(document: Document) -> Answer:
    return Answer(
        model=document.model or None,
        stop_reason=document.status,
        usage=_usage(document),
        error=error_of(document.error) if document.error else None,
        background=document.background is True,
        complete=document.status not in _PENDING,
    )


def fold(documents: list[Document], body: bytes) -> Answer:
    model = status = error = usage = None
    background = False
    complete = b"[DONE]" in body[-256:]
    for document in documents:
        if document.type == "error":
            nested = error_of(document.error) if document.error else None
            error = error or nested or error_of({"message": document.message, "code": document.code})
        if (response := document.response) is None:
            continue
        model = model or response.model or None
        if response.error and error is None:
            error = error_of(response.error)
        usage = _usage(response) or usage
        background = background or response.background is True
        if document.type in _TERMINAL:
            status, complete = response.status or document.type.removeprefix("response."), True
    return Answer(model=model, stop_reason=status, usage=usage, error=error, background=background, complete=complete)


def pieces(raw: Any) -> Iterator[Piece]:
    """Deltas of a stream, or the output items of a plain answer."""
    kind = raw.get("type")
    if isinstance(kind, str) and kind.endswith(".delta") and isinstance(raw.get("delta"), str):
        if "audio.delta" not in kind and "image" not in kind:
            part = (kind, raw.get("item_id"), raw.get("content_index"), raw.get("summary_index"))
            yield Block(part, is_tool="call" in kind), raw["delta"]
        return
    if kind == "response.output_item.added" and isinstance(item := raw.get("item"), dict):
        if isinstance(item.get("name"), str):
            yield Block(("name", item.get("id")), is_tool=True), item["name"]
        return
    if raw.get("status") in _PENDING:
        return  # Answered later, under another request: nothing has been generated for this one.
    for place, item in enumerate(_dicts(raw.get("output"))):
        for name in ("name", "arguments", "input"):
            if item.get(name) is not None:
                yield Block((place, name), is_tool=True), text_of(item[name])
        for piece in (*_dicts(item.get("content")), *_dicts(item.get("summary"))):
            for name in ("text", "refusal"):
                if isinstance(piece.get(name), str):
                    yield Block((place, name)), piece[name]


def _dicts(raw: Any) -> list[dict[str, Any]]:
    return [item for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []


SHAPE = Shape(
    document=Tolerant(Document),
    read=read,
    torn_fields=("model", "status", "usage", "service_tier", "background"),
    needles=(b'"usage"', b'"error"', b'"response"', b'"message"'),
    fold=fold,
    pieces=pieces,
)
