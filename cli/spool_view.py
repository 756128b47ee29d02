"""The spools of this machine as control's pipeline page sees them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from control.pipeline import PartitionView
from ingest.log import LogError
from ingest.spool import dropped_events
from ingest.spool_log import SpoolLog, SpoolReader, spools
from ingest.spool_plan import read_plan
from schemas.batch import Batch, Partition
from schemas.event import BadEvent, unpack


class SpoolView:
    """`control.pipeline.LogView` over files alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._log = SpoolLog(root, batch_events=1, batch_bytes=1)
        self._reader = SpoolReader(root)

    async def partitions(self) -> Sequence[PartitionView]:
        return [await self._seen(partition) for partition in await self._log.partitions()]

    async def _seen(self, partition: Partition) -> PartitionView:
        start, end = await self._log.start(partition), await self._log.end(partition)
        plan = read_plan(self._log.folder(partition))
        # Read after the end, the plan may be beyond it.
        return PartitionView(partition, start, max(end, plan.planned), plan)

    async def dropped(self) -> int:
        return sum(dropped_events(folder) for folder in spools(self._root).values())

    async def spools(self) -> None:
        return None

    async def oldest_ms(self, first: Mapping[Partition, int]) -> int | None:
        found = (created_ms(self._reader, partition, offset) for partition, offset in first.items())
        return min((at_ms for at_ms in found if at_ms is not None), default=None)

    async def close(self) -> None:
        self._reader.close()


def created_ms(reader: SpoolReader, partition: Partition, offset: int) -> int | None:
    """When the call of the event at an offset came in; None: it cannot be read, or is none."""
    try:
        (record,) = reader.read(Batch(partition.topic, partition.number, offset, offset))
        return None if record.corrupt else unpack(record.payload).created_ms
    except (LogError, BadEvent):
        return None
