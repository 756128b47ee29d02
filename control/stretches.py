"""Which table answers a question, and the stretches that a range is cut into for it.

A rollup answers for whole buckets; what sticks out at the ends of the range is read from the next narrower one, at last
from the requests themselves (raw). Pure.
"""

from typing import Literal

import msgspec

from control.filters import BY_HOUR, PROPERTY, Filters
from control.scope import DAY_MS, HOUR_MS, Range

Source = Literal["raw", "minute", "hour", "totals", "keys", "users", "sessions", "properties", "property_models"]

MINUTE_MS = 60_000
WEEK_MS = 7 * DAY_MS
_BY_KEY = {"key", "model", "provider"}


class Table(msgspec.Struct, frozen=True):
    """Where rows of one width in time are kept."""

    name: str
    column: str
    """Of its time."""
    width_ms: int


_REQUESTS = Table("requests", "created_at", 1)
_TABLES: dict[Source, tuple[Table, ...]] = {
    "raw": (),
    "minute": (Table("requests_by_minute", "minute", MINUTE_MS),),
    "hour": (Table("requests_by_day", "day", DAY_MS), Table("requests_by_hour", "hour", HOUR_MS)),
    "totals": (Table("totals_by_hour", "hour", HOUR_MS),),
    "keys": (Table("keys_by_hour", "hour", HOUR_MS),),
    "users": (Table("users_by_week", "week", WEEK_MS), Table("users_by_day", "day", DAY_MS)),
    "sessions": (Table("sessions_by_day", "day", DAY_MS),),
    "properties": (Table("properties_by_hour", "hour", HOUR_MS),),
    "property_models": (Table("property_models_by_day", "day", DAY_MS),),
}
"""The widest first."""


class Asked(msgspec.Struct, frozen=True):
    """What a metric is asked for."""

    groups: tuple[str, ...]
    """Beside time."""
    bucket_ms: int | None
    filters: Filters
    quantiles: bool | None = None
    """None: where the source has them."""


class Part(msgspec.Struct, frozen=True):
    """A stretch of the range and where it is read."""

    source: Source
    range: Range
    table: Table = _REQUESTS


def choose(asked: Asked, range_: Range) -> Source:
    """The cheapest source that knows every group and filter, keeps the bucket, and covers enough of the range to pay."""
    span = range_.end_ms - range_.start_ms
    bucket = asked.bucket_ms
    fields = asked.filters.fields | set(asked.groups)
    minutes, hours, days = (bucket is None or bucket % width == 0 for width in (MINUTE_MS, HOUR_MS, DAY_MS))
    if fields <= BY_HOUR:
        if span >= DAY_MS and hours:
            return "hour" if fields else "totals"
        return "minute" if span >= 6 * HOUR_MS and minutes else "raw"
    if asked.quantiles:
        return "raw"
    if fields <= _BY_KEY and span > DAY_MS and hours:
        return "keys"
    if fields <= {"user", "user_id"} and span >= 3 * DAY_MS and days:
        return "users"
    properties = {field for field in fields if field.startswith(PROPERTY)}
    if len(properties) == 1 and "" not in next(iter(asked.filters.properties.values()), []):
        if fields == properties and span >= 6 * HOUR_MS and hours:
            return "properties"
        if fields - properties == {"model"} and span >= 3 * DAY_MS and days:
            return "property_models"
    return "raw"


def parts(source: Source, range_: Range, *, now_ms: int, bucket_ms: int | None = None) -> list[Part]:
    """The range in stretches: whole buckets from the source's widest table, the ends from the next narrower, at last raw.

    The bucket that is now is whole when the range reaches up to now.
    """
    tables = [table for table in _TABLES[source] if bucket_ms is None or bucket_ms % table.width_ms == 0]
    return _cut(source, tables, range_, now_ms)


def _cut(source: Source, tables: list[Table], range_: Range, now_ms: int) -> list[Part]:
    if range_.start_ms >= range_.end_ms:
        return []
    if not tables:
        return [Part("raw", range_)]
    table, *narrower = tables
    width = table.width_ms
    start = -(-range_.start_ms // width) * width
    end = range_.end_ms if range_.end_ms < now_ms else range_.end_ms + width - 1
    end = end // width * width
    if start >= end:
        return _cut(source, narrower, range_, now_ms)
    return [
        *_cut(source, narrower, Range(range_.start_ms, start), now_ms),
        Part(source, Range(start, end), table),
        *_cut(source, narrower, Range(end, range_.end_ms), now_ms),
    ]
