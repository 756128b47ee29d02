"""Typed decoding that never raises: what fits is taken, what does not fit is left out.

The fast path is msgspec's own decoder. Only when a body breaks its type somewhere (a provider that sends
`"cost": {...}` where others send a number) is it decoded a second time without types and picked over.
"""

import math
import types
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

COUNT_MAX = 10**12
"""A count above this is a mistake of the provider's, not a count."""

Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]

T = TypeVar("T")

ABSENT = msgspec.Raw()
"""Default of fields kept as undecoded JSON."""


def is_given(raw: msgspec.Raw) -> bool:
    """Whether a field kept undecoded was there and not null."""
    return raw is not ABSENT and bytes(memoryview(raw)[:4]) != b"null"


_untyped = msgspec.json.Decoder()


class Tolerant(Generic[T]):
    """Decodes JSON as `kind`; `None` when the bytes are no JSON or nothing of `kind` is in them."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, body: bytes | memoryview | msgspec.Raw) -> T | None:
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError:
            raw = decode_any(body)
            return None if raw is None else self.salvage(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def salvage(self, raw: object) -> T | None:
        try:
            picked: T | None = _salvage(self._kind, raw)
        except RecursionError:
            return None
        return picked


def decode_any(body: bytes | memoryview | msgspec.Raw) -> Any:
    """The JSON value in `body`, `None` when there is none."""
    try:
        return _untyped.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _salvage(kind: Any, raw: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        fits = (_salvage(option, raw) for option in get_args(kind) if option is not type(None))
        return next((value for value in fits if value is not None), None)
    if origin is Annotated:
        return _salvage(get_args(kind)[0], raw)
    if origin is list:
        if not isinstance(raw, list):
            return None
        (inner,) = get_args(kind)
        return [value for value in (_salvage(inner, item) for item in raw) if value is not None]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _salvage_struct(kind, raw)
    if kind is msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(raw))
    return _scalar(kind, raw)


def _salvage_struct(kind: type[msgspec.Struct], raw: Any) -> Any:
    if not isinstance(raw, dict):
        return None
    found = {}
    for field in msgspec.structs.fields(kind):
        if (value := raw.get(field.encode_name)) is not None and (picked := _salvage(field.type, value)) is not None:
            found[field.name] = picked
    return kind(**found)


def _scalar(kind: Any, raw: Any) -> Any:
    if kind is Any:
        return raw
    if kind is str or kind is bool:
        return raw if isinstance(raw, kind) else None
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    if kind is int:
        return _count(raw)
    if kind is float:
        return float(raw) if isinstance(raw, int | float) and 0 <= raw <= COUNT_MAX else None
    if kind is Decimal:
        return money(raw)
    return None


def _count(raw: float | str) -> int | None:
    """Titan sends `3.0`, some gateways send `"3"`; both are 3."""
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        return None
    return int(value) if math.isfinite(value) and value.is_integer() and 0 <= value <= COUNT_MAX else None


def money(raw: Decimal | float | str | None) -> Decimal | None:
    """A finite amount from 0 up, or `None`."""
    if raw is None:
        return None
    try:
        value = raw if isinstance(raw, Decimal) else Decimal(str(raw))
    except InvalidOperation:
        return None
    return value if value.is_finite() and 0 <= value <= COUNT_MAX else None
