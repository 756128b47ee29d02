"""Dead letters as a replay reads them: chosen, page by page, each once."""

from collections.abc import Iterator
from itertools import groupby

import msgspec

from ingest.clickhouse import connect, store_errors
from ingest.log import Record
from schemas.batch import Partition
from schemas.settings import ClickHouseSettings


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters. What is None does not choose."""

    topic: str | None = None
    partition: int | None = None
    first: int | None = None
    """Least offset."""
    last: int | None = None
    """Greatest offset."""
    reason: str | None = None
    died_from_ms: int | None = None
    """Milliseconds since 1970; from this time on."""
    died_until_ms: int | None = None
    """Before this time."""


_CONDITIONS = {
    "topic": "topic = %(topic)s",
    "partition": "partition = %(partition)s",
    "first": "offset >= %(first)s",
    "last": "offset <= %(last)s",
    "reason": "error = %(reason)s",
    "died_from_ms": "died_at >= fromUnixTimestamp64Milli(%(died_from_ms)s)",
    "died_until_ms": "died_at < fromUnixTimestamp64Milli(%(died_until_ms)s)",
}


def count_dead_letters(settings: ClickHouseSettings, selection: Selection) -> int:
    """How many letters a replay would read.

    Raises:
        StoreUnavailable, StoreRefused.
    """
    where, asked = _where(selection)
    client = connect(settings)
    try:
        with store_errors():
            query = f"SELECT uniqExact(topic, partition, offset) FROM dead_letters{where}"  # noqa: S608
            ((count,),) = client.execute(query, asked)
    finally:
        client.disconnect()
    return int(count)


def dead_letters(
    settings: ClickHouseSettings, selection: Selection, *, letters_max: int
) -> Iterator[tuple[Partition, list[Record]]]:
    """At most `letters_max` of one partition at a time, in the order of their places in the log.

    Raises:
        StoreUnavailable, StoreRefused.
    """
    where, asked = _where(selection)
    after = ""
    client = connect(settings)
    try:
        while True:
            with store_errors():
                # Payloads are bytes, so all text comes as bytes.
                found = client.execute(
                    f"SELECT topic, partition, offset, error, payload FROM dead_letters{where}{after} "  # noqa: S608
                    f"ORDER BY topic, partition, offset LIMIT 1 BY topic, partition, offset LIMIT {letters_max}",
                    asked,
                    settings={"strings_as_bytes": True},
                )
            for (topic, partition), letters in groupby(found, key=lambda row: row[:2]):
                yield Partition(topic.decode(), partition), [_record(*letter[2:]) for letter in letters]
            if len(found) < letters_max:
                return
            topic, partition, offset = found[-1][:3]
            asked |= {"after_topic": topic.decode(), "after_partition": partition, "after_offset": offset}
            after = (
                f" {'AND' if where else 'WHERE'} (topic, partition, offset) > "
                "(%(after_topic)s, %(after_partition)s, %(after_offset)s)"
            )
    finally:
        client.disconnect()


def _record(offset: int, reason: bytes, payload: bytes) -> Record:
    # Bytes that once failed their checksum might parse by chance, into something nobody sent.
    return Record(offset, payload, corrupt=reason == b"corrupt")


def _where(selection: Selection) -> tuple[str, dict[str, object]]:
    asked = {name: value for name in _CONDITIONS if (value := getattr(selection, name)) is not None}
    where = " AND ".join(_CONDITIONS[name] for name in asked)
    return (f" WHERE {where}" if where else ""), asked
