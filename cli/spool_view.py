"""The spools of this machine as control's pipeline page sees them."""

from collections.abc import Sequence
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
        return [
            PartitionView(
                partition,
                await self._log.start(partition),
                await self._log.end(partition),
                read_plan(self._log.folder(partition)),
            )
            for partition in await self._log.partitions()
        ]

    async def dropped(self) -> int:
        return sum(dropped_events(folder) for folder in spools(self._root).values())

    async def created_ms(self, partition: Partition, offset: int) -> int | None:
        try:
            (record,) = self._reader.read(Batch(partition.topic, partition.number, offset, offset))
            return None if record.corrupt else unpack(record.payload).created_ms
        except (LogError, BadEvent):
            return None
