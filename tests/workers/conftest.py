"""One ClickHouse and one Valkey for the session; a topic and a project of its own for each test."""

from collections.abc import Iterator

import pytest

from ingest.migrations import migrate
from pricing.prices import PriceBook
from schemas.settings import ClickHouseSettings, RetentionSettings
from tests.servers import running_clickhouse, running_valkey
from tests.workers.case import Case


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with running_clickhouse(tmp_path_factory.mktemp("clickhouse")) as settings:
        migrate(settings, RetentionSettings())
        yield settings


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="session")
def prices() -> PriceBook:
    return PriceBook()


@pytest.fixture
def case(clickhouse: ClickHouseSettings, prices: PriceBook) -> Iterator[Case]:
    case = Case(clickhouse, prices)
    yield case
    case.close()
