"""The shipper: one spool's events into Kafka, each exactly once, in Kafka transactions.

One turn:

1. Read on in the spool. Large bodies go to the object store, under names that a repeat would give again.
2. Begin a transaction; send the events in batches of records.
3. Meanwhile write down beside the spool how far it reaches. Offsets up to there are never given out again, even when
   power loss cuts the spool's file, since Kafka will then say that they are done.
4. Send the new position into the same transaction, and commit. Events and position come true together or not at all.
5. Free the spool's files before it.

At start the order is: sign in as the spool's `transactional.id`, which ends what a predecessor left open and shuts it out
for good; only then read the position. Whatever goes wrong in between ends the session: the next begins like that.

**Partitions.** Events have no key. Nothing after this needs an order between two of them: a row is written once, what
comes later is joined on read. A key by project or user would make one partition as hot as its biggest customer. So each
batch of records goes whole to the partition that got the fewest bytes so far: even by construction, and a transaction of
a few events touches one partition, which means one marker instead of a dozen.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced

from ingest import metrics
from ingest.kafka_client import admin, close, connection, told, unavailable_as_ours
from ingest.log import LogError, LogGap, LogUnavailable, Plan, Record
from ingest.moment import Moment
from ingest.objects import Objects, large_bodies, without_bodies
from ingest.spool_log import free
from ingest.spool_plan import read_plan, spool_shipper, write_plan
from ingest.spool_tail import SpoolTail
from ingest.spool_watch import SpoolWatch
from schemas.event import BadEvent, pack, unpack
from schemas.settings import KafkaSettings, ShipperSettings

log = logging.getLogger("heliograph.shipper")

CORRUPT = "corrupt"
"""Header of a record whose event was damaged or lost in the spool; its value is what is left."""

_ENVELOPE_BYTES = 1024
"""Room for a record's own framing within the topic's largest batch."""


def shipper_group(settings: KafkaSettings, spool_id: str) -> str:
    """Of a spool's position: a group of its own, so that any number of spools need no partition of their own."""
    return f"{settings.group_prefix}.shipper.{spool_id}"


class Fenced(LogError):
    """Another shipper has claimed this spool since. This one must end; the other goes on from the same position."""


class Shipper:
    """Ships one spool. `run` blocks; `stop` may be called from any thread or signal handler."""

    def __init__(self, folder: Path, kafka: KafkaSettings, settings: ShipperSettings, objects: Objects) -> None:
        self.folder = folder
        self.id = (folder / "id").read_text().strip()
        self.group = shipper_group(kafka, self.id)
        self._kafka = kafka
        self._settings = settings
        self._objects = objects
        self._tail = SpoolTail(folder)
        self._watch = SpoolWatch(folder)
        self._stopping = threading.Event()
        self._stop_at = 0.0
        self._trouble = False

    def stop(self) -> None:
        """Ship what is in the spool, for at most `drain_s`, then end."""
        self._stop_at = time.monotonic() + self._settings.drain_s
        self._stopping.set()

    def run(self) -> None:
        """Ship until `stop`. A broker or an object store that is away is said once and waited for.

        Raises:
            Fenced: another shipper has this spool.
            LogGap: what is to be shipped is no longer in the spool, or Kafka and the spool contradict each other.
            LogError: another process of this machine has the spool.
        """
        with spool_shipper(self.folder), self._watch:
            # Kafka has the last word, but may be away: until then the lag is told from the spool's own note.
            self._watch.shipped(read_plan(self.folder).committed)
            while True:
                try:
                    # A loop for each session: it takes with it whatever the client still has running. The client's
                    # own `stop` waits for brokers that may never come back.
                    asyncio.run(self._session())
                    return
                except (LogUnavailable, KafkaError, OSError) as error:
                    self._note_trouble(error)
                finally:
                    self._tail.close()
                if self._stopping.is_set() and time.monotonic() + self._settings.retry_s >= self._stop_at:
                    log.warning("stopped with events left in the spool", extra={"spool": self.folder.name})
                    return
                time.sleep(self._settings.retry_s)

    async def _session(self) -> None:
        """From signing in to the first trouble, or the stop."""
        asyncio.get_running_loop().set_exception_handler(_told_elsewhere)
        producer = AIOKafkaProducer(
            transactional_id=f"{self._kafka.group_prefix}.shipper.{self.id}",
            transaction_timeout_ms=int(self._kafka.transaction_timeout_s * 1000),
            compression_type=None if self._settings.compression == "none" else self._settings.compression,
            max_batch_size=self._settings.batch_bytes,
            max_request_size=self._kafka.record_bytes_max,
            **connection(self._kafka),
        )
        try:
            async with unavailable_as_ours("signing in as the spool's shipper", self._kafka.call_timeout_s):
                await producer.start()
                partitions = await producer.partitions_for(self._kafka.requests_topic)
            spread = Spread(sorted(partitions))
            position = await self._first_position(producer)
            self._tail.seek(position)
            self._watch.shipped(position)
            await self._ship(producer, spread)
        finally:
            await close(producer.stop, producer.client.close)

    async def _ship(self, producer: AIOKafkaProducer, spread: "Spread") -> None:
        settings = self._settings
        settled = True
        while True:
            began = time.monotonic()
            records = self._tail.read(events_max=settings.transaction_events, bytes_max=settings.transaction_bytes)
            if records:
                await self._transaction(producer, spread, records)
                settled = False
                if len(records) == settings.transaction_events and not self._stopping.is_set():
                    continue
            else:
                if not settled:
                    self._settle()
                    settled = True
                if self._stopping.is_set():
                    return
            if self._stopping.is_set() and time.monotonic() >= self._stop_at:
                self._settle()
                log.warning("stopped with events left in the spool", extra={"spool": self.folder.name})
                return
            pause_s = (settings.linger_ms if records else settings.poll_ms) / 1000
            await asyncio.sleep(max(0.0, pause_s - (time.monotonic() - began)))

    async def _transaction(self, producer: AIOKafkaProducer, spread: "Spread", records: Sequence[Record]) -> None:
        """Steps 1 to 5 for these records, which end where the tail stands."""
        first, position = records[0].offset, self._tail.offset
        messages = await self._messages(records)
        began = Moment()
        try:
            async with unavailable_as_ours("shipping a transaction", self._kafka.call_timeout_s):
                await producer.begin_transaction()
                written = asyncio.to_thread(
                    write_plan, self.folder, Plan(committed=first, cuts=(position,), shipped=True)
                )
                await asyncio.gather(written, self._send(producer, spread, messages))
                await producer.send_offsets_to_transaction(
                    {TopicPartition(self._kafka.requests_topic, 0): position}, self.group
                )
                await producer.commit_transaction()
        except LogUnavailable as error:
            cause = error.__cause__
            # The broker shuts a shipper out for being late as well, and then nobody else has the spool.
            if isinstance(cause, ProducerFenced | InvalidProducerEpoch) and not began.longer_ago_than(
                self._kafka.transaction_timeout_s
            ):
                raise Fenced(
                    f"another shipper has claimed the spool {self.folder.name} ({self.id}); this one ends, the other "
                    "goes on from the same position"
                ) from cause
            raise
        self._watch.shipped(position)
        metrics.shipped_transactions.inc()
        metrics.shipped_events.inc(len(records))
        metrics.shipped_bytes.inc(sum(len(value) for value, _ in messages))
        free(self.folder, position)
        if self._trouble:
            log.info("shipping goes on", extra={"spool": self.folder.name, "position": position})
            self._trouble = False

    async def _send(self, producer: AIOKafkaProducer, spread: "Spread", messages: Sequence["Message"]) -> None:
        """Send everything and wait until it is acknowledged.

        A batch is built whole and handed over: 11 to 15 µs CPU an event of 1.4 KB, where `send` takes 26 (a future, a
        look-up and a lock for each; aiokafka 0.14, zstd, ten thousand events a transaction).
        """
        topic = self._kafka.requests_topic
        sent: list[asyncio.Future[Any]] = []
        batch, batch_bytes = producer.create_batch(), 0
        now_ms = time.time_ns() // 1_000_000
        for value, headers in messages:
            if batch.append(timestamp=now_ms, key=None, value=value, headers=headers) is None:
                sent.append(await producer.send_batch(batch, topic, partition=spread.next(batch_bytes)))
                batch, batch_bytes = producer.create_batch(), 0
                appended = batch.append(timestamp=now_ms, key=None, value=value, headers=headers)
                assert appended is not None, "a batch takes at least one record"
            batch_bytes += len(value)
        sent.append(await producer.send_batch(batch, topic, partition=spread.next(batch_bytes)))
        await asyncio.gather(*sent)

    async def _messages(self, records: Sequence[Record]) -> list["Message"]:
        """Step 1: the records as they go into Kafka, what is large moved to the object store.

        Raises:
            ObjectsUnavailable.
        """
        smallest = self._settings.large_body_bytes
        messages: list[Message] = [
            (record.payload, _CORRUPT_HEADERS if record.corrupt else _NO_HEADERS) for record in records
        ]
        large = [place for place, record in enumerate(records) if len(record.payload) > smallest]
        if large:
            at_once = asyncio.Semaphore(self._settings.objects_at_once)
            moved = await asyncio.gather(*(self._moved(records[place], at_once) for place in large))
            for place, message in zip(large, moved, strict=True):
                messages[place] = message
        return messages

    async def _moved(self, record: Record, at_once: asyncio.Semaphore) -> "Message":
        payload, corrupt = record.payload, record.corrupt
        async with at_once:
            if not corrupt:
                try:
                    event = unpack(payload)
                except BadEvent:
                    pass  # that it is none, and why, is for the dead letters to say
                else:
                    bodies = large_bodies(event, more_than=self._settings.large_body_bytes)
                    for name, body in bodies.items():
                        await self._objects.put(name, body)
                        metrics.shipped_large_bodies.inc()
                    if bodies:
                        payload = pack(without_bodies(event, list(bodies)))
            if len(payload) > self._kafka.record_bytes_max - _ENVELOPE_BYTES:
                # No topic of ours takes it, whatever it is. It must not stand in the way of all behind it.
                name = f"unshippable/{self.id}/{record.offset}"
                await self._objects.put(name, payload)
                log.error("an event is too large for Kafka and becomes a dead letter", extra={
                    "spool": self.folder.name, "offset": record.offset, "bytes": len(payload), "object": name,
                })  # fmt: skip
                return b"", _CORRUPT_HEADERS
        return payload, _CORRUPT_HEADERS if corrupt else _NO_HEADERS

    async def _first_position(self, producer: AIOKafkaProducer) -> int:
        """Where to read on, as Kafka and the spool agree on it.

        Raises:
            LogGap: they do not.
        """
        plan = read_plan(self.folder)
        position = await self._committed()
        if position is None:
            position = first_position(plan, self.folder)
            # Written down before the first event goes out: from now on no position means that it was lost.
            async with unavailable_as_ours("writing the first position", self._kafka.call_timeout_s):
                await producer.begin_transaction()
                await producer.send_offsets_to_transaction(
                    {TopicPartition(self._kafka.requests_topic, 0): position}, self.group
                )
                await producer.commit_transaction()
        return agreed_position(plan, position, self.folder)

    async def _committed(self) -> int | None:
        where = TopicPartition(self._kafka.requests_topic, 0)
        bounded = unavailable_as_ours("reading the position", self._kafka.call_timeout_s)
        async with admin(self._kafka) as client, bounded:
            found = await client.list_consumer_group_offsets(self.group, partitions=[where])
        return None if where not in found or found[where].offset < 0 else int(found[where].offset)

    def _settle(self) -> None:
        """Write down that no transaction is at hand: with that the spool stands for itself, should Kafka forget."""
        write_plan(self.folder, Plan(committed=self._tail.offset, shipped=True))

    def _note_trouble(self, error: Exception) -> None:
        metrics.shipper_retries.inc()
        detail = {"spool": self.folder.name, "error": told(error)}
        log.log(logging.DEBUG if self._trouble else logging.WARNING, "shipping waits", extra=detail)
        self._trouble = True


Header = tuple[str, bytes]
Message = tuple[bytes, Sequence[Header]]
"""A record's value and headers."""

_NO_HEADERS: list[Header] = []
_CORRUPT_HEADERS: list[Header] = [(CORRUPT, b"")]


class Spread:
    """Which partition gets the next batch: the one that got the fewest bytes. Begins anywhere, so that many shippers
    of little traffic do not all begin at the first."""

    def __init__(self, partitions: Sequence[int]) -> None:
        self._bytes = dict.fromkeys(random.sample(partitions, len(partitions)), 0)

    def next(self, size: int) -> int:
        partition = min(self._bytes, key=self._bytes.__getitem__)
        self._bytes[partition] += size
        return partition


def first_position(plan: Plan, folder: Path) -> int:
    """Where a spool begins that Kafka knows no position of. Pure.

    Raises:
        LogGap: nobody can tell.
    """
    if plan.cuts and plan.shipped:
        raise LogGap(
            f"Kafka knows no position of the spool {folder} any more, and whether its events {plan.committed} to "
            f"{plan.planned - 1} reached it is not known; see docs/operations.md, 'A spool's position is lost'"
        )
    _refuse_planned(plan, folder)
    return plan.committed


def agreed_position(plan: Plan, position: int, folder: Path) -> int:
    """The position to go on from: Kafka's, where the spool does not contradict it. Pure.

    Raises:
        LogGap: it does.
    """
    if not plan.shipped:  # the spool was the log, before or in between
        _refuse_planned(plan, folder)
        return max(position, plan.committed)
    if position > plan.planned:
        raise LogGap(
            f"the spool {folder} is older than what was shipped of it ({position} against {plan.planned}): its folder "
            "was restored from a copy, and new events would be taken for old ones; delete its 'id' file to make it a "
            "spool of its own"
        )
    if position < plan.committed:
        raise LogGap(
            f"Kafka's position of the spool {folder} ({position}) is before what was committed ({plan.committed}): the "
            "cluster has lost events, or is another one; see docs/operations.md, 'A spool's position is lost'"
        )
    return position


def _refuse_planned(plan: Plan, folder: Path) -> None:
    if plan.cuts and not plan.shipped:
        raise LogGap(
            f"the spool {folder} has batches that its own planner handed out and that are not stored yet: let "
            "'heliograph plan' finish them without HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS, then ship"
        )


def _told_elsewhere(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Futures of the client that nobody waits for any more; what mattered was raised."""
    log.debug("the client's loop", extra={"told": context.get("message")})


def ship_all(root: Path, open_shipper: Callable[[Path], Shipper], stopping: threading.Event) -> None:
    """Ship every spool below `root`, also those that are made later, until `stopping` is set.

    Raises:
        Fenced: one of the shippers was; the others have stopped in order.
        LogError: of the first that had to end, likewise.
    """
    running: dict[Path, _Running] = {}
    try:
        while not stopping.is_set():
            for identity in sorted(root.glob("edge-*/id")):
                if identity.parent not in running:
                    running[identity.parent] = _Running(open_shipper(identity.parent))
            for one in running.values():
                if not one.thread.is_alive():
                    return  # `finally` says why
            stopping.wait(_LOOK_S)
    finally:
        for one in running.values():
            one.shipper.stop()
        for one in running.values():
            one.thread.join()
        failures = [one.error for one in running.values() if one.error is not None]
        # Who is fenced must not be restarted, whatever else went wrong.
        for error in sorted(failures, key=lambda error: not isinstance(error, Fenced)):
            raise error


_LOOK_S = 1.0


class _Running:
    def __init__(self, shipper: Shipper) -> None:
        self.shipper = shipper
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"shipper-{shipper.folder.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.shipper.run()
        except BaseException as error:  # told by who joins the thread
            self.error = error
