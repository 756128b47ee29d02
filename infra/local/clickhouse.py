"""The ClickHouse engine inside the `chdb-core` wheel, serving its native protocol and HTTP on loopback.

`prepare` writes the configuration, `python -m infra.local.clickhouse` (see `command`) is the server in the foreground,
`wait_ready` waits until it answers. Users and their rights: `clickhouse_config`.
"""

import argparse
import importlib.util
import os
import re
import socket
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from infra.local import child, clickhouse_config, ports, secrets
from infra.local.clickhouse_config import Limits
from infra.local.clickhouse_tokens import forget_unwritten
from infra.local.errors import CannotStart, LocalError, NotReady
from infra.local.lock import hold
from infra.local.waiting import until_ready

_POLL_S = 0.02
_PREDECESSOR_S = 10.0  # how long a server that was just killed may take to be gone
_ANSWER_S = 2
_AUTHENTICATION_FAILED = 516


@dataclass(frozen=True)
class ClickHouseServer:
    """Where it listens and how to get in. The address stays the same over restarts."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    http_port: int
    read_only_user: str
    read_only_password: str = field(repr=False)
    data_dir: Path
    limits: Limits  # of a start; `find` does not know with which ones the server runs


def prepare(
    data_dir: Path,
    port: int | None = None,
    *,
    http_port: int | None = None,
    database: str = "heliograph",
    limits: Limits | None = None,
) -> ClickHouseServer:
    """Make passwords and configuration in `<data_dir>/clickhouse/`, or use those made before. Starts nothing.

    Args:
        port: native protocol; left out, a free one is picked once and remembered. `http_port` likewise.
        database: the one database the users may work in; made by the migrations, not here.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", database):
        raise CannotStart(f"{database!r} cannot be the name of a database")
    data_dir = data_dir.absolute()
    folder = data_dir / "clickhouse"
    for made in (data_dir, folder, folder / "data", folder / "tmp", data_dir / "logs"):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = ClickHouseServer(
        host=ports.LOOPBACK,
        port=ports.internal(data_dir, "clickhouse", port),
        user=clickhouse_config.USER,
        password=secrets.make_once(data_dir / "secrets" / "clickhouse"),
        database=database,
        http_port=ports.internal(data_dir, "clickhouse_http", http_port),
        read_only_user=clickhouse_config.READ_ONLY_USER,
        read_only_password=secrets.make_once(data_dir / "secrets" / "clickhouse_ro"),
        data_dir=data_dir,
        limits=limits or Limits(),
    )
    secrets.write_private(
        folder / "config.xml",
        clickhouse_config.config_xml(
            folder=folder, log=_log(server), tcp_port=server.port, http_port=server.http_port, limits=server.limits
        ),
    )
    secrets.write_private(
        folder / "users.xml",
        clickhouse_config.users_xml(
            password=server.password,
            read_only_password=server.read_only_password,
            database=database,
            limits=server.limits,
        ),
    )
    return server


def find(data_dir: Path, *, database: str = "heliograph") -> ClickHouseServer | None:
    """What was prepared in this data folder, for a command that talks to a server already running; else None."""
    data_dir = data_dir.absolute()
    known = ports.remembered(data_dir)
    try:
        return ClickHouseServer(
            host=ports.LOOPBACK,
            port=known["clickhouse"],
            user=clickhouse_config.USER,
            password=secrets.read(data_dir / "secrets" / "clickhouse"),
            database=database,
            http_port=known["clickhouse_http"],
            read_only_user=clickhouse_config.READ_ONLY_USER,
            read_only_password=secrets.read(data_dir / "secrets" / "clickhouse_ro"),
            data_dir=data_dir,
            limits=Limits(),
        )
    except (KeyError, FileNotFoundError):
        return None


def command(server: ClickHouseServer) -> list[str]:
    """The child's command line. Start it from a thread that lives as long as the server shall (`child`)."""
    arguments = {
        "data": server.data_dir,
        "port": server.port,
        "http-port": server.http_port,
        "database": server.database,
        "parent-pid": os.getpid(),
        **{name.replace("_", "-"): int(value) for name, value in server.limits._asdict().items()},
    }
    flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "infra.local.clickhouse", *flags]


def wait_ready(server: ClickHouseServer, timeout_s: float, *, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until this very server answers a query to its own password, which no other server has.

    Args:
        alive: whether the child still runs; without it a child that failed is waited for until the end.

    Raises:
        NotReady: it has ended, another server answers there, or time is over.
    """
    until_ready(
        "ClickHouse", lambda: _problem(server), timeout_s=timeout_s, alive=alive, log=_log(server), poll_s=_POLL_S
    )


def _problem(server: ClickHouseServer) -> str | None:
    from clickhouse_driver import Client, errors  # the child needs no client

    try:
        # The client logs each refusal of a server that is only just starting, so look first.
        socket.create_connection((server.host, server.port), timeout=_ANSWER_S).close()
        client = Client(
            server.host,
            server.port,
            user=server.user,
            password=server.password,
            connect_timeout=_ANSWER_S,
            sync_request_timeout=_ANSWER_S,
            send_receive_timeout=_ANSWER_S,  # 300 by itself, also for a listener that never says a word
        )
        try:
            ((user,),) = client.execute("SELECT currentUser()")
        finally:
            client.disconnect()
    except errors.ServerException as error:
        if error.code == _AUTHENTICATION_FAILED:
            raise NotReady(f"another ClickHouse answers at {server.host}:{server.port}") from error
        return f"error {error.code}"
    except (errors.Error, OSError, EOFError) as error:
        return type(error).__name__
    return None if user == server.user else "another user answered"


def _log(server: ClickHouseServer) -> Path:
    return server.data_dir / "logs" / "clickhouse-server.log"  # clickhouse.log is what supervisor writes


def main() -> None:
    """Be the server until a signal, or until the parent ends."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.clickhouse", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--port", type=int, help="native protocol (default: picked once, remembered)")
    parser.add_argument("--http-port", type=int, help="HTTP (default: picked once, remembered)")
    parser.add_argument("--database", default="heliograph")
    parser.add_argument("--parent-pid", type=int, help="end when this parent ends (default: the one at start)")
    for name, value in Limits()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=int(value), help="default: %(default)s")
    asked = parser.parse_args()
    child.begin(asked.parent_pid)
    # Kept until the process ends, in whatever way.
    lock = hold(asked.data / "clickhouse", wait_s=_PREDECESSOR_S)
    limits = Limits(**{name: getattr(asked, name) for name in Limits._fields})
    server = prepare(asked.data, asked.port, http_port=asked.http_port, database=asked.database, limits=limits)
    ports.require_free(server.port, purpose="ClickHouse")
    ports.require_free(server.http_port, purpose="ClickHouse over HTTP")
    with lock:
        for part in forget_unwritten(asked.data / "clickhouse" / "data"):
            print(f"killed before its part was written, so its repeat counts: {part}", file=sys.stderr, flush=True)
        _serve(server)


def _serve(server: ClickHouseServer) -> None:
    """Blocks; returns never. A signal ends the process at once, which loses nothing that was acknowledged.

    Raises:
        CannotStart: the engine gave up, with what it said.
    """
    folder = server.data_dir / "clickhouse"
    os.environ["TZ"] = "UTC"
    _import_without_first_engine()
    try:
        from chdb import _chdb
    except ImportError as error:
        raise CannotStart("the package chdb-core is missing: pip install 'heliograph[local]'") from error
    os.chdir(folder)  # where the engine looks for config.xml
    # Only this entry point of the package has listeners, and only for as long as its query runs.
    query = getattr(_chdb, "query")  # noqa: B009 - the package's stubs leave it out
    answer = query("; ".join(clickhouse_config.START), "TabSeparated", path=str(folder / "data"))
    raise CannotStart(f"ClickHouse has ended: {answer.error_message() or 'without a reason'}; see {_log(server)}")


def _import_without_first_engine() -> None:
    """Make `from chdb import _chdb` load the engine alone, not the package's `__init__`.

    That one runs an engine of its own to ask for a version: 0.3 to 1 s more, and once it has closed the logs the
    engine that serves writes none.
    """
    found = importlib.util.find_spec("chdb")
    if found is not None and found.submodule_search_locations is not None:
        package = types.ModuleType("chdb")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["chdb"] = package


if __name__ == "__main__":
    try:
        main()
    except LocalError as error:
        sys.exit(f"{error}")
