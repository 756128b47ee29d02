"""Projects and keys: a small relational database, SQLite on one machine, PostgreSQL in a cluster. Never on the hot path."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import BigInteger, Connection, ForeignKey, Index, MetaData, String, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from control.errors import DatabaseDown
from schemas.settings import SharedSettings

_MIGRATION_LOCK = 4_771_301_001
"""PostgreSQL's advisory lock under which migrations run, so that several may start at once."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    """Its name, which never changes: rows in ClickHouse carry it."""
    created_ms: Mapped[int] = mapped_column(BigInteger)


class StoredKey(Base):
    """A key, of which only the SHA-256 and the last four characters are known here."""

    __tablename__ = "keys"
    __table_args__ = (Index("ix_keys_project_id_name", "project_id", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(100))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    last4: Mapped[str] = mapped_column(String(4))
    permissions: Mapped[str] = mapped_column(String(100))
    """Comma-separated, in the order of `schemas.keys.Permission`."""
    created_ms: Mapped[int] = mapped_column(BigInteger)
    expires_ms: Mapped[int | None] = mapped_column(BigInteger)
    revoked_ms: Mapped[int | None] = mapped_column(BigInteger)


class SnapshotState(Base):
    """One row: the version of the keys as a whole. It grows with every change, in the change's own transaction."""

    __tablename__ = "snapshot_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(BigInteger)


class Database:
    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.engine: AsyncEngine = create_async_engine(
            url, pool_pre_ping=not url.startswith("sqlite"), pool_timeout=timeout_s, connect_args=_connect_args(url)
        )
        if self.engine.dialect.name == "sqlite":
            _speak_sqlite(self.engine)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose transaction is thrown away at the end.

        Raises:
            DatabaseDown: not reached, locked too long, or broken.
        """
        with database_errors():
            async with asyncio.timeout(self._timeout_s), self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose transaction is committed at the end, or rolled back where anything was raised.

        Raises:
            DatabaseDown: nothing was written.
        """
        with database_errors():
            async with asyncio.timeout(self._timeout_s), self.engine.connect() as connection:
                # SQLite: a transaction that reads first and then writes fails at once where another has written
                # between; one that begins as a writer waits for its turn.
                connection = await connection.execution_options(sqlite_begin="IMMEDIATE")
                async with connection.begin():
                    yield connection

    async def migrate(self) -> None:
        """Bring the tables to this version's form. Safe at any time, by several at once.

        Raises:
            DatabaseDown: run it again.
        """
        with database_errors():
            async with asyncio.timeout(30), self.engine.connect() as connection:
                connection = await connection.execution_options(sqlite_begin="IMMEDIATE")
                async with connection.begin():
                    if self.engine.dialect.name == "postgresql":
                        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
                    await connection.run_sync(_upgrade)

    async def close(self) -> None:
        await self.engine.dispose()


def database_url(settings: SharedSettings) -> str:
    """Where control data is. For SQLite the folder is made, readable by its owner alone."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        # What people write, and the driver that is meant.
        for plain, asynchronous in (
            ("postgres://", "postgresql+asyncpg://"),
            ("postgresql://", "postgresql+asyncpg://"),
            ("sqlite://", "sqlite+aiosqlite://"),
        ):
            if url.startswith(plain):
                return asynchronous + url.removeprefix(plain)
        return url
    folder = settings.data_dir.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"sqlite+aiosqlite:///{folder / 'control.db'}"


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours, cause kept.

    Raises:
        DatabaseDown: try again later.
    """
    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        # The message of SQLAlchemy holds the statement and its values; only the kind of error goes out.
        origin = getattr(error, "orig", None) or error
        raise DatabaseDown(f"projects and keys cannot be read just now ({type(origin).__name__}); try again") from error


def _connect_args(url: str) -> dict[str, Any]:
    return {"timeout": 5} if url.startswith("sqlite") else {}


def _speak_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        # Python's sqlite3 begins transactions by habits of its own; SQLAlchemy's `begin` below does it instead.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', '')}")


def _upgrade(connection: Connection) -> None:
    with as_file(files("control") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(Path(folder)))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
