"""What was answered against what is stored: rows by id, rollups, bodies, attempts, the ledger and the spools.

`read_stored` asks, the rest is pure: `problems` names everything that does not add up.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from ingest.spool import dropped_events
from ingest.spool_log import SpoolLog
from ingest.spool_plan import read_plan

Sql = Callable[[str], Sequence[tuple[Any, ...]]]

ROLLUPS = {
    "requests_by_minute": "FROM requests",
    "requests_by_hour": "FROM requests",
    "requests_by_day": "FROM requests",
    "totals_by_hour": "FROM requests",
    "keys_by_hour": "FROM requests",
    "users_by_day": "FROM requests",
    "users_by_week": "FROM requests",
    "sessions_by_day": "FROM requests WHERE session_id != ''",
    "properties_by_hour": "FROM requests ARRAY JOIN properties AS property",
    "property_models_by_day": "FROM requests ARRAY JOIN properties AS property",
}
"""Each rollup, and of which rows its sums must be."""

LATE_S = 2.0
"""A row that comes later than this after its answer was held up by something."""


class Row(NamedTuple):
    """All rows of one id."""

    copies: int
    inserted_s: float
    """When the first came, Unix time."""


class Ledger(NamedTuple):
    """One batch in the ledger."""

    topic: str
    partition: int
    first: int
    last: int
    events: int
    rows: int
    dead: int
    copies: int


class Spool(NamedTuple):
    end: int
    """The next offset after the newest event on disk."""
    committed: int
    """Every event before this offset is confirmed."""
    dropped: int


@dataclass(frozen=True)
class Stored:
    """Everything there is at one moment."""

    rows: Mapping[str, Row]
    sums: Mapping[str, tuple[Sequence[Any], Sequence[Any]]]
    """By rollup: its sums (requests, input tokens, output tokens, cost), and those of the rows behind it."""
    bodies: tuple[int, int]
    """Rows and different ids."""
    attempts: tuple[int, int]
    ledger: Sequence[Ledger]
    ledger_sums: Mapping[tuple[str, int], Sequence[int]]
    """By topic and partition: batches, offsets, events, rows and dead letters that `/v1/pipeline` counts."""
    dead_letters: int
    spools: Mapping[str, Spool]
    """By topic."""


def read_stored(sql: Sql, data: Path) -> Stored:
    ids = sql("SELECT toString(id), count(), toUnixTimestamp64Milli(min(inserted_at)) FROM requests GROUP BY id")
    ledger = sql(
        "SELECT toString(topic), partition, first, any(last), any(events), any(rows), any(dead_lettered), count() "
        "FROM batches GROUP BY topic, partition, first ORDER BY topic, partition, first"
    )
    ledger_sums = sql(
        "SELECT toString(topic), partition, sum(batches), sum(offsets), sum(events), sum(rows), sum(dead_lettered) "
        "FROM batches_by_partition GROUP BY topic, partition"
    )
    (bodies,) = sql("SELECT count(), uniqExact(id) FROM bodies")
    (attempts,) = sql("SELECT count(), uniqExact(id, number) FROM attempts")
    ((dead,),) = sql("SELECT count() FROM dead_letters")
    return Stored(
        rows={id_: Row(count, inserted_ms / 1000) for id_, count, inserted_ms in ids},
        sums={
            name: (
                sql(f"SELECT sum(requests), sum(input_tokens), sum(output_tokens), sum(cost_usd) FROM {name}")[0],
                sql(
                    "SELECT count(), sum(input_tokens), sum(output_tokens), "
                    f"sum(toDecimal128(ifNull(cost_usd, 0), 10)) {source}"
                )[0],
            )
            for name, source in ROLLUPS.items()
        },
        bodies=(bodies[0], bodies[1]),
        attempts=(attempts[0], attempts[1]),
        ledger=[Ledger(*row) for row in ledger],
        ledger_sums={(topic, partition): sums for topic, partition, *sums in ledger_sums},
        dead_letters=dead,
        spools=read_spools(data),
    )


def read_spools(data: Path) -> dict[str, Spool]:
    """Files alone: also while every server is down."""

    async def look() -> dict[str, Spool]:
        log = SpoolLog(data / "spool", batch_events=1, batch_bytes=1)
        return {
            where.topic: Spool(
                await log.end(where), read_plan(log.folder(where)).committed, dropped_events(log.folder(where))
            )
            for where in await log.partitions()
        }

    return asyncio.run(look())


def settled(spools: Mapping[str, Spool]) -> bool:
    """Whether every event on disk is confirmed."""
    return all(spool.committed == spool.end for spool in spools.values())


def lost_at_most(rate: float, linger_ms: float, answered: Mapping[str, float], *, killed_s: float) -> int:
    """Events that a `kill -9` of the edge may take with it: those of one group, and the call just being ended. A machine
    that stalls and then catches up ends more calls within a group's time than the rate says."""
    within = sum(killed_s - linger_ms / 1000 <= at <= killed_s for at in answered.values())
    return max(ceil(rate * linger_ms / 1000), within) + 1


def oldest_lost_ms(answered: Mapping[str, float], lost: Iterable[str], *, killed_s: float) -> float:
    """How long before the kill the oldest lost call was answered; 0 when none is lost."""
    return max((0.0, *((killed_s - answered[id_]) * 1000 for id_ in lost)))


def lost(answered: Mapping[str, float], stored: Stored) -> set[str]:
    return answered.keys() - stored.rows.keys()


def twice(stored: Stored) -> set[str]:
    return {id_ for id_, row in stored.rows.items() if row.copies > 1}


def visible_again_s(answered: Mapping[str, float], stored: Stored, *, killed_s: float) -> float:
    """From a kill until the last row that came late; 0 when none did."""
    late = [
        row.inserted_s
        for id_, answered_s in answered.items()
        if (row := stored.rows.get(id_)) and row.inserted_s - answered_s > LATE_S
    ]
    return max(0.0, max(late, default=killed_s) - killed_s)


def problems(stored: Stored) -> list[str]:
    """Everything between the spools and the rollups that does not add up."""
    found = _table_problems(stored) + _ledger_problems(stored, sum(row.copies for row in stored.rows.values()))
    found += _sums_problems(stored)
    for topic, spool in stored.spools.items():
        if spool.committed != spool.end:
            found.append(f"{topic}: not settled, {spool.end} events and {spool.committed} confirmed")
    return found


def problems_on_kafka(stored: Stored) -> list[str]:
    """Everything between the ledger and the rollups that does not add up. In Kafka a batch's offsets have holes."""
    rows = sum(row.copies for row in stored.rows.values())
    found = _table_problems(stored) + _sums_problems(stored)
    ends: dict[tuple[str, int], int] = {}
    for batch in stored.ledger:
        where = (batch.topic, batch.partition)
        due = ends.get(where, batch.first)
        if batch.first != due:
            what = "a gap" if batch.first > due else "an overlap"
            found.append(f"ledger: {what} before {_name(batch)}, due was {due}")
        if batch.copies > 1:
            found.append(f"{batch.copies} ledger rows for batch {_name(batch)}")
        if batch.rows + batch.dead != batch.events:
            found.append(f"ledger: {_name(batch)} has {batch.events} events, {batch.rows} rows, {batch.dead} dead")
        ends[where] = batch.last + 1
    if (confirmed := sum(batch.rows for batch in stored.ledger)) != rows:
        found.append(f"ledger: {confirmed} rows confirmed, {rows} there")
    return found


def _table_problems(stored: Stored) -> list[str]:
    ids = len(stored.rows)
    found = [f"{copies} rows in requests for {id_}" for id_, (copies, _) in stored.rows.items() if copies > 1][:3]
    for name, (rollup, source) in stored.sums.items():
        if list(rollup) != list(source):
            found.append(f"{name}: {_told(rollup)}, but its rows are {_told(source)}")
    for name, (count, different) in {"bodies": stored.bodies, "attempts": stored.attempts}.items():
        if (count, different) != (ids, ids):
            found.append(f"{name}: {count} rows of {different} requests, but there are {ids}")
    if stored.dead_letters:
        found.append(f"{stored.dead_letters} dead letters")
    for topic, spool in stored.spools.items():
        if spool.dropped:
            found.append(f"{topic}: {spool.dropped} events dropped")
    return found


def _ledger_problems(stored: Stored, rows: int) -> list[str]:
    found = [f"{batch.copies} ledger rows for batch {_name(batch)}" for batch in stored.ledger if batch.copies > 1]
    ends = {batch.topic: batch.last + 1 for batch in stored.ledger}
    begun: set[str] = set()
    for before, batch in pairwise([None, *stored.ledger]):
        assert batch is not None
        due = before.last + 1 if before is not None and batch.topic in begun else 0
        begun.add(batch.topic)
        if batch.first != due:
            what = "a gap" if batch.first > due else "an overlap"
            found.append(f"ledger: {what} before {_name(batch)}, due was {due}")
        if batch.events != batch.last - batch.first + 1 or batch.rows + batch.dead != batch.events:
            found.append(f"ledger: {_name(batch)} has {batch.events} events, {batch.rows} rows, {batch.dead} dead")
    if (confirmed := sum(batch.rows for batch in stored.ledger)) != rows:
        found.append(f"ledger: {confirmed} rows confirmed, {rows} there")
    for topic, spool in stored.spools.items():
        if ends.get(topic, 0) != spool.end:
            found.append(f"ledger: {topic} ends at {ends.get(topic, 0)}, its spool at {spool.end}")
    return found


def _sums_problems(stored: Stored) -> list[str]:
    due: dict[tuple[str, int], list[int]] = {}
    for batch in stored.ledger:
        sums = due.setdefault((batch.topic, batch.partition), [0] * 5)
        for place, more in enumerate((1, batch.last - batch.first + 1, batch.events, batch.rows, batch.dead)):
            sums[place] += more
    return [
        f"sums of {topic}:{partition}: {counted}, but its batches are {batches}"
        for topic, partition in sorted({*due, *stored.ledger_sums})
        if (counted := list(stored.ledger_sums.get((topic, partition), [])))
        != (batches := due.get((topic, partition), []))
    ]


def _name(batch: Ledger) -> str:
    return f"{batch.topic}:{batch.first}:{batch.last}"


def _told(sums: Sequence[Any]) -> str:
    requests, sent, answered, cost = sums
    return f"{requests} requests, {sent} + {answered} tokens, {cost} USD"
