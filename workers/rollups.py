"""Whether the rollups still count requests whose rows are gone. For a replay, which would count them again."""

from collections.abc import Iterable
from typing import NamedTuple

from ingest.clickhouse import connect, store_errors
from schemas.settings import ClickHouseSettings
from workers.store import Identity


class Slice(NamedTuple):
    """A project's hour or day."""

    project_id: str
    first_ms: int
    """Milliseconds since 1970."""
    width_ms: int


class _Unit(NamedTuple):
    width_ms: int
    start: str
    """ClickHouse's function for the beginning of one."""
    rollups: tuple[tuple[str, str], ...]
    """Those that can be told apart by it, with their time's column."""


_UNITS = (
    _Unit(
        3_600_000,
        "toStartOfHour",
        (("requests_by_minute", "minute"), ("requests_by_hour", "hour"), ("totals_by_hour", "hour")),
    ),
    _Unit(86_400_000, "toStartOfDay", (("requests_by_day", "day"),)),
)
_COUNTED = """
SELECT project_id, toInt64(toUnixTimestamp({start}({column}))) * 1000 AS slice, sum(requests) FROM {table}
WHERE project_id IN %(projects)s AND {column} >= toDateTime(%(first)s) AND {column} < toDateTime(%(end)s)
GROUP BY project_id, slice
"""
_ROWS = """
SELECT project_id, toInt64(toUnixTimestamp({start}(created_at))) * 1000 AS slice, count() FROM requests
WHERE project_id IN %(projects)s AND created_at >= toDateTime64(%(first)s, 3) AND created_at < toDateTime64(%(end)s, 3)
GROUP BY project_id, slice
"""


def slices_of(identities: Iterable[Identity]) -> set[Slice]:
    """The hours and days that these requests are counted in."""
    return {
        Slice(one.project_id, one.created_ms - one.created_ms % unit.width_ms, unit.width_ms)
        for one in identities
        for unit in _UNITS
    }


class Rollups:
    """Asks over one connection, opened at the first question."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._client = connect(settings)

    def ahead(self, slices: set[Slice]) -> dict[Slice, int]:
        """Of these, where a rollup counts more requests than there are rows, and by how many.

        Raises:
            StoreUnavailable, StoreRefused: nothing is known.
        """
        found: dict[Slice, int] = {}
        for unit in _UNITS:
            if asked := {one for one in slices if one.width_ms == unit.width_ms}:
                found |= self._ahead(unit, asked)
        return found

    def _ahead(self, unit: _Unit, slices: set[Slice]) -> dict[Slice, int]:
        asked = {
            "projects": tuple({one.project_id for one in slices}),
            "first": min(one.first_ms for one in slices) // 1000,
            "end": (max(one.first_ms for one in slices) + unit.width_ms) // 1000,
        }
        counted: dict[Slice, int] = {}
        with store_errors():
            # The rollups first: what arrives in between makes rows run ahead of them, not the other way round.
            for table, column in unit.rollups:
                sql = _COUNTED.format(start=unit.start, table=table, column=column)
                for project, first_ms, count in self._client.execute(sql, asked):
                    one = Slice(project, first_ms, unit.width_ms)
                    counted[one] = max(count, counted.get(one, 0))
            rows = {
                Slice(project, first_ms, unit.width_ms): count
                for project, first_ms, count in self._client.execute(_ROWS.format(start=unit.start), asked)
            }
        return {one: more for one in slices if (more := counted.get(one, 0) - rows.get(one, 0)) > 0}

    def close(self) -> None:
        self._client.disconnect()
