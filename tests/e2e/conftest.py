"""The running house, on each log with a database beside it: spool and SQLite, then Kafka and PostgreSQL. What is true of
one is true of the other."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from infra.local.ports import pick_free
from schemas.settings import KafkaSettings
from tests.e2e.house import House, Replay, up
from tests.pricing.conftest import read_exchanges
from tests.servers import RunningKafka, kafka_environment, new_database, running_postgres

_REPLAY_PORT = pick_free()


@pytest.fixture(scope="session", params=["spool and SQLite", "Kafka and PostgreSQL"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    providers = sorted({exchange.provider for exchange in read_exchanges()})
    with ExitStack() as stack:
        kafka = ""
        settings: dict[str, str] = {}
        if request.param == "Kafka and PostgreSQL":
            kafka, settings = _topics_of_its_own(request.getfixturevalue("broker"))
            postgres = stack.enter_context(running_postgres())
            url = stack.enter_context(new_database(postgres.server))
            settings["HELIOGRAPH_DATABASE_URL"] = url.get_secret_value()
        folder = tmp_path_factory.mktemp("house")
        yield stack.enter_context(up(folder, _REPLAY_PORT, providers=providers, kafka=kafka, **settings))


def _topics_of_its_own(broker: RunningKafka) -> tuple[str, dict[str, str]]:
    """The broker's address, and settings for a house that shares it with other tests."""
    address = broker.settings.bootstrap_servers
    assert address is not None
    settings = KafkaSettings(
        requests_topic="house.requests",
        enriched_topic="house.enriched",
        dead_topic="house.dead",
        group_prefix="house",
        partitions=3,
        security_protocol=broker.settings.security_protocol,
        sasl=broker.settings.sasl,
    )
    return address, kafka_environment(settings)


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    provider = Replay()
    await provider.start(_REPLAY_PORT)
    yield provider
    await provider.stop()
