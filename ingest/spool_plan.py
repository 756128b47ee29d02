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
    with _held(root / "planner.lock", fcntl.LOCK_EX, f"another planner or a shipper already has the spools in {root}"):
        yield


@contextmanager
def spool_shipper(folder: Path) -> Iterator[None]:
    """Be the one shipper of a spool, with no planner on the spools beside it.

    Raises:
        LogError: another shipper has this one, or a planner has them all.
    """
    with (
        _held(folder.parent / "planner.lock", fcntl.LOCK_SH, f"a planner plans the spools in {folder.parent}"),
        _held(folder / "ship.lock", fcntl.LOCK_EX, f"another shipper already ships {folder}"),
    ):
        yield


@contextmanager
def planner_slot(data_dir: Path) -> Iterator[int]:
    """The least number below 64 that no other planner on this machine holds: the same again after a restart.

    Raises:
        LogError: all are held.
    """
    folder = data_dir / "planner"
    folder.mkdir(parents=True, exist_ok=True)
    for slot in range(64):
        try:
            with _held(folder / f"{slot}.lock", fcntl.LOCK_EX, ""):
                yield slot
                return
        except _Taken:
            continue
    raise LogError(f"64 planners run in {data_dir} already")


class _Taken(LogError):
    pass


@contextmanager
def _held(path: Path, kind: int, taken: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            raise _Taken(taken) from None
        yield
    finally:
        os.close(descriptor)
