"""A spool's plan, kept in a file beside its segments: replaced whole, synced before anybody acts on it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ingest.log import LogError, LogUnavailable, Plan


def read_plan(folder: Path) -> Plan:
    """The plan as last written; a fresh one where there is none.

    Raises:
        LogError: the file is there and cannot be understood. Starting afresh would count events twice, so it is left.
    """
    path = folder / "plan.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return Plan()
    except (OSError, msgspec.DecodeError) as error:
        raise LogError(f"{path} cannot be read: {error}") from error


def write_plan(folder: Path, plan: Plan) -> None:
    """Durable when it returns.

    Raises:
        LogUnavailable: the old plan still stands.
    """
    fresh = folder / "plan.json.new"
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(plan))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(fresh, folder / "plan.json")
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        raise LogUnavailable(f"the plan in {folder} cannot be written: {error}") from error


@contextmanager
def spool_owner(root: Path) -> Iterator[None]:
    """Be the one planner of the spools below `root`. Held by the system, so a killed planner holds nothing.

    Raises:
        LogError: another planner has them.
    """
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / "planner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LogError(f"another planner already plans the spools in {root}") from None
    try:
        yield
    finally:
        os.close(descriptor)
