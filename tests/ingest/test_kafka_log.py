"""Kafka as a log, against the real broker: design §4, steps 3 and 4."""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from ingest.kafka_client import admin
from ingest.kafka_log import KafkaLog, KafkaPauses, committed, planner_group
from ingest.kafka_reader import KafkaReader
from ingest.log import LogGap, LogUnavailable, Plan, PlanMoved
from ingest.planner import Planner, resume
from schemas.batch import Batch, Confirmation, Partition
from schemas.settings import KafkaSettings, PlannerSettings, ShipperSettings
from tests.ingest.kafka_tools import ends, fill, payload, producing, reading, ship, transaction
from tests.servers import RunningKafka

SMALL_BATCHES = ShipperSettings(linger_ms=1, poll_ms=2, retry_s=0.2, batch_bytes=16 * 1024)
AT_ONCE = PlannerSettings(linger_ms=0.001, poll_ms=1, batch_events=10, overdue_s=60)


class MemoryLedger:
    """Confirms what it is told to."""

    def __init__(self) -> None:
        self.done: dict[Batch, Confirmation] = {}

    def confirm(self, batch: Batch) -> None:
        events = batch.next_offset - batch.first
        self.done[batch] = Confirmation(batch, events, events, 0)

    def confirmed(self, where: Partition, since: int) -> Sequence[Confirmation]:
        return [done for batch, done in list(self.done.items()) if batch.where == where and batch.first >= since]

    def last(self, where: Partition) -> int | None:
        return max((batch.last for batch in self.done if batch.where == where), default=None)


def log_of(kafka: KafkaSettings, instance: str = "a") -> KafkaLog:
    return KafkaLog(kafka, batch_events=AT_ONCE.batch_events, instance=instance)


@asynccontextmanager
async def opened(kafka: KafkaSettings, instance: str = "a") -> AsyncIterator[KafkaLog]:
    log = log_of(kafka, instance)
    try:
        yield log
    finally:
        await log.close()


async def assigned(log: KafkaLog, count: int, timeout_s: float = 15) -> Sequence[Partition]:
    """Wait until the group has dealt this planner so many partitions."""
    async with asyncio.timeout(timeout_s):
        while len(found := await log.partitions()) != count:  # noqa: ASYNC110 - the broker is waited for
            await asyncio.sleep(0.02)
    return found


async def until_end(log: KafkaLog, where: Partition, end: int) -> None:
    """A commit is acknowledged when it is decided; its marker comes a moment later."""
    async with asyncio.timeout(10):
        while await log.partitions() and await log.end(where) != end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def where_of(kafka: KafkaSettings, number: int = 0) -> Partition:
    return Partition(kafka.requests_topic, number)


async def filled(kafka: KafkaSettings, tmp_path: Path, count: int, start: int = 0) -> None:
    folder = await fill(tmp_path / "spool", [payload(number) for number in range(start, start + count)])
    await asyncio.to_thread(ship, folder, kafka, SMALL_BATCHES)


def disjoint(batches: Sequence[Batch]) -> bool:
    """Whether no offset stands in two batches that are not the same batch."""
    ordered = sorted(set(batches), key=lambda b: (b.partition, b.first, b.last))
    return all(one.partition != next_.partition or one.last < next_.first for one, next_ in pairwise(ordered))


# The planner's side.


async def test_the_end_is_where_every_transaction_before_is_decided(kafka: KafkaSettings) -> None:
    async with opened(kafka) as log, producing(kafka, f"{kafka.group_prefix}.x") as producer:
        await assigned(log, 3)
        await transaction(producer, kafka, [payload(0), payload(1)])
        await until_end(log, where_of(kafka), 3)  # two events and the marker
        await producer.begin_transaction()
        await producer.send_and_wait(kafka.requests_topic, payload(2), partition=0)
        await asyncio.sleep(0.2)
        await log.partitions()
        assert await log.end(where_of(kafka)) == 3
        await producer.commit_transaction()
        await until_end(log, where_of(kafka), 5)


async def test_no_payload_is_fetched_by_a_planner(kafka: KafkaSettings, tmp_path: Path) -> None:
    await filled(kafka, tmp_path, 1000)
    async with opened(kafka) as log:
        await assigned(log, 3)
        await asyncio.sleep(0.3)
        assert log._consumer is not None
        assert log._consumer.paused() == log._consumer.assignment()
        assert not log._consumer._fetcher._records


async def test_a_plan_is_loaded_as_it_was_saved(kafka: KafkaSettings) -> None:
    where = where_of(kafka)
    async with opened(kafka) as log:
        await assigned(log, 3)
        assert await log.load_plan(where) is None
        await log.save_plan(where, Plan(committed=5, cuts=(15, 20)))
    async with opened(kafka) as again:
        await assigned(again, 3)
        assert await again.load_plan(where) == Plan(committed=5, cuts=(15, 20))


async def test_a_plan_is_not_saved_without_having_been_loaded(kafka: KafkaSettings) -> None:
    async with opened(kafka) as log:
        await assigned(log, 3)
        with pytest.raises(PlanMoved):
            await log.save_plan(where_of(kafka), Plan(committed=5))


async def test_a_restarted_planner_has_its_partitions_again_at_once(kafka: KafkaSettings) -> None:
    """Static membership: nobody else is dealt them in between, and nobody waits for a session to end."""
    slow = kafka.model_copy(update={"session_timeout_s": 30})
    async with opened(slow) as log:
        await assigned(log, 3)
    began = time.monotonic()
    async with opened(slow) as again:
        await assigned(again, 3)
    assert time.monotonic() - began < 10


async def test_a_planner_thought_dead_can_write_nothing(kafka: KafkaSettings) -> None:
    where = where_of(kafka)

    async def successor() -> None:
        async with opened(kafka, "b") as log:
            await assigned(log, 3)
            await log.load_plan(where)
            await log.save_plan(where, Plan(committed=0, cuts=(7,)))

    async with opened(kafka, "a") as log:
        await assigned(log, 3)
        await log.load_plan(where)
        thread = threading.Thread(target=lambda: asyncio.run(successor()))
        thread.start()
        thread.join()  # on the loop: no heartbeat leaves it meanwhile
        with pytest.raises(PlanMoved):
            await log.save_plan(where, Plan(committed=0, cuts=(3,)))
        assert await committed(kafka, planner_group(kafka), [where]) is not None
    async with opened(kafka, "c") as third:
        await assigned(third, 3, timeout_s=30)
        assert await third.load_plan(where) == Plan(committed=0, cuts=(7,))


async def test_a_plan_from_before_a_rebalance_is_refused_even_when_the_partition_came_back(
    kafka: KafkaSettings,
) -> None:
    """What stands in memory may be older than what another planner wrote in between."""
    where = where_of(kafka)
    async with opened(kafka, "a") as log:
        await assigned(log, 3)
        await log.load_plan(where)
        async with opened(kafka, "b") as other:
            async with asyncio.timeout(15):
                while not await other.partitions() or len(await log.partitions()) == 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        await assigned(log, 3, timeout_s=20)  # the other's session has ended
        with pytest.raises(PlanMoved):
            await log.save_plan(where, Plan(committed=9))
        assert await log.load_plan(where) is None
        await log.save_plan(where, Plan(committed=1))


async def test_deleted_offsets_that_were_not_planned_stop_the_partition_with_a_report(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    await filled(kafka, tmp_path, 900)
    where = where_of(kafka)
    ledger, handed = MemoryLedger(), list[Batch]()
    async with opened(kafka) as log:
        await assigned(log, 3)
        assert await log.load_plan(where) is None
        await log.save_plan(where, Plan(committed=10))
        async with admin(kafka) as client:
            await client.delete_records({TopicPartition(*where): RecordsToDelete(30)})
        log._starts_at = float("-inf")
        planner = Planner(log, ledger, handed.append, AT_ONCE)
        for _ in range(3):
            with pytest.raises(LogGap, match=r"offsets 10 to 29 \(20 of them\) were deleted before they were planned"):
                await planner.turn()
            await asyncio.sleep(0.01)
    assert not [batch for batch in handed if batch.where == where]
    assert [batch for batch in handed if batch.where != where]  # the other partitions go on


async def test_a_lost_plan_is_not_begun_afresh(kafka: KafkaSettings, tmp_path: Path) -> None:
    """Kafka forgets the offsets of a group that was away for a week. Other boundaries would count twice."""
    await filled(kafka, tmp_path, 900)
    ledger, handed = MemoryLedger(), list[Batch]()
    ledger.confirm(Batch(kafka.requests_topic, 0, 0, 99))
    async with opened(kafka) as log:
        await assigned(log, 3)
        with pytest.raises(LogGap, match=r"the plan of .* is gone, but the ledger has batches up to offset 99"):
            await Planner(log, ledger, handed.append, AT_ONCE).turn()


async def test_a_pause_is_lifted_from_outside_the_group(kafka: KafkaSettings) -> None:
    where, pauses = where_of(kafka), KafkaPauses(kafka)
    async with opened(kafka) as log:
        await assigned(log, 3)
        await log.load_plan(where)
        await log.save_plan(where, Plan(committed=5, cuts=(9,), paused="too many died", paused_ms=1))
        assert await log.resumed(where) is None
        assert await pauses.paused(where) == "too many died"
        assert await resume(pauses) == ["too many died"]
        log._resumed_at = float("-inf")
        assert await log.resumed(where) == 1
        assert await pauses.paused(where) is None
        assert await resume(pauses) == []
        await log.save_plan(where, Plan(committed=9, cuts=(12,), paused="again", paused_ms=2))
        assert await pauses.paused(where) == "again"
        log._resumed_at = float("-inf")
        assert await log.resumed(where) == 1


async def test_a_resume_holds_while_a_batch_settles_and_the_plan_is_written_anew(kafka: KafkaSettings) -> None:
    where, pauses = where_of(kafka), KafkaPauses(kafka)
    plan = Plan(committed=5, cuts=(9,), paused="too many died")
    async with opened(kafka) as log:
        await assigned(log, 3)
        await log.load_plan(where)
        await log.save_plan(where, plan)
        assert await resume(pauses) == ["too many died"]
        await log.save_plan(where, msgspec.structs.replace(plan, committed=9, cuts=()))
        assert await pauses.paused(where) is None


async def test_a_broker_away_is_told_in_time_and_planning_goes_on_when_it_is_back(
    broker: RunningKafka, kafka: KafkaSettings
) -> None:
    where = where_of(kafka)
    async with opened(kafka) as log:
        await assigned(log, 3)
        await log.load_plan(where)
        await log.save_plan(where, Plan(committed=0, cuts=(10,)))
        broker.child.kill()
        try:
            began = time.monotonic()
            with pytest.raises(LogUnavailable):
                await log.partitions()
            assert time.monotonic() - began < kafka.call_timeout_s + 3
        finally:
            broker.child.start()  # from this thread: a child of ours ends with the thread that started it
        async with asyncio.timeout(40):
            while True:
                try:
                    if len(await log.partitions()) == 3:
                        plan = await log.load_plan(where)
                        break
                except LogUnavailable:
                    pass
                await asyncio.sleep(0.1)
        assert plan == Plan(committed=0, cuts=(10,))


# Planner and log together.


async def test_a_restarted_planner_gives_the_same_boundaries(kafka: KafkaSettings, tmp_path: Path) -> None:
    await filled(kafka, tmp_path, 300)
    handed: list[list[Batch]] = []
    for _ in range(2):
        async with opened(kafka) as log:
            await assigned(log, 3)
            handed.append([])
            planner = Planner(log, MemoryLedger(), handed[-1].append, AT_ONCE)
            for _ in range(3):
                await planner.turn()
                await asyncio.sleep(0.01)
    # The last transaction's marker may have come in between, as one more batch.
    assert len(handed[0]) > 30
    assert set(handed[0]) <= set(handed[1])
    assert disjoint(handed[1])
    assert sum(batch.next_offset - batch.first for batch in handed[1]) == sum((await ends(kafka)).values())


async def test_a_rebalance_with_batches_in_flight_counts_nothing_twice_and_loses_nothing(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    """Planners come and go while batches are cut, handed out and confirmed late."""
    ledger, handed = MemoryLedger(), list[Batch]()
    planners: dict[str, tuple[Planner, asyncio.Task[None], KafkaLog]] = {}

    async def join(name: str) -> None:
        log = log_of(kafka, name)
        planner = Planner(log, ledger, handed.append, AT_ONCE.model_copy(update={"overdue_s": 1.0}))
        planners[name] = (planner, asyncio.create_task(planner.run()), log)

    async def leave(name: str) -> None:
        planner, task, log = planners.pop(name)
        planner.stop()
        await task
        await log.close()

    async def work() -> None:
        while True:
            for batch in handed[-40:-20]:
                ledger.confirm(batch)
            await asyncio.sleep(0.05)

    working = asyncio.create_task(work())
    try:
        await join("a")
        for step in range(6):
            await filled(kafka, tmp_path, 200, start=step * 200)
            if step == 1:
                await join("b")
            elif step == 3:
                await leave("a")
            elif step == 4:
                await join("c")
            await asyncio.sleep(0.7)

        async def all_done() -> bool:
            for batch in list(handed):
                ledger.confirm(batch)
            found = await committed(kafka, planner_group(kafka), None)
            return {where.number: plan.offset for where, plan in found.items()} == await ends(kafka)

        async with asyncio.timeout(30):
            while not await all_done():  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    finally:
        working.cancel()
        for name in list(planners):
            await leave(name)
    assert disjoint(handed)
    total = sum(batch.next_offset - batch.first for batch in set(handed))
    assert total == sum((await ends(kafka)).values())


# The worker's side.


@pytest.fixture
def reader(kafka: KafkaSettings) -> Iterator[KafkaReader]:
    one = KafkaReader(kafka)
    yield one
    one.close()


def read(reader: KafkaReader, kafka: KafkaSettings, first: int, last: int) -> list[bytes]:
    return [record.payload for record in reader.read(Batch(kafka.requests_topic, 0, first, last))]


def put(kafka: KafkaSettings, *groups: Sequence[int], abort: Sequence[int] = ()) -> None:
    """One transaction for each group, in partition 0; those whose places are in `abort` are aborted."""

    async def run() -> None:
        async with producing(kafka, f"{kafka.group_prefix}.put") as producer:
            for place, group in enumerate(groups):
                await transaction(producer, kafka, [payload(n) for n in group], abort=place in abort)

    asyncio.run(run())


def test_markers_and_aborted_records_are_holes(kafka: KafkaSettings, reader: KafkaReader) -> None:
    put(kafka, [0, 1], [2, 3], [4], abort=[1])
    # 0 1 marker | 2 3 aborted, marker | 4 marker: offsets 0 to 7.
    found = reader.read(Batch(kafka.requests_topic, 0, 0, 7))
    assert [(record.offset, int(record.payload[:8])) for record in found] == [(0, 0), (1, 1), (6, 4)]


def test_a_range_of_nothing_but_holes_is_empty_and_ends_at_once(kafka: KafkaSettings, reader: KafkaReader) -> None:
    put(kafka, [0, 1], [2, 3], [4], abort=[1])
    read(reader, kafka, 0, 0)
    began = time.monotonic()
    assert read(reader, kafka, 2, 2) == []  # a marker
    assert read(reader, kafka, 3, 5) == []  # an aborted transaction, whole
    assert read(reader, kafka, 7, 7) == []  # the last marker there is
    assert time.monotonic() - began < 1


def test_a_range_is_read_whatever_was_read_before(kafka: KafkaSettings, reader: KafkaReader) -> None:
    put(kafka, range(100))
    for first, last in ((50, 59), (0, 9), (9, 9), (90, 99), (0, 99), (99, 99)):
        assert [int(one[:8]) for one in read(reader, kafka, first, last)] == list(range(first, last + 1))


def test_a_batch_read_again_is_byte_for_byte_the_same(kafka: KafkaSettings, tmp_path: Path) -> None:
    asyncio.run(filled(kafka, tmp_path, 2000))
    digests = set()
    for _ in range(2):
        reader = KafkaReader(kafka)
        for _ in range(3):
            digest = hashlib.sha256()
            for partition, end in asyncio.run(ends(kafka)).items():
                for record in reader.read(Batch(kafka.requests_topic, partition, 3, end - 2)):
                    digest.update(b"%d" % record.offset + record.payload)
            digests.add(digest.hexdigest())
        reader.close()
    assert len(digests) == 1


def test_a_range_larger_than_one_fetch_is_read_whole(kafka: KafkaSettings) -> None:
    small = kafka.model_copy(update={"fetch_bytes": 16 * 1024})
    put(kafka, range(500), range(500, 1000))
    reader = KafkaReader(small)
    assert len(read(reader, kafka, 0, 1001)) == 1000
    reader.close()


def test_a_range_that_was_deleted_is_a_gap_not_silence(kafka: KafkaSettings, reader: KafkaReader) -> None:
    put(kafka, range(100))

    async def delete() -> None:
        async with admin(kafka) as client:
            await client.delete_records({TopicPartition(kafka.requests_topic, 0): RecordsToDelete(50)})

    asyncio.run(delete())
    with pytest.raises(LogGap, match="the oldest there is 50"):
        read(reader, kafka, 40, 59)
    with pytest.raises(LogGap):
        read(reader, kafka, 1000, 1001)
    assert len(read(reader, kafka, 50, 59)) == 10


def test_a_reader_outlives_a_broker_that_was_away(broker: RunningKafka, kafka: KafkaSettings) -> None:
    put(kafka, range(100))
    quick = kafka.model_copy(update={"call_timeout_s": 2.0})
    reader = KafkaReader(quick)
    assert len(read(reader, kafka, 0, 49)) == 50
    broker.child.kill()
    try:
        began = time.monotonic()
        with pytest.raises(LogUnavailable):
            read(reader, kafka, 50, 99)
        assert time.monotonic() - began < 10
    finally:
        broker.child.start()
    for _ in range(20):
        try:
            assert len(read(reader, kafka, 50, 99)) == 50
            break
        except LogUnavailable:
            time.sleep(0.5)
    else:
        pytest.fail("never came back")
    reader.close()


async def test_what_the_shipper_wrote_is_what_plain_consumers_read(kafka: KafkaSettings, tmp_path: Path) -> None:
    await filled(kafka, tmp_path, 300)
    async with reading(kafka) as consumer:
        wheres = [TopicPartition(kafka.requests_topic, number) for number in range(3)]
        consumer.assign(wheres)
        for where in wheres:
            consumer.seek(where, 0)
        found: list[int] = []
        async with asyncio.timeout(10):
            while len(found) < 300:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += [int(record.value[:8]) for record in records]
    assert sorted(found) == list(range(300))
