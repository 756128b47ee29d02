"""One real broker for the session; topics and groups of its own for each test."""

import asyncio
import itertools
import time
from collections.abc import Iterator

import pytest

from ingest.topics import migrate_topics
from schemas.settings import KafkaSettings
from tests.servers import RunningKafka, running_kafka

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKafka]:
    with running_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def kafka(broker: RunningKafka) -> KafkaSettings:
    """Settings under which nobody else has topics or groups, the topics made."""
    name = f"t{next(_numbers)}-{time.time_ns():x}"
    settings = broker.settings.model_copy(
        update={
            "requests_topic": f"{name}.requests",
            "enriched_topic": f"{name}.enriched",
            "dead_topic": f"{name}.dead",
            "group_prefix": name,
        }
    )
    asyncio.run(migrate_topics(settings))
    return settings
