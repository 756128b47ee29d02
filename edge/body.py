"""The few things the edge wants to know of a JSON request body. The body itself is never changed."""

import msgspec

# `Raw` is checked for its form and not built: a body of millions of odd values must cost neither time nor memory.
_NULL = msgspec.Raw(b"null")


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: msgspec.Raw = _NULL


class _OddBody(msgspec.Struct):
    """A body whose fields have types they should not have."""

    model: msgspec.Raw = _NULL
    stream: msgspec.Raw = _NULL
    user: msgspec.Raw = _NULL
    safety_identifier: msgspec.Raw = _NULL
    metadata: msgspec.Raw = _NULL


class _Metadata(msgspec.Struct):
    user_id: msgspec.Raw = _NULL


class BodyFacts(msgspec.Struct):
    model: str | None = None
    stream: bool = False
    user_id: str | None = None


_body = msgspec.json.Decoder(_Body)
_odd_body = msgspec.json.Decoder(_OddBody)
_metadata = msgspec.json.Decoder(_Metadata)
_text = msgspec.json.Decoder(str)
_NOTHING = BodyFacts()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_body(body: bytes, name_length: int) -> BodyFacts:
    """What a body says; nothing where it is not JSON or not an object, which is the provider's to judge.

    Args:
        name_length: characters; a longer model or user is none.
    """
    try:
        known = _body.decode(body)
    except msgspec.ValidationError:
        return _read_odd(body, name_length)
    except _UNREADABLE:
        return _NOTHING
    user = known.user or known.safety_identifier
    if user is None and len(known.metadata) > 4:
        user = _metadata_user(known.metadata)
    return _facts(known.model, known.stream is True, user, name_length)


def _read_odd(body: bytes, name_length: int) -> BodyFacts:
    try:
        known = _odd_body.decode(body)
    except _UNREADABLE:
        return _NOTHING
    user = _string(known.user) or _string(known.safety_identifier) or _metadata_user(known.metadata)
    return _facts(_string(known.model), bytes(known.stream) == b"true", user, name_length)


def _facts(model: str | None, stream: bool, user: str | None, name_length: int) -> BodyFacts:
    if model is not None and len(model) > name_length:
        model = None
    if user is not None and len(user) > name_length:
        user = None
    return BodyFacts(model, stream, user or None)


def _metadata_user(raw: msgspec.Raw) -> str | None:
    try:
        return _string(_metadata.decode(raw).user_id)
    except _UNREADABLE:
        return None


def _string(raw: msgspec.Raw) -> str | None:
    try:
        return _text.decode(raw) or None
    except _UNREADABLE:
        return None
