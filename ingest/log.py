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
    paused_ms: int = 0
    """When that was decided, milliseconds since 1970: a resume names it, and so lifts this pause and no other."""
    shipped: bool = False
    """Of a spool whose log is Kafka: the shipper wrote this, and the one cut is the transaction at hand."""

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


class PlanMoved(LogUnavailable):
    """The partition was another planner's meanwhile: what was known of its plan is worth nothing, load it again."""


class LogGap(LogError):
    """Records that were promised are no longer there. Nothing goes on silently: somebody must look."""


class Pauses(Protocol):
    """What lifting a pause needs. Not only for the planner that has the partition."""

    async def partitions(self) -> Sequence[Partition]: ...

    async def paused(self, partition: Partition) -> str | None:
        """Why the partition is paused; None: it is not, or no more."""
        ...

    async def resume(self, partition: Partition) -> str | None:
        """Let it be planned again; gives why it was paused, None: it is not. Its planner sees that at its next turn,
        whatever it has written meanwhile."""
        ...


class Log(Protocol):
    """The planner's side. One planner at a time has a partition: `partitions` names those that are this one's."""

    async def partitions(self) -> Sequence[Partition]:
        """Called first in each turn: what the other methods say may be as of now.

        Raises:
            LogUnavailable.
        """
        ...

    async def start(self, partition: Partition) -> int:
        """The oldest offset still there."""
        ...

    async def end(self, partition: Partition) -> int:
        """The next offset after the newest record that anyone may read."""
        ...

    async def cut(self, partition: Partition, *, start: int, end: int) -> int:
        """Where a batch that begins at `start` should end: at most `end`, after `start`, within the log's bounds."""
        ...

    async def load_plan(self, partition: Partition) -> Plan | None:
        """The plan as last written, by whichever planner; None where none ever was.

        From here on `save_plan` is the caller's, until the partition is given to another planner.
        """
        ...

    async def save_plan(self, partition: Partition, plan: Plan) -> None:
        """Durable when it returns. What lies before `plan.committed` may be freed.

        Raises:
            PlanMoved: the partition has been another's since `load_plan`; nothing was written.
            LogUnavailable: whether it was written is not known, nothing may be handed out. Saving the same again is
                harmless.
        """
        ...

    async def resumed(self, partition: Partition) -> int | None:
        """Which pause of the partition was lifted last, by its `paused_ms`; None: none ever. As of a moment ago."""
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
