"""One process per folder. The system's own file lock, so `kill -9` leaves nothing stale; the file only tells who."""

import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from infra.local.errors import FolderHeld

_COMMAND_CHARS_MAX = 200
_RETRY_S = 0.05


class FolderLock:
    """A held folder. Ends with `release`, with the `with` block or with the process, however that ends."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        # A child forked without exec would keep the lock alive after us; closing its copy does not unlock ours.
        os.register_at_fork(after_in_child=self._forget)

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing waits for a child's copy too
            os.close(self._fd)
            self._fd = None

    def keep_over_exec(self) -> None:
        """Let the program that takes this process's place hold the lock until it ends."""
        assert self._fd is not None
        os.set_inheritable(self._fd, True)

    def _forget(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def hold(folder: Path, *, wait_s: float = 0) -> FolderLock:
    """Become the one process of `folder` (made if missing, for its owner alone).

    Args:
        wait_s: how long to wait for a predecessor that is just ending.

    Raises:
        FolderHeld: says who holds it: pid, since when, command.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(fd, 4096, 0)
                os.close(fd)
                raise FolderHeld(f"{folder} is in use by {_told(holder)}") from None
        time.sleep(_RETRY_S)
    me = {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds"), "command": _command()}
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(me).encode(), 0)
    return FolderLock(fd)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time for a few file operations; waits. `path` is the lock's own file."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _command() -> str:
    program, *arguments = sys.orig_argv
    return shlex.join([os.path.basename(program), *arguments])[:_COMMAND_CHARS_MAX]


def _told(holder: bytes) -> str:
    try:
        who = json.loads(holder)
        return f"pid {who['pid']} since {who['since']}: {who['command']}"
    except (ValueError, KeyError, TypeError):  # between the lock and the writing of the file
        return "a process that is just starting"
