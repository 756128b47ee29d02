"""What a log is, to those who plan its batches and to those who read them: the spool here, Kafka on a cluster.

Offsets count records within a partition and only grow. A range may have holes (Kafka's transaction markers, a spool
that was opened again after power loss), so a batch says how many events it held only once it has been read.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from schemas.batch import Batch, Partition


class Record(msgspec.Struct, frozen=True):
    """One event's envelope."""

    offset: int
    payload: bytes
    corrupt: bool = False
    """The bytes are not those that were written (checksum)."""


class Plan(msgspec.Struct, frozen=True):
    """What a planner has promised for one partition, written down before anybody acts on it."""

    committed: int = 0
    """Every event before this offset is in the ledger."""
    cuts: tuple[int, ...] = ()
    """Where the batches after it end: next offsets, growing. The first batch begins at `committed`."""
    paused: str | None = None
    """Why no more batches are cut."""

    @property
    def planned(self) -> int:
        """The next offset after the newest batch."""
        return self.cuts[-1] if self.cuts else self.committed

    def batches(self, partition: Partition) -> list[Batch]:
        """The batches promised and not yet committed, oldest first."""
        starts = (self.committed, *self.cuts)[: len(self.cuts)]
        return [
            Batch(partition.topic, partition.number, start, end - 1)
            for start, end in zip(starts, self.cuts, strict=True)
        ]


class LogError(Exception):
    """Base of what can go wrong with a log."""


class LogUnavailable(LogError):
    """Not readable just now; try again."""


class LogGap(LogError):
    """Records that were promised are no longer there. Nothing goes on silently: somebody must look."""


class Log(Protocol):
    """The planner's side. One planner at a time has a partition: `partitions` names those that are this one's."""

    async def partitions(self) -> Sequence[Partition]: ...

    async def end(self, partition: Partition) -> int:
        """The next offset after the newest record that anyone may read."""
        ...

    async def cut(self, partition: Partition, *, start: int, end: int) -> int:
        """Where a batch that begins at `start` should end: at most `end`, after `start`, within the log's bounds."""
        ...

    async def load_plan(self, partition: Partition) -> Plan: ...

    async def save_plan(self, partition: Partition, plan: Plan) -> None:
        """Durable when it returns. What lies before `plan.committed` may be freed.

        Raises:
            LogUnavailable: nothing was written, nothing may be handed out.
        """
        ...


class RangeReader(Protocol):
    """The worker's side."""

    def read(self, batch: Batch) -> list[Record]:
        """Every record of the batch, in offset order. Reading the same batch again gives the same records.

        Raises:
            LogUnavailable: try again.
            LogGap: some of it has been freed or lost.
        """
        ...

    def close(self) -> None: ...
