"""The spool's writing side: one per edge process, the first durable place of every event.

Events are appended to a list on the event loop; a thread takes the whole list every few milliseconds and writes it
once, another syncs what was written. What a `kill -9` can lose is what was in that list: at most `linger_ms` of events.
What power loss can lose is what was not synced: a disk may take tens of milliseconds to do that (72 seen), which is why
writing does not wait for it.

When the disk is the limit: a full list makes the end of a call wait for the next group. When the folder is the limit
(nothing takes the events away): from nine tenths of `bytes_max` on events go in without their bodies, beyond it they
are dropped, counted in `dropped` and said in the log. A call itself is never refused for it. A disk that fails is tried
again and again; meanwhile the list fills, and beyond `queue_bytes_max` events are dropped too.
"""

import asyncio
import fcntl
import json
import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ingest import frames
from ingest.frames import Place
from ingest.spool_plan import read_plan
from schemas.settings import SpoolSettings

log = logging.getLogger("heliograph.spool")

Level = Literal["normal", "no_bodies", "full"]

_RETRY_S = 0.5
_CLOSE_TIMEOUT_S = 10.0
_RECOUNT_S = 1.0


class SpoolError(Exception):
    """The spool cannot be opened. The message says why and what to do."""


class Spool:
    """An open spool. `append` belongs to one event loop; the rest is the writer thread's."""

    def __init__(self, folder: Path, lock: int, settings: SpoolSettings) -> None:
        self.folder = folder
        self.settings = settings
        self._queue_bytes_max = settings.queue_bytes_max
        self.level: Level = "normal"
        self.disk_bytes = 0
        # Two counters, each with one writing thread: a shared one would lose additions.
        self._appended_bytes = 0
        self._written_bytes = 0
        self._lock = lock
        self._pending: list[bytes] = []
        self._wake = threading.Event()
        self._resting = False
        """Whether the writer waits for `_wake`, having found nothing to write."""
        self._stopping = False
        self._failing = False
        self._ended = False
        self._torn = False
        """Whether a part of a group may stand at the file's end."""
        self._room: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.id = _identity(folder)
        self.dropped = dropped_events(folder)
        """Events lost because the spool was full or its disk failed, since it was made."""
        self._dropped_noted = self.dropped
        self._descriptor, self._segment_bytes, self.durable = _recover(folder)
        """`durable`: the next offset after the newest event that a kill of this process leaves behind."""
        self._file_bytes_max = settings.segment_bytes
        self._recount()
        self._unsynced = threading.Event()
        # Held around each sync and each change of file.
        self._syncing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()
        if settings.fsync == "group":
            threading.Thread(target=self._sync, name="spool sync", daemon=True).start()

    def append(self, payload: bytes) -> bool:
        """Take an event; it is durable within `linger_ms`. False: the event was dropped, for the spool
        is full or its disk fails."""
        if self.level == "full" or self._ended or (self._failing and self.queue_bytes > self._queue_bytes_max):
            self.dropped += 1
            return False
        self._pending += (frames.header(payload), payload)
        self._appended_bytes += len(payload) + frames.HEADER_BYTES
        if self._resting:
            self._resting = False
            self._wake.set()
        return True

    @property
    def queue_bytes(self) -> int:
        """Bytes that wait for the disk."""
        return self._appended_bytes - self._written_bytes

    @property
    def crowded(self) -> bool:
        """Whether the list is full: the caller should wait for `room`."""
        return self._appended_bytes - self._written_bytes > self._queue_bytes_max and not self.failing

    @property
    def failing(self) -> bool:
        """Whether events do not reach the disk at present: it refuses them, or the writer has ended."""
        return self._failing or self._ended

    async def room(self) -> None:
        """Wait until the writer has taken the list, or cannot."""
        while self.crowded:
            if self._room is None:
                # Looked at again before waiting: the writer may have found nobody to tell just now.
                self._room = self._loop.create_future()
                continue
            await asyncio.shield(self._room)

    async def close(self) -> None:
        """Write what is left, then let go of the folder."""
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join, _CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("the spool's last events could not be written", extra={"bytes": self.queue_bytes})
            return
        if self._pending:
            left = len(self._pending) // 2
            self.dropped += left
            log.error("events lost at stop: the disk did not take them", extra={"events": left})
        self._note_dropped()
        with self._syncing:
            try:
                if self.settings.fsync == "group":
                    os.fdatasync(self._descriptor)
            except OSError as error:
                log.error("the spool's disk could not be synced", extra={"error": str(error)})
            _close(self._descriptor)
            self._descriptor = -1
        os.close(self._lock)

    def __repr__(self) -> str:
        return (
            f"Spool({self.folder.name}, durable={self.durable}, queue_bytes={self.queue_bytes}, "
            f"disk_bytes={self.disk_bytes}, level={self.level}, dropped={self.dropped})"
        )

    # The writer thread. It competes with a busy loop for the interpreter and may wait for it each time, so it needs it
    # only around the write: once to take the list, once to say that it is on disk.

    def _run(self) -> None:
        try:
            self._write_on()
        except BaseException:
            log.exception("the spool's writer has ended; events are dropped until the edge is restarted")
        finally:
            self._ended = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._open_room)

    def _write_on(self) -> None:
        linger_s = self.settings.linger_ms / 1000
        counted_at = 0.0
        while not (self._stopping and not self._pending):
            if not self._pending:
                self._rest()
            if self._pending and not self._stopping:
                time.sleep(linger_s)
            now = time.monotonic()
            if now - counted_at > _RECOUNT_S:
                counted_at = now
                self._recount()
                self._note_dropped()
            took = not self._pending or self._write_group()
            # A full file is followed by the next at once, so that it can be freed.
            if took and self._file_is_full:
                took = self._write(b"")
            if not took:
                if self._stopping:
                    return
                time.sleep(_RETRY_S)

    def _rest(self) -> None:
        """Wait for an event; no longer than a second, since what the planner frees is only seen by looking."""
        self._resting = True
        if not self._pending:  # looked at again: what came a moment ago has not woken anybody
            self._wake.wait(_RECOUNT_S)
        self._resting = False
        self._wake.clear()

    def _write_group(self) -> bool:
        # Appending only ever adds behind `count`, so taking the front needs no lock.
        count = len(self._pending)
        data = b"".join(self._pending[:count])
        if not self._write(data):
            return False
        del self._pending[:count]
        self.durable += count // 2
        self._written_bytes += len(data)
        self.disk_bytes += len(data)
        if self._room is not None and self.queue_bytes <= self._queue_bytes_max:
            self._loop.call_soon_threadsafe(self._open_room)
        return True

    def _write(self, data: bytes) -> bool:
        """Whether all of it is in the file; if not, nothing is. Begins the next file first when this one is full."""
        try:
            if self._file_is_full:
                self._rotate()
            self._put(data)
        except OSError as error:
            if not self._failing:
                log.error("the spool's disk does not take events; trying on", extra={"error": str(error)})
                self._failing = True
                self._loop.call_soon_threadsafe(self._open_room)
            with suppress(OSError):  # else before the next try
                self._cut_back()
            return False
        if self._failing:
            log.warning("the spool's disk takes events again")
            self._failing = False
        self._segment_bytes += len(data)
        self._unsynced.set()
        return True

    def _put(self, data: bytes) -> None:
        self._cut_back()
        self._torn = True
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._torn = False

    def _cut_back(self) -> None:
        if self._torn:
            os.ftruncate(self._descriptor, self._segment_bytes)
            self._torn = False

    def _sync(self) -> None:
        """What has been written survives a `kill -9` at once, and power loss once this has been by: a disk that takes
        long to sync must not keep the next groups in memory meanwhile."""
        while not self._stopping:
            self._unsynced.wait(_RECOUNT_S)
            if self._unsynced.is_set():
                self._unsynced.clear()
                with self._syncing:
                    if self._descriptor < 0:
                        return
                    try:
                        os.fdatasync(self._descriptor)
                    except OSError as error:
                        log.error("the spool's disk could not be synced", extra={"error": str(error)})

    @property
    def _file_is_full(self) -> bool:
        return self._segment_bytes >= self._file_bytes_max

    def _rotate(self) -> None:
        """Go on in the next file.

        Raises:
            OSError: to be tried again before anything is written. The next file may stand there already, and readers
                then look there for what comes.
        """
        with self._syncing:
            if self.settings.fsync == "group":
                os.fdatasync(self._descriptor)
            try:
                descriptor = _open_segment(self.folder, self.durable)
            except OSError as error:
                if frames.segment_path(self.folder, self.durable).exists():
                    raise
                log.error("no new spool file could be made; going on with the old", extra={"error": str(error)})
                self._file_bytes_max = self._segment_bytes + self.settings.segment_bytes
                return
            full, self._descriptor = self._descriptor, descriptor
            self._segment_bytes, self._file_bytes_max = 0, self.settings.segment_bytes
        _close(full)

    def _recount(self) -> None:
        try:
            self.disk_bytes = sum(_size(segment.path) for segment in frames.segments(self.folder))
        except OSError as error:
            log.error("the spool's size could not be told", extra={"error": str(error)})
            return
        limit = self.settings.bytes_max
        level: Level = (
            "full" if self.disk_bytes >= limit else "no_bodies" if self.disk_bytes >= 0.9 * limit else "normal"
        )
        if level != self.level:
            detail = {"disk_bytes": self.disk_bytes, "bytes_max": limit, "dropped": self.dropped}
            say = {
                "full": "the spool is full: events are dropped and counted until batches are stored again",
                "no_bodies": "the spool is nearly full: events go in without their bodies",
                "normal": "the spool has room again",
            }
            log.warning(say[level], extra=detail)
            self.level = level

    def _note_dropped(self) -> None:
        dropped = self.dropped
        if dropped == self._dropped_noted:
            return
        try:
            fresh = self.folder / "dropped.new"  # a kill in between leaves the count as it was
            fresh.write_text(json.dumps({"events": dropped}))
            fresh.replace(self.folder / "dropped.json")
            self._dropped_noted = dropped
        except OSError as error:
            log.error("the count of dropped events could not be kept", extra={"error": str(error)})

    def _open_room(self) -> None:
        if self._room is not None and not self.crowded:
            self._room.set_result(None)
            self._room = None


def open_spool(root: Path, settings: SpoolSettings) -> Spool:
    """Open the first spool below `root` that no living process holds, or make one.

    Raises:
        SpoolError: the folder cannot be written.
    """
    for slot in range(1024):
        folder = root / f"edge-{slot}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(
                f"the spool folder {folder} cannot be written ({error.strerror}); free or change HELIOGRAPH_DATA_DIR"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        return Spool(folder, lock, settings)
    raise SpoolError(f"every spool below {root} is held by another process")


def dropped_events(folder: Path) -> int:
    """Events a spool has dropped since it was made, as of its last second."""
    try:
        return int(json.loads((folder / "dropped.json").read_text())["events"])
    except (OSError, ValueError, KeyError):
        return 0


def _identity(folder: Path) -> str:
    path = folder / "id"
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.write_text(uuid.uuid4().hex[:16])
        fresh.rename(path)
    return path.read_text().strip()


def _recover(folder: Path) -> tuple[int, int, int]:
    """Open the newest segment for appending, without what a crash left half written. Gives descriptor, size, offset.

    Damage that has whole records behind it stays where it is: readers tell of it, and those records keep their offsets.
    """
    existing = frames.segments(folder)
    planned = read_plan(folder).planned
    if existing:
        newest = existing[-1]
        descriptor = os.open(newest.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        size = os.fstat(descriptor).st_size
        offset, good = frames.last_whole(descriptor, Place(newest.first, 0))
        if good < size:
            log.warning(
                "the end of a spool file was damaged and is cut off",
                extra={"file": newest.path.name, "bytes": size - good, "offset": offset},
            )
            os.ftruncate(descriptor, good)
        # An offset that was ever planned is never given out again: its batch may stand in the ledger already.
        if offset >= planned:
            return descriptor, good, offset
        os.close(descriptor)
    return _open_segment(folder, planned), 0, planned


def _open_segment(folder: Path, first: int) -> int:
    """The new segment's descriptor. One that an earlier try has left there is empty, and taken.

    Raises:
        OSError: it is not there, or not for good yet.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(frames.segment_path(folder, first), flags, 0o600)
    try:
        assert os.fstat(descriptor).st_size == 0
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _close(descriptor: int) -> None:
    """What a failing disk says here it has said before, and the descriptor is free all the same."""
    with suppress(OSError):
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # freed since it was listed
        return 0
