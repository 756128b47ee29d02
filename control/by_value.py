"""Lists with the dearest, slowest or largest requests first, or last.

What the last of a page has at least, or at most, is found before the page is read: by the highest of each hour, which are
kept, or window by window from the requests themselves. That bound leaves of the whole range the hours that reach it, and the
few granules whose extremes (a minmax index) do.
"""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

from decimal import Decimal
from typing import NamedTuple

from control.cursors import Cursor, Order, SortField
from control.filters import BY_HOUR, TOTAL_TOKENS, Filters, rolled_conditions
from control.rows import SELECT
from control.scope import HOUR_MS, PROJECT, Query, Range, windows
from control.store import Row, Store

_ARRIVING_MS = HOUR_MS
"""A request is there a moment before its hour counts it."""


class _Sorted(NamedTuple):
    column: str
    kind: str
    indexed: str
    """The same as its minmax index has it, without the unknown."""
    highest: str
    """The highest of an hour, in `requests_by_hour`."""


_SORTED = {
    "cost": _Sorted("cost_usd", "Decimal(18, 10)", "assumeNotNull(cost_usd)", "highest_cost_usd"),
    "latency": _Sorted("latency_ms", "Float64", "latency_ms", "highest_latency_ms"),
    "tokens": _Sorted(TOTAL_TOKENS, "UInt64", f"assumeNotNull({TOTAL_TOKENS})", "highest_tokens"),
}


async def by_value(
    store: Store,
    query: Query,
    filters: Filters,
    where: str,
    sort: SortField,
    order: Order,
    wanted: int,
    cursor: Cursor | None,
) -> list[Row]:
    """Most or least first, the unknown last.

    Args:
        where: what `filters` say, over the columns of `requests`.
    """
    column, kind, indexed, _ = _SORTED[sort]
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

    async def page(reached: str) -> list[Row]:
        return await store.rows(
            query,
            f"SELECT {SELECT} FROM requests WHERE {query.within()}{where}{after}{reached} "
            f"ORDER BY {column} {order} NULLS LAST, created_at {order}, id {order} LIMIT {limit}",
            name="requests_sorted",
        )

    if cursor is not None and cursor.value is None:
        return await page("")
    if order == "desc" and filters.fields <= BY_HOUR:
        reached = await _of_hours(store, query, filters, sort, wanted, None if cursor is None else cursor.value)
        if reached:
            rows = await page(reached)
            if len(rows) == wanted:
                return rows
            # Sums are kept longer than requests: those that had these values are gone.
    reached = ""
    for window in windows(query.range, newest_first=True)[:-1]:
        newest = query.narrowed(Range(window.start_ms, query.range.end_ms))
        nth = await _nth_value(store, newest, f"{where}{after}{reached}", sort, order, wanted)
        if nth is not None:
            reached = f" AND {indexed} {'>=' if order == 'desc' else '<='} {query.bind(kind, nth)}"
    return await page(reached)


async def _of_hours(
    store: Store, query: Query, filters: Filters, sort: SortField, wanted: int, below: str | None
) -> str:
    """A bound from the highest of each hour's rows: each is one request's, and no two rows share a request. With it, the
    hours that reach it, beside the ends of the range and what has just arrived. Nothing: there are too few rows.

    Args:
        below: only what is less than this.
    """
    hours = Range(-(-query.range.start_ms // HOUR_MS) * HOUR_MS, query.range.end_ms // HOUR_MS * HOUR_MS - _ARRIVING_MS)
    if hours.start_ms >= hours.end_ms:
        return ""
    _, kind, indexed, column = _SORTED[sort]
    asked = query.narrowed(query.range)
    within = (
        f"FROM requests_by_hour WHERE {PROJECT} AND {asked.between_buckets('hour', hours)}"
        f"{rolled_conditions(filters, asked)} AND isNotNull({column})"
    )
    also = "" if below is None else f" AND {column} < {asked.bind(kind, below)}"
    ((found, value),) = await store.rows(
        asked,
        f"SELECT count(), min(value) FROM (SELECT assumeNotNull({column}) AS value {within}{also} "
        f"ORDER BY value DESC LIMIT {asked.bind('UInt32', wanted)})",
        name="requests_bound",
    )
    if found < wanted:
        return ""
    nth = _text(sort, value)
    reaching = await store.rows(
        asked,
        f"SELECT DISTINCT toUnixTimestamp(hour) {within} AND {column} >= {asked.bind(kind, nth)}",
        name="requests_bound",
    )
    starts = query.bind("Array(UInt32)", [hour for (hour,) in reaching])
    return (
        f" AND {indexed} >= {query.bind(kind, nth)} AND (NOT ({query.between('created_at', hours)}) "
        f"OR toStartOfHour(created_at) IN (SELECT toDateTime(arrayJoin({starts}), 'UTC')))"
    )


async def _nth_value(store: Store, query: Query, where: str, sort: SortField, order: Order, wanted: int) -> str | None:
    """The same of the requests themselves: what the last of the first `wanted` has. None: there are fewer."""
    column = _SORTED[sort].column
    ((found, value),) = await store.rows(
        query,
        f"SELECT count(), {'min' if order == 'desc' else 'max'}(value) FROM (SELECT assumeNotNull({column}) AS value "
        f"FROM requests WHERE {query.within()}{where} AND isNotNull({column}) "
        f"ORDER BY value {order} LIMIT {query.bind('UInt32', wanted)})",
        name="requests_bound",
    )
    return _text(sort, value) if found == wanted else None


def value_of(sort: SortField, row: Row) -> str | None:
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
