"""The planner over a log and a ledger in memory: the rules of design §4, step 3."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Gauge

from ingest import metrics
from ingest.clickhouse import StoreUnavailable
from ingest.log import LogUnavailable, Plan
from ingest.planner import Planner, resume
from ingest.spool import open_spool
from ingest.spool_log import SpoolLog
from ingest.spool_plan import read_plan
from schemas.batch import Batch, Confirmation, Partition
from schemas.settings import PlannerSettings, SpoolSettings

WHERE = Partition("spool/test", 0)
AT_ONCE = PlannerSettings(linger_ms=0.001, batch_events=10, overdue_s=0.05)


class MemoryLog:
    def __init__(self, end: int = 0) -> None:
        self.last = end
        self.plan = Plan()
        self.saved: list[Plan] = []
        self.refuse = False
        self.lifted: int | None = None

    async def partitions(self) -> Sequence[Partition]:
        return [WHERE]

    async def end(self, partition: Partition) -> int:
        return self.last

    async def cut(self, partition: Partition, *, start: int, end: int) -> int:
        return min(end, start + AT_ONCE.batch_events)

    async def start(self, partition: Partition) -> int:
        return 0

    async def load_plan(self, partition: Partition) -> Plan | None:
        return None if self.plan == Plan() else self.plan

    async def paused(self, partition: Partition) -> str | None:
        return self.plan.paused

    async def resume(self, partition: Partition) -> str | None:
        self.lifted = self.plan.paused_ms
        return self.plan.paused

    async def resumed(self, partition: Partition) -> int | None:
        return self.lifted

    async def save_plan(self, partition: Partition, plan: Plan) -> None:
        if self.refuse:
            raise LogUnavailable("the disk is full")
        self.plan = plan
        self.saved.append(plan)


class MemoryLedger:
    def __init__(self) -> None:
        self.done: dict[int, Confirmation] = {}
        self.away = False

    def confirm(self, batch: Batch, dead: int = 0) -> None:
        events = batch.next_offset - batch.first
        self.done[batch.first] = Confirmation(batch, events, events - dead, dead)

    def confirmed(self, where: Partition, since: int) -> list[Confirmation]:
        if self.away:
            raise StoreUnavailable("ClickHouse is away")
        return [confirmation for first, confirmation in self.done.items() if first >= since]

    def last(self, where: Partition) -> int | None:
        return max((confirmation.batch.last for confirmation in self.done.values()), default=None)


class Workers:
    def __init__(self, log: MemoryLog) -> None:
        self.handed: list[Batch] = []
        self.planned_when_handed: list[Plan] = []
        self.log = log
        self.away = False

    def hand_out(self, batch: Batch) -> None:
        if self.away:
            raise ConnectionError("Redis is away")
        self.handed.append(batch)
        self.planned_when_handed.append(self.log.plan)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def workers(log: MemoryLog) -> Workers:
    return Workers(log)


def planner(log: MemoryLog, ledger: MemoryLedger, workers: Workers, settings: PlannerSettings = AT_ONCE) -> Planner:
    return Planner(log, ledger, workers.hand_out, settings)


async def turns(planner: Planner, count: int = 2) -> None:
    for _ in range(count):
        await planner.turn()
        await asyncio.sleep(0.001)


def ranges(batches: Sequence[Batch]) -> list[tuple[int, int]]:
    return [(batch.first, batch.last) for batch in batches]


async def test_batches_are_closed_contiguous_ranges(log: MemoryLog, ledger: MemoryLedger, workers: Workers) -> None:
    log.last = 25
    await turns(planner(log, ledger, workers))
    assert ranges(workers.handed) == [(0, 9), (10, 19), (20, 24)]


async def test_boundaries_are_written_down_before_a_batch_is_handed_out(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last = 25
    await turns(planner(log, ledger, workers))
    for batch, plan in zip(workers.handed, workers.planned_when_handed, strict=True):
        assert batch in plan.batches(WHERE)


async def test_nothing_is_handed_out_when_the_plan_cannot_be_written(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last, log.refuse = 25, True
    one = planner(log, ledger, workers)
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            await turns(one, 2)
    assert workers.handed == []
    log.refuse = False
    await turns(one)
    assert ranges(workers.handed) == [(0, 9), (10, 19), (20, 24)]


async def test_planning_goes_on_after_batches_ended_while_the_plan_could_not_be_written(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last = 1000
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"outstanding": 3}))
    await turns(one)
    for batch in workers.handed:
        ledger.confirm(batch)
    log.refuse = True
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await one.turn()
    log.refuse = False
    await turns(one)
    assert log.plan.committed == 30
    assert len(workers.handed) == 6


async def test_a_restarted_planner_gives_the_same_boundaries(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last = 25
    await turns(planner(log, ledger, workers))
    first = list(workers.handed)
    log.last = 31
    await turns(planner(log, ledger, workers))
    again = workers.handed[len(first) :]
    assert again[: len(first)] == first
    assert ranges(again[len(first) :]) == [(25, 30)]


async def test_a_restarted_planner_asks_the_ledger_before_it_hands_out(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last = 20
    await turns(planner(log, ledger, workers))
    for batch in workers.handed:
        ledger.confirm(batch)
    workers.handed.clear()
    await turns(planner(log, ledger, workers))
    assert workers.handed == []
    assert log.plan == Plan(committed=20)


async def test_only_the_highest_contiguous_batch_is_committed(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last = 30
    one = planner(log, ledger, workers)
    await turns(one)
    first, second, third = workers.handed
    ledger.confirm(second)
    ledger.confirm(third)
    await turns(one)
    assert log.plan.committed == 0
    ledger.confirm(first)
    await turns(one)
    assert log.plan == Plan(committed=30)


async def test_an_overdue_batch_is_handed_out_again_unchanged(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last = 10
    one = planner(log, ledger, workers)
    await turns(one)
    assert len(workers.handed) == 1
    await turns(one)
    assert len(workers.handed) == 1  # not before it is overdue
    await asyncio.sleep(AT_ONCE.overdue_s * 1.5)
    await turns(one, 1)
    assert len(workers.handed) == 2
    assert workers.handed[0] == workers.handed[1]


async def test_a_batch_the_broker_refused_goes_out_when_it_is_back(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last, workers.away = 10, True
    one = planner(log, ledger, workers)
    with pytest.raises(ConnectionError):
        await turns(one)
    workers.away = False
    await turns(one)
    assert ranges(workers.handed) == [(0, 9)]


async def test_with_the_store_away_batches_are_cut_but_not_beyond_the_bound(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    settings = AT_ONCE.model_copy(update={"outstanding": 3})
    log.last = 10
    one = planner(log, ledger, workers, settings)
    await turns(one)
    ledger.away = True
    log.last = 1000
    for _ in range(4):
        with pytest.raises(StoreUnavailable):
            await one.turn()
    assert len(log.plan.cuts) == 3
    ledger.away = False
    for batch in log.plan.batches(WHERE):
        ledger.confirm(batch)
    await turns(one)
    assert log.plan.committed == 30


async def test_when_the_store_is_back_its_batches_go_out_at_once(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last = 10
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"overdue_s": 60.0}))
    await turns(one)
    ledger.away = True
    with pytest.raises(StoreUnavailable):
        await one.turn()
    ledger.away = False
    await turns(one)
    assert ranges(workers.handed) == [(0, 9), (0, 9)]


async def test_an_event_waits_for_company_no_longer_than_the_linger(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"linger_ms": 100.0}))
    log.last = 3
    await one.turn()
    assert workers.handed == []
    await asyncio.sleep(0.12)
    await one.turn()
    assert ranges(workers.handed) == [(0, 2)]


async def test_the_linger_grows_with_the_batches_at_the_workers(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    patient = AT_ONCE.model_copy(update={"linger_ms": 50.0, "overdue_s": 60.0})
    one = planner(log, ledger, workers, patient)
    log.last = 30
    await one.turn()
    assert len(workers.handed) == 3
    log.last = 33
    await one.turn()
    await asyncio.sleep(0.07)
    await one.turn()
    assert len(workers.handed) == 3
    await asyncio.sleep(0.1)
    await one.turn()
    assert ranges(workers.handed[3:]) == [(30, 32)]


async def test_the_linger_grows_to_a_bound_and_never_for_a_full_batch(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    bounded = AT_ONCE.model_copy(update={"linger_ms": 50.0, "linger_busy_ms": 60.0, "overdue_s": 60.0})
    one = planner(log, ledger, workers, bounded)
    log.last = 100
    await one.turn()
    log.last = 113
    await one.turn()
    assert ranges(workers.handed[10:]) == [(100, 109)]
    await asyncio.sleep(0.07)
    await one.turn()
    assert ranges(workers.handed[11:]) == [(110, 112)]


async def test_a_full_batch_does_not_wait_and_the_rest_does(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"linger_ms": 60_000.0}))
    log.last = 23
    await one.turn()
    assert ranges(workers.handed) == [(0, 9), (10, 19)]


async def test_too_many_dead_letters_pause_the_planner_until_resumed(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    settings = AT_ONCE.model_copy(update={"dead_window": 20, "dead_ratio_max": 0.5})
    one = planner(log, ledger, workers, settings)
    log.last = 20
    await turns(one)
    for batch in list(workers.handed):
        ledger.confirm(batch, dead=6)
    log.last = 40
    await turns(one, 4)
    assert log.plan.paused is not None
    assert "12 of the last 20" in log.plan.paused
    assert ranges(workers.handed) == [(0, 9), (10, 19)]
    assert await resume(log) == [log.plan.paused]
    await turns(one, 3)
    assert log.plan.paused is None, "what the resume wrote is not kept for ever"
    assert ranges(workers.handed)[2:] == [(20, 29), (30, 39)]


async def test_a_resume_lifts_one_pause_and_not_the_next(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"dead_window": 10, "dead_ratio_max": 0.5}))
    for first in (0, 10):
        log.last = first + 10
        await turns(one)
        ledger.confirm(workers.handed[-1], dead=10)
        await turns(one)
        assert log.plan.paused is not None
        assert log.plan.paused_ms != log.lifted
        if first == 0:
            await resume(log)
            await turns(one)


async def test_a_resume_forgives_what_died_during_the_pause(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"dead_window": 10, "dead_ratio_max": 0.5}))
    log.last = 20
    await turns(one)
    for batch in workers.handed:
        ledger.confirm(batch, dead=10)
        await turns(one)
    await resume(log)
    log.last = 30
    await turns(one)
    ledger.confirm(workers.handed[-1])
    await turns(one)
    assert log.plan == Plan(committed=30)


async def test_a_resume_holds_while_a_batch_settles_and_the_plan_is_written_anew(tmp_path: Path) -> None:
    """It comes from another process, between what the planner reads and what it writes."""
    spool = open_spool(tmp_path, SpoolSettings(linger_ms=1))
    for number in range(20):
        spool.append(b"event %d" % number)
    await spool.close()

    def spools() -> SpoolLog:
        return SpoolLog(tmp_path, batch_events=AT_ONCE.batch_events, batch_bytes=1 << 20)

    class ResumingLedger(MemoryLedger):
        resumes = False

        def confirmed(self, where: Partition, since: int) -> list[Confirmation]:
            if self.resumes:
                self.resumes = False
                assert len(asyncio.run(resume(spools()))) == 1
            return super().confirmed(where, since)

    ledger, handed = ResumingLedger(), list[Batch]()
    one = Planner(spools(), ledger, handed.append, AT_ONCE.model_copy(update={"dead_window": 10}))
    await turns(one)
    ledger.confirm(handed[0], dead=10)
    await turns(one)
    assert read_plan(spool.folder).paused is not None
    ledger.confirm(handed[1])
    ledger.resumes = True
    await turns(one)
    assert not ledger.resumes
    assert read_plan(spool.folder) == Plan(committed=20)
    assert await resume(spools()) == []


async def test_a_few_dead_letters_pause_nothing(log: MemoryLog, ledger: MemoryLedger, workers: Workers) -> None:
    settings = AT_ONCE.model_copy(update={"dead_window": 20, "dead_ratio_max": 0.5})
    one = planner(log, ledger, workers, settings)
    log.last = 10
    await turns(one)
    ledger.confirm(workers.handed[0], dead=9)  # nearly all of a window that is not full
    await turns(one)
    log.last = 20
    await turns(one)
    ledger.confirm(workers.handed[1])
    await turns(one)
    assert log.plan == Plan(committed=20)


async def test_trouble_from_outside_never_ends_the_planner(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    log.last, workers.away = 10, True
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"poll_ms": 1.0}))
    running = asyncio.create_task(one.run())
    await asyncio.sleep(0.1)
    workers.away = False
    await asyncio.sleep(0.8)
    assert ranges(workers.handed)[0] == (0, 9)
    one.stop()
    await asyncio.wait_for(running, 2)


def lag_of(gauge: Gauge) -> float:
    return REGISTRY.get_sample_value(gauge._name, {"partition": str(WHERE)}) or 0.0


async def test_the_lag_in_seconds_is_how_long_the_oldest_unstored_event_is_known(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers
) -> None:
    one = planner(log, ledger, workers, AT_ONCE.model_copy(update={"overdue_s": 60}))
    log.last = 25
    await turns(one)
    await asyncio.sleep(0.3)
    log.last = 27
    await turns(one)
    before = lag_of(metrics.lag_seconds)
    assert before >= 0.3
    newest = workers.handed.pop()
    for batch in workers.handed:
        ledger.confirm(batch)
    await turns(one)
    assert 0 < lag_of(metrics.lag_seconds) < before
    ledger.confirm(newest)
    await turns(one)
    assert lag_of(metrics.lag_seconds) == 0


async def test_a_planner_that_lost_a_partition_tells_no_lag_of_it_any_more(
    log: MemoryLog, ledger: MemoryLedger, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none() -> Sequence[Partition]:
        return []

    one = planner(log, ledger, workers)
    log.last = 25
    await turns(one)
    assert lag_of(metrics.lag_events) == 25
    monkeypatch.setattr(log, "partitions", none)
    await turns(one)
    assert lag_of(metrics.lag_events) == lag_of(metrics.lag_seconds) == 0
