"""Lists of requests, page by page, and one request whole."""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

import asyncio
from typing import Any
from uuid import UUID

import msgspec

from control.by_value import by_value, value_of
from control.cursors import Cursor, Order, SortField, fingerprint, write_cursor
from control.errors import NotFound
from control.filters import Filters, conditions
from control.moved import Moved, MovedBodies
from control.rows import NOTHING_MOVED, SELECT, body_shape, milliseconds, request_shape
from control.scope import DAY_MS, HOUR_MS, Query, Range, iso, windows
from control.store import Row, Store
from control.updates import property_updates, updated_properties
from schemas.ids import time_of

_ID_SLACK_MS = HOUR_MS


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
        else await by_value(store, query, filters, where, sort, order, limit + 1, cursor)
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
                value_of(sort, last),
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
    """One request with its attempts and bodies, moved ones too.

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
