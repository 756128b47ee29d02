"""Users and sessions with what they used, ranked."""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

from typing import Any, Literal

from control.filters import Filters
from control.measures import RAW_SUMS, SUMS, sums_shape
from control.ranking import Rank, rank_hashes
from control.rows import as_text
from control.scope import DAY_MS, PROJECT, Query, Range, iso
from control.store import Store
from control.stretches import Part, Source, parts

Kind = Literal["users", "sessions"]


async def list_people(
    store: Store,
    query: Query,
    kind: Kind,
    *,
    rank: Rank,
    limit: int,
    offset: int,
    now_ms: int,
    filters: Filters,
    name: str | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """One page, most of `rank` first, and whether there are more.

    Args:
        filters: of users (`user_id`) alone.
        name: of sessions: those of this name.
    """
    where, rolled_where = _conditions(query, kind, filters, name)
    # A session's name and user are no keys of its rollup: which of several it holds is for merges to say.
    source: Source = "raw" if kind == "sessions" and where else kind
    stretches = _stretches(source, query.range, now_ms=now_ms)
    hashes = await _first(
        store, query, kind, stretches, source, rank=rank, limit=limit + 1, offset=offset, now_ms=now_ms,
        where=where, rolled_where=rolled_where,
    )  # fmt: skip
    page = hashes[:limit]
    if not page:
        return [], False
    rows = await _details(store, query, kind, stretches, page, where, rolled_where)
    order = {hash_: i for i, hash_ in enumerate(page)}
    rows.sort(key=lambda row: order[row[0]])
    return [_shape(kind, row) for row in rows], len(hashes) > limit


def _stretches(source: Source, range_: Range, *, now_ms: int) -> list[Part]:
    return parts("raw" if range_.end_ms - range_.start_ms < 3 * DAY_MS else source, range_, now_ms=now_ms)


def _conditions(query: Query, kind: Kind, filters: Filters, name: str | None) -> tuple[str, str]:
    """Over the requests, and over the rollups of users."""
    where = rolled = ""
    if user_ids := filters.exact.get("user_id"):
        bound = query.bind("Array(String)", user_ids)
        where += f" AND user_id IN {bound}"
        if kind == "users":
            rolled += f"{where} AND user_hash IN (SELECT cityHash64(arrayJoin({bound})))"
    if name is not None:
        where += f" AND session_name = {query.bind('String', name)}"
    return where, rolled


async def _first(
    store: Store,
    query: Query,
    kind: Kind,
    stretches: list[Part],
    source: Source,
    *,
    rank: Rank,
    limit: int,
    offset: int,
    now_ms: int,
    where: str,
    rolled_where: str,
) -> list[int]:
    async def ranked(found: list[Part]) -> list[int]:
        return await rank_hashes(
            store, query, kind, found, Filters(), rank=rank, limit=limit, offset=offset, where=where,
            rolled_where=rolled_where,
        )  # fmt: skip

    if rank == "last_seen" and query.range.end_ms - query.range.start_ms > 8 * DAY_MS:
        # Who was seen last was seen in the last days: nobody outside them comes before somebody inside.
        # From midnight on, so that whole days of the rollup answer it.
        newest = Range((query.range.end_ms - 2 * DAY_MS) // DAY_MS * DAY_MS, query.range.end_ms)
        hashes = await ranked(parts(source, newest, now_ms=now_ms))
        if len(hashes) >= limit:
            return hashes
    return await ranked(stretches)


async def _details(
    store: Store, query: Query, kind: Kind, stretches: list[Part], hashes: list[int], where: str, rolled_where: str
) -> list[tuple[Any, ...]]:
    one = kind.removesuffix("s")
    bound = query.bind("Array(UInt64)", hashes)
    selects = []
    for part in stretches:
        raw = part.source == "raw"
        sums = (
            list(RAW_SUMS) if raw else [f"sum({name}) AS n_{name}" for name in SUMS] + ["sum(cost_usd) AS n_cost_usd"]
        )
        seen = (
            "min(created_at) AS n_first, max(created_at) AS n_last"
            if raw
            else "min(first_seen) AS n_first, max(last_seen) AS n_last"
        )
        extra = ""
        if kind == "sessions":
            extra = (
                ", max(toString(requests.session_name)) AS n_name, max(requests.user_id) AS n_user"
                if raw
                else (", max(sessions_by_day.session_name) AS n_name, max(sessions_by_day.user_id) AS n_user")
            )
        hash_ = f"cityHash64({one}_id)" if raw else f"{one}_hash"
        within = (
            query.between("created_at", part.range) if raw else query.between_buckets(part.table.column, part.range)
        )
        also = " AND session_id != ''" if raw and kind == "sessions" else ""
        selects.append(
            f"SELECT {hash_} AS h, {one}_id AS who, {', '.join(sums)}, {seen}{extra} "
            f"FROM {part.table.name} "
            f"WHERE {PROJECT} AND {within} AND {hash_} IN {bound}{also}{where if raw else rolled_where} GROUP BY h, who"
        )
    extra = ", max(n_name), max(n_user)" if kind == "sessions" else ""
    return await store.rows(
        query,
        f"SELECT h, who, {', '.join(f'sum(n_{name})' for name in SUMS)}, sum(n_cost_usd), "
        f"toUnixTimestamp64Milli(min(n_first)), toUnixTimestamp64Milli(max(n_last)){extra} "
        f"FROM ({' UNION ALL '.join(selects)}) GROUP BY h, who",
        name=kind,
    )


def _shape(kind: Kind, row: tuple[Any, ...]) -> dict[str, Any]:
    _, who, *rest = row
    sums = dict(zip(SUMS, rest, strict=False))
    cost, first_ms, last_ms, *extra = rest[len(SUMS) :]
    shape: dict[str, Any] = {}
    if kind == "users":
        shape["user_id"] = as_text(who) or None
    else:
        shape |= {"session_id": who, "name": extra[0] or None, "user_id": extra[1] or None}
    return {**shape, **sums_shape(sums, cost), "first_seen": iso(first_ms), "last_seen": iso(last_ms)}
