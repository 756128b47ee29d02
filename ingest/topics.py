"""Kafka's topics: made where they are missing, and checked against the settings. For `heliograph migrate`.

They have to be there before anything runs: a shipper that names a missing topic would be retried by the client for
ever, and a topic made by a broker itself would have its defaults.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from ingest.kafka_client import admin, unavailable_as_ours
from ingest.log import LogError
from schemas.settings import KafkaSettings

_EXISTS = 36
_TOPIC_SOURCE = 1
"""DescribeConfigs: a value set for the topic itself."""
_HOUR_MS = 3_600_000


class TopicsWrong(LogError):
    """A topic is not as it must be and we must not change it. The message says what and how to."""


class Topic(msgspec.Struct, frozen=True):
    """A topic as it should be."""

    name: str
    retention_hours: int
    config: dict[str, str]


def topics(settings: KafkaSettings) -> list[Topic]:
    """Every topic of ours. Pure."""
    wanted = (
        (settings.requests_topic, settings.retention_hours),
        (settings.enriched_topic, settings.enriched_retention_hours),
        (settings.dead_topic, settings.dead_retention_hours),
    )
    return [
        Topic(
            name,
            hours,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(hours * _HOUR_MS),
                "max.message.bytes": str(settings.record_bytes_max),
                "min.insync.replicas": str(settings.min_insync_replicas),
                # Batches come compressed, and go on as they came.
                "compression.type": "producer",
                # Better to wait for a copy than to go on without events that were counted.
                "unclean.leader.election.enable": "false",
            },
        )
        for name, hours in wanted
    ]


async def migrate_topics(settings: KafkaSettings) -> list[str]:
    """Make missing topics, add missing partitions, set what the settings say. Safe to run again.

    Returns:
        What was done, in words; empty: everything was as it should be.

    Raises:
        LogUnavailable: no broker answers, or it refused.
        TopicsWrong: somebody has to decide.
    """
    if settings.min_insync_replicas > settings.replication_factor:
        raise TopicsWrong(
            f"HELIOGRAPH_KAFKA__MIN_INSYNC_REPLICAS = {settings.min_insync_replicas} is more than "
            f"__REPLICATION_FACTOR = {settings.replication_factor}: nothing could ever be written"
        )
    done: list[str] = []
    async with admin(settings) as client:
        for topic in topics(settings):
            async with unavailable_as_ours(f"topic {topic.name}", settings.call_timeout_s):
                done += await _migrate(client, topic, settings)
    return done


async def check_topics(settings: KafkaSettings) -> list[str]:
    """What is not as the settings say, in words; changes nothing.

    Raises:
        LogUnavailable: no broker answers.
    """
    wrong: list[str] = []
    async with admin(settings) as client:
        for topic in topics(settings):
            async with unavailable_as_ours(f"topic {topic.name}", settings.call_timeout_s):
                partitions = await _partitions(client, topic.name)
                if partitions is None:
                    wrong.append(f"topic {topic.name} is missing; run: heliograph migrate")
                    continue
                if len(partitions) < settings.partitions:
                    wrong.append(f"{topic.name} has {len(partitions)} partitions of {settings.partitions}")
                copies = min(len(partition["replicas"]) for partition in partitions)
                if copies < settings.replication_factor:
                    wrong.append(f"{topic.name} has {copies} copies of {settings.replication_factor}")
                found = await _config(client, topic.name)
                wrong += [
                    f"{topic.name}: {name} is {found[name][0]}, not {value}"
                    for name, value in topic.config.items()
                    if found[name][0] != value
                ]
    return wrong


async def _migrate(client: AIOKafkaAdminClient, topic: Topic, settings: KafkaSettings) -> list[str]:
    partitions = await _partitions(client, topic.name)
    if partitions is None:
        return await _create(client, topic, settings)
    done = []
    if len(partitions) < settings.partitions:
        # Nothing of ours needs an order: a key that is found in another partition from now on harms nobody.
        await client.create_partitions({topic.name: NewPartitions(settings.partitions)})
        done.append(f"topic {topic.name}: {len(partitions)} partitions became {settings.partitions}")
    found = await _config(client, topic.name)
    if "compact" in found["cleanup.policy"][0]:
        raise TopicsWrong(
            f"topic {topic.name} is compacted, so events would vanish from it; name another topic, or set its "
            "cleanup.policy to delete"
        )
    changed = [name for name, value in topic.config.items() if found[name][0] != value]
    if changed:
        # The request replaces all that is set for the topic, so what others have set goes with it.
        kept = {name: value for name, (value, source) in found.items() if source == _TOPIC_SOURCE}
        resource = ConfigResource(ConfigResourceType.TOPIC, topic.name, configs=kept | topic.config)
        for response in await client.alter_configs([resource]):
            for code, message, *_ in response.resources:
                _check(code, message)
        done.append(f"topic {topic.name}: {', '.join(changed)} set")
    return done


async def _create(client: AIOKafkaAdminClient, topic: Topic, settings: KafkaSettings) -> list[str]:
    made = NewTopic(topic.name, settings.partitions, settings.replication_factor, topic_configs=topic.config)
    response = await client.create_topics([made])
    ((_, code, message, *_),) = response.topic_errors
    if code != _EXISTS:  # somebody was quicker
        _check(code, message)
    while await _partitions(client, topic.name) is None:  # noqa: ASYNC110 - the broker tells of it a little later
        await asyncio.sleep(settings.retry_backoff_ms / 1000)
    return [] if code == _EXISTS else [f"topic {topic.name}: made with {settings.partitions} partitions"]


async def _partitions(client: AIOKafkaAdminClient, name: str) -> Sequence[dict[str, Any]] | None:
    (described,) = await client.describe_topics([name])
    if described["error_code"]:
        return None
    partitions: list[dict[str, Any]] = described["partitions"]
    return partitions


async def _config(client: AIOKafkaAdminClient, name: str) -> dict[str, tuple[str, int]]:
    """Every value in force for a topic, and where it is from."""
    found: dict[str, tuple[str, int]] = {}
    for response in await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)]):
        for code, message, _, _, entries in response.resources:
            _check(code, message)
            for key, value, _, source, *_ in entries:
                found[key] = (value or "", int(source))
    return found


def _check(code: int, message: str | None) -> None:
    if code:
        error: type[KafkaError] = for_code(code)
        raise error(message or error.__name__)
