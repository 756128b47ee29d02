"""What was said of requests' properties after the fact."""
# ruff: noqa: S608 - what goes into SQL here is names of bound values.

from uuid import UUID

from control.filters import Filters
from control.scope import PROJECT, Query
from control.store import Store


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
