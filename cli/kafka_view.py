"""Kafka and the way into it as control's pipeline page sees them: partitions and plans, and every spool's position.

A spool of another machine is known by its shipper's position alone. What such a spool still holds stands on that
machine's Prometheus page.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError

from cli.spool_view import created_ms
from control.pipeline import PartitionView, ShippedSpool
from ingest.kafka_client import close, connection, unavailable_as_ours
from ingest.kafka_log import planner_group
from ingest.kafka_plan import from_metadata
from ingest.log import Plan
from ingest.shipper import shipper_group
from ingest.spool import dropped_events
from ingest.spool_log import SpoolLog, SpoolReader, spools
from ingest.spool_plan import read_plan
from schemas.batch import Partition
from schemas.settings import KafkaSettings

T = TypeVar("T")

_ELSEWHERE_EVERY_S = 5.0
"""Positions of other machines' spools, one question each, are asked for no oftener."""
_AT_ONCE = 8
_FIRST_BYTES = 64 * 1024
_POLL_MS = 50


class _Created(msgspec.Struct):
    created_ms: int


_created = msgspec.msgpack.Decoder(_Created)


class KafkaView:
    """`control.pipeline.LogView`. Connects at the first question, and again after each loss. For one event loop."""

    def __init__(self, settings: KafkaSettings, root: Path) -> None:
        """
        Args:
            root: of the spools of this machine, where it has any.
        """
        self._settings = settings
        self._root = root
        self._log = SpoolLog(root, batch_events=1, batch_bytes=1)
        self._reader = SpoolReader(root)
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._ends: dict[TopicPartition, int] = {}
        self._elsewhere: dict[str, int] = {}
        self._elsewhere_at = float("-inf")

    async def partitions(self) -> Sequence[PartitionView]:
        try:
            consumer, admin = await self._connected()
            async with unavailable_as_ours("looking at the topic", self._settings.call_timeout_s):
                (described,) = await admin.describe_topics([self._settings.requests_topic])
                wheres = [
                    TopicPartition(self._settings.requests_topic, found["partition"])
                    for found in described["partitions"]
                ]
                self._assign(consumer, wheres)
                starts = await consumer.beginning_offsets(wheres)
                self._ends = await consumer.end_offsets(wheres)
            plans = await self._patiently(
                "reading the plans",
                lambda: admin.list_consumer_group_offsets(planner_group(self._settings), partitions=wheres),
            )
        except BaseException:
            await self.close()
            raise
        views = []
        for where in wheres:
            written = plans.get(where)
            # Where planning has not begun, it will at the oldest event.
            if written is None or written.offset < 0:
                plan = Plan(committed=starts[where])
            else:
                plan = from_metadata(written.offset, written.metadata)
            # The plans were read after the ends.
            end = max(self._ends[where], plan.planned)
            views.append(PartitionView(Partition(*where), starts[where], end, plan))
        return views

    async def spools(self) -> Sequence[ShippedSpool]:
        here = {partition.topic.removeprefix("spool/"): (partition, folder) for partition, folder in self._here()}
        try:
            positions = await self._positions(here)
        except BaseException:
            await self.close()
            raise
        found = [ShippedSpool(id_, position) for id_, position in positions.items() if id_ not in here]
        await self._log.partitions()
        for id_, (partition, folder) in here.items():
            shipped = max(positions.get(id_, 0), read_plan(folder).committed)
            end = max(shipped, await self._log.end(partition))
            oldest_ms = created_ms(self._reader, partition, shipped) if end > shipped else None
            found.append(ShippedSpool(id_, shipped, end, oldest_ms))
        return sorted(found, key=lambda spool: spool.id)

    async def dropped(self) -> int:
        return sum(dropped_events(folder) for _, folder in self._here())

    async def oldest_ms(self, first: Mapping[Partition, int]) -> int | None:
        consumer, _ = await self._connected()
        left = {TopicPartition(*partition) for partition in first} & set(self._ends)
        for where in left:
            consumer.seek(where, first[Partition(*where)])
        oldest: int | None = None
        try:
            async with unavailable_as_ours("reading the oldest events", self._settings.call_timeout_s):
                consumer.resume(*left)
                while left:
                    for where, records in (await consumer.getmany(*left, timeout_ms=_POLL_MS)).items():
                        for record in records:
                            with suppress(msgspec.MsgspecError, ValueError):
                                at_ms = _created.decode(record.value or b"").created_ms
                                oldest = at_ms if oldest is None else min(oldest, at_ms)
                                break
                        if records:
                            left.discard(where)
                    # Where only markers stand there is no event to wait for.
                    left -= {where for where in left if await consumer.position(where) >= self._ends[where]}
        except BaseException:
            await self.close()
            raise
        consumer.pause(*consumer.assignment())
        return oldest

    async def close(self) -> None:
        consumer, admin = self._consumer, self._admin
        self._consumer = self._admin = None
        if consumer is not None:
            await close(consumer.stop, consumer._client.close)
        if admin is not None:
            await close(admin.close)

    def _here(self) -> Collection[tuple[Partition, Path]]:
        return spools(self._root).items()

    async def _positions(self, here: Collection[str]) -> dict[str, int]:
        """The next offset to ship, by spool."""
        _, admin = await self._connected()
        loop = asyncio.get_running_loop()
        if loop.time() - self._elsewhere_at > _ELSEWHERE_EVERY_S:
            groups = await self._patiently("listing the shippers' groups", admin.list_consumer_groups)
            prefix = shipper_group(self._settings, "")
            known = {name.removeprefix(prefix) for name, *_ in groups if name.startswith(prefix)}
            self._elsewhere = await self._asked(admin, known - set(here))
            self._elsewhere_at = loop.time()
        return self._elsewhere | await self._asked(admin, here)

    async def _asked(self, admin: AIOKafkaAdminClient, ids: Collection[str]) -> dict[str, int]:
        where = TopicPartition(self._settings.requests_topic, 0)
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def ask(id_: str) -> int:
            async with at_once:
                found = await self._patiently(
                    "reading a shipper's position",
                    lambda: admin.list_consumer_group_offsets(shipper_group(self._settings, id_), partitions=[where]),
                )
                return int(found[where].offset) if where in found else -1

        positions = await asyncio.gather(*map(ask, ids))
        return {id_: position for id_, position in zip(ids, positions, strict=True) if position >= 0}

    async def _patiently(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again while a broker is only just taking a group over, or making the first of all."""
        async with unavailable_as_ours(what, self._settings.call_timeout_s):
            while True:
                try:
                    return await ask()
                except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError):
                    await asyncio.sleep(self._settings.retry_backoff_ms / 1000)

    async def _connected(self) -> tuple[AIOKafkaConsumer, AIOKafkaAdminClient]:
        if self._consumer is None or self._admin is None:
            self._consumer = AIOKafkaConsumer(
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_partition_fetch_bytes=_FIRST_BYTES,
                fetch_max_wait_ms=_POLL_MS,
                **connection(self._settings),
            )
            self._admin = AIOKafkaAdminClient(**connection(self._settings))
            async with unavailable_as_ours("connecting", self._settings.call_timeout_s):
                await self._consumer.start()
                await self._admin.start()
        return self._consumer, self._admin

    def _assign(self, consumer: AIOKafkaConsumer, wheres: Sequence[TopicPartition]) -> None:
        """Know these partitions without reading ahead in them."""
        if consumer.assignment() != set(wheres):
            consumer.assign(wheres)
            for where in wheres:
                consumer.seek(where, 0)
            consumer.pause(*wheres)
