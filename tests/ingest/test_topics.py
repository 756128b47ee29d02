import asyncio

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ingest.kafka_client import admin
from ingest.log import LogUnavailable
from ingest.topics import TopicsWrong, check_topics, migrate_topics
from schemas.settings import KafkaSettings


async def set_for(kafka: KafkaSettings, **config: str) -> None:
    resource = ConfigResource(ConfigResourceType.TOPIC, kafka.requests_topic, configs=config)
    async with admin(kafka) as client:
        await client.alter_configs([resource])


async def test_topics_are_made_once_with_their_settings(kafka: KafkaSettings) -> None:
    fresh = kafka.model_copy(
        update={name: f"{getattr(kafka, name)}.2" for name in ("requests_topic", "enriched_topic", "dead_topic")}
    )
    assert any("is missing; run: heliograph migrate" in wrong for wrong in await check_topics(fresh))
    assert len(await migrate_topics(fresh)) == 3
    assert await migrate_topics(fresh) == []
    assert await check_topics(fresh) == []


async def test_partitions_are_added_and_never_taken_away(kafka: KafkaSettings) -> None:
    more = kafka.model_copy(update={"partitions": 5})
    assert await check_topics(more) == [
        f"{name} has 3 partitions of 5" for name in (kafka.requests_topic, kafka.enriched_topic, kafka.dead_topic)
    ]
    await migrate_topics(more)
    assert await migrate_topics(kafka) == []
    assert await check_topics(more) == []


async def test_a_changed_setting_is_set_and_what_others_have_set_stays(kafka: KafkaSettings) -> None:
    await set_for(kafka, **{"segment.bytes": "1048576"})
    longer = kafka.model_copy(update={"retention_hours": 1000})
    assert f"{kafka.requests_topic}: retention.ms is 604800000, not 3600000000" in await check_topics(longer)
    (done,) = await migrate_topics(longer)
    assert "retention.ms" in done
    assert await check_topics(longer) == []
    async with admin(kafka) as client:
        resource = ConfigResource(ConfigResourceType.TOPIC, kafka.requests_topic)
        (response,) = await client.describe_configs([resource])
    ((_, _, _, _, entries),) = response.resources
    assert dict(entry[:2] for entry in entries)["segment.bytes"] == "1048576"


async def test_a_compacted_topic_is_refused(kafka: KafkaSettings) -> None:
    await set_for(kafka, **{"cleanup.policy": "compact"})
    with pytest.raises(TopicsWrong, match="compacted"):
        await migrate_topics(kafka)


async def test_more_copies_needed_than_there_are_is_refused(kafka: KafkaSettings) -> None:
    with pytest.raises(TopicsWrong, match="nothing could ever be written"):
        await migrate_topics(kafka.model_copy(update={"min_insync_replicas": 2}))


async def test_brokers_that_do_not_answer_are_told_in_time(kafka: KafkaSettings) -> None:
    nobody = kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:27999"})
    async with asyncio.timeout(kafka.call_timeout_s + 2):
        with pytest.raises(LogUnavailable, match="connecting"):
            await migrate_topics(nobody)
