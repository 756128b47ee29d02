"""Where events are between the edge and their rows: counters per stage that add up, and how old the oldest ones are.

The log's side comes in through `LogView`, which whoever starts control wires to the spool or to Kafka; the store's side
is the ledger.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from control.scope import iso
from control.store import Store
from ingest.log import Plan
from schemas.batch import Partition


class PartitionView(msgspec.Struct, frozen=True):
    """One partition of the log at one moment."""

    partition: Partition
    start: int
    """The oldest offset that is still there."""
    end: int
    """The next offset after the newest record."""
    plan: Plan


class LogView(Protocol):
    """What the pipeline page asks of the log. Cheap: it is asked once a second at most."""

    async def partitions(self) -> Sequence[PartitionView]:
        """Every partition there is.

        Raises:
            ingest.log.LogError: it cannot be told just now.
        """
        ...

    async def dropped(self) -> int:
        """Events that never reached the log since the data folder began: the spool was full (`spool.bytes_max`)."""
        ...

    async def created_ms(self, partition: Partition, offset: int) -> int | None:
        """When the call of the first event at or after this offset came in; None: it cannot be read, or is none."""
        ...


class Ledger(msgspec.Struct, frozen=True):
    """Sums over one partition's batches in the ledger."""

    batches: int = 0
    offsets: int = 0
    events: int = 0
    rows: int = 0
    dead_lettered: int = 0
    last: int = -1
    newest_event_ms: int | None = None


class Pipeline:
    """The page, read at most once a second however many ask."""

    def __init__(self, log: LogView, store: Store, *, fresh_s: float = 1.0) -> None:
        self._log = log
        self._store = store
        self._fresh_s = fresh_s
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._page: dict[str, Any] = {}

    async def page(self) -> dict[str, Any]:
        """
        Raises:
            ControlError: ClickHouse cannot be asked.
            ingest.log.LogError: the log cannot be.
        """
        async with self._lock:
            if time.monotonic() - self._read_at > self._fresh_s:
                self._page = await self._read()
                self._read_at = time.monotonic()
            return self._page

    async def _read(self) -> dict[str, Any]:
        # The log first: a batch that lands in between makes rows run ahead of their plan by it, never events vanish.
        views = {view.partition: view for view in await self._log.partitions()}
        dropped = await self._log.dropped()
        ledger = await self._ledger()
        now_ms = time.time_ns() // 1_000_000
        shapes = []
        ages: list[int] = []
        for partition in sorted({*views, *ledger}):
            view, sums = views.get(partition), ledger.get(partition, Ledger())
            if view is not None:
                first = await self._first_unstored(view)
                if first is not None and (made := await self._log.created_ms(partition, first)) is not None:
                    ages.append(made)
            shapes.append(_partition_shape(partition, view, sums))
        newest = max(
            (sums.newest_event_ms for sums in ledger.values() if sums.newest_event_ms is not None), default=None
        )
        oldest = min(ages, default=None)
        totals = {
            name: sum(shape[name] for shape in shapes)
            for name in (
                "spooled", "planned", "unplanned", "stored", "dead_lettered", "without_event", "outstanding",
            )
        }  # fmt: skip
        return {
            "at": iso(now_ms),
            "accepted": totals["spooled"] + dropped,
            "dropped": dropped,
            **totals,
            "newest_visible_at": None if newest is None else iso(newest),
            "newest_visible_age_s": None if newest is None else max(0.0, round((now_ms - newest) / 1000, 3)),
            "oldest_unstored_at": None if oldest is None else iso(oldest),
            "oldest_unstored_age_s": None if oldest is None else max(0.0, round((now_ms - oldest) / 1000, 3)),
            "paused": [shape["paused"] for shape in shapes if shape["paused"]],
            "partitions": shapes,
        }

    async def _ledger(self) -> dict[Partition, Ledger]:
        # A batch repeated after the deduplication window has moved on stands there twice, and counts once.
        rows = await self._store.ledger_rows(
            "SELECT topic, partition, count(), sum(l - first + 1), sum(e), sum(r), sum(d), max(l), max(n) FROM ("
            "SELECT toString(topic) AS topic, partition, first, any(last) AS l, any(events) AS e, any(rows) AS r, "
            "any(dead_lettered) AS d, toUnixTimestamp64Milli(max(newest_event_at)) AS n "
            "FROM batches GROUP BY topic, partition, first) GROUP BY topic, partition",
            name="ledger",
        )
        return {
            Partition(topic, number): Ledger(batches, offsets, events, stored, dead, last, newest or None)
            for topic, number, batches, offsets, events, stored, dead, last, newest in rows
        }

    async def _first_unstored(self, view: PartitionView) -> int | None:
        """The first offset that no batch of the ledger covers; None: all of them are."""
        partition, plan = view.partition, view.plan
        promised = plan.batches(partition)
        if promised:
            rows = await self._store.ledger_rows(
                "SELECT DISTINCT first FROM batches WHERE topic = {topic:String} AND partition = {number:UInt32} "
                "AND first >= {first:UInt64}",
                {"topic": partition.topic, "number": partition.number, "first": promised[0].first},
                name="ledger_newest",
            )
            done = {row[0] for row in rows}
            for batch in promised:
                if batch.first not in done:
                    return batch.first
        return plan.planned if plan.planned < view.end else None


def _partition_shape(partition: Partition, view: PartitionView | None, sums: Ledger) -> dict[str, Any]:
    # A spool whose folder is gone has all it ever promised in the ledger.
    end = sums.last + 1 if view is None else max(view.end, sums.last + 1)
    planned = sums.last + 1 if view is None else max(view.plan.planned, sums.last + 1)
    return {
        "topic": partition.topic,
        "partition": partition.number,
        "present": view is not None,
        "spooled": end,
        "planned": planned,
        "unplanned": end - planned,
        "outstanding": planned - sums.offsets,
        "stored": sums.rows,
        "dead_lettered": sums.dead_lettered,
        "without_event": sums.offsets - sums.rows - sums.dead_lettered,
        "batches": sums.batches,
        "committed": sums.last + 1 if view is None else view.plan.committed,
        "freed": None if view is None else view.start,
        "paused": None if view is None else view.plan.paused,
    }
