"""Fields of a JSON document that was cut: a long body kept as head and tail, or a call that ended in the middle.

Each wanted field is looked for by name, last place first in the tail, then first place first in the head, and
taken where its value stands whole.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

_scanner = json.JSONDecoder()
_VALUE_CHARS_MAX = 64 * 1024
_PLACES_MAX = 64
"""How many places of one name are tried: a body can be made of nothing else."""


def fields(head: bytes, tail: bytes, names: Iterable[str]) -> dict[str, Any]:
    """Whole values (not null) of the wanted names, wherever they stand in the document."""
    found: dict[str, Any] = {}
    for name in names:
        needle = f'"{name}"'.encode()
        value = _last(tail, needle) if tail else None
        if value is None:
            value = _first(head, needle)
        if value is None and not tail:
            value = _last(head, needle)
        if value is not None:
            found[name] = value
    return found


def _last(body: bytes, needle: bytes) -> Any:
    place = len(body)
    for _ in range(_PLACES_MAX):
        place = body.rfind(needle, 0, place)
        if place < 0:
            return None
        if (value := _value_after(body, place + len(needle))) is not None:
            return value
    return None


def _first(body: bytes, needle: bytes) -> Any:
    place = -1
    for _ in range(_PLACES_MAX):
        place = body.find(needle, place + 1)
        if place < 0:
            return None
        if (value := _value_after(body, place + len(needle))) is not None:
            return value
    return None


def _value_after(body: bytes, place: int) -> Any:
    text = body[place : place + _VALUE_CHARS_MAX].decode("utf-8", "replace").lstrip()
    if not text.startswith(":"):
        return None
    text = text[1:].lstrip()
    try:
        value, end = _scanner.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    # A number that reaches the end may go on beyond the cut.
    return None if end == len(text) and not isinstance(value, dict | list | str) else value


_TEXTS = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|thinking|arguments|generated_text|completion|response|generation)"'
    rb'\s*:\s*"((?:[^"\\]++|\\.)*+)'
)


def texts(head: bytes, tail: bytes) -> list[str]:
    """Texts of a cut answer, the piece the cut runs through included."""
    return [_unescaped(match[1]) for body in (head, tail) for match in _TEXTS.finditer(body) if match[1]]


def _unescaped(raw: bytes) -> str:
    try:
        return str(json.loads(b'"' + raw + b'"'))
    except ValueError:
        return raw.decode("utf-8", "replace")
