"""Numbers over time and by group, from the rollup that knows the question, else from the requests themselves (raw).

The range's stretches (`control/stretches.py`) are read and merged in one query, so every source gives the same numbers.
Quantiles are t-digests, which only the rollups by minute, hour and day, and the hours' totals, have.
"""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

import re
from typing import Any

import msgspec

from control.errors import BadRequest
from control.filters import BY_HOUR, PROPERTY, Filters, conditions, rolled_conditions
from control.ranking import Rank, rank_hashes, user_condition
from control.rows import money
from control.scope import DAY_MS, HOUR_MS, PROJECT, Query, Range, iso
from control.store import Row, Store
from control.stretches import MINUTE_MS, Asked, Part, Source, choose, parts
from control.updates import updated_properties

GROUPS_MAX = 3
BUCKETS_MAX = 5000
ROWS_MAX = 50_000
QUANTILES = ("p50", "p90", "p95", "p99")
_LEVELS = "0.5, 0.9, 0.95, 0.99"

# What may be grouped by, and the column it is in `requests`.
_RAW = {
    "model": "toString(model)",
    "requested_model": "toString(requested_model)",
    "provider": "toString(provider)",
    "status": "ifNull(status, 0)",
    "outcome": "toString(outcome)",
    "user": "user_id",
    "key": "toString(key_name)",
    "name": "toString(name)",
    "api": "toString(api)",
    "cache": "toString(cache_status)",
    "error_code": "toString(error_code)",
}
_ROLLED = {name: _RAW[name] for name in ("model", "provider", "outcome", "key", "user")} | {"status": "status"}
GROUPS: tuple[str, ...] = (*_RAW, "time", PROPERTY + "<name>")

SUMS = (
    "requests", "errors", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens",
    "known_usage", "reported_usage", "known_cost",
)  # fmt: skip
_TOKENS = SUMS[2:7]
RAW_SUMS = (
    "count() AS n_requests",
    "countIf(outcome != 'success') AS n_errors",
    *(f"sum(toUInt64({name})) AS n_{name}" for name in _TOKENS),  # NULL where no request knows it
    "countIf(usage_source != 'none') AS n_known_usage",
    "countIf(usage_source = 'reported') AS n_reported_usage",
    "countIf(isNotNull(cost_usd)) AS n_known_cost",
    "sum(toDecimal128(ifNull(cost_usd, 0), 10)) AS n_cost_usd",
)
_WITH_QUANTILES: tuple[Source, ...] = ("raw", "minute", "hour", "totals")
_ROLLED_COST = "sum(cost_usd) AS n_cost_usd"
_RAW_QUANTILES = (
    f"quantilesTDigestState({_LEVELS})(latency_ms) AS n_latency_ms",
    f"quantilesTDigestState({_LEVELS})(first_token_ms) AS n_first_token_ms",
)
_ROLLED_QUANTILES = (
    f"quantilesTDigestMergeState({_LEVELS})(latency_ms) AS n_latency_ms",
    f"quantilesTDigestMergeState({_LEVELS})(first_token_ms) AS n_first_token_ms",
)
_BUCKET = re.compile(r"([1-9][0-9]{0,3})(m|h|d)")


class Answer(msgspec.Struct):
    source: Source
    range: Range
    rows: list[dict[str, Any]]
    truncated: bool


async def measure(store: Store, query: Query, asked: Asked, *, now_ms: int, limit: int, rank: Rank) -> Answer:
    """Rows by time, or, without time, the groups with most of `rank` first."""
    source = choose(asked, query.range)
    updated = await _updated(store, query, asked)
    if updated:
        # A property said after the fact is in no rollup.
        source = "raw"
    stretches = parts(source, query.range, now_ms=now_ms, bucket_ms=asked.bucket_ms)
    source = next((part.source for part in stretches if part.source != "raw"), "raw")
    with_quantiles = source in _WITH_QUANTILES and asked.quantiles is not False
    if source == "raw" and asked.quantiles is None and not asked.filters.fields | set(asked.groups) <= BY_HOUR:
        # Unasked-for quantiles over many users or values would cost more than all the rest.
        with_quantiles = query.range.end_ms - query.range.start_ms <= DAY_MS
    only, cut = "", False
    if source == "users" and asked.groups:
        hashes = await rank_hashes(
            store, query, "users", stretches, asked.filters, rank=rank, limit=limit + 1, offset=0
        )
        if not hashes:
            return Answer(source, query.range, [], truncated=False)
        cut = len(hashes) > limit
        only = query.bind("Array(UInt64)", hashes[:limit])
    rows_max = limit if asked.bucket_ms is None else ROWS_MAX
    sql = _sql(query, asked, stretches, updated, with_quantiles=with_quantiles, only=only)
    order = "t" if asked.bucket_ms is not None else f"{_RANKED[rank]} DESC"
    groups = "".join(f", g{i}" for i in range(len(asked.groups)))
    rows = await store.rows(
        query, f"{sql} ORDER BY {order}{groups} LIMIT {query.bind('UInt32', rows_max + 1)}", name=f"metrics_{source}"
    )
    shaped = [_shape(row, asked, with_quantiles=with_quantiles) for row in rows[:rows_max]]
    return Answer(source, query.range, shaped, truncated=cut or len(rows) > rows_max)


_RANKED = {
    "requests": "sum(n_requests)",
    "cost": "sum(n_cost_usd)",
    "tokens": "ifNull(sum(n_input_tokens), 0) + ifNull(sum(n_output_tokens), 0)",
    "last_seen": "sum(n_requests)",
}


async def _updated(store: Store, query: Query, asked: Asked) -> frozenset[str]:
    names = {group.removeprefix(PROPERTY): [""] for group in asked.groups if group.startswith(PROPERTY)}
    return await updated_properties(store, query, Filters(properties={**names, **asked.filters.properties}))


def _sql(
    query: Query, asked: Asked, stretches: list[Part], updated: frozenset[str], *, with_quantiles: bool, only: str
) -> str:
    groups = [f"g{i}" for i in range(len(asked.groups))]
    keys = ["t", *groups] if asked.bucket_ms is not None else groups
    inner = " UNION ALL ".join(
        _part_sql(query, asked, part, keys, updated, with_quantiles=with_quantiles, only=only) for part in stretches
    )
    columns = [
        "t" if asked.bucket_ms is not None else "toInt64(0) AS t",
        *(f"sum(n_{name})" for name in SUMS),
        "sum(n_cost_usd)",
        *groups,
    ]
    if with_quantiles:
        columns += [f"quantilesTDigestMerge({_LEVELS})(n_{name})" for name in ("latency_ms", "first_token_ms")]
    grouped = f" GROUP BY {', '.join(keys)}" if keys else ""
    return f"SELECT {', '.join(columns)} FROM ({inner}){grouped}"


def _part_sql(
    query: Query,
    asked: Asked,
    part: Part,
    keys: list[str],
    updated: frozenset[str],
    *,
    with_quantiles: bool,
    only: str,
) -> str:
    raw = part.source == "raw"
    column = part.table.column
    columns = []
    if asked.bucket_ms is not None:
        width = query.bind("Int64", asked.bucket_ms // 1000)
        # Int64 on both sides of the union, whatever DateTime the column is.
        columns.append(f"toInt64(intDiv(toInt64(toUnixTimestamp({column})), {width}) * {width}) AS t")
    for i, group in enumerate(asked.groups):
        columns.append(f"{_group_sql(query, group, part.source, updated)} AS g{i}")
    if raw:
        columns += RAW_SUMS
    else:
        columns += [_rolled_sum(name, part.source) for name in SUMS]
        columns.append(_ROLLED_COST)
    if with_quantiles:
        columns += _RAW_QUANTILES if raw else _ROLLED_QUANTILES
    where = (
        f"{PROJECT} AND {query.between(column, part.range)}{conditions(asked.filters, query, updated=updated)}"
        if raw
        else f"{PROJECT} AND {query.between_buckets(column, part.range)}{_rolled_conditions(query, asked, part.source)}"
    )
    if only:
        where += f" AND {'cityHash64(user_id)' if raw else 'user_hash'} IN {only}"
    present = [group for group in asked.groups if group.startswith(PROPERTY) and raw]
    for group in present:
        where += f" AND {_property_present(query, group.removeprefix(PROPERTY), updated)}"
    grouped = f" GROUP BY {', '.join(keys)}" if keys else ""
    return f"SELECT {', '.join(columns)} FROM {part.table.name} WHERE {where}{grouped}"


def _rolled_sum(name: str, source: Source) -> str:
    if name == "errors" and source in ("minute", "hour"):
        return "sumIf(requests, outcome != 'success') AS n_errors"
    return f"sum({name}) AS n_{name}"


def _group_sql(query: Query, group: str, source: Source, updated: frozenset[str]) -> str:
    if not group.startswith(PROPERTY):
        return _RAW[group] if source == "raw" else _ROLLED[group]
    if source != "raw":
        return "value"
    name = group.removeprefix(PROPERTY)
    bound = query.bind("String", name)
    if name not in updated:
        return f"properties[{bound}]"
    said, which = _newest_update(bound)
    return f"if(id IN ({which}), {said}[toString(id)], properties[{bound}])"


def _newest_update(bound: str) -> tuple[str, str]:
    newest = f"FROM property_updates WHERE {PROJECT} AND name = {bound} GROUP BY request_id"
    said = (
        "(SELECT CAST((groupArray(toString(request_id)), groupArray(newest)), 'Map(String, String)') "
        f"FROM (SELECT request_id, argMax(value, created_at) AS newest {newest}))"
    )
    return said, f"SELECT request_id {newest}"


def _property_present(query: Query, name: str, updated: frozenset[str]) -> str:
    """Requests without the property belong to no group of it, as the rollup has it too."""
    bound = query.bind("String", name)
    present = f"mapContains(properties, {bound})"
    return f"({present} OR id IN ({_newest_update(bound)[1]}))" if name in updated else present


def _rolled_conditions(query: Query, asked: Asked, source: Source) -> str:
    filters = asked.filters
    if source == "users":
        return user_condition(query, filters)
    condition = ""
    if source in ("properties", "property_models"):
        (name,) = {
            *filters.properties,
            *(group.removeprefix(PROPERTY) for group in asked.groups if group.startswith(PROPERTY)),
        }
        condition += f" AND name = {query.bind('String', name)}"
        if values := filters.properties.get(name):
            condition += f" AND value IN {query.bind('Array(String)', values)}"
    return condition + rolled_conditions(filters, query)


def _shape(row: Row, asked: Asked, *, with_quantiles: bool) -> dict[str, Any]:
    time, *rest = row
    sums = dict(zip(SUMS, rest, strict=False))
    cost, *rest = rest[len(SUMS) :]
    shape: dict[str, Any] = {}
    if asked.bucket_ms is not None:
        shape["time"] = iso(time * 1000)
    for group, value in zip(asked.groups, rest, strict=False):
        shape[group] = (value or None) if group != "cache" else value
    rest = rest[len(asked.groups) :]
    shape |= sums_shape(sums, cost)
    shape["latency_ms"] = _quantiles(rest[0]) if with_quantiles else None
    shape["first_token_ms"] = _quantiles(rest[1]) if with_quantiles else None
    return shape


def sums_shape(sums: dict[str, Any], cost: Any) -> dict[str, Any]:
    """Sums are of what is known, null where nothing is; how many requests told nothing is said beside them."""
    return {
        "requests": sums["requests"],
        "errors": sums["errors"],
        "tokens": {
            **{name: sums[name] for name in _TOKENS},
            "known_requests": sums["known_usage"],
            "reported_requests": sums["reported_usage"],
            "unknown_requests": sums["requests"] - sums["known_usage"],
        },
        "cost": {
            "usd": money(cost) if sums["known_cost"] else None,
            "known_requests": sums["known_cost"],
            "unknown_requests": sums["requests"] - sums["known_cost"],
        },
    }


def _quantiles(values: Any) -> dict[str, float] | None:
    # A digest of nothing gives NaN, which is not a number a client could read.
    if not values or values[0] is None or values[0] != values[0]:
        return None
    return {name: round(float(value), 1) for name, value in zip(QUANTILES, values, strict=True)}


def read_bucket(text: str, range_: Range) -> int:
    """`5m`, `1h`, `7d`, or `auto`, as milliseconds.

    Raises:
        BadRequest: no such width, or too many of them in the range.
    """
    span = range_.end_ms - range_.start_ms
    if text == "auto":
        choices = (MINUTE_MS, 5 * MINUTE_MS, 15 * MINUTE_MS, HOUR_MS, 6 * HOUR_MS, DAY_MS, 7 * DAY_MS)
        return next((width for width in choices if span / width <= 120), 30 * DAY_MS)
    found = _BUCKET.fullmatch(text)
    if found is None:
        raise BadRequest("bucket", text, "must be auto or a whole number and a unit: 5m, 1h, 7d")
    width = int(found[1]) * {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}[found[2]]
    if span / width > BUCKETS_MAX:
        raise BadRequest("bucket", text, f"gives more than {BUCKETS_MAX} buckets in this range; take a wider one")
    return width


def read_groups(text: str) -> tuple[str, ...]:
    """
    Raises:
        BadRequest: an unknown group, one twice, or too many.
    """
    groups = [group.strip() for group in text.split(",") if group.strip()]
    for i, group in enumerate(groups):
        if group.startswith(PROPERTY) and len(group) > len(PROPERTY):
            groups[i] = group = PROPERTY + group.removeprefix(PROPERTY).lower()
        elif group not in _RAW and group != "time":
            raise BadRequest("group_by", group, f"must be among {', '.join(GROUPS)}")
        if group in groups[:i]:
            raise BadRequest("group_by", group, "is named twice")
    if len(groups) > GROUPS_MAX:
        raise BadRequest("group_by", text, f"at most {GROUPS_MAX} groups")
    return tuple(groups)
