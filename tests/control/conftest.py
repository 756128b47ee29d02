"""One ClickHouse and one Valkey for the session; an app, and a project of its own, for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

from ingest.migrations import migrate
from schemas.settings import ClickHouseSettings, RedisSettings, RetentionSettings, SharedSettings
from tests.control.world import World, opened
from tests.servers import running_clickhouse, running_valkey


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with running_clickhouse(tmp_path_factory.mktemp("clickhouse")) as settings:
        migrate(settings, RetentionSettings())
        yield settings


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def shared(clickhouse: ClickHouseSettings, valkey: str, tmp_path: Path) -> SharedSettings:
    return SharedSettings(data_dir=tmp_path / "data", clickhouse=clickhouse, redis=RedisSettings(url=SecretStr(valkey)))


@pytest_asyncio.fixture
async def world(shared: SharedSettings) -> AsyncIterator[World]:
    async with opened(shared) as world:
        yield world
