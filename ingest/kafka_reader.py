"""`ingest.log.RangeReader` over Kafka: a consumer kept for the life of a worker process.

A range is read by offsets alone, in no group: the planner says who reads what. Kafka's markers and the records of
aborted transactions take offsets too, so a range may end on one of them, or hold nothing else: it is at its end when the
last offset was seen or when the consumer's position has passed it.
"""

from collections.abc import Coroutine
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from ingest.kafka_client import close, connection, unavailable_as_ours
from ingest.kafka_thread import CLOSE_S, KafkaThread
from ingest.log import LogGap, Record
from ingest.shipper import CORRUPT
from schemas.batch import Batch
from schemas.settings import KafkaSettings

T = TypeVar("T")

_POLL_MS = 10
_AHEAD_MS = 50
"""Longest time a fetch beyond the end of what there is may keep the connection: the next range waits for it."""


class KafkaReader:
    """Blocking, for one thread at a time. Open it after a fork. Connects at the first read, anew after each failure."""

    def __init__(self, settings: KafkaSettings, thread: KafkaThread | None = None) -> None:
        """
        Args:
            thread: left out: one of its own. Closed with the reader.
        """
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._thread = thread or KafkaThread()

    def read(self, batch: Batch) -> list[Record]:
        try:
            return self._await(self._read(batch))
        except LogGap:
            raise
        except BaseException:
            # A task that was told to end in the middle leaves the consumer anywhere: the next begins with a new one.
            self._await(self._disconnect())
            raise

    def close(self) -> None:
        if self._thread.closed:
            return
        self._await(self._disconnect())
        self._thread.close()

    async def _read(self, batch: Batch) -> list[Record]:
        where = TopicPartition(batch.topic, batch.partition)
        async with unavailable_as_ours(f"reading {batch.token}", self._settings.call_timeout_s):
            try:
                consumer = await self._at(where, batch.first)
                return await _range(consumer, where, batch)
            except OffsetOutOfRangeError:
                assert self._consumer is not None
                oldest = (await self._consumer.beginning_offsets([where]))[where]
                raise LogGap(
                    f"batch {batch.token}: its offsets are not in Kafka; the oldest there is {oldest}"
                ) from None

    async def _at(self, where: TopicPartition, offset: int) -> AIOKafkaConsumer:
        """The consumer, standing at this place and no other."""
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",  # anything else passes over what is gone without a word
                max_partition_fetch_bytes=self._settings.fetch_bytes,
                fetch_max_wait_ms=_AHEAD_MS,
                **connection(self._settings),
            )
            self._consumer = consumer
            await consumer.start()
        if self._consumer.assignment() != {where}:
            self._consumer.assign([where])
        # Sought before it is resumed, or the client would go on where it stood.
        self._consumer.seek(where, offset)
        self._consumer.resume(where)
        return self._consumer

    async def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await close(consumer.stop, consumer._client.close)

    def _await(self, coroutine: Coroutine[None, None, T]) -> T:
        return self._thread.run(coroutine, self._settings.call_timeout_s + 2 * CLOSE_S)


async def _range(consumer: AIOKafkaConsumer, where: TopicPartition, batch: Batch) -> list[Record]:
    records: list[Record] = []
    position = batch.first
    try:
        while position <= batch.last:
            found: list[ConsumerRecord] = (await consumer.getmany(where, timeout_ms=_POLL_MS)).get(where, [])
            records += [
                Record(one.offset, one.value or b"", corrupt=any(name == CORRUPT for name, _ in one.headers))
                for one in found
                if one.offset <= batch.last
            ]
            position = await consumer.position(where)
    finally:
        # What comes next is seldom the next range of this partition: do not read ahead.
        consumer.pause(where)
    return records
