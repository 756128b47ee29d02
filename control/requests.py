"""Lists of requests, page by page, and one request whole."""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

import asyncio
import base64
import binascii
import hashlib
from decimal import Decimal
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

import msgspec

from control.errors import BadRequest, NotFound
from control.filters import TOTAL_TOKENS, Filters, conditions
from control.moved import Moved, MovedBodies
from control.rows import NOTHING_MOVED, SELECT, body_shape, milliseconds, request_shape
from control.scope import DAY_MS, PROJECT, Query, Range, iso
from control.store import Row, Store
from schemas.ids import time_of

SortField = Literal["time", "cost", "latency", "tokens"]
Order = Literal["desc", "asc"]
SORT_FIELDS: tuple[str, ...] = get_args(SortField)


class _Sorted(NamedTuple):
    column: str
    kind: str
    indexed: str
    """The same as its minmax index has it, without the unknown."""


_SORTED = {
    "cost": _Sorted("cost_usd", "Decimal(18, 10)", "assumeNotNull(cost_usd)"),
    "latency": _Sorted("latency_ms", "Float64", "latency_ms"),
    "tokens": _Sorted(TOTAL_TOKENS, "UInt64", f"assumeNotNull({TOTAL_TOKENS})"),
}
_HOUR_MS = 3_600_000
# Newest first, a page comes nearly always from the first hours. Read window by window: over all parts at once, each of
# them would first be read down to its own first match (1,600 ms against 60 for a rare property, 30 million rows).
_WINDOWS_MS = (_HOUR_MS, 12 * _HOUR_MS, 4 * DAY_MS)
_ID_SLACK_MS = _HOUR_MS


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


class Page(msgspec.Struct):
    requests: list[dict[str, Any]]
    next_cursor: str | None
    range: Range


async def list_requests(
    store: Store,
    query: Query,
    filters: Filters,
    *,
    sort: SortField,
    order: Order,
    limit: int,
    cursor: Cursor | None,
) -> Page:
    """One page. Rows that arrive meanwhile neither repeat nor displace what later pages hold."""
    if cursor is not None:
        query = query.narrowed(Range(cursor.start_ms, cursor.end_ms))
    where = conditions(filters, query, updated=await updated_properties(store, query, filters))
    rows = (
        await _by_time(store, query, where, order, limit + 1, cursor)
        if sort == "time"
        else await _by_value(store, query, where, sort, order, limit + 1, cursor)
    )
    page, more = rows[:limit], len(rows) > limit
    updates = await property_updates(store, query, [row[0] for row in page])
    next_cursor = None
    if more:
        last = page[-1]
        next_cursor = write_cursor(
            Cursor(
                sort,
                order,
                _value_of(sort, last),
                last[1],
                str(last[0]),
                query.range.start_ms,
                query.range.end_ms,
                fingerprint(filters),
            )
        )
    return Page([request_shape(row, updates.get(row[0])) for row in page], next_cursor, query.range)


async def _by_time(
    store: Store, query: Query, where: str, order: Order, wanted: int, cursor: Cursor | None
) -> list[Row]:
    range_, after = query.range, ""
    if cursor is not None:
        created, id_ = query.bind("Int64", cursor.created_ms), query.bind("UUID", cursor.id)
        sign = "<" if order == "desc" else ">"
        moment = f"fromUnixTimestamp64Milli({created}, 'UTC')"
        after = f" AND (created_at {sign} {moment} OR (created_at = {moment} AND id {sign} {id_}))"
        range_ = (
            Range(range_.start_ms, min(range_.end_ms, cursor.created_ms + 1))
            if order == "desc"
            else Range(max(range_.start_ms, cursor.created_ms), range_.end_ms)
        )
    rows: list[Row] = []
    for window in windows(range_, newest_first=order == "desc"):
        asked = query.narrowed(window)
        limit = asked.bind("UInt32", wanted - len(rows))
        rows += await store.rows(
            asked,
            f"SELECT {SELECT} FROM requests WHERE {asked.within()}{where}{after} "
            f"ORDER BY created_at {order}, id {order} LIMIT {limit}",
            name="requests",
        )
        if len(rows) >= wanted:
            break
    return rows


def windows(range_: Range, *, newest_first: bool) -> list[Range]:
    """The range in pieces, each several times the one before."""
    if not newest_first:
        pieces = []
        start = range_.start_ms
        for width in _WINDOWS_MS:
            if start + 2 * width >= range_.end_ms:
                break
            pieces.append(Range(start, start + width))
            start += width
        return [*pieces, Range(start, range_.end_ms)]
    pieces = []
    end = range_.end_ms
    for width in _WINDOWS_MS:
        if end - 2 * width <= range_.start_ms:
            break
        pieces.append(Range(end - width, end))
        end -= width
    return [*pieces, Range(range_.start_ms, end)]


async def _by_value(
    store: Store, query: Query, where: str, sort: SortField, order: Order, wanted: int, cursor: Cursor | None
) -> list[Row]:
    """Most or least first. What the last of a page's worth of new requests has, the page's own last has at least: that
    bound, made tighter window by window, leaves of the whole range the few granules whose extremes reach it."""
    column, kind, indexed = _SORTED[sort]
    after = ""
    sign = "<" if order == "desc" else ">"
    if cursor is not None:
        created, id_ = query.bind("Int64", cursor.created_ms), query.bind("UUID", cursor.id)
        moment = f"fromUnixTimestamp64Milli({created}, 'UTC')"
        later = f"(created_at {sign} {moment} OR (created_at = {moment} AND id {sign} {id_}))"
        if cursor.value is None:
            after = f" AND isNull({column}) AND {later}"
        else:
            value = query.bind(kind, cursor.value)
            after = f" AND (({column} {sign} {value}) OR isNull({column}) OR ({column} = {value} AND {later}))"
    limit = query.bind("UInt32", wanted)
    reached = ""
    if cursor is None or cursor.value is not None:
        for window in windows(query.range, newest_first=True)[:-1]:
            newest = query.narrowed(Range(window.start_ms, query.range.end_ms))
            nth = await _nth_value(store, newest, f"{where}{after}{reached}", sort, order, wanted)
            if nth is not None:
                reached = f" AND {indexed} {'>=' if order == 'desc' else '<='} {query.bind(kind, nth)}"
    return await store.rows(
        query,
        f"SELECT {SELECT} FROM requests WHERE {query.within()}{where}{after}{reached} "
        f"ORDER BY {column} {order} NULLS LAST, created_at {order}, id {order} LIMIT {limit}",
        name="requests_sorted",
    )


async def _nth_value(store: Store, query: Query, where: str, sort: SortField, order: Order, wanted: int) -> str | None:
    """What the last of the first `wanted` rows has; None: there are fewer."""
    column = _SORTED[sort].column
    ((found, value),) = await store.rows(
        query,
        f"SELECT count(), {'min' if order == 'desc' else 'max'}(value) FROM (SELECT assumeNotNull({column}) AS value "
        f"FROM requests WHERE {query.within()}{where} AND isNotNull({column}) "
        f"ORDER BY value {order} LIMIT {query.bind('UInt32', wanted)})",
        name="requests_bound",
    )
    return _text(sort, value) if found == wanted else None


def _value_of(sort: SortField, row: Row) -> str | None:
    if sort == "cost":
        return None if row[30] is None else _text(sort, row[30])
    if sort == "latency":
        return _text(sort, row[33])
    if sort == "tokens":
        return None if row[23] is None or row[24] is None else _text(sort, row[23] + row[24])
    return None


def _text(sort: SortField, value: Decimal | float) -> str:
    if sort == "cost":
        return f"{value:.10f}"
    # A Float32 read as a Python float: all its digits, or a comparison with it is off.
    return repr(value)


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


async def updated_properties(store: Store, query: Query, filters: Filters) -> frozenset[str]:
    """Which of the properties asked for were changed after the fact in this project: mostly none."""
    if not filters.properties:
        return frozenset()
    names = query.bind("Array(String)", list(filters.properties))
    rows = await store.rows(
        query,
        f"SELECT DISTINCT toString(name) FROM property_updates WHERE {PROJECT} AND name IN {names} "
        f"AND created_at >= fromUnixTimestamp64Milli({{start:Int64}}, 'UTC')",
        name="property_updates",
    )
    return frozenset(row[0] for row in rows)


async def property_updates(store: Store, query: Query, ids: list[UUID]) -> dict[UUID, dict[str, str]]:
    """By request: what was said of its properties after the fact, the newest of each."""
    if not ids:
        return {}
    bound = query.bind("Array(UUID)", [str(id_) for id_ in ids])
    rows = await store.rows(
        query,
        f"SELECT request_id, toString(name), argMax(value, created_at) FROM property_updates WHERE {PROJECT} "
        f"AND request_id IN {bound} GROUP BY request_id, name",
        name="property_updates",
    )
    found: dict[UUID, dict[str, str]] = {}
    for id_, name, value in rows:
        found.setdefault(id_, {})[name] = value
    return found


async def find_row(
    store: Store, project_id: str, id_: UUID, *, now_ms: int, kept_days: int, select: str
) -> tuple[Query, Row]:
    """The newest row with this id, and a query scoped to its hour.

    Raises:
        NotFound: this project has none.
    """
    whole = Range(max(0, now_ms - kept_days * DAY_MS), now_ms + DAY_MS)
    ranges = [whole]
    if (made := time_of(id_)) is not None:
        # A UUIDv7 says when it was made. One that a client made with a wrong clock is still found, by the index.
        made_ms = round(made.timestamp() * 1000)
        ranges.insert(0, Range(max(0, made_ms - _ID_SLACK_MS), made_ms + _ID_SLACK_MS))
    for range_ in ranges:
        query = Query(project_id, range_)
        rows = await store.rows(
            query,
            f"SELECT {select} FROM requests WHERE {query.within()} AND id = {query.bind('UUID', id_)} "
            "ORDER BY created_at DESC LIMIT 1",
            name="request",
        )
        if rows:
            return query, rows[0]
    raise NotFound(f"this project has no request {id_}")


async def one_request(
    store: Store, moved: MovedBodies, project_id: str, id_: UUID, *, now_ms: int, kept_days: int
) -> dict[str, Any]:
    """One request with its attempts and bodies, moved ones too (contract §9).

    Raises:
        NotFound: this project has none.
    """
    _, row = await find_row(
        store, project_id, id_, now_ms=now_ms, kept_days=kept_days, select=f"{SELECT}, request_bytes, response_bytes"
    )
    *columns, request_bytes, response_bytes = row
    created_ms = columns[1]
    query = Query(project_id, Range(created_ms, created_ms + 1))
    updates, attempts, bodies = await asyncio.gather(
        property_updates(store, query, [id_]),
        _attempts(store, query, id_),
        read_bodies(store, query, [id_]),
    )
    shape = request_shape(tuple(columns), updates.get(id_))
    shape["attempts"] = attempts
    stored = bodies.get(id_)
    found = await moved.fetch(project_id, references_of(stored))
    shape["request"], shape["response"] = bodies_shape(stored, request_bytes, response_bytes, found)
    return shape


async def _attempts(store: Store, query: Query, id_: UUID) -> list[dict[str, Any]]:
    rows = await store.rows(
        query,
        "SELECT provider, status, toUnixTimestamp64Milli(started_at), latency_ms, reason FROM attempts "
        f"WHERE {query.within()} AND id = {query.bind('UUID', id_)} ORDER BY number",
        name="attempts",
    )
    return [
        {
            "provider": provider,
            "status": status,
            "started_at": iso(started_ms),
            "latency_ms": milliseconds(latency_ms),
            "reason": reason or None,
        }
        for provider, status, started_ms, latency_ms, reason in rows
    ]


async def read_bodies(store: Store, query: Query, ids: list[UUID]) -> dict[UUID, Row]:
    """By request: request, tail, left out, reference, and the same of its response."""
    rows = await store.rows(
        query,
        "SELECT id, request, request_tail, request_left_out, request_reference, response, response_tail, "
        f"response_left_out, response_reference FROM bodies WHERE {query.within()} "
        f"AND id IN {query.bind('Array(UUID)', [str(id_) for id_ in ids])}",
        name="bodies",
    )
    return {row[0]: row[1:] for row in rows}


def references_of(row: Row | None) -> tuple[str, ...]:
    """Where the bodies of a row of `read_bodies` are, as far as they were moved."""
    return () if row is None else tuple(reference for reference in (row[3], row[7]) if reference)


def bodies_shape(
    row: Row | None, request_bytes: int, response_bytes: int, moved: Moved = NOTHING_MOVED
) -> tuple[Any, Any]:
    """
    Args:
        row: of `read_bodies`.
        moved: what was found behind its references.
    """
    if row is None:
        return None, None
    request, request_tail, request_left_out, request_reference, response, response_tail, left_out, reference = row
    return (
        body_shape(
            whole=request, tail=request_tail, size=request_bytes, left_out=request_left_out,
            reference=request_reference, moved=moved,
        ),
        body_shape(
            whole=response, tail=response_tail, size=response_bytes, left_out=left_out, reference=reference,
            moved=moved,
        ),
    )  # fmt: skip
