"""Whose rows a query sees, and from when to when. The one place where a project gets into SQL."""

import re
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec

from control.errors import BadRequest

PROJECT: Final = "project_id = {project:String}"
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
_MS_MAX: Final = 4_102_444_800_000
"""The year 2100: beyond it ClickHouse's DateTime64 arithmetic is of no use to anybody."""


class Range(msgspec.Struct, frozen=True):
    """Milliseconds since 1970, UTC; the end is not part of it."""

    start_ms: int
    end_ms: int


# Newest first, a page comes nearly always from the first hours. Read window by window: over all parts at once, each of
# them would first be read down to its own first match (1,600 ms against 60 for a rare property, 30 million rows).
_WINDOWS_MS: Final = (HOUR_MS, 12 * HOUR_MS, 4 * DAY_MS)


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


class Query:
    """Values of one query, bound by the server; a project and a time range are always among them."""

    def __init__(self, project_id: str, range_: Range) -> None:
        self.project_id = project_id
        self.range = range_
        self.values: dict[str, object] = {
            "project": text(project_id, "project"),
            "start": range_.start_ms,
            "end": range_.end_ms,
        }

    def within(self, column: str = "created_at") -> str:
        """The scope as a condition on a table that has `project_id` and this DateTime64 column."""
        return f"{PROJECT} AND {self.between(column, self.range)}"

    def between(self, column: str, range_: Range) -> str:
        start = self.bind("Int64", range_.start_ms)
        end = self.bind("Int64", range_.end_ms)
        return f"{column} >= fromUnixTimestamp64Milli({start}, 'UTC') AND {column} < fromUnixTimestamp64Milli({end}, 'UTC')"

    def between_buckets(self, column: str, range_: Range) -> str:
        """The same of a rollup, whose column holds where a bucket of whole seconds begins."""
        start, end = self.bind("Int64", range_.start_ms // 1000), self.bind("Int64", range_.end_ms // 1000)
        return f"{column} >= toDateTime({start}, 'UTC') AND {column} < toDateTime({end}, 'UTC')"

    def bind(self, kind: str, value: object) -> str:
        """Keep a value of this ClickHouse type with the query; gives what stands for it in the SQL."""
        if isinstance(value, str):
            text(value, "value")
        if isinstance(value, UUID):
            value = str(value)
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f"{{{name}:{kind}}}"

    def narrowed(self, range_: Range) -> "Query":
        """The same values, seen through another time range."""
        other = Query(str(self.values["project"]), range_)
        other.values = {**self.values, "start": range_.start_ms, "end": range_.end_ms}
        return other


def text(value: str, field: str) -> str:
    """A string that UTF-8 can hold.

    Raises:
        BadRequest: it holds half of a surrogate pair.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(field, repr(value), "must be valid Unicode") from None
    return value


def read_range(start: str | None, end: str | None, *, now_ms: int, default_days: int) -> Range:
    """The time range of a call: what it names, else the newest `default_days` from the beginning of that day on.

    Raises:
        BadRequest: not a time, or no time between them.
    """
    end_ms = read_time(end, "end") if end is not None else now_ms + 60_000
    if start is not None:
        start_ms = read_time(start, "start")
    else:
        # From midnight on, so that whole days of a rollup answer it.
        start_ms = (min(end_ms, now_ms) - default_days * DAY_MS) // DAY_MS * DAY_MS
    if start_ms >= end_ms:
        raise BadRequest("start", iso(start_ms), f"must be before end ({iso(end_ms)})")
    return Range(start_ms, end_ms)


def read_time(value: str, field: str) -> int:
    """ISO 8601 (UTC where it names no zone) or milliseconds since 1970, as milliseconds.

    Raises:
        BadRequest: neither.
    """
    expected = "must be ISO 8601 like 2026-11-21T05:00:00Z, or milliseconds since 1970"
    if re.fullmatch(r"\d{1,15}", value, re.ASCII):
        milliseconds = int(value)
    else:
        try:
            # A plus sign that nobody escaped arrives as a space.
            moment = datetime.fromisoformat(value.strip().replace(" ", "+") if "T" in value else value.strip())
        except ValueError:
            raise BadRequest(field, value, expected) from None
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        try:
            milliseconds = round(moment.timestamp() * 1000)
        except (OverflowError, ValueError):
            raise BadRequest(field, value, expected) from None
    if not 0 <= milliseconds <= _MS_MAX:
        raise BadRequest(field, value, "must lie between 1970 and 2100")
    return milliseconds


def iso(milliseconds: int) -> str:
    """`2026-11-21T05:00:00.123Z`."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"
