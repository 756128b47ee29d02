"""A spool's plan, kept in a file beside its segments: replaced whole, synced before anybody acts on it.

The plan is its planner's alone. Who lifts a pause writes a file of its own, `resume.json`, which names that pause.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from ingest.log import LogError, LogUnavailable, Plan


class Resume(msgspec.Struct, frozen=True):
    """Which pause was lifted last."""

    paused_ms: int


def read_plan(folder: Path) -> Plan:
    """The plan as last written, without a pause that has been lifted since; a fresh one where there is none.

    Raises:
        LogError: the file is there and cannot be understood. Starting afresh would count events twice, so it is left.
    """
    plan = _read(folder / "plan.json", Plan) or Plan()
    if plan.paused is not None:
        with suppress(LogError):  # a pause of which nobody can tell that it was lifted stands
            if read_resumed(folder) == plan.paused_ms:
                return msgspec.structs.replace(plan, paused=None, paused_ms=0)
    return plan


def write_plan(folder: Path, plan: Plan) -> None:
    """Durable when it returns.

    Raises:
        LogUnavailable: the old plan still stands.
    """
    _write(folder / "plan.json", plan, by_way_of=folder / "plan.json.new", mode=0o600)


def read_resumed(folder: Path) -> int | None:
    """Which pause was lifted last, by its `paused_ms`; None: none ever.

    Raises:
        LogError: the file is there and cannot be understood; the next resume replaces it.
    """
    resume = _read(folder / "resume.json", Resume)
    return None if resume is None else resume.paused_ms


def write_resumed(folder: Path, paused_ms: int) -> None:
    """Lift a pause. Any process may, several at once too, and of any user who may write here.

    Raises:
        LogUnavailable: it was not lifted.
    """
    fresh = folder / f"resume.{uuid.uuid4().hex}.new"
    try:
        _write(folder / "resume.json", Resume(paused_ms), by_way_of=fresh, mode=0o644)
    finally:
        fresh.unlink(missing_ok=True)


_T = TypeVar("_T", bound=msgspec.Struct)


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LogError(f"{path} cannot be read: {error}") from error


def _write(path: Path, what: msgspec.Struct, *, by_way_of: Path, mode: int) -> None:
    try:
        descriptor = os.open(by_way_of, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(what))
            file.flush()
            os.fdatasync(descriptor)
        os.replace(by_way_of, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise LogUnavailable(f"{path} cannot be written: {error}") from error


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
