"""Passwords and private files: made once, kept, readable by their owner alone."""

import os
import secrets
import tempfile
from pathlib import Path

from infra.local.errors import CannotStart
from infra.local.lock import exclusive


def make_once(path: Path) -> str:
    """The secret kept in `path`: read, or made (256 random bits) at the first call. Safe from several processes.

    Raises:
        CannotStart: the file is empty, so the servers' data would no longer open with what we made anew.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(path.with_name(".lock")):
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32))
    return read(path)


def read(path: Path) -> str:
    """A kept secret. Takes back rights that a copy or a restore gave to others.

    Raises:
        FileNotFoundError: none was made yet.
        CannotStart: the file is empty.
    """
    secret = path.read_text().strip()
    if not secret:
        raise CannotStart(f"{path} is empty; delete it to have a new secret made")
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return secret


def write_private(path: Path, text: str) -> None:
    """Write the whole file or nothing, mode 600, on the disk when this returns."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600 by itself
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
