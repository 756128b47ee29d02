"""Ports on loopback: is one free, who has it, and internal ones picked once and remembered in the data folder."""

import errno
import json
import os
import random
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.errors import CannotStart, PortTaken
from infra.local.lock import exclusive
from infra.local.secrets import write_private

LOOPBACK = "127.0.0.1"

# Below the range from which Linux and macOS serve outgoing connections: such a port may be gone at the next start.
INTERNAL = range(20_000, 32_000)


def require_free(port: int, *, host: str = LOOPBACK, purpose: str = "") -> None:
    """
    Raises:
        PortTaken: names the port and, where that can be told, the process that has it.
        CannotStart: this user may not listen there.
    """
    if is_free(port, host=host):
        return
    name = f"port {port}" + (f" ({purpose})" if purpose else "")
    raise PortTaken(f"{name} is taken by {_holder(port) or 'another process'}")


def require_free_each(**by_setting: int) -> None:
    """
    Raises:
        CannotStart: two settings name one port.
        PortTaken, CannotStart: as `require_free`.
    """
    owner: dict[int, str] = {}
    for name, port in by_setting.items():
        if port in owner:
            raise CannotStart(f"{owner[port]} and {name} are both {port}; each needs a port of its own")
        owner[port] = name
        require_free(port, purpose=name)


def is_free(port: int, *, host: str = LOOPBACK) -> bool:
    """Whether we could listen there now.

    Raises:
        CannotStart: this user may not listen there.
    """
    with socket.socket() as probe:
        # As servers do: connections that are still fading away must not keep a port from its owner.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror}") from error
    with socket.socket() as probe:
        # macOS lets us bind beside a listener on all addresses.
        probe.settimeout(0.5)
        return probe.connect_ex((LOOPBACK if host == "0.0.0.0" else host, port)) != 0  # noqa: S104


def pick_free(*, within: range = INTERNAL, but: Iterable[int] = ()) -> int:
    """A port nobody listens on now. Nothing holds it: whoever listens first has it.

    Raises:
        CannotStart: no port of the range is free.
    """
    taken = set(but)
    for port in random.sample(within, len(within)):
        if port not in taken and is_free(port):
            return port
    raise CannotStart(f"no free port from {within.start} to {within.stop - 1}")


def remembered(data_dir: Path) -> dict[str, int]:
    """Ports of this data folder by name; empty before the first start."""
    try:
        ports: dict[str, int] = json.loads((data_dir / "ports.json").read_text())
    except FileNotFoundError:
        return {}
    return ports


def internal(data_dir: Path, name: str, port: int | None = None) -> int:
    """The remembered port of `name`, else a free one, from now on remembered. A given `port` takes its place."""
    with _changing(data_dir) as ports:
        if port is None:
            port = ports.get(name) or pick_free(but=ports.values())
        ports[name] = port
        return port


def forget_taken(data_dir: Path, *, but: Collection[str] = ()) -> list[str]:
    """Forget each remembered port that somebody listens on, so that `internal` picks another.

    Only for who holds the data folder's lock and has started nothing yet: it cannot tell a stranger from our servers.

    Args:
        but: names of ports whose servers run on their own.

    Returns:
        Names of the ports forgotten.
    """
    with _changing(data_dir) as ports:
        gone = [name for name, port in ports.items() if name not in but and not is_free(port)]
        for name in gone:
            del ports[name]
        return gone


@contextmanager
def _changing(data_dir: Path) -> Iterator[dict[str, int]]:
    """The remembered ports, changed by one process at a time and written when the block ends well."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(data_dir / ".ports.lock"):
        before = remembered(data_dir)
        ports = dict(before)
        yield ports
        if ports != before:
            write_private(data_dir / "ports.json", json.dumps(ports))


def _holder(port: int) -> str | None:
    import psutil  # type: ignore[import-untyped,unused-ignore]  # 30 ms that only a failing start pays

    try:
        pids = {
            c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN"
        }
        pid = next((pid for pid in sorted(p for p in pids if p)), None)
        if pid is None:
            return None
        process = psutil.Process(pid)
        return f"{_program(process.cmdline()) or process.name()} (pid {pid}, user {process.username()})"
    except psutil.Error:  # other users' processes, or macOS without rights
        return None


def _program(command: list[str]) -> str:
    """What runs, without its arguments: they may hold passwords."""
    if not command:
        return ""
    program = os.path.basename(command[0].split(" ")[0])
    if program.startswith("python") and len(command) > 2 and command[1] == "-m":
        return f"{program} -m {command[2]}"
    if program.startswith("python") and len(command) > 1 and not command[1].startswith("-"):
        return f"{program} {os.path.basename(command[1])}"
    return program
