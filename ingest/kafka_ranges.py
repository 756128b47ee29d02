"""Which offsets of Kafka a replay may read, found by time or named: those that are there, and that are behind the planner.

Before a partition's committed offset every event is in the ledger. From there on its batches are the workers' still: what
a replay stored there, they would store again.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from ingest.kafka_client import close, connection, unavailable_as_ours
from ingest.kafka_log import committed, planner_group
from ingest.log import LogError
from schemas.batch import Batch, Partition
from schemas.settings import KafkaSettings


class NothingThere(LogError):
    """What was asked for is not in Kafka, or not to be replayed. The message says what is."""


class Bounds(NamedTuple):
    """What there is of one partition."""

    start: int
    """The oldest offset."""
    end: int
    """The next offset after the newest record that anyone may read."""
    planned: int | None
    """Every event before it is in the ledger; None: no planner has had the partition."""

    @property
    def until(self) -> int:
        """Where a replay must end."""
        return min(self.end, self.start if self.planned is None else self.planned)


async def ranges_by_offset(
    settings: KafkaSettings, partition: int, *, first: int | None, last: int | None
) -> list[Batch]:
    """One range of one partition.

    Args:
        first, last: both in; None: from the oldest, to the newest that may be replayed.

    Raises:
        NothingThere: some of it is not there.
        LogUnavailable.
    """
    async with _consumer(settings) as consumer:
        where = Partition(settings.requests_topic, partition)
        bounds = (await _bounds(settings, consumer, partition))[where]
        begin = bounds.start if first is None else first
        end = bounds.until if last is None else last + 1
        if begin < bounds.start or end > bounds.end or begin > end:
            raise NothingThere(f"{where}: offsets {begin} to {end - 1} are not all there; {_there(where, bounds)}")
        if bounds.planned is None:
            raise NothingThere(f"{where} was never planned: start the planner, and every event of it is stored")
        if end > bounds.until:
            raise NothingThere(
                f"{where}: the events from offset {bounds.planned} on are still the planner's to see stored, and a "
                f"worker would store them a second time; {_there(where, bounds)}"
            )
        return [Batch(*where, begin, end - 1)] if begin < end else []


async def ranges_by_time(
    settings: KafkaSettings, *, since_ms: int | None, until_ms: int | None, partition: int | None = None
) -> list[Batch]:
    """Of each partition, what came into Kafka from `since_ms` to before `until_ms` (milliseconds since 1970), as far as
    its planner has seen it stored.

    Raises:
        NothingThere: no event came in then.
        LogUnavailable.
    """
    async with _consumer(settings) as consumer:
        found = await _bounds(settings, consumer, partition)
        firsts = await _offsets(settings, consumer, found, since_ms)
        ends = await _offsets(settings, consumer, found, until_ms)
        ranges = []
        for where, bounds in found.items():
            first = bounds.start if since_ms is None else firsts.get(where, bounds.end)
            end = bounds.end if until_ms is None else ends.get(where, bounds.end)
            if first < min(end, bounds.until):
                ranges.append(Batch(*where, first, min(end, bounds.until) - 1))
        if not ranges:
            raise NothingThere(await _why_nothing(settings, consumer, found, since_ms, until_ms))
        return ranges


async def _why_nothing(
    settings: KafkaSettings,
    consumer: AIOKafkaConsumer,
    found: Mapping[Partition, Bounds],
    since_ms: int | None,
    until_ms: int | None,
) -> str:
    asked = " ".join(
        [
            *([f"from {_shown(since_ms)}"] if since_ms is not None else []),
            *([f"before {_shown(until_ms)}"] if until_ms is not None else []),
        ]
    )
    there = "; ".join(_there(where, bounds) for where, bounds in found.items())
    async with unavailable_as_ours("looking for the oldest event", settings.call_timeout_s):
        oldest = await consumer.offsets_for_times({TopicPartition(*where): 0 for where in found})
    times = [one.timestamp for one in oldest.values() if one is not None]
    since = f"the oldest event there came in at {_shown(min(times))}" if times else "there is no event at all"
    return f"no event that may be replayed came into Kafka {asked}: {since}; {there}"


def _there(where: Partition, bounds: Bounds) -> str:
    if bounds.start == bounds.end:
        return f"{where} holds nothing"
    held = f"{where} holds {bounds.start} to {bounds.end - 1}"
    if bounds.until <= bounds.start:
        return f"{held}, none of it planned and stored"
    return f"{held}, of which {bounds.start} to {bounds.until - 1} may be replayed"


def _shown(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


async def _bounds(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, partition: int | None
) -> dict[Partition, Bounds]:
    """Of all partitions, or of one."""
    topic = settings.requests_topic
    async with unavailable_as_ours(f"looking at topic {topic}", settings.call_timeout_s):
        cluster = await consumer._client.fetch_all_metadata()
        numbers = sorted(cluster.partitions_for_topic(topic) or ())
        if not numbers:
            raise NothingThere(f"there is no topic {topic} in Kafka; run: heliograph migrate")
        if partition is not None and partition not in numbers:
            raise NothingThere(f"{topic} has no partition {partition}; it has {numbers[0]} to {numbers[-1]}")
        wheres = [TopicPartition(topic, number) for number in (numbers if partition is None else [partition])]
        starts = await consumer.beginning_offsets(wheres)
        ends = await consumer.end_offsets(wheres)
    plans = await committed(settings, planner_group(settings), [Partition(*where) for where in wheres])
    return {
        where: Bounds(
            starts[TopicPartition(*where)],
            ends[TopicPartition(*where)],
            plans[where].offset if where in plans else None,
        )
        for where in (Partition(*one) for one in wheres)
    }


async def _offsets(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, found: Mapping[Partition, Bounds], at_ms: int | None
) -> dict[Partition, int]:
    """Of each partition, the first offset at or after this time; left out where there is none."""
    if at_ms is None:
        return {}
    async with unavailable_as_ours("looking for a time", settings.call_timeout_s):
        offsets = await consumer.offsets_for_times({TopicPartition(*where): at_ms for where in found})
    return {Partition(*where): one.offset for where, one in offsets.items() if one is not None}


@asynccontextmanager
async def _consumer(settings: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
    """In no group, and never polled."""
    consumer = AIOKafkaConsumer(isolation_level="read_committed", enable_auto_commit=False, **connection(settings))
    try:
        async with unavailable_as_ours("connecting", settings.call_timeout_s):
            await consumer.start()
        yield consumer
    finally:
        await close(consumer.stop, consumer._client.close)
