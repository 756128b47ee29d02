"""Cuts the log into batches, hands them out, and sees each of them into the ledger.

One turn, for each partition:

1. Ask the ledger which outstanding batches are done; commit the highest contiguous one, which frees the log before it.
2. Cut new batches up to the log's end, when enough events or enough time have gathered.
3. Write the new boundaries down. Only then
4. hand the batches out, and again those that are overdue.

A batch may so be handed out twice, never with other boundaries: what makes a repeat harmless is the worker's side.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ingest import metrics
from ingest.clickhouse import StoreError
from ingest.log import Log, LogError, LogGap, Pauses, Plan, PlanMoved
from schemas.batch import Batch, Confirmation, Partition
from schemas.settings import PlannerSettings

log = logging.getLogger("heliograph.planner")

_TROUBLE_PAUSE_S = 0.5
_CUTS_MAX = 256


class Ledger(Protocol):
    """What the planner asks of the store. Blocking; called in a thread."""

    def confirmed(self, where: Partition, since: int) -> Sequence[Confirmation]:
        """The batches of a partition in the ledger that begin at `since` or later."""
        ...

    def last(self, where: Partition) -> int | None:
        """The last offset of a partition that was ever in it; None: none was."""
        ...


HandOut = Callable[[Batch], None]
"""Gives a batch to the workers, once; blocking, raises when it cannot."""


class _Outstanding(msgspec.Struct):
    batch: Batch
    handed_at: float
    times: int = 1
    seen_at: float = msgspec.field(default_factory=time.monotonic)
    """When the first of its events was seen; after a restart of the planner, that restart."""


class _Lane(msgspec.Struct):
    """What the planner knows of one partition. All of it can be had again from the plan and the ledger."""

    plan: Plan
    outstanding: dict[int, _Outstanding] = {}
    """By first offset."""
    done: set[int] = set()
    """First offsets of batches in the ledger that wait for an older one."""
    waiting_since: float | None = None
    """When the oldest uncut event was first seen."""
    recent: list[Confirmation] = []
    store_away: bool = False
    """The ledger did not answer last time: what was at hand in the workers has most likely failed with it."""


class Planner:
    def __init__(self, log_: Log, ledger: Ledger, hand_out: HandOut, settings: PlannerSettings) -> None:
        self._log = log_
        self._ledger = ledger
        self._hand_out = hand_out
        self._settings = settings
        self._lanes: dict[Partition, _Lane] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Turn until `stop`. Trouble from outside is said once and tried again; it never ends the planner."""
        trouble: str | None = None
        metrics.planners.set(1)
        while not self._stopping.is_set():
            pause_s = self._settings.poll_ms / 1000
            try:
                await self.turn()
                if trouble is not None:
                    log.info("planning goes on", extra={"after": trouble})
                trouble = None
            except (LogError, StoreError, OSError) as error:
                pause_s = _TROUBLE_PAUSE_S
                metrics.planner_trouble.labels(type(error).__name__).inc()
                if str(error) != trouble:
                    log.warning("planning waits", extra={"error": str(error)})
                trouble = str(error)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Finish the turn, then end. What is handed out stays so; the plan says what."""
        self._stopping.set()

    async def turn(self) -> None:
        """One turn over all partitions.

        Raises:
            LogError, StoreError: of the first partition that failed; the others had their turn.
        """
        first_error: Exception | None = None
        ours = await self._log.partitions()
        for partition in self._lanes.keys() - set(ours):
            # What is handed out stays so. Whoever has it now hands it out again, which is harmless.
            del self._lanes[partition]
            _forget_lag(partition)
        for partition in ours:
            try:
                await self._turn(partition)
            except PlanMoved as error:
                self._lanes.pop(partition, None)
                first_error = first_error or error
            except (LogError, StoreError, OSError) as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error

    async def _turn(self, partition: Partition) -> None:
        lane = self._lanes.get(partition)
        if lane is None:
            lane = _Lane(await self._log.load_plan(partition) or await self._first_plan(partition))
            # After a restart nobody knows what was handed out: the ledger is asked first, the rest goes out again.
            lane.outstanding = {b.first: _Outstanding(b, 0.0, 0) for b in lane.plan.batches(partition)}
            self._lanes[partition] = lane
        try:
            await self._lift(partition, lane)
            await self._settle(partition, lane)
        finally:
            try:
                # Even when the ledger does not answer, events must be cut while there is room for more batches,
                await self._plan(partition, lane)
            finally:
                _note_age(partition, lane)
                # and even when no more can be cut, those that are must come to their end.
                await self._hand_out_due(lane)

    async def _first_plan(self, partition: Partition) -> Plan:
        """Where planning begins when nothing was ever written down: at the oldest event.

        Raises:
            LogGap: the ledger knows batches of this partition, so there was a plan, and it is lost. Other boundaries
                would count events twice.
        """
        last = await asyncio.to_thread(self._ledger.last, partition)
        if last is not None:
            raise LogGap(
                f"the plan of {partition} is gone, but the ledger has batches up to offset {last}; "
                f"see docs/operations.md, 'A plan is lost'"
            )
        return Plan(committed=await self._log.start(partition))

    async def _lift(self, partition: Partition, lane: _Lane) -> None:
        """End a pause that somebody has lifted. Written down, since what they wrote is not kept for ever."""
        if not lane.plan.paused or await self._log.resumed(partition) != lane.plan.paused_ms:
            return
        plan = msgspec.structs.replace(lane.plan, paused=None, paused_ms=0)
        await self._log.save_plan(partition, plan)
        lane.plan = plan
        lane.recent.clear()  # what died before is what was mended
        log.info("planning is resumed", extra={"partition": str(partition)})

    async def _settle(self, partition: Partition, lane: _Lane) -> None:
        """Step 1."""
        if lane.outstanding:
            await self._hear(partition, lane)
        # Even when no batch is out: the last time, the plan may not have been written down.
        batches = lane.plan.batches(partition)
        contiguous = 0
        while contiguous < len(batches) and batches[contiguous].first in lane.done:
            contiguous += 1
        if contiguous:
            plan = msgspec.structs.replace(
                lane.plan, committed=lane.plan.cuts[contiguous - 1], cuts=lane.plan.cuts[contiguous:]
            )
            await self._log.save_plan(partition, plan)
            lane.plan = plan
            lane.done.difference_update(b.first for b in batches[:contiguous])
        await self._watch_dead_letters(partition, lane)

    async def _hear(self, partition: Partition, lane: _Lane) -> None:
        """Which outstanding batches the ledger has."""
        try:
            confirmed = await asyncio.to_thread(self._ledger.confirmed, partition, min(lane.outstanding))
        except StoreError:
            lane.store_away = True
            raise
        for confirmation in confirmed:
            if lane.outstanding.pop(confirmation.batch.first, None) is not None:
                lane.done.add(confirmation.batch.first)
                lane.recent.append(confirmation)
                metrics.batches_confirmed.inc()
        if lane.store_away:
            lane.store_away = False
            for waiting in lane.outstanding.values():
                waiting.times = 0  # handed out again now rather than when overdue; a repeat is harmless

    async def _plan(self, partition: Partition, lane: _Lane) -> None:
        """Steps 2 and 3."""
        end = await self._log.end(partition)
        start = lane.plan.planned
        metrics.lag_events.labels(str(partition)).set(max(0, end - lane.plan.committed))
        if end < start:
            raise LogGap(f"{partition} ends at {end}, but was planned up to {start}: events that were there are lost")
        if end == start:
            lane.waiting_since = None
            return
        now = time.monotonic()
        lane.waiting_since = seen_at = lane.waiting_since or now
        lingered = (now - seen_at) * 1000 >= self._linger_ms()
        if lane.plan.paused or not (lingered or end - start >= self._settings.batch_events):
            return
        cuts: list[int] = []
        room = min(self._settings.outstanding, _CUTS_MAX) - len(lane.plan.cuts)
        while start < end and len(cuts) < room:
            if not lingered and end - start < self._settings.batch_events:
                break
            start = await self._log.cut(partition, start=start, end=end)
            cuts.append(start)
        if not cuts:
            return
        plan = msgspec.structs.replace(lane.plan, cuts=(*lane.plan.cuts, *cuts))
        await self._log.save_plan(partition, plan)
        known = len(lane.plan.cuts)
        lane.plan = plan
        lane.waiting_since = None if start >= end else now
        for batch in plan.batches(partition)[known:]:
            lane.outstanding[batch.first] = _Outstanding(batch, 0.0, 0, seen_at)
            metrics.batches_planned.inc()
            metrics.events_planned.inc(batch.next_offset - batch.first)

    def _linger_ms(self) -> float:
        """The longer the more batches are at the workers: one that costs them much however small it is must not make a
        queue of small ones. A full batch never waits."""
        at_workers = sum(len(lane.outstanding) for lane in self._lanes.values())
        usual = self._settings.linger_ms
        return max(usual, min(usual * at_workers, self._settings.linger_busy_ms))

    async def _hand_out_due(self, lane: _Lane) -> None:
        """Step 4."""
        for waiting in sorted(lane.outstanding.values(), key=lambda o: o.batch.first):
            now = time.monotonic()
            if waiting.times and now - waiting.handed_at < self._settings.overdue_s:
                continue
            if waiting.times:
                metrics.batches_overdue.inc()
                log.warning(
                    "a batch is overdue and handed out again",
                    extra={"batch": waiting.batch.token, "times": waiting.times + 1},
                )
            await asyncio.to_thread(self._hand_out, waiting.batch)
            waiting.handed_at = time.monotonic()
            waiting.times += 1

    async def _watch_dead_letters(self, partition: Partition, lane: _Lane) -> None:
        """Pause when too many events die: a bad deploy must not send a whole log to the dead letters."""
        window = 0
        keep = len(lane.recent)
        while keep and window < self._settings.dead_window:
            keep -= 1
            window += lane.recent[keep].events
        del lane.recent[:keep]
        dead = sum(confirmation.dead_lettered for confirmation in lane.recent)
        if lane.plan.paused or window < self._settings.dead_window or dead < window * self._settings.dead_ratio_max:
            return
        reason = f"{dead} of the last {window} events of {partition} became dead letters"
        plan = msgspec.structs.replace(lane.plan, paused=reason, paused_ms=time.time_ns() // 1_000_000)
        await self._log.save_plan(partition, plan)
        lane.plan = plan
        lane.recent.clear()
        log.error("planning is paused; mend the cause, then: heliograph plan resume", extra={"reason": reason})


def _note_age(partition: Partition, lane: _Lane) -> None:
    waiting = [batch.seen_at for batch in lane.outstanding.values()]
    if lane.waiting_since is not None:
        waiting.append(lane.waiting_since)
    age_s = time.monotonic() - min(waiting) if waiting else 0.0
    metrics.lag_seconds.labels(str(partition)).set(age_s)


def _forget_lag(partition: Partition) -> None:
    """From now on another planner tells it."""
    metrics.lag_events.labels(str(partition)).set(0)
    metrics.lag_seconds.labels(str(partition)).set(0)


async def resume(pauses: Pauses) -> list[str]:
    """Let paused partitions be planned again; gives the reasons they were paused for. A running planner sees it at its
    next turn."""
    reasons = [await pauses.resume(partition) for partition in await pauses.partitions()]
    return [reason for reason in reasons if reason is not None]
