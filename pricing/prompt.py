"""Reading a request's whole prompt, only when its tokens must be counted."""

from collections.abc import Iterator
from typing import Any, TypeGuard

import msgspec

from pricing import torn
from pricing.reading import text_of
from pricing.tolerant import decode_any

_DEPTH_MAX = 32


class Turn(msgspec.Struct, frozen=True):
    """A message's texts, each counted for itself."""

    role: str | None
    name: str | None
    texts: tuple[str, ...]


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in a request that becomes input tokens."""

    turns: tuple[Turn, ...] = ()
    texts: tuple[str, ...] = ()
    """Prompts and inputs that are no chat."""
    tools: tuple[dict[str, Any], ...] = ()
    token_ids: int = 0
    """Inputs given as tokens already."""
    images: int = 0
    others: int = 0
    """Audio, files, references to content the provider holds: things no text stands for."""
    kept: float = 1.0

    def __bool__(self) -> bool:
        return bool(self.turns or self.texts or self.token_ids or self.images or self.others)


class _Counter:
    """What a walk through content has met that is not text."""

    __slots__ = ("images", "others", "token_ids")

    def __init__(self) -> None:
        self.images = 0
        self.others = 0
        self.token_ids = 0


_SYSTEM = ("system", "systemInstruction", "system_instruction", "instructions", "preamble")
_TURNS = ("messages", "contents", "chat_history", "input")
_TEXTS = ("prompt", "input", "inputs", "inputText", "texts", "query", "documents", "content", "message", "suffix")
_NESTED = ("requests", "instances")
_REFERENCES = ("previous_response_id", "cachedContent", "conversation", "context_management", "image", "file")
"""Fields by which something becomes input, or is taken from it, that the request does not show."""


def read_prompt(api: str, body: bytes, *, tail: bytes = b"", size: int | None = None) -> Prompt:
    """The prompt in a request's body, read as widely as APIs differ; an empty `Prompt` when there is none."""
    if tail and size == len(body) + len(tail):
        body, tail = body + tail, b""
    raw = decode_any(body) if not tail else None
    if not isinstance(raw, dict):
        kept = min(1.0, (len(body) + len(tail)) / size) if size else 1.0
        return Prompt(texts=tuple(torn.texts(body, tail)), kept=kept)
    seen = _Counter()
    turns: list[Turn] = []
    texts: list[str] = []
    tools: list[dict[str, Any]] = []
    for part in (raw, *_nested(raw)):
        for name in _SYSTEM:
            if part.get(name):
                turns.append(Turn("system", None, tuple(_texts(part[name], seen))))
        for name in _TURNS:
            if _are_dicts(items := part.get(name)):
                turns.extend(_turn(item, seen) for item in items if isinstance(item, dict))
        for name in _TEXTS:
            value = part.get(name)
            if value is None or (name == "input" and _are_dicts(value)):
                continue
            if isinstance(value, dict):  # A prompt kept at the provider.
                seen.others += 1
            if name == "input" and api == "openai.responses" and isinstance(value, str):
                turns.append(Turn("user", None, (value,)))
                continue
            texts.extend(_texts(value, seen))
        for name in ("tools", "functions"):
            if isinstance(items := part.get(name), list):
                tools.extend(item for item in items if isinstance(item, dict))
        if isinstance(config := part.get("toolConfig"), dict) and isinstance(items := config.get("tools"), list):
            tools.extend(item for item in items if isinstance(item, dict))
        seen.others += sum(bool(part.get(name)) for name in _REFERENCES)
    return Prompt(
        turns=tuple(turns),
        texts=tuple(texts),
        tools=tuple(tools),
        token_ids=seen.token_ids,
        images=seen.images,
        others=seen.others,
    )


def _are_dicts(raw: Any) -> TypeGuard[list[Any]]:
    return isinstance(raw, list) and bool(raw) and isinstance(raw[0], dict)


def _nested(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in _NESTED:
        if isinstance(items := raw.get(name), list):
            yield from (item for item in items if isinstance(item, dict))


def _turn(item: dict[str, Any], seen: _Counter) -> Turn:
    role, name = item.get("role"), item.get("name")
    if item.get("type") not in (None, "message"):
        seen.others += 1  # The Responses API's items: calls, results, reasoning that only the provider can read.
    return Turn(
        role if isinstance(role, str) else None,
        name if isinstance(name, str) and role is not None else None,
        tuple(_texts(item, seen)),
    )


_PART_TEXTS = ("text", "content", "parts", "thinking", "reasoning_content", "refusal", "message", "summary")
_PART_CALLS = ("toolUse", "toolResult", "functionCall", "functionResponse", "function_call", "function", "output")
_PART_VALUES = ("arguments", "input", "args", "response", "json", "result")
_IMAGE_TYPES = ("image_url", "image", "input_image")
_OTHER_TYPES = ("input_audio", "audio", "file", "input_file", "document", "video", "video_url")


def _texts(raw: Any, seen: _Counter, depth: int = 0) -> Iterator[str]:
    """Texts in content of any API, tool calls and their results included; images and the like are counted."""
    if isinstance(raw, str):
        yield raw
    elif depth > _DEPTH_MAX:
        return
    elif isinstance(raw, list):
        for item in raw:
            if isinstance(item, int) and not isinstance(item, bool):
                seen.token_ids += 1
            else:
                yield from _texts(item, seen, depth + 1)
    elif isinstance(raw, dict):
        yield from _part_texts(raw, seen, depth)


def _part_texts(raw: dict[str, Any], seen: _Counter, depth: int) -> Iterator[str]:
    kind = raw.get("type")
    if kind in _IMAGE_TYPES or "image" in raw or "image_url" in raw or isinstance(raw.get("images"), list):
        images = raw.get("images")
        seen.images += len(images) if isinstance(images, list) and images else 1
        if kind in _IMAGE_TYPES:
            return
    elif kind in _OTHER_TYPES or "document" in raw or "video" in raw:
        seen.others += 1
    for name in ("inlineData", "inline_data", "fileData", "file_data"):
        if isinstance(blob := raw.get(name), dict):
            mime = blob.get("mimeType") or blob.get("mime_type") or ""
            if isinstance(mime, str) and mime.startswith("image/"):
                seen.images += 1
            else:
                seen.others += 1
    for name in _PART_TEXTS:
        if raw.get(name) is not None:
            yield from _texts(raw[name], seen, depth + 1)
    for name in _PART_CALLS:
        if isinstance(call := raw.get(name), dict):
            if isinstance(call.get("name"), str):
                yield call["name"]
            yield from _texts(call, seen, depth + 1)
        elif call is not None:
            yield from _texts(call, seen, depth + 1)
    for name in _PART_VALUES:
        if raw.get(name) is not None:
            yield text_of(raw[name])
    for call in raw["tool_calls"] if isinstance(raw.get("tool_calls"), list) else ():
        if isinstance(call, dict) and isinstance(function := call.get("function"), dict):
            yield f"{function.get('name', '')}"
            yield text_of(function.get("arguments", ""))
