"""The private PostgreSQL: asks for its password, keeps its data over a kill, and says what is missing."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from infra.local import postgres
from infra.local.errors import CannotStart, NotReady
from tests.servers import running_postgres


async def ask(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def test_it_lets_in_with_its_password_alone_and_keeps_its_data_over_a_kill() -> None:
    with running_postgres() as running:
        url = running.server.url()
        asyncio.run(ask(url, "CREATE TABLE kept AS SELECT 7 AS number"))
        with pytest.raises(asyncpg.InvalidPasswordError):
            asyncio.run(ask(url.replace(running.server.password, "guessed"), "SELECT 1"))
        running.child.kill()
        running.child.start()
        assert asyncio.run(ask(url, "SELECT number FROM kept")) == 7


def test_another_server_at_the_port_is_not_taken_for_this_one(tmp_path: Path) -> None:
    with running_postgres() as running:
        stranger = postgres.prepare(tmp_path, running.server.port)
        with pytest.raises(NotReady, match="another PostgreSQL"):
            postgres.wait_ready(stranger, 5)


def test_without_postgresql_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    with pytest.raises(CannotStart, match="apt-get install postgresql"):
        postgres.prepare(tmp_path)


def test_of_several_versions_the_newest_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("9", "15", "13"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "postgres").touch()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    assert postgres.program("postgres") == tmp_path / "15" / "bin" / "postgres"
