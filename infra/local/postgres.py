"""PostgreSQL on one machine: the system's own binaries over a folder of ours, for tests and for trying it out.

`prepare` makes password and folder, `python -m infra.local.postgres` (see `command`) becomes the server in the
foreground, `wait_ready` waits until it answers. It listens on loopback alone and asks for the password.

PostgreSQL refuses to run as root. Started by root it runs as `postgres` or `nobody`, who must be able to reach the data
folder.
"""

import argparse
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from infra.local import child, ports, secrets
from infra.local.errors import CannotStart, LocalError, NotReady
from infra.local.lock import hold
from infra.local.waiting import ask, until_ready

USER = "heliograph"

_UNPRIVILEGED = ("postgres", "nobody")
_DEBIAN = Path("/usr/lib/postgresql")
_POLL_S = 0.05
_PREDECESSOR_S = 10.0
_ANSWER_S = 3.0
_INIT_S = 60.0
_LOG_BYTES_MAX = 5 * 1024 * 1024


@dataclass(frozen=True)
class PostgresServer:
    """Where it listens and how to get in. The address stays the same over restarts."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    data_dir: Path

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{database}"


def program(name: str) -> Path:
    """One of PostgreSQL's programs: on the PATH, or where Debian puts the newest.

    Raises:
        CannotStart: it is not installed.
    """
    if (found := shutil.which(name)) is not None:
        return Path(found)
    versions = [path for path in _DEBIAN.glob(f"*/bin/{name}") if path.parts[-3].isdigit()]
    if not versions:
        raise CannotStart(
            f"PostgreSQL is not installed: there is no '{name}' on the PATH or in {_DEBIAN}/*/bin: "
            "apt-get install postgresql"
        )
    return max(versions, key=lambda path: int(path.parts[-3]))


def prepare(data_dir: Path, port: int | None = None) -> PostgresServer:
    """Make password, port and folder, or use those made before. Starts nothing.

    Args:
        port: left out, a free one is picked once and remembered.

    Raises:
        CannotStart: PostgreSQL is not installed.
    """
    program("postgres")
    data_dir = data_dir.absolute()
    for made in (data_dir, data_dir / "postgres", data_dir / "logs"):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    return PostgresServer(
        host=ports.LOOPBACK,
        port=ports.internal(data_dir, "postgres", port),
        user=USER,
        password=secrets.make_once(data_dir / "secrets" / "postgres"),
        data_dir=data_dir,
    )


def command(server: PostgresServer) -> list[str]:
    """The child's command line. Start it from a thread that lives as long as the server shall (`child`)."""
    flags = ["--data", str(server.data_dir), "--port", str(server.port), "--parent-pid", str(os.getpid())]
    return [sys.executable, "-m", "infra.local.postgres", *flags]


def wait_ready(server: PostgresServer, timeout_s: float, *, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until this very server lets us in with its own password.

    Args:
        alive: whether the child still runs; without it a child that failed is waited for until the end.

    Raises:
        NotReady: it has ended, another server answers there, or time is over.
    """
    until_ready(
        "PostgreSQL", lambda: _problem(server), timeout_s=timeout_s, alive=alive, log=_log(server), poll_s=_POLL_S
    )


def _problem(server: PostgresServer) -> str | None:
    try:
        ask(_sign_in(server), within_s=_ANSWER_S)
    except Exception as error:  # whatever it is, the server is not ready
        if type(error).__name__ in ("InvalidPasswordError", "InvalidAuthorizationSpecificationError"):
            raise NotReady(f"another PostgreSQL answers at {server.host}:{server.port}") from error
        return type(error).__name__
    return None


async def _sign_in(server: PostgresServer) -> None:
    import asyncpg  # the child needs no client

    connection = await asyncpg.connect(server.url())
    await connection.close()


def _log(server: PostgresServer) -> Path:
    return server.data_dir / "logs" / "postgres-server.log"  # postgres.log is what supervisor would write


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.postgres", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--port", type=int, help="default: picked once, remembered")
    parser.add_argument("--parent-pid", type=int, help="end when this parent ends (default: the one at start)")
    asked = parser.parse_args()
    lock = hold(asked.data / "postgres", wait_s=_PREDECESSOR_S)
    server = prepare(asked.data, asked.port)
    postgres, initdb = program("postgres"), program("initdb")
    ports.require_free(server.port, purpose="PostgreSQL")
    child.rotate(_log(server), bytes_max=_LOG_BYTES_MAX)
    log = os.open(_log(server), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    folder = server.data_dir / "postgres"
    if os.geteuid() == 0:
        _step_down(folder)
    child.begin(asked.parent_pid)  # only now: a change of user makes the system forget what it was asked
    os.chdir(folder)
    data = folder / "data"
    if not (data / "PG_VERSION").exists():
        _init(initdb, server, data)
    for stream in (1, 2):
        os.dup2(log, stream)
    lock.keep_over_exec()
    options = {
        "listen_addresses": server.host,
        "port": str(server.port),
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        # Small: it shares the machine.
        "max_connections": "50",
        "shared_buffers": "16MB",
    }
    flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    os.execv(postgres, [str(postgres), "-D", str(data), *flags])  # noqa: S606


def _step_down(folder: Path) -> None:
    """Become a user that PostgreSQL runs as, and let it have `folder`."""
    user = next((found for found in map(_user, _UNPRIVILEGED) if found is not None), None)
    if user is None:
        raise CannotStart(f"PostgreSQL does not run as root, and there is no user {' or '.join(_UNPRIVILEGED)}")
    os.chown(folder, user.pw_uid, user.pw_gid)
    folder.parent.chmod(0o711)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    if not os.access(folder, os.W_OK):
        raise CannotStart(
            f"PostgreSQL does not run as root, and {user.pw_name} cannot reach {folder}: use a data folder in a place that "
            "others may pass through"
        )


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _init(initdb: Path, server: PostgresServer, data: Path) -> None:
    # Ordered as a cluster's database is, by a language: what must not depend on that shows here.
    made = Path("password")
    secrets.write_private(made, server.password)
    try:
        done = subprocess.run(  # noqa: S603 - PostgreSQL's own, found above
            [
                initdb, "--pgdata", data, "--username", server.user, "--pwfile", made, "--auth", "scram-sha-256",
                "--encoding", "UTF8", "--locale", "C.UTF-8", "--locale-provider", "icu", "--icu-locale", "en-US",
            ],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CannotStart(f"PostgreSQL's folder {data} was not made within {_INIT_S:g} s") from None
    finally:
        made.unlink()
    if done.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        raise CannotStart(f"PostgreSQL's folder {data} could not be made: {' '.join(done.stderr.split())[-500:]}")


if __name__ == "__main__":
    try:
        main()
    except LocalError as error:
        sys.exit(f"{error}")
