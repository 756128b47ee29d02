"""PostgreSQL as control data's home: reached by asyncpg, every wait bounded on our side or on the server's.

The address is asyncpg's to read, which takes libpq's own form: `sslmode`, `sslrootcert`, several hosts.
"""

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from schemas.settings import DatabaseSettings, SettingsError

SCHEME = "postgresql+asyncpg://"
"""As SQLAlchemy calls it."""


class NotLetIn(ConnectionError):
    """PostgreSQL was not reached, or refused; says why, and holds no password."""


def require_driver() -> None:
    """
    Raises:
        SettingsError: asyncpg is not installed.
    """
    if find_spec("asyncpg") is None:
        raise SettingsError(
            "HELIOGRAPH_DATABASE_URL: names PostgreSQL, and its driver is missing: pip install 'heliograph[postgres]'"
        )


def connector(url: str, settings: DatabaseSettings) -> Callable[[], Awaitable[Any]]:
    """What opens a connection for SQLAlchemy's pool.

    Raises (when called):
        NotLetIn: no connection is to be had just now.
    """
    import asyncpg

    # SQLAlchemy's spelling of the one option that people copy from its manual.
    dsn = "postgresql://" + url.removeprefix(SCHEME).replace("?ssl=", "?sslmode=").replace("&ssl=", "&sslmode=")
    statement_ms = str(int(settings.statement_timeout_s * 1000))

    async def connect() -> Any:
        try:
            return await asyncpg.connect(
                dsn,
                timeout=settings.connect_timeout_s,
                server_settings={
                    "application_name": "heliograph",
                    "statement_timeout": statement_ms,
                    # What a process that froze had locked must not stay so.
                    "idle_in_transaction_session_timeout": statement_ms,
                },
            )
        except TimeoutError as error:
            raise NotLetIn(f"no answer within {settings.connect_timeout_s:g} s") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise NotLetIn(f"{type(error).__name__}: {told}") from error

    return connect


def place(url: str) -> str:
    """The address without its password and options, as an error may show it."""
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return f"postgresql://{name}{':…@' if ':' in user else '@' if name else ''}{hosts}{parts.path}"
