"""Projects and keys: a small relational database, SQLite on one machine, PostgreSQL in a cluster. Never on the hot path."""

import asyncio
import sqlite3
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

from control import postgres
from control.errors import DatabaseDown, shown
from schemas.settings import DatabaseSettings, SettingsError, SharedSettings

MIGRATION_LOCK = 4_771_301_001
"""PostgreSQL's advisory lock under which migrations run, so that several may start at once."""

_SQLITE = "sqlite+aiosqlite://"
_SWITCH_PAUSE_S = 0.02


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
    def __init__(self, shared: SharedSettings, *, timeout_s: float) -> None:
        """Opens no connection yet.

        Args:
            timeout_s: longest wait for one piece of work, the connection included.

        Raises:
            SettingsError: control data cannot be where the settings say.
        """
        self._url = database_url(shared)
        self._settings = shared.database
        self._timeout_s = timeout_s
        self.engine: AsyncEngine = _engine(self._url, self._settings, timeout_s)
        self._opened: set[Any] = set()  # SQLite's connections, as aiosqlite has them
        if self.engine.dialect.name == "sqlite":
            _speak_sqlite(self.engine, self._opened)

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
            DatabaseDown: run it again. Written for the operator: it names the setting and what the database said.
        """
        try:
            with database_errors():
                async with asyncio.timeout(self._settings.migration_timeout_s), self.engine.connect() as connection:
                    if self.engine.dialect.name == "sqlite":
                        await _write_ahead(connection)
                    await self._migrate(connection)
        except DatabaseDown as error:
            raise DatabaseDown(_told(self._url, error)) from error

    async def _migrate(self, connection: AsyncConnection) -> None:
        connection = await connection.execution_options(sqlite_begin="IMMEDIATE")
        async with connection.begin():
            if self.engine.dialect.name == "postgresql":
                longest_ms = int(self._settings.migration_timeout_s * 1000)
                await connection.execute(text(f"SET LOCAL statement_timeout = {longest_ms}"))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            await connection.run_sync(_upgrade)

    async def close(self) -> None:
        """Close every connection, one too that is just being given back: `dispose` does not wait for it."""
        await self.engine.dispose()
        while self._opened:
            await self._opened.pop().close()


def database_url(settings: SharedSettings) -> str:
    """Where control data is, as SQLAlchemy names it. For SQLite in the data folder that folder is made, readable by its
    owner alone.

    Raises:
        SettingsError: neither PostgreSQL nor SQLite, or without its driver.
    """
    if settings.database_url is None:
        folder = settings.data_dir.absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return f"{_SQLITE}/{folder / 'control.db'}"
    scheme, separator, rest = settings.database_url.get_secret_value().partition("://")
    match scheme + separator:
        case "postgresql://" | "postgres://" | postgres.SCHEME:
            postgres.require_driver()
            return postgres.SCHEME + rest
        case "sqlite://" | "sqlite+aiosqlite://":
            return _SQLITE + rest
    raise SettingsError(
        f"HELIOGRAPH_DATABASE_URL: begins with {shown(scheme)!r}; must be postgresql://user:password@host:5432/database or "
        "sqlite:////folder/control.db"
    )


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours, cause kept.

    Raises:
        DatabaseDown: try again later.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError, TimeoutError) as error:
        # The message of SQLAlchemy holds the statement and its values; only the kind of error goes out.
        origin = getattr(error, "orig", None) or error
        raise DatabaseDown(f"projects and keys cannot be read just now ({type(origin).__name__}); try again") from error


def _told(url: str, error: DatabaseDown) -> str:
    cause = error.__cause__
    origin = getattr(cause, "orig", None) or cause
    said = str(origin) if isinstance(origin, postgres.NotLetIn) else f"{type(origin).__name__}: {_first_line(origin)}"
    if url.startswith(postgres.SCHEME):
        where, right = postgres.place(url), "PostgreSQL must run there and let this user make tables in its database"
    else:
        where, right = url, "its folder must exist, be this user's, and have room"
    return f"HELIOGRAPH_DATABASE_URL = {where}: {said}; {right}"


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _engine(url: str, settings: DatabaseSettings, timeout_s: float) -> AsyncEngine:
    pool: dict[str, Any] = {"pool_size": settings.connections, "max_overflow": 0, "pool_timeout": timeout_s}
    if url.startswith(postgres.SCHEME):
        connect = postgres.connector(url, settings)
        return create_async_engine(postgres.SCHEME, async_creator=connect, pool_pre_ping=True, **pool)
    return create_async_engine(url, connect_args={"timeout": settings.statement_timeout_s}, **pool)


def _speak_sqlite(engine: AsyncEngine, opened: set[Any]) -> None:
    """`opened` is kept up to date: the connections that are open."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        opened.add(connection.driver_connection)
        # Python's sqlite3 begins transactions by habits of its own; SQLAlchemy's `begin` below does it instead.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "close")
    def closed(connection: Any, _record: Any) -> None:
        opened.discard(connection.driver_connection)

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', '')}")


async def _write_ahead(connection: AsyncConnection) -> None:
    """Let readers and a writer work side by side; the file stays so. SQLite does not wait for others that are just
    changing it, whatever its busy timeout: we do, until the migration's time is over."""
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    while True:
        try:
            await driver.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
        await asyncio.sleep(_SWITCH_PAUSE_S)


def _upgrade(connection: Connection) -> None:
    with as_file(files("control") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(Path(folder)))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
