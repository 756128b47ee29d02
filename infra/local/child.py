"""What every child of ours does first: end with its parent, keep its files to its owner, and bound its log."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from infra.local.tethered import tether

_POLL_S = 0.5


def begin(parent_pid: int | None) -> None:
    """
    Args:
        parent_pid: who started us; without it, whoever is our parent now.
    """
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # Python's own handler would wait for native code that never returns
    _end_with_parent(parent_pid if parent_pid is not None else os.getppid())


def rotate(log: Path, *, bytes_max: int) -> None:
    """Put a log that has grown too big aside, one predecessor kept. For programs that open it anew for every line."""
    if log.exists() and log.stat().st_size > bytes_max:
        os.replace(log, log.with_name(log.name + ".1"))


def _end_with_parent(parent_pid: int) -> None:
    # Linux watches the thread that started us: start children from one that lives as long as they shall.
    tether()
    if sys.platform != "linux":
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
