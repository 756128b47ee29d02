"""One way to reach ClickHouse over its native protocol, and its errors as ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from schemas.settings import ClickHouseSettings


class StoreError(Exception):
    """Base of what can go wrong with the store."""


class StoreUnavailable(StoreError):
    """Not reached, too busy or out of time: nothing is confirmed, the same call may be made again."""


class StoreRefused(StoreError):
    """The server understood and said no (a missing table, a bad type): no retry helps until something is changed."""


# Codes that speak of the moment, not of the query: timeouts, too many parts or queries, memory, network, keeper.
_PASSING = {
    159, 160, 164, 201, 202, 209, 210, 225, 236, 241, 242, 243, 252, 285, 319, 394, 425, 439, 516, 999,
}  # fmt: skip


def connect(settings: ClickHouseSettings, **server_settings: object) -> Client:
    """A client of one connection, opened at its first query. Not for sharing between threads.

    Args:
        server_settings: ClickHouse settings sent with every query.
    """
    return Client(
        host=settings.host or "127.0.0.1",
        port=settings.port,
        user=settings.user,
        password=settings.password.get_secret_value(),
        database=settings.database,
        secure=settings.secure,
        connect_timeout=settings.connect_timeout_s,
        send_receive_timeout=settings.query_timeout_s,
        sync_request_timeout=settings.connect_timeout_s,
        compression="lz4",
        client_name="heliograph",
        # Newer servers answer in zstd unless told; the driver reads what it was asked for.
        settings={"use_numpy": False, "network_compression_method": "LZ4", **server_settings},
    )


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn the driver's errors into ours, cause kept.

    Raises:
        StoreUnavailable: try again.
        StoreRefused: do not.
    """
    try:
        yield
    except driver_errors.ServerException as error:
        first_line = str(error.message).splitlines()[0][:500] if error.message else type(error).__name__
        kind = StoreUnavailable if error.code in _PASSING else StoreRefused
        raise kind(f"ClickHouse error {error.code}: {first_line}") from error
    except (driver_errors.Error, OSError, EOFError) as error:
        raise StoreUnavailable(f"ClickHouse is not reachable: {type(error).__name__}: {error}") from error
