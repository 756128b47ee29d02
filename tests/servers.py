"""Real servers for tests: children started by the same entries as `heliograph up`, ended by their pid."""

import asyncio
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
from pydantic import BaseModel, SecretStr

from infra.local import clickhouse, kafka, kafka_jars, postgres, valkey
from infra.local.errors import CannotStart
from schemas.settings import ClickHouseSettings, KafkaSaslSettings, KafkaSettings

REPOSITORY = Path(__file__).parents[1]

_READY_S = 30.0
_END_S = 10.0
_numbers = itertools.count(1)


class Child:
    """One server process. `kill` ends it in the middle of whatever it does; `start` brings it back on its data."""

    def __init__(
        self, command: Callable[[], list[str]], wait_ready: Callable[[float, Callable[[], bool]], None]
    ) -> None:
        self._command = command
        self._wait_ready = wait_ready
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_s = 0.0
        """How long the last start took until the server answered."""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        began = time.monotonic()
        process = subprocess.Popen(self._command(), cwd=REPOSITORY, stdin=subprocess.DEVNULL)
        self.process = process
        try:
            self._wait_ready(_READY_S, lambda: process.poll() is None)
        except BaseException:
            self.kill()
            raise
        self.ready_s = time.monotonic() - began

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self.kill()


def clickhouse_child(server: clickhouse.ClickHouseServer) -> Child:
    return Child(
        lambda: clickhouse.command(server),
        lambda timeout_s, alive: clickhouse.wait_ready(server, timeout_s, alive=alive),
    )


def valkey_child(server: valkey.ValkeyServer) -> Child:
    return Child(
        lambda: valkey.command(server),
        lambda timeout_s, alive: valkey.wait_ready(server, timeout_s, alive=alive),
    )


def kafka_child(server: kafka.KafkaServer) -> Child:
    return Child(
        lambda: kafka.command(server),
        lambda timeout_s, alive: kafka.wait_ready(server, timeout_s, alive=alive),
    )


def postgres_child(server: postgres.PostgresServer) -> Child:
    return Child(
        lambda: postgres.command(server),
        lambda timeout_s, alive: postgres.wait_ready(server, timeout_s, alive=alive),
    )


@contextmanager
def running(child: Child) -> Iterator[Child]:
    try:
        child.start()
        yield child
    finally:
        child.stop()


@contextmanager
def running_clickhouse(folder: Path) -> Iterator[ClickHouseSettings]:
    """An embedded ClickHouse on its own free port, its database not yet made (`migrate` does)."""
    server = clickhouse.prepare(folder)
    with running(clickhouse_child(server)):
        yield settings_of(server)


@contextmanager
def running_valkey(folder: Path) -> Iterator[str]:
    """An embedded Valkey on its own free port.

    Yields:
        Its redis:// address, with the password.
    """
    server = valkey.prepare(folder)
    with running(valkey_child(server)):
        yield server.url


class RunningKafka(NamedTuple):
    """A broker that a test may kill and bring back."""

    child: Child
    settings: KafkaSettings


def require_kafka() -> None:
    """Without Java or Maven a test is skipped on a laptop, and fails in CI."""
    try:
        kafka_jars.java()
        kafka_jars.jars()
    except CannotStart as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@contextmanager
def running_kafka(folder: Path) -> Iterator[RunningKafka]:
    """The real broker on its own free port, without any topic yet."""
    require_kafka()
    server = kafka.prepare(folder)
    with running(kafka_child(server)) as child:
        yield RunningKafka(child, kafka_settings_of(server))


class RunningPostgres(NamedTuple):
    """A server that a test may kill and bring back."""

    child: Child
    server: postgres.PostgresServer


@contextmanager
def running_postgres() -> Iterator[RunningPostgres]:
    """A real PostgreSQL on its own free port, in a folder of its own: pytest's are closed to the user it runs as.

    Raises:
        CannotStart: it is not installed; the message names the package.
    """
    with tempfile.TemporaryDirectory(prefix="heliograph-postgres-") as folder:
        server = postgres.prepare(Path(folder))
        with running(postgres_child(server)) as child:
            yield RunningPostgres(child, server)


@contextmanager
def new_database(server: postgres.PostgresServer) -> Iterator[SecretStr]:
    """An empty database of its own.

    Yields:
        Its address, with the password.
    """
    name = f"t{next(_numbers)}"
    _tell(server, f"CREATE DATABASE {name}")
    try:
        yield SecretStr(server.url(name))
    finally:
        _tell(server, f"DROP DATABASE {name} WITH (FORCE)")


def _tell(server: postgres.PostgresServer, sql: str) -> None:
    async def tell() -> None:
        connection = await asyncpg.connect(server.url())
        await connection.execute(sql)
        await connection.close()

    asyncio.run(tell())


def kafka_settings_of(server: kafka.KafkaServer) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=server.bootstrap_servers,
        replication_factor=1,
        min_insync_replicas=1,
        partitions=3,
        security_protocol="SASL_PLAINTEXT",
        sasl=KafkaSaslSettings(username=server.user, password=SecretStr(server.password)),
        transaction_timeout_s=2,
        session_timeout_s=2,
        heartbeat_s=0.2,
        request_timeout_s=3,
        call_timeout_s=8,
    )


def kafka_environment(settings: KafkaSettings) -> dict[str, str]:
    """The same as variables, for a process that reads its settings from the environment."""
    return dict(_variables(settings, "HELIOGRAPH_KAFKA__"))


def _variables(group: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    for name in group.model_fields_set:
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            yield from _variables(value, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper(), value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def settings_of(server: clickhouse.ClickHouseServer) -> ClickHouseSettings:
    return ClickHouseSettings(
        host=server.host,
        port=server.port,
        user=server.user,
        password=SecretStr(server.password),
        database=server.database,
    )
