"""Short hands for the Kafka tests: what stands in a topic, events in a spool, a shipper that runs beside the test."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ingest.kafka_client import connection
from ingest.kafka_reader import KafkaReader
from ingest.log import Record
from ingest.objects import Objects
from ingest.shipper import Shipper
from ingest.spool import open_spool
from schemas.batch import Batch
from schemas.settings import KafkaSettings, ObjectSettings, ShipperSettings, SpoolSettings

QUICK = ShipperSettings(linger_ms=1, poll_ms=2, retry_s=0.2)


def payload(number: int, size: int = 200) -> bytes:
    return f"{number:08d}".encode().ljust(size, b".")


def number_of(record: bytes) -> int:
    return int(record[:8])


async def fill(root: Path, payloads: Sequence[bytes], settings: SpoolSettings | None = None) -> Path:
    """Append to the root's spool and close it; gives its folder."""
    spool = open_spool(root, settings or SpoolSettings(linger_ms=1, segment_bytes=64 * 1024))
    for place, one in enumerate(payloads):
        assert spool.append(one)
        if spool.crowded:
            await spool.room()
        if place % 100 == 0:
            await asyncio.sleep(0.002)
    await spool.close()
    return spool.folder


def shipper(folder: Path, kafka: KafkaSettings, settings: ShipperSettings = QUICK) -> Shipper:
    return Shipper(folder, kafka, settings, Objects(ObjectSettings(), folder.parent.parent))


def ship(folder: Path, kafka: KafkaSettings, settings: ShipperSettings = QUICK) -> None:
    """Ship all there is."""
    one = shipper(folder, kafka, settings)
    one.stop()
    one.run()


class Beside:
    """A shipper in a thread."""

    def __init__(self, one: Shipper) -> None:
        self.shipper = one
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended(self, timeout_s: float = 20) -> BaseException | None:
        """Why it ended, waited for."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the shipper goes on"
        return self.error

    def _run(self) -> None:
        try:
            self.shipper.run()
        except BaseException as error:  # told by `ended`
            self.error = error


@contextmanager
def shipping(one: Shipper) -> Iterator[Beside]:
    beside = Beside(one)
    try:
        yield beside
    finally:
        one.stop()
        beside.ended()


async def ends(kafka: KafkaSettings) -> dict[int, int]:
    """Of each partition, below which every transaction is decided."""
    async with reading(kafka) as consumer:
        wheres = [TopicPartition(kafka.requests_topic, number) for number in range(kafka.partitions)]
        found = await consumer.end_offsets(wheres)
        return {where.partition: end for where, end in found.items()}


def in_kafka(kafka: KafkaSettings) -> list[Record]:
    """Every committed record of the requests' topic."""
    records: list[Record] = []
    reader = KafkaReader(kafka)
    try:
        for partition, end in asyncio.run(ends(kafka)).items():
            if end:
                records += reader.read(Batch(kafka.requests_topic, partition, 0, end - 1))
    finally:
        reader.close()
    return records


def numbers(records: Sequence[Record]) -> list[int]:
    return sorted(number_of(record.payload) for record in records)


@asynccontextmanager
async def reading(kafka: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(isolation_level="read_committed", enable_auto_commit=False, **connection(kafka))
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def producing(kafka: KafkaSettings, transactional_id: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(transactional_id=transactional_id, **connection(kafka))
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def transaction(
    producer: AIOKafkaProducer,
    kafka: KafkaSettings,
    payloads: Sequence[bytes],
    *,
    partition: int = 0,
    abort: bool = False,
) -> None:
    """Send these in one transaction, one after the other."""
    await producer.begin_transaction()
    for one in payloads:
        await producer.send_and_wait(kafka.requests_topic, one, partition=partition)
    await (producer.abort_transaction() if abort else producer.commit_transaction())


def wait_for(what: Callable[[], bool], timeout_s: float = 20) -> None:
    ended = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if what():
            return
        ended.wait(0.02)
    raise AssertionError("waited in vain")
