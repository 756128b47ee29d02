"""How far a spool's shipper is behind, told once a second by a thread of its own: also while Kafka is away and the
shipper waits for it."""

import logging
import threading
import time
from pathlib import Path
from types import TracebackType

import msgspec

from ingest import frames, metrics
from ingest.frames import Place, Segment
from ingest.log import LogError
from ingest.spool_log import SpoolReader, last_place, newest_segment, partition_of
from schemas.batch import Batch

log = logging.getLogger("heliograph.shipper")

_EVERY_S = 1.0


class _Moment(msgspec.Struct):
    """Of an event, when its call ended."""

    created_ms: int
    latency_ms: float


_moment = msgspec.msgpack.Decoder(_Moment)


class SpoolWatch:
    """Runs while its `with` block does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._position: int | None = None
        self._at: tuple[Segment, Place] | None = None
        self._reader = SpoolReader(folder.parent)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{folder.name}", daemon=True)

    def shipped(self, position: int) -> None:
        """The next offset that is not in Kafka yet."""
        self._position = position

    def look(self) -> None:
        """Set the gauges once."""
        spool = self._folder.name
        metrics.ship_spool_bytes.labels(spool).set(
            sum(_size(segment.path) for segment in frames.segments(self._folder))
        )
        position = self._position
        if position is None:
            return
        behind = max(0, self._end() - position)
        metrics.ship_lag_events.labels(spool).set(behind)
        metrics.ship_lag_seconds.labels(spool).set(self._age_s(position) if behind else 0.0)

    def _end(self) -> int:
        newest = newest_segment(self._folder)
        if newest is None:
            return 0
        known = self._at
        start = known[1] if known is not None and known[0] == newest else Place(newest.first, 0)
        self._at = (newest, last_place(newest, start))
        return self._at[1].offset

    def _age_s(self, position: int) -> float:
        """Since the call of the oldest event that is not in Kafka ended."""
        where = partition_of(self._folder)
        try:
            (record,) = self._reader.read(Batch(where.topic, where.number, position, position))
            event = _moment.decode(record.payload)
        except (LogError, msgspec.MsgspecError, ValueError):
            return 0.0  # shipped and freed meanwhile, or no event at all
        return max(0.0, time.time() - (event.created_ms + event.latency_ms) / 1000)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self.look()
            except OSError as error:
                log.warning("how far the shipper is behind cannot be told", extra={"error": str(error)})

    def __enter__(self) -> "SpoolWatch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
