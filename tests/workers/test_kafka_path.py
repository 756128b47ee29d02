"""The whole of the Kafka path in small: spool, shipper, Kafka, planner, enrich, rows. The same planner and the same
enrich as on the spool."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ingest.kafka_log import KafkaLog
from ingest.kafka_reader import KafkaReader
from ingest.ledger import Ledger
from ingest.log import LogUnavailable
from ingest.objects import Objects
from ingest.planner import Planner
from schemas.batch import Batch
from schemas.event import Body, Event, pack
from schemas.settings import KafkaSettings, ObjectSettings, PlannerSettings, ShipperSettings
from tests.ingest.kafka_tools import ends, fill, shipper, shipping
from tests.workers.case import Case, once
from workers.enrich import Services, enrich

SETTINGS = PlannerSettings(linger_ms=20, poll_ms=10, batch_events=100, overdue_s=2)


class Behind:
    """Everything behind the edge, in this process."""

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
        self.ledger = Ledger(case.settings)

    def hand_out(self, batch: Batch) -> None:
        self.handed.append(batch)
        with suppress(LogUnavailable):  # as a worker: the planner hands it out again
            enrich(batch, self.services)

    async def run(self, events: list[Event], *, twice: bool = False) -> None:
        """Until every offset of the topic is committed."""
        folder = await fill(self.root / "spool", [pack(event) for event in events])
        log = KafkaLog(self.kafka, batch_events=SETTINGS.batch_events, instance="a")
        planner = Planner(log, self.ledger, self.hand_out, SETTINGS)
        running = asyncio.create_task(planner.run())
        quick = ShipperSettings(linger_ms=5, poll_ms=5, transaction_events=150)
        try:
            with shipping(shipper(folder, self.kafka, quick)):
                await self._stored("sum(rows + dead_lettered)", len(events))
            # The last transaction's markers come a moment later, as batches of no events.
            await asyncio.sleep(0.2)
            await self._stored("sum(last - first + 1)", sum((await ends(self.kafka)).values()))
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

    def close(self) -> None:
        self.services.reader.close()
        self.ledger.close()


@pytest.fixture
def path(case: Case, kafka: KafkaSettings, tmp_path: Path) -> Iterator[Behind]:
    one = Behind(case, kafka, tmp_path)
    yield one
    one.close()


async def test_every_event_of_the_spool_is_a_row_once(path: Behind) -> None:
    await path.run([path.case.event() for _ in range(1000)], twice=True)
    assert path.case.counts() == once(1000, ledger=len(set(path.handed)))


async def test_a_large_body_is_read_for_its_usage_and_stays_where_it_is(path: Behind) -> None:
    padding = b" " * 300_000
    response = (
        b'{"id":"x","object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[],'
        + padding
        + b'"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}'
    )
    event = path.case.event(response=Body(size=len(response), head=response))
    await path.run([event])
    row = path.case.row()
    assert (row["input_tokens"], row["output_tokens"], row["response_bytes"]) == (100, 20, len(response))
    ((stored, reference),) = path.case.query(
        "SELECT response, response_reference FROM bodies WHERE project_id = %(project)s"
    )
    assert not stored
    assert Objects(ObjectSettings(), path.root).get(str(reference)) == response


async def test_poison_in_a_batch_dies_alone(path: Behind) -> None:
    good = [path.case.event() for _ in range(20)]
    await path.run([*good[:10], path.case.event(id="no uuid"), *good[10:]])
    counts = path.case.counts()
    assert (counts["requests"], counts["dead_letters"]) == (20, 1)
