"""One ClickHouse and one Valkey for the session; tests that kill them bring them back."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from infra.local import clickhouse, valkey
from infra.local.clickhouse import ClickHouseServer
from infra.local.valkey import ValkeyServer
from tests.servers import Child, clickhouse_child, running, valkey_child


class RunningClickHouse(NamedTuple):
    server: ClickHouseServer
    child: Child


class RunningValkey(NamedTuple):
    server: ValkeyServer
    child: Child


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningClickHouse]:
    # A folder whose name would break careless quoting.
    server = clickhouse.prepare(tmp_path_factory.mktemp("store") / "a <b> & 'c' 50%")
    with running(clickhouse_child(server)) as child:
        yield RunningClickHouse(server, child)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningValkey]:
    server = valkey.prepare(tmp_path_factory.mktemp("redis") / "a <b> & 'c' \"d\" 50%")
    with running(valkey_child(server)) as child:
        yield RunningValkey(server, child)
