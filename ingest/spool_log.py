"""The spool as a log, for the planner and the workers of one machine. Files only; the writer is another process."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from ingest import frames
from ingest.frames import Place, Segment
from ingest.log import LogError, LogGap, LogUnavailable, Plan, Record
from ingest.spool_plan import read_plan, read_resumed, write_plan, write_resumed
from schemas.batch import Batch, Partition


def partition_of(folder: Path) -> Partition:
    """A spool's name in batches and in the ledger. It is the spool's own id, so that a fresh data folder whose offsets
    begin at 0 again is never taken for the old one."""
    return Partition(f"spool/{(folder / 'id').read_text().strip()}", 0)


def spools(root: Path) -> dict[Partition, Path]:
    """Every spool below `root` that has ever been opened."""
    return {partition_of(path.parent): path.parent for path in sorted(root.glob("edge-*/id"))}


class SpoolLog:
    """`ingest.log.Log` over every spool of this machine."""

    def __init__(self, root: Path, *, batch_events: int, batch_bytes: int) -> None:
        self._root = root
        self._batch_events = batch_events
        self._batch_bytes = batch_bytes
        self._folders: dict[Partition, Path] = {}
        self._ends: dict[Partition, tuple[Segment, Place]] = {}
        self._cuts: dict[Partition, tuple[Segment, Place]] = {}

    async def partitions(self) -> Sequence[Partition]:
        self._folders = spools(self._root)
        return list(self._folders)

    async def end(self, partition: Partition) -> int:
        newest = newest_segment(self._folders[partition])
        if newest is None:
            return 0
        segment, place = self._ends.get(partition, (newest, Place(newest.first, 0)))
        if segment != newest:
            place = Place(newest.first, 0)
        place = last_place(newest, place)
        self._ends[partition] = (newest, place)
        return place.offset

    async def cut(self, partition: Partition, *, start: int, end: int) -> int:
        last = min(end, start + self._batch_events)
        folder = self._folders[partition]
        walked = _Walk(folder, self._cuts.get(partition))
        bytes_left = self._batch_bytes
        offset = start
        while offset < last:
            step = walked.advance(offset)
            if step is None:  # a hole: what is lost is told when the batch is read
                offset += 1
                continue
            bytes_left -= step
            offset += 1
            if bytes_left <= 0:
                break
        if walked.at is not None:
            self._cuts[partition] = walked.at
        walked.close()
        return offset

    async def load_plan(self, partition: Partition) -> Plan | None:
        plan = read_plan(self._folders[partition])
        if plan == Plan():
            return None
        if plan.shipped and plan.cuts:
            raise LogError(
                f"the spool {self._folders[partition]} was left by a shipper in the middle of a transaction: run "
                "'heliograph ship' with its Kafka once more, then plan the spool"
            )
        return msgspec.structs.replace(plan, shipped=False)

    async def save_plan(self, partition: Partition, plan: Plan) -> None:
        folder = self._folders[partition]
        write_plan(folder, plan)
        free(folder, plan.committed)

    async def paused(self, partition: Partition) -> str | None:
        return read_plan(self._folders[partition]).paused

    async def resume(self, partition: Partition) -> str | None:
        folder = self._folders[partition]
        plan = read_plan(folder)
        if plan.paused is not None:
            write_resumed(folder, plan.paused_ms)
        return plan.paused

    async def resumed(self, partition: Partition) -> int | None:
        return read_resumed(self._folders[partition])

    async def start(self, partition: Partition) -> int:
        """The oldest offset still here."""
        existing = frames.segments(self._folders[partition])
        return existing[0].first if existing else 0

    def folder(self, partition: Partition) -> Path:
        return self._folders[partition]


class SpoolReader:
    """`ingest.log.RangeReader` over every spool of this machine. Remembers where it stood: batches come in order."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[Partition, Path] = {}
        self._at: dict[Partition, tuple[Segment, Place]] = {}

    def read(self, batch: Batch) -> list[Record]:
        folder = self._folder(batch.where)
        existing = frames.segments(folder)
        if not existing or batch.first < existing[0].first:
            raise LogGap(f"batch {batch.token}: its events are no longer in {folder}; the oldest there is "
                         f"{existing[0].first if existing else 'none'}")  # fmt: skip
        records: list[Record] = []
        for segment, following in zip(existing, [*existing[1:], None], strict=True):
            segment_end = following.first if following else None
            if segment_end is not None and segment_end <= batch.first:
                continue
            if segment.first > batch.last:
                break
            records += self._read_segment(batch, segment, segment_end)
        return records

    def close(self) -> None:
        self._at.clear()

    def _folder(self, partition: Partition) -> Path:
        if partition not in self._folders:
            self._folders = spools(self._root)
        try:
            return self._folders[partition]
        except KeyError:
            raise LogGap(f"there is no spool {partition.topic} below {self._root}") from None

    def _read_segment(self, batch: Batch, segment: Segment, segment_end: int | None) -> list[Record]:
        """The part of a batch that stands in one segment; `segment_end` is where the next begins."""
        first = max(batch.first, segment.first)
        last = batch.last if segment_end is None else min(batch.last, segment_end - 1)
        try:
            descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LogGap(f"batch {batch.token}: {segment.path.name} was freed while it was read") from None
        try:
            start = self._place(batch.where, segment, first, descriptor)
            end = walk_to(descriptor, start, last + 1)
            data = os.pread(descriptor, end.position - start.position, start.position)
        finally:
            os.close(descriptor)
        self._at[batch.where] = (segment, end)
        records = [
            Record(start.offset + i, payload, corrupt=not whole)
            for i, (payload, whole) in enumerate(frames.payloads(data))
        ]
        records = [record for record in records if record.offset >= first]
        found = first + len(records)
        if found <= last:
            if segment_end is None:
                raise LogUnavailable(f"batch {batch.token}: events from {found} on are not in the spool yet")
            # The writer went on in another file, so these will never come: damaged, or lost with the power.
            records += [Record(offset, b"", corrupt=True) for offset in range(found, last + 1)]
        return records

    def _place(self, partition: Partition, segment: Segment, offset: int, descriptor: int) -> Place:
        known = self._at.get(partition)
        place = known[1] if known and known[0] == segment and known[1].offset <= offset else Place(segment.first, 0)
        return walk_to(descriptor, place, offset)


class _Walk:
    """Steps through a spool's records by their headers, from file to file."""

    def __init__(self, folder: Path, at: tuple[Segment, Place] | None) -> None:
        self._segments = frames.segments(folder)
        self.at = at
        self._descriptor: int | None = None

    def advance(self, offset: int) -> int | None:
        """Pass the record at `offset`; gives its bytes, or None when it is not there."""
        home = next((s for s in reversed(self._segments) if s.first <= offset), None)
        if home is None:
            return None
        if self.at is None or self.at[0] != home or self.at[1].offset > offset:
            self.close()
            self.at = (home, Place(home.first, 0))
        if self._descriptor is None:
            self._descriptor = os.open(home.path, os.O_RDONLY | os.O_CLOEXEC)
        place = self.at[1]
        for following in frames.places(self._descriptor, place):
            self.at = (home, following)
            if following.offset == offset + 1:
                return following.position - place.position
            place = following
        return None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def newest_segment(folder: Path) -> Segment | None:
    existing = frames.segments(folder)
    return existing[-1] if existing else None


def last_place(segment: Segment, start: Place) -> Place:
    try:
        descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return start
    try:
        return walk_to(descriptor, start, None)
    finally:
        os.close(descriptor)


def walk_to(descriptor: int, start: Place, offset: int | None) -> Place:
    """The place of `offset`, or the last there is before it."""
    if start.offset == offset:
        return start
    reached = start
    for reached in frames.places(descriptor, start):
        if reached.offset == offset:
            break
    return reached


def free(folder: Path, committed: int) -> None:
    """Delete the segments whose every event is committed. The newest stays: its writer appends to it."""
    existing = frames.segments(folder)
    for segment, following in pairwise(existing):
        if following.first <= committed:
            segment.path.unlink(missing_ok=True)
