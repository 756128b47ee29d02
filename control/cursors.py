"""Where a page of a list ended, as text that its reader sends back for the next one."""

import base64
import binascii
import hashlib
from decimal import Decimal
from typing import Literal, get_args
from uuid import UUID

import msgspec

from control.errors import BadRequest
from control.filters import Filters

SortField = Literal["time", "cost", "latency", "tokens"]
Order = Literal["desc", "asc"]
SORT_FIELDS: tuple[str, ...] = get_args(SortField)


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Where a page ended. It carries the first page's time range, so that all pages are of one list."""

    sort: SortField
    order: Order
    value: str | None
    created_ms: int
    id: str
    start_ms: int
    end_ms: int
    asked: str
    """Fingerprint of the filters: a cursor goes on with the question it came from."""


def fingerprint(filters: Filters) -> str:
    return hashlib.sha256(msgspec.json.encode(filters, order="deterministic")).hexdigest()[:16]


def write_cursor(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).rstrip(b"=").decode()


def read_cursor(text: str, filters: Filters, *, sort: SortField | None, order: Order | None) -> Cursor:
    """
    Raises:
        BadRequest: not a cursor of ours, or of another question.
    """
    expected = "must be the next_cursor of the page before, with the same filters and order"
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.msgpack.decode(packed, type=Cursor)
        UUID(cursor.id)
        if cursor.value is not None:
            number = Decimal(cursor.value)
            in_bounds = number.is_finite() and 0 <= number < (10**8 if cursor.sort == "cost" else 10**19)
            if not in_bounds or (cursor.sort == "tokens" and number != int(number)):
                raise ValueError("not a value of its column")
        times = (cursor.created_ms, cursor.start_ms, cursor.end_ms)
        if not all(0 <= moment <= 4_102_444_800_000 for moment in times) or cursor.start_ms >= cursor.end_ms:
            raise ValueError("not a time")
        if cursor.sort == "latency" and cursor.value is None:
            raise ValueError("a latency is always known")
    except (ValueError, ArithmeticError, binascii.Error, msgspec.DecodeError, msgspec.ValidationError):
        raise BadRequest("cursor", text, expected) from None
    same = cursor.asked == fingerprint(filters) and sort in (None, cursor.sort) and order in (None, cursor.order)
    if not same:
        raise BadRequest("cursor", text, expected)
    return cursor
