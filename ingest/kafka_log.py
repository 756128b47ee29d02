"""Kafka as a log, for planners: `ingest.log.Log` over the partitions that the consumer group has given to this one.

The group does two things. It deals the partitions out among planners, and it is the fence: a plan is saved as the group's
offset, and the broker takes it only from a member of the generation under which it was loaded. So a planner that was
thought dead, and wakes up, can write nothing. Membership is static: a planner that comes back within the session's time
has its partitions again without anybody else noticing.

Payloads are not read. The end of a partition is its last stable offset, below which every transaction is decided.
"""

import asyncio
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.errors import (
    IllegalGenerationError,
    KafkaError,
    NoError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata

from ingest import metrics
from ingest.kafka_client import admin, close, connection, unavailable_as_ours
from ingest.kafka_plan import from_metadata, mark_of, resumed_by, to_metadata
from ingest.log import LogGap, LogUnavailable, Plan, PlanMoved
from schemas.batch import Partition
from schemas.settings import KafkaSettings

_STARTS_EVERY_S = 5.0
_RESUMED_EVERY_S = 1.0
_NOT_OURS = (IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError)
_NEVER_MS = sys.maxsize


def planner_group(settings: KafkaSettings) -> str:
    return f"{settings.group_prefix}.planner"


def resume_group(settings: KafkaSettings) -> str:
    """Offsets of this group say which pauses have been lifted: who lifts one is no member of the planners' group."""
    return f"{settings.group_prefix}.planner.resume"


class _Claim(NamedTuple):
    """Under what the broker knows us to have a partition."""

    generation: int
    member_id: str


class KafkaLog:
    """One planner's membership. Belongs to one event loop. Connects at the first use, and again after each loss."""

    def __init__(self, settings: KafkaSettings, *, batch_events: int, instance: str) -> None:
        """
        Args:
            instance: this planner's name in the group, the same after a restart and no other's.
        """
        self._settings = settings
        self._batch_events = batch_events
        self._instance = instance
        self._consumer: AIOKafkaConsumer | None = None
        self._claims: dict[Partition, _Claim] = {}
        """Of each partition whose plan was loaded: as it was then."""
        self._ends: dict[Partition, int] = {}
        self._starts: dict[Partition, int] = {}
        self._starts_at = float("-inf")
        self._resumed: dict[Partition, int | None] = {}
        self._resumed_at = float("-inf")

    async def partitions(self) -> Sequence[Partition]:
        """Those assigned now, with their ends read in one question. Empty while the group is dealing anew."""
        consumer = await self._connected()
        loop = asyncio.get_running_loop()
        async with self._trouble("reading the ends of the partitions"):
            assigned = sorted(consumer.assignment())
            if not assigned:
                return []
            ends = await consumer.end_offsets(assigned)
            self._ends = {_ours(where): end for where, end in ends.items()}
            if loop.time() - self._starts_at > _STARTS_EVERY_S or self._starts.keys() != self._ends.keys():
                starts = await consumer.beginning_offsets(assigned)
                self._starts = {_ours(where): start for where, start in starts.items()}
                self._starts_at = loop.time()
        return list(self._ends)

    async def start(self, partition: Partition) -> int:
        return self._starts[partition]

    async def end(self, partition: Partition) -> int:
        return self._ends[partition]

    async def cut(self, partition: Partition, *, start: int, end: int) -> int:
        oldest = self._starts[partition]
        if start < oldest:
            metrics.log_gap_offsets.labels(str(partition)).set(oldest - start)
            raise LogGap(
                f"{partition}: offsets {start} to {oldest - 1} ({oldest - start} of them) were deleted before they were "
                "planned; planning of this partition stops until somebody looks: docs/operations.md, 'A gap in the log'"
            )
        metrics.log_gap_offsets.labels(str(partition)).set(0)
        return min(end, start + self._batch_events)

    async def load_plan(self, partition: Partition) -> Plan | None:
        consumer = await self._connected()
        # First who we are, then what stands there: whoever had the partition before cannot write any more by then.
        claim = _claim(consumer)
        if claim.generation < 0 or _theirs(partition) not in consumer.assignment():
            raise PlanMoved(f"{partition} is being dealt anew")
        async with self._trouble(f"loading the plan of {partition}"):
            found = await committed(self._settings, planner_group(self._settings), [partition])
        self._claims[partition] = claim
        written = found.get(partition)
        return None if written is None else from_metadata(written.offset, written.metadata)

    async def save_plan(self, partition: Partition, plan: Plan) -> None:
        consumer = await self._connected()
        claim = self._claims.get(partition)
        if claim is None:
            raise PlanMoved(f"{partition} was never loaded by this planner")
        async with self._trouble(f"saving the plan of {partition}"):
            await self._commit(consumer, claim, partition, plan)

    async def resumed(self, partition: Partition) -> int | None:
        now = asyncio.get_running_loop().time()
        if now - self._resumed_at > _RESUMED_EVERY_S:
            self._resumed = await _resumed(self._settings, list(self._ends))
            self._resumed_at = now
        return self._resumed.get(partition)

    async def close(self) -> None:
        """Say nothing to the group: whoever restarts this planner has its partitions again."""
        consumer, self._consumer = self._consumer, None
        self._claims.clear()
        if consumer is not None:
            await close(consumer.stop, consumer._client.close)

    async def _commit(self, consumer: AIOKafkaConsumer, claim: _Claim, partition: Partition, plan: Plan) -> None:
        """Commit as the member that loaded the plan.

        Not the client's own `commit`: that one takes whatever generation it has by the time it sends, and tries again
        over a rebalance, so a plan from before it could overwrite what another planner has written meanwhile.
        """
        coordinator = consumer._coordinator
        await coordinator.ensure_coordinator_known()
        where = [(partition.number, plan.committed, to_metadata(plan))]
        request = OffsetCommitRequest(
            planner_group(self._settings), claim.generation, claim.member_id,
            OffsetCommitRequest.DEFAULT_RETENTION_TIME, [(partition.topic, where)],
        )  # fmt: skip
        response = await consumer._client.send(coordinator.coordinator_id, request, group=ConnectionGroup.COORDINATION)
        ((_, ((_, code),)),) = response.topics
        error = for_code(code)
        if error in _NOT_OURS:
            self._claims.pop(partition, None)
            raise PlanMoved(f"{partition} has been dealt anew; its plan is loaded again")
        if error is not NoError:
            if code in _COORDINATOR_MOVED:
                coordinator.coordinator_dead()
            raise error()

    async def _connected(self) -> AIOKafkaConsumer:
        if self._consumer is not None:
            try:
                self._consumer._coordinator.check_errors()
            except KafkaError as error:
                await self.close()
                raise LogUnavailable(f"Kafka: the planners' group: {type(error).__name__}") from error
            return self._consumer
        consumer = AIOKafkaConsumer(
            group_id=planner_group(self._settings),
            group_instance_id=self._instance,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            session_timeout_ms=int(self._settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(self._settings.heartbeat_s * 1000),
            # Nothing is ever polled, so that must not count as a sign of death. Heartbeats share the planner's loop.
            max_poll_interval_ms=_NEVER_MS,
            **connection(self._settings),
        )
        try:
            async with self._trouble("joining the planners' group"):
                await consumer.start()
                consumer.subscribe([self._settings.requests_topic], listener=_NoPayloads(consumer))
        except BaseException:
            self._consumer = consumer
            await self.close()
            raise
        self._consumer = consumer
        return consumer

    def _trouble(self, what: str) -> Any:
        return unavailable_as_ours(what, self._settings.call_timeout_s)


class KafkaPauses:
    """`ingest.log.Pauses` for a command beside the planners, over every partition there is."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    async def partitions(self) -> Sequence[Partition]:
        found = await committed(self._settings, planner_group(self._settings), None)
        return sorted(where for where in found if where.topic == self._settings.requests_topic)

    async def paused(self, partition: Partition) -> str | None:
        return (await self._plan(partition)).paused

    async def resume(self, partition: Partition) -> str | None:
        plan = await self._plan(partition)
        if plan.paused is None:
            return None
        consumer = AIOKafkaConsumer(
            group_id=resume_group(self._settings), enable_auto_commit=False, **connection(self._settings)
        )
        try:
            async with unavailable_as_ours("resuming", self._settings.call_timeout_s):
                await consumer.start()
                consumer.assign([_theirs(partition)])
                await consumer.commit({_theirs(partition): (plan.planned, mark_of(plan))})
        finally:
            await close(consumer.stop, consumer._client.close)
        return plan.paused

    async def _plan(self, partition: Partition) -> Plan:
        """A partition's plan, without a pause that has been lifted since."""
        found = (await committed(self._settings, planner_group(self._settings), [partition])).get(partition)
        plan = Plan() if found is None else from_metadata(found.offset, found.metadata)
        lifted = await _resumed(self._settings, [partition])
        if plan.paused is not None and lifted.get(partition) == plan.paused_ms:
            return msgspec.structs.replace(plan, paused=None, paused_ms=0)
        return plan


async def committed(
    settings: KafkaSettings, group: str, partitions: Sequence[Partition] | None
) -> Mapping[Partition, OffsetAndMetadata]:
    """What a group has committed, with its metadata, which consumers do not give back. Left out where nothing is.

    Raises:
        LogUnavailable.
    """
    wanted = None if partitions is None else [_theirs(partition) for partition in partitions]
    async with admin(settings) as client, unavailable_as_ours(f"offsets of {group}", settings.call_timeout_s):
        found = await client.list_consumer_group_offsets(group, partitions=wanted)
    return {_ours(where): written for where, written in found.items() if written.offset >= 0}


async def _resumed(settings: KafkaSettings, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
    found = await committed(settings, resume_group(settings), partitions)
    return {where: resumed_by(written.metadata) for where, written in found.items()}


class _NoPayloads(ConsumerRebalanceListener):  # type: ignore[misc]
    """Keeps the client from reading ahead what nobody asks it for."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        pass

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        for where in assigned:
            self._consumer.seek(where, 0)  # any place will do; without one the client looks for it again and again
        self._consumer.pause(*assigned)


_COORDINATOR_MOVED = (7, 15, 16)
"""Timed out, not available, not the coordinator: the client must look for it again."""


def _claim(consumer: AIOKafkaConsumer) -> _Claim:
    coordinator = consumer._coordinator
    return _Claim(coordinator.generation, coordinator.member_id)


def _ours(where: TopicPartition) -> Partition:
    return Partition(where.topic, where.partition)


def _theirs(partition: Partition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.number)
