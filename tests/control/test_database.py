"""Control data on each of its databases: SQLite on one machine, PostgreSQL in a cluster. The rest of this folder's tests
of keys, sign-in and facts run on both as well."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from control import postgres as driver
from control.database import MIGRATION_LOCK, Database, database_url
from control.errors import Conflict, DatabaseDown, NotFound
from control.keys import Keys, open_keys
from schemas.settings import ClickHouseSettings, DatabaseSettings, RedisSettings, SettingsError, SharedSettings
from tests.control.world import opened
from tests.servers import REPOSITORY, RunningPostgres, new_database

ON_EACH_DATABASE = True


@pytest.fixture
def offline(shared: SharedSettings) -> SharedSettings:
    return shared.model_copy(update={"redis": RedisSettings()})


@pytest.fixture
def on_postgres(postgres: RunningPostgres, clickhouse: ClickHouseSettings, tmp_path: Path) -> Iterator[SharedSettings]:
    """For what only a server does."""
    with new_database(postgres.server) as url:
        yield SharedSettings(data_dir=tmp_path, database_url=url, clickhouse=clickhouse)


def with_database(shared: SharedSettings, **settings: object) -> SharedSettings:
    return shared.model_copy(update={"database": DatabaseSettings.model_validate(settings)})


def opened_databases(*settings: SharedSettings) -> list[Database]:
    return [Database(one, timeout_s=10) for one in settings]


def at(url: str, **settings: object) -> SharedSettings:
    return SharedSettings(database_url=SecretStr(url), database=DatabaseSettings.model_validate(settings))


async def test_processes_that_migrate_at_once_all_end_well(offline: SharedSettings) -> None:
    url = database_url(offline)
    program = (
        "import asyncio; from control.keys import open_keys\n"
        "from schemas.settings import SharedSettings; from schemas.variables import load\n"
        "async def main():\n"
        "    async with open_keys(load(SharedSettings)) as keys: print(len(await keys.list_projects()))\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "HELIOGRAPH_DATABASE_URL": url}
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    told = [(await child.communicate())[0].decode().strip() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert told == ["1", "1", "1"]


async def test_of_many_who_make_one_project_at_once_one_does(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        made = await asyncio.gather(*(keys.create_project("one") for _ in range(5)), return_exceptions=True)
        assert sorted(type(one).__name__ for one in made) == ["Conflict"] * 4 + ["ProjectInfo"]
        assert [project.id for project in await keys.list_projects()] == ["default", "one"]
        with pytest.raises(Conflict):
            await keys.create_project("one")


async def test_a_key_revoked_by_two_at_once_is_revoked_once(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        key = (await keys.create(name="web")).info
        async with keys.database.writing() as connection:
            # Both have begun before either can end.
            await connection.execute(text("UPDATE snapshot_state SET version = version + 1"))
            first = asyncio.create_task(keys.revoke("web"))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(keys.revoke(key.id))
            await asyncio.sleep(0.1)
        said = {(await one).info.revoked_ms for one in (first, second)}
        (stored,) = await keys.list_keys()
        assert said == {stored.revoked_ms}
        assert (await keys.snapshot()).version // 1000 == stored.revoked_ms


async def test_each_change_makes_a_newer_version_also_of_many_at_once(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        before = (await keys.snapshot()).version
        await asyncio.gather(*(keys.create(name=f"k{number}") for number in range(8)))
        snapshot = await keys.snapshot()
        assert len(snapshot.keys) == 8
        assert snapshot.version >= before + 8


async def test_projects_are_in_the_order_of_their_characters_whatever_the_databases_language(
    offline: SharedSettings,
) -> None:
    async with open_keys(offline) as keys:
        for name in ("a_c", "ab", "a-b", "a0", "b"):
            await keys.create_project(name)
        assert [project.id for project in await keys.list_projects()] == ["a-b", "a0", "a_c", "ab", "b", "default"]


async def test_names_differ_by_case(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        upper, lower = await keys.create(name="Web"), await keys.create(name="web")
        assert (await keys.revoke("web")).info.id == lower.info.id
        assert (await keys.revoke("Web")).info.id == upper.info.id


@pytest.mark.parametrize("name", ["\x00", "a\x00b", "\ud800", "x" * 101, "%", "_", "' OR 1=1 --"])
async def test_a_text_that_no_key_can_have_is_not_found(offline: SharedSettings, name: str) -> None:
    async with open_keys(offline) as keys:
        await keys.create(name="web")
        with pytest.raises(NotFound):
            await keys.revoke(name)
        with pytest.raises(NotFound):
            await keys.create(name="other", project=name)


@pytest.mark.parametrize("name", ["é" * 100, "名" * 100, "🔑" * 100])
async def test_a_names_length_is_counted_in_characters(offline: SharedSettings, name: str) -> None:
    async with open_keys(offline) as keys:
        await keys.create(name=name)
        assert [key.name for key in await keys.list_keys()] == [name]


async def test_times_keep_their_milliseconds_a_century_ahead(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        made = await keys.create(name="web", expires_in_ms=100 * 366 * 86_400_000)
        assert await keys.list_keys() == [made.info]


async def test_work_waits_for_a_connection_no_longer_than_it_may(offline: SharedSettings) -> None:
    database = Database(with_database(offline, connections=1), timeout_s=0.3)
    await database.migrate()
    async with database.engine.connect():
        with pytest.raises(DatabaseDown):
            async with database.reading():
                pass
    async with database.reading() as connection:
        await connection.execute(text("SELECT 1 FROM projects"))
    await database.close()


async def test_a_connection_that_is_just_being_given_back_is_closed_with_the_others(tmp_path: Path) -> None:
    database = Database(SharedSettings(data_dir=tmp_path), timeout_s=1)
    connection = await database.engine.connect()
    opened = (await connection.get_raw_connection()).driver_connection
    assert opened is not None

    giving_back = asyncio.create_task(connection.close())  # as one does whose time was over while it gave back
    await asyncio.sleep(0)
    await database.close()
    await giving_back

    with pytest.raises(ValueError, match="no active connection"):
        await opened.execute("SELECT 1")


async def test_a_change_waits_for_anothers_lock_no_longer_than_a_statement_may(offline: SharedSettings) -> None:
    holder, database = opened_databases(offline, with_database(offline, statement_timeout_s=0.3))
    await holder.migrate()
    keys = Keys(database, None, redis_timeout_s=1)
    async with holder.writing() as connection:
        await connection.execute(text("UPDATE snapshot_state SET version = version + 1"))
        async with asyncio.timeout(3):
            with pytest.raises(DatabaseDown):
                await keys.create(name="web")
    assert await keys.list_keys() == []
    for one in (holder, database):
        await one.close()


async def test_a_migration_waits_for_anothers_longer_than_a_statement_may(on_postgres: SharedSettings) -> None:
    holder, database = opened_databases(on_postgres, with_database(on_postgres, statement_timeout_s=0.2))
    async with holder.writing() as connection:
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        waiting = asyncio.create_task(database.migrate())
        await asyncio.sleep(0.6)
        assert not waiting.done()
    await waiting
    for one in (holder, database):
        await one.close()


async def test_a_process_that_froze_in_a_change_locks_the_others_out_no_longer_than_a_statement_may(
    on_postgres: SharedSettings,
) -> None:
    frozen, database = opened_databases(with_database(on_postgres, statement_timeout_s=0.3), on_postgres)
    await database.migrate()
    keys = Keys(database, None, redis_timeout_s=1)

    async def freeze() -> None:
        async with frozen.writing() as connection:
            await connection.execute(text("UPDATE snapshot_state SET version = version + 1"))
            await keys.create(name="web")

    with pytest.raises(DatabaseDown):
        await freeze()
    assert len(await keys.list_keys()) == 1
    for one in (frozen, database):
        await one.close()


async def test_a_server_that_was_killed_is_503_and_then_right_again(
    postgres: RunningPostgres, on_postgres: SharedSettings
) -> None:
    async with opened(on_postgres) as world:
        client = await world.client()
        assert (await client.get("/v1/me")).status_code == 200
        postgres.child.kill()
        try:
            away = await client.get("/v1/me")
        finally:
            postgres.child.start()
        assert (away.status_code, away.json()["error"]["code"]) == (503, "database_unavailable")
        assert str(postgres.server.port) not in away.text
        assert (await client.get("/v1/me")).status_code == 200


@pytest.mark.parametrize("form", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_an_address_may_be_written_as_anybody_writes_it(form: str) -> None:
    assert database_url(at(f"{form}://u:p@h/d")) == "postgresql+asyncpg://u:p@h/d"


def test_an_address_that_is_neither_database_is_refused_and_says_what_is_right() -> None:
    with pytest.raises(SettingsError) as refused:
        database_url(at("mysql://root:secret@h/d"))
    assert "HELIOGRAPH_DATABASE_URL" in str(refused.value)
    assert "postgresql://user:password@host" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_missing_driver_stops_the_start_and_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"heliograph\[postgres\]"):
        database_url(at("postgresql://u:p@h/d"))


async def test_a_server_that_is_not_there_is_told_with_the_setting_and_without_the_password() -> None:
    database = Database(at("postgresql://u:secret@127.0.0.1:1/d?sslmode=disable"), timeout_s=2)
    with pytest.raises(DatabaseDown) as told:
        await database.migrate()
    assert "HELIOGRAPH_DATABASE_URL = postgresql://u:…@127.0.0.1:1/d: " in told.value.message
    assert "secret" not in told.value.message
    await database.close()


async def test_a_wrong_password_and_a_database_that_is_none_are_told(postgres: RunningPostgres) -> None:
    server = postgres.server
    for url, reason in (
        (server.url().replace(server.password, "wrong"), "InvalidPasswordError"),
        (server.url("nowhere"), "InvalidCatalogNameError"),
        (server.url() + "?sslmode=require", "ConnectionError"),
        (server.url() + "?ssl=sideways", "sslmode"),
    ):
        database = Database(at(url), timeout_s=2)
        with pytest.raises(DatabaseDown, match=reason) as told:
            await database.migrate()
        assert server.password not in told.value.message
        await database.close()


async def test_a_server_that_says_nothing_is_waited_for_no_longer_than_the_setting() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    database = Database(
        at(f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d", connect_timeout_s=0.2), timeout_s=5
    )
    async with asyncio.timeout(2):
        with pytest.raises(DatabaseDown, match=r"no answer within 0\.2 s"):
            await database.migrate()
    await database.close()
    silent.close()
