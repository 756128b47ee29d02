"""Who comes first: users or sessions by what they used, over all stretches of a range together."""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

from typing import Literal, get_args

from control.filters import Filters, conditions
from control.scope import PROJECT, Query
from control.store import Store
from control.stretches import Part

Rank = Literal["requests", "cost", "tokens", "last_seen"]
RANKS: tuple[str, ...] = get_args(Rank)

_RAW = {
    "requests": "toInt64(1)",
    "cost": "toDecimal128(ifNull(cost_usd, 0), 10)",
    "tokens": "toInt64(ifNull(toUInt64(input_tokens), 0) + ifNull(toUInt64(output_tokens), 0))",
    "last_seen": "toUnixTimestamp64Milli(created_at)",
}
_ROLLED = {
    "requests": "toInt64(requests)",
    "cost": "cost_usd",
    "tokens": "toInt64(ifNull(input_tokens, 0) + ifNull(output_tokens, 0))",
    "last_seen": "toUnixTimestamp64Milli(last_seen)",
}


async def rank_hashes(
    store: Store,
    query: Query,
    of: Literal["users", "sessions"],
    stretches: list[Part],
    filters: Filters,
    *,
    rank: Rank,
    limit: int,
    offset: int,
    where: str = "",
    rolled_where: str = "",
) -> list[int]:
    """Who comes first, by hash: a third of the work of ranking by name."""
    kind = of.removesuffix("s")
    selects = []
    for part in stretches:
        if part.source == "raw":
            also = f" AND {kind}_id != ''" if of == "sessions" else ""
            selects.append(
                f"SELECT cityHash64({kind}_id) AS h, {_RAW[rank]} AS r FROM requests "
                f"WHERE {PROJECT} AND {query.between('created_at', part.range)}"
                f"{conditions(filters, query)}{where}{also}"
            )
        else:
            users = user_condition(query, filters) if of == "users" else ""
            selects.append(
                f"SELECT {kind}_hash AS h, {_ROLLED[rank]} AS r FROM {part.table.name} WHERE {PROJECT} "
                f"AND {query.between_buckets(part.table.column, part.range)}{users}{rolled_where}"
            )
    # Grouped once, over all stretches: each grouped by itself first would be grouped twice.
    total = "max(r)" if rank == "last_seen" else "sum(r)"
    bounds = f"LIMIT {query.bind('UInt32', limit)} OFFSET {query.bind('UInt32', offset)}"
    sql = f"SELECT h FROM ({' UNION ALL '.join(selects)}) GROUP BY h ORDER BY {total} DESC, h {bounds}"
    rows = await store.rows(query, sql, name=f"rank_{of}")
    return [row[0] for row in rows]


def user_condition(query: Query, filters: Filters) -> str:
    """The filter's users, of rows of a users' rollup."""
    names = filters.exact.get("user_id")
    if not names:
        return ""
    bound = query.bind("Array(String)", names)
    # As a subquery: a lambda here keeps ClickHouse from using the order of the table.
    return f" AND user_hash IN (SELECT cityHash64(arrayJoin({bound}))) AND user_id IN {bound}"
