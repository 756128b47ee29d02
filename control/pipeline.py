"""Where events are between the edge and their rows: counters per stage that add up, and how old the oldest ones are.

The log's side comes in through `LogView`, which whoever starts control wires to the spool or to Kafka; the store's side
is the ledger.
"""
# ruff: noqa: S608 - what goes into SQL here is names of bound values.

import asyncio
import time
from collections.abc import Mapping, Sequence
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


class ShippedSpool(msgspec.Struct, frozen=True):
    """One edge's spool at one moment, where Kafka is the log."""

    id: str
    shipped: int
    """The next offset that is not in Kafka yet."""
    end: int | None = None
    """The next offset after the newest event; None: the spool is on another machine."""
    oldest_unshipped_ms: int | None = None
    """When the call of the oldest event that is not in Kafka came in; None: all are, or it cannot be told."""


class LogView(Protocol):
    """What the pipeline page asks of the log. Cheap: it is asked once a second at most, by one at a time."""

    async def partitions(self) -> Sequence[PartitionView]:
        """Every partition there is.

        Raises:
            ingest.log.LogError: it cannot be told just now.
        """
        ...

    async def spools(self) -> Sequence[ShippedSpool] | None:
        """Every spool on its way into the log; None: the spools themselves are the log.

        Raises:
            ingest.log.LogError: it cannot be told just now.
        """
        ...

    async def dropped(self) -> int:
        """Events that never reached a spool of this machine since it was made: it was full (`spool.bytes_max`)."""
        ...

    async def oldest_ms(self, first: Mapping[Partition, int]) -> int | None:
        """When the oldest call came in among the first events at or after these offsets; None: none can be read."""
        ...

    async def close(self) -> None: ...


class Newer(msgspec.Struct, frozen=True):
    """Of one partition's batches in the ledger, those at or after what the plan has committed."""

    offsets: int = 0
    firsts: frozenset[int] = frozenset()
    """Where they begin."""


class Ledger(msgspec.Struct, frozen=True):
    """Sums over one partition's batches in the ledger."""

    batches: int = 0
    offsets: int = 0
    events: int = 0
    rows: int = 0
    dead_lettered: int = 0
    last: int = -1
    newest_event_ms: int | None = None
    newer: Newer = Newer()


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
        spools = await self._log.spools()
        dropped = await self._log.dropped()
        ledger = await self._ledger(views)
        now_ms = time.time_ns() // 1_000_000
        replayed = sum(sums.rows for partition, sums in ledger.items() if _is_replay(partition))
        ledger = {partition: sums for partition, sums in ledger.items() if not _is_replay(partition)}
        shapes = [
            _partition_shape(partition, views.get(partition), ledger.get(partition, Ledger()))
            for partition in sorted({*views, *ledger})
        ]
        ages = [spool.oldest_unshipped_ms for spool in spools or () if spool.oldest_unshipped_ms is not None]
        if waiting := _first_unstored(views, ledger):
            made_ms = await self._log.oldest_ms(waiting)
            ages += [] if made_ms is None else [made_ms]
        newest = max(
            (sums.newest_event_ms for sums in ledger.values() if sums.newest_event_ms is not None), default=None
        )
        oldest = min(ages, default=None)
        totals = {name: sum(shape[name] for shape in shapes) for name in _SUMMED}
        way = _way_into_the_log(spools, ledger, logged=totals["logged"])
        return {
            "at": iso(now_ms),
            "accepted": way["spooled"] + dropped,
            "dropped": dropped,
            **way,
            **totals,
            "replayed": replayed,
            "lag_events": (way["unshipped"] or 0) + totals["unplanned"] + totals["outstanding"],
            "newest_visible_at": None if newest is None else iso(newest),
            "newest_visible_age_s": None if newest is None else max(0.0, round((now_ms - newest) / 1000, 3)),
            "oldest_unstored_at": None if oldest is None else iso(oldest),
            "oldest_unstored_age_s": None if oldest is None else max(0.0, round((now_ms - oldest) / 1000, 3)),
            "paused": [shape["paused"] for shape in shapes if shape["paused"]],
            "spools": None if spools is None else [_spool_shape(spool) for spool in spools],
            "partitions": shapes,
        }

    async def _ledger(self, views: Mapping[Partition, PartitionView]) -> dict[Partition, Ledger]:
        # The batches first: whatever stands there was counted in the sums before.
        newer = await self._newer(views)
        rows = await self._store.ledger_rows(
            "SELECT toString(topic), partition, sum(batches), sum(offsets), sum(events), sum(rows), sum(dead_lettered), "
            "max(last), toUnixTimestamp64Milli(max(newest_event_at)) FROM batches_by_partition GROUP BY topic, partition",
            name="ledger_sums",
        )
        return {
            (where := Partition(topic, number)): Ledger(
                batches, offsets, events, stored, dead, last, newest or None, newer.get(where, Newer())
            )
            for topic, number, batches, offsets, events, stored, dead, last, newest in rows
        }

    async def _newer(self, views: Mapping[Partition, PartitionView]) -> dict[Partition, Newer]:
        if not views:
            return {}
        values: dict[str, object] = {}
        wanted = []
        for i, (where, view) in enumerate(views.items()):
            values |= {f"t{i}": where.topic, f"p{i}": where.number, f"c{i}": view.plan.committed}
            wanted.append(f"(topic = {{t{i}:String}} AND partition = {{p{i}:UInt32}} AND first >= {{c{i}:UInt64}})")
        # A batch may stand there twice, and counts once.
        rows = await self._store.ledger_rows(
            f"SELECT topic, partition, sum(l - first + 1), groupArray({_FIRSTS_MAX})(first) FROM ("
            "SELECT toString(batches.topic) AS topic, partition, first, any(last) AS l FROM batches "
            f"WHERE {' OR '.join(wanted)} GROUP BY topic, partition, first) GROUP BY topic, partition",
            values,
            name="ledger_newer",
        )
        return {Partition(topic, number): Newer(offsets, frozenset(firsts)) for topic, number, offsets, firsts in rows}


_FIRSTS_MAX = 10_000
"""Far more than a plan has batches. Where a plan is lost there are others."""
_SUMMED = ("logged", "planned", "unplanned", "skipped", "stored", "dead_lettered", "without_event", "outstanding")
_SPOOL = "spool/"
_REPLAYS = ("dead/", "replay/")
"""Topics of the ledger that are no log: what replays have brought back of what a log had."""


def _is_replay(partition: Partition) -> bool:
    return partition.topic.startswith(_REPLAYS)


def _first_unstored(
    views: Mapping[Partition, PartitionView], ledger: Mapping[Partition, Ledger]
) -> dict[Partition, int]:
    """Of each partition the first offset that no batch of the ledger covers. Left out: all of them are covered."""
    waiting = {}
    for partition, view in views.items():
        done = ledger.get(partition, Ledger()).newer.firsts
        firsts = [batch.first for batch in view.plan.batches(partition) if batch.first not in done]
        first = min(firsts, default=view.plan.planned)
        if first < view.end:
            waiting[partition] = first
    return waiting


def _way_into_the_log(
    spools: Sequence[ShippedSpool] | None, ledger: Mapping[Partition, Ledger], *, logged: int
) -> dict[str, Any]:
    """Events from the spools into the log."""
    if spools is None:
        return {"spooled": logged, "shipped": None, "unshipped": None, "unshipped_spools_unseen": 0}
    # Before Kafka was the log, a spool's events were planned straight from it.
    straight = {where.topic: sums.offsets for where, sums in ledger.items() if where.topic.startswith(_SPOOL)}
    known = sum(max(0, spool.shipped - straight.get(f"{_SPOOL}{spool.id}", 0)) for spool in spools)
    # Kafka forgets the position of a spool that is gone for long; its events stand in the ledger all the same.
    shipped = max(known, sum(sums.events for where, sums in ledger.items() if where.topic not in straight))
    unshipped = sum(max(0, spool.end - spool.shipped) for spool in spools if spool.end is not None)
    return {
        "spooled": shipped + unshipped + sum(straight.values()),
        "shipped": shipped,
        "unshipped": unshipped,
        "unshipped_spools_unseen": sum(spool.end is None for spool in spools),
    }


def _spool_shape(spool: ShippedSpool) -> dict[str, Any]:
    return {
        "id": spool.id,
        "present": spool.end is not None,
        "shipped": spool.shipped,
        "unshipped": None if spool.end is None else max(0, spool.end - spool.shipped),
    }


def _partition_shape(partition: Partition, view: PartitionView | None, sums: Ledger) -> dict[str, Any]:
    # Without its log, all that a partition ever promised is in the ledger.
    end = sums.last + 1 if view is None else max(view.end, sums.last + 1)
    planned_to = sums.last + 1 if view is None else max(view.plan.planned, sums.last + 1)
    outstanding = 0 if view is None else planned_to - view.plan.committed - sums.newer.offsets
    # A batch on its way into the ledger is among the sums already.
    outstanding = max(0, min(outstanding, planned_to - sums.offsets))
    planned = sums.offsets + outstanding
    return {
        "topic": partition.topic,
        "partition": partition.number,
        "present": view is not None,
        "logged": end,
        "planned": planned,
        "unplanned": end - planned_to,
        "skipped": planned_to - planned,
        "outstanding": outstanding,
        "stored": sums.rows,
        "dead_lettered": sums.dead_lettered,
        "without_event": sums.offsets - sums.rows - sums.dead_lettered,
        "batches": sums.batches,
        "committed": sums.last + 1 if view is None else view.plan.committed,
        "freed": None if view is None else view.start,
        "paused": None if view is None else view.plan.paused,
    }
