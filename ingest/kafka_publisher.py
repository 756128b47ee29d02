"""Publishes messages in Kafka, for workers: an idempotent producer kept for the life of a worker process.

All or nothing is known: when `publish` returns, every copy that must have a message has it; when it raises, any part of
them may be there, and publishing the same again is right. A consumer knows a repeat by its key.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2

from ingest.kafka_client import close, connection, unavailable_as_ours
from ingest.kafka_thread import CLOSE_S, KafkaThread
from schemas.settings import KafkaSettings

_BATCH_BYTES = 512 * 1024
"""Of one batch of records before compression; a topic takes at least 1 MiB."""


class Message(NamedTuple):
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()


class KafkaPublisher:
    """Blocking, for one thread at a time. Connects at the first message, anew after each failure."""

    def __init__(self, settings: KafkaSettings, thread: KafkaThread) -> None:
        """
        Args:
            thread: shared with others of this process, and theirs to close.
        """
        self._settings = settings
        self._thread = thread
        self._producer: AIOKafkaProducer | None = None

    def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """
        Raises:
            LogUnavailable: not all of them are known to be there; publish the same again.
        """
        if not messages:
            return
        timeout_s = self._settings.call_timeout_s + 2 * CLOSE_S
        try:
            self._thread.run(self._publish(topic, messages), timeout_s)
        except BaseException:
            # What a producer has left undone it would go on with: the next begins with a new one.
            self._thread.run(self._disconnect(), timeout_s)
            raise

    def close(self) -> None:
        if not self._thread.closed:
            self._thread.run(self._disconnect(), self._settings.call_timeout_s + 2 * CLOSE_S)

    async def _publish(self, topic: str, messages: Sequence[Message]) -> None:
        async with unavailable_as_ours(f"publishing in {topic}", self._settings.call_timeout_s):
            producer = await self._connected()
            numbers = sorted(await producer.partitions_for(topic))
            sent: list[asyncio.Future[Any]] = []
            batches = {number: producer.create_batch() for number in numbers}
            now_ms = time.time_ns() // 1_000_000
            for key, value, headers in messages:
                # As every client of Kafka does it, so that whoever knows a key finds its partition.
                number = numbers[(murmur2(key) & 0x7FFFFFFF) % len(numbers)]
                told = list(headers)
                if batches[number].append(timestamp=now_ms, key=key, value=value, headers=told) is None:
                    sent.append(await producer.send_batch(batches[number], topic, partition=number))
                    batches[number] = producer.create_batch()
                    appended = batches[number].append(timestamp=now_ms, key=key, value=value, headers=told)
                    assert appended is not None, "a batch takes at least one record"
            for number, batch in batches.items():
                if batch.record_count():
                    sent.append(await producer.send_batch(batch, topic, partition=number))
            await asyncio.gather(*sent)

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                enable_idempotence=True,
                compression_type="zstd",
                max_batch_size=_BATCH_BYTES,
                max_request_size=self._settings.record_bytes_max,
                **connection(self._settings),
            )
            await self._producer.start()
        return self._producer

    async def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await close(producer.stop, producer.client.close)
