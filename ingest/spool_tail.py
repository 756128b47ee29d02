"""A spool read from one place onward, in order, as fast as its files give: what the shipper stands on.

`SpoolReader` reads a given range again and again; this one reads on. Both give the same records for the same offsets.
"""

import os
from pathlib import Path

from ingest import frames
from ingest.frames import Segment
from ingest.log import LogGap, Record
from ingest.spool_log import walk_to

_CHUNK_BYTES = 4 * 1024 * 1024


class SpoolTail:
    """Where a reader stands in a spool. Files only; the writer is another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offset = 0
        """Of the record that is read next."""
        self._segment: Segment | None = None
        self._descriptor: int | None = None
        self._position = 0

    def seek(self, offset: int) -> None:
        """Read on from here.

        Raises:
            LogGap: what stood there has been freed.
        """
        self.close()
        self.offset = offset
        existing = frames.segments(self.folder)
        if existing and offset < existing[0].first:
            raise LogGap(
                f"the spool {self.folder} begins at {existing[0].first}; events from {offset} on are no longer there"
            )

    def read(self, *, events_max: int, bytes_max: int) -> list[Record]:
        """The next records, at least one where there is one. Damaged or lost ones are there, marked so."""
        records: list[Record] = []
        bytes_left = bytes_max
        while len(records) < events_max and bytes_left > 0:
            if self._descriptor is None and not self._open():
                break
            found = self._read_segment(events_max - len(records), bytes_left)
            if found:
                records += found
                bytes_left -= sum(len(record.payload) + frames.HEADER_BYTES for record in found)
                continue
            following = self._following()
            if following is None:
                break
            # The writer has gone on in another file. It may have added to this one since we looked, but no more.
            found = self._read_segment(events_max - len(records), bytes_left)
            if found:
                records += found
                bytes_left -= sum(len(record.payload) + frames.HEADER_BYTES for record in found)
                continue
            # What is missing between the two will never come: damaged, or lost with the power.
            until = min(following.first, self.offset + events_max - len(records))
            records += [Record(lost, b"", corrupt=True) for lost in range(self.offset, until)]
            self.offset = until
            if until == following.first:
                self.close()
        return records

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._segment = None
        self._position = 0

    def _open(self) -> bool:
        """Open the segment that holds, or will hold, the next record and pass what stands before it."""
        existing = frames.segments(self.folder)
        home = next((segment for segment in reversed(existing) if segment.first <= self.offset), None)
        if home is None:
            return False
        self._descriptor = os.open(home.path, os.O_RDONLY | os.O_CLOEXEC)
        self._segment = home
        place = frames.Place(home.first, 0)
        if place.offset < self.offset:
            place = walk_to(self._descriptor, place, self.offset)
        self._position = place.position
        if place.offset < self.offset and self._following() is None:
            # Planned further than the file reaches: a power loss cut it. The writer will begin a new one.
            self.close()
            return False
        return True

    def _read_segment(self, events_max: int, bytes_max: int) -> list[Record]:
        assert self._descriptor is not None
        size = min(bytes_max, _CHUNK_BYTES)
        data = os.pread(self._descriptor, size, self._position)
        while len(data) == size and len(data) < frames.wanted_bytes(data):
            # Not even the first record is whole in it.
            size = frames.wanted_bytes(data)
            data = os.pread(self._descriptor, size, self._position)
        records = []
        for payload, whole in frames.payloads(data):
            records.append(Record(self.offset, payload, corrupt=not whole))
            self.offset += 1
            self._position += frames.HEADER_BYTES + len(payload)
            if len(records) == events_max:
                break
        return records

    def _following(self) -> Segment | None:
        """The segment after the one at hand."""
        assert self._segment is not None
        at = self._segment
        return next((segment for segment in frames.segments(self.folder) if segment.first > at.first), None)
