"""The few things the edge wants to know of a JSON request body. The body itself is never changed."""

from typing import Any

import msgspec


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")


class BodyFacts(msgspec.Struct):
    model: str | None = None
    stream: bool = False
    user_id: str | None = None


_typed = msgspec.json.Decoder(_Body)
_NOTHING = BodyFacts()


def read_body(body: bytes) -> BodyFacts:
    """What a body says; nothing where it is not JSON or not an object, which is the provider's to judge."""
    try:
        known = _typed.decode(body)
    except msgspec.ValidationError:
        return _read_odd(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING
    user = known.user or known.safety_identifier
    if user is None and len(known.metadata) > 4:
        user = _metadata_user(known.metadata)
    return BodyFacts(known.model, known.stream is True, user)


def _metadata_user(raw: msgspec.Raw) -> str | None:
    try:
        metadata = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return _string(metadata.get("user_id")) if isinstance(metadata, dict) else None


def _read_odd(body: bytes) -> BodyFacts:
    """A body whose fields have types they should not have."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING
    if not isinstance(found, dict):
        return _NOTHING
    metadata = found.get("metadata")
    user = _string(found.get("user")) or _string(found.get("safety_identifier"))
    if user is None and isinstance(metadata, dict):
        user = _string(metadata.get("user_id"))
    return BodyFacts(_string(found.get("model")), found.get("stream") is True, user)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
