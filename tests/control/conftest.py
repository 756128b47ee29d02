"""One ClickHouse, one Valkey and one PostgreSQL for the session; an app, and a project of its own, for each test.

A module that says `ON_EACH_DATABASE = True` has those of its tests that use control data run twice: over SQLite and over
PostgreSQL.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

from ingest.migrations import migrate
from schemas.settings import ClickHouseSettings, RedisSettings, RetentionSettings, SharedSettings
from tests.control.world import World, opened
from tests.servers import RunningPostgres, new_database, running_clickhouse, running_postgres, running_valkey


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if getattr(metafunc.module, "ON_EACH_DATABASE", False) and "database_url" in metafunc.fixturenames:
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


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
def postgres() -> Iterator[RunningPostgres]:
    with running_postgres() as running:
        yield running


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[SecretStr | None]:
    """Where the test's control data is: SQLite in its own folder, or a database of its own in PostgreSQL."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield None
        return
    with new_database(request.getfixturevalue("postgres").server) as url:
        yield url


@pytest.fixture
def shared(
    clickhouse: ClickHouseSettings, valkey: str, database_url: SecretStr | None, tmp_path: Path
) -> SharedSettings:
    return SharedSettings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        clickhouse=clickhouse,
        redis=RedisSettings(url=SecretStr(valkey)),
    )


@pytest_asyncio.fixture
async def world(shared: SharedSettings) -> AsyncIterator[World]:
    async with opened(shared) as world:
        yield world
