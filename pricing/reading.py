"""The result of reading an answer, and the parts every provider's reader shares."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from pricing.tolerant import Tolerant, decode_any
from pricing.usage import Usage


class ProviderError(msgspec.Struct, frozen=True):
    """What a provider said went wrong: in the body of an error status, or inside a stream that began well."""

    message: str | None = None
    type: str | None = None
    code: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of itself. `None` throughout is what it does not say."""

    model: str | None = None
    stop_reason: str | None = None
    """In the provider's own words; of several choices the last that gave one."""
    usage: Usage | None = None
    usage_is_final: bool = True
    """False when the stream ended before the provider's last word on usage: a count in it may be a beginning."""
    error: ProviderError | None = None
    embeds: bool = False
    """The answer is an embedding, so that no tokens came out."""
    background: bool = False
    """Generated after the call that asked for it had its answer: only a later fetch can tell what was used."""
    complete: bool = True
    """A whole document, or a stream whose last event was seen."""
    output: tuple[str, ...] | None = None
    """Texts that came out (reasoning and tool arguments among them), one for each block or choice. Read only when
    usage is missing or not final; `None` when it was not needed or nothing in the body is generated text."""
    called_tools: bool = False
    """Whether tool calls are among `output`: models write them with marks that no text shows."""
    kept: float = 1.0
    """Part of the body that was there to read, 0 to 1: below 1 a hole was cut out of a long one."""


class Block(NamedTuple):
    """The part of an answer a piece of text belongs to: the pieces of one are counted as one text."""

    place: object
    """Index or name of the block, or several of them."""
    is_tool: bool = False
    """A tool call: its name and arguments."""


Piece = tuple[Block, str]


class Shape(msgspec.Struct, frozen=True):
    """How one kind of API says things."""

    document: Tolerant[Any]
    """Type of a plain answer, and of one event of a stream."""
    read: Callable[[Any], Answer]
    torn_fields: tuple[str, ...]
    """Fields worth looking for in a document that was cut."""
    needles: tuple[bytes, ...]
    """Keys that mark the telling events of a stream."""
    fold: Callable[[list[Any], bytes], Answer]
    """Telling events in order, and the stream itself, to one answer."""
    pieces: Callable[[Any], Iterable[Piece]]
    """Texts in one plain answer or event, decoded without types."""


class _ErrorFields(msgspec.Struct, frozen=True):
    message: Any = None
    msg: Any = None
    type: Any = None
    code: Any = None
    status: Any = None


class ErrorDocument(msgspec.Struct, frozen=True):
    """The shapes error bodies come in."""

    error: Any = None
    errors: Any = None
    message: Any = None
    Message: Any = None
    detail: Any = None
    type: Any = None
    code: Any = None
    exception: Any = msgspec.field(name="__type", default=None)


_error_fields = Tolerant(_ErrorFields)
_error_document = Tolerant(ErrorDocument)


def error_of(raw: Any) -> ProviderError | None:
    """An error given as an object, a text or a list of objects."""
    if isinstance(raw, list):
        return error_of(raw[0]) if raw else None
    if isinstance(raw, str):
        return ProviderError(message=raw) if raw else None
    if not isinstance(raw, dict) or not raw:
        return None
    fields = _error_fields.salvage(raw)
    if fields is None:
        return None
    inner = raw.get("error")
    if fields.message is None and isinstance(inner, dict | str):
        return error_of(inner)
    return ProviderError(
        message=_text(fields.message) or _text(fields.msg),
        type=_text(fields.type) or _text(fields.status),
        code=_text(fields.code),
    )


def error_in(body: bytes) -> ProviderError | None:
    """The error a body consists of, if it is one: asked only of bodies without usage."""
    found = _error_document.decode(body)
    if found is None and isinstance(items := decode_any(body), list) and items:  # Google, to a stream
        found = _error_document.salvage(items[0])
    if found is None:
        return None
    if found.error:
        error = error_of(found.error)
        if error is not None and isinstance(found.error, str) and isinstance(found.message, str):
            return ProviderError(message=found.message, type=found.error, code=_text(found.code))
        return error
    if found.errors:
        return error_of(found.errors)
    message = found.message if isinstance(found.message, str) else found.Message
    if message is None and found.detail is not None:
        message = found.detail if isinstance(found.detail, str) else _detail(found.detail)
    if isinstance(message, str) and message:
        kind = _text(found.exception) or _text(found.type)
        return ProviderError(message=message, type=kind, code=_text(found.code))
    return None


def _detail(raw: Any) -> str | None:
    error = error_of(raw)
    return None if error is None else error.message


def _text(raw: Any) -> str | None:
    if isinstance(raw, str):
        return raw or None
    return str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else None


def gather(pieces: Iterator[Piece]) -> tuple[tuple[str, ...] | None, bool]:
    """Pieces joined block by block, in order of appearance (`None` when there is not one), and whether any is of a
    tool call."""
    blocks: dict[str, list[str]] = {}
    called_tools = False
    for block, text in pieces:
        # By its text, since an index from outside may be anything, a list too.
        blocks.setdefault(repr(block.place), []).append(text)
        called_tools = called_tools or block.is_tool
    return (tuple("".join(texts) for texts in blocks.values()) if blocks else None), called_tools


def text_of(raw: Any) -> str:
    """Structured output (a tool's arguments) as the text it was generated as."""
    if isinstance(raw, str):
        return raw
    try:
        return msgspec.json.encode(raw).decode()
    except (TypeError, ValueError, RecursionError):
        return ""
