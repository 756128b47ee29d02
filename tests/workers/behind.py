"""Everything behind the edge on Kafka, in this process: spool, shipper, Kafka, planner, enrich, rows."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ingest.kafka_log import KafkaLog, committed, planner_group
from ingest.kafka_reader import KafkaReader
from ingest.ledger import Ledger
from ingest.log import LogUnavailable
from ingest.objects import Objects
from ingest.planner import Planner
from schemas.batch import Batch
from schemas.event import Event, pack
from schemas.settings import KafkaSettings, ObjectSettings, PlannerSettings, ShipperSettings
from tests.ingest.kafka_tools import ends, fill, shipper, shipping
from tests.workers.case import Case
from workers.enrich import Services, enrich

SETTINGS = PlannerSettings(linger_ms=20, poll_ms=10, batch_events=100, overdue_s=2)


class Behind:
    def __init__(self, case: Case, kafka: KafkaSettings, root: Path) -> None:
        self.case, self.kafka, self.root = case, kafka, root
        case.topic = kafka.requests_topic
        services = case.services()
        self.services = Services(
            store=services.store,
            reader=KafkaReader(kafka),
            prices=case.prices,
            keep_days=90,
            objects=Objects(ObjectSettings(), root),
        )
        self.handed: list[Batch] = []
        self.sent = 0
        self.ledger = Ledger(case.settings)

    def hand_out(self, batch: Batch) -> None:
        self.handed.append(batch)
        with suppress(LogUnavailable):  # as a worker: the planner hands it out again
            enrich(batch, self.services)

    async def run(self, events: Sequence[Event | bytes], *, twice: bool = False) -> None:
        """Until every offset of the topic is committed."""
        self.sent += len(events)
        folder = await fill(self.root / "spool", [one if isinstance(one, bytes) else pack(one) for one in events])
        log = KafkaLog(self.kafka, batch_events=SETTINGS.batch_events, instance="a")
        planner = Planner(log, self.ledger, self.hand_out, SETTINGS)
        running = asyncio.create_task(planner.run())
        quick = ShipperSettings(linger_ms=5, poll_ms=5, transaction_events=150)
        try:
            with shipping(shipper(folder, self.kafka, quick)):
                await self._stored("sum(rows + dead_lettered)", self.sent)
            # The last transaction's markers come a moment later, as batches of no events.
            await asyncio.sleep(0.2)
            await self._stored("sum(last - first + 1)", sum((await ends(self.kafka)).values()))
            await self._committed()
        finally:
            planner.stop()
            await running
            await log.close()
        if twice:
            for batch in self.handed:
                await asyncio.to_thread(enrich, batch, self.services)

    async def _stored(self, what: str, wanted: int) -> None:
        async with asyncio.timeout(60):
            found = 0
            while found != wanted:
                await asyncio.sleep(0.05)
                sql = f"SELECT toInt64({what}) FROM batches WHERE topic = %(topic)s"
                ((found,),) = await asyncio.to_thread(self.case.query, sql)  # type: ignore[assignment]

    async def _committed(self) -> None:
        async with asyncio.timeout(20):
            reached: list[int] = []
            while sum(reached) != sum((await ends(self.kafka)).values()):
                found = await committed(self.kafka, planner_group(self.kafka), None)
                reached = [plan.offset for where, plan in found.items() if where.topic == self.kafka.requests_topic]

    def close(self) -> None:
        self.services.reader.close()
        self.ledger.close()
