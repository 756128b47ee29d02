"""The pipeline's counters over the real broker: stage by stage, and each event in one of them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from cli.kafka_view import KafkaView
from control import models
from ingest.kafka_log import KafkaLog
from ingest.kafka_reader import KafkaReader
from ingest.ledger import Ledger
from ingest.planner import Planner
from schemas.batch import Batch
from schemas.event import Event, pack
from schemas.ids import new_id
from schemas.settings import KafkaSettings, PlannerSettings, SharedSettings
from tests.control.test_pipeline import adds_up, stored
from tests.control.world import NOW_MS, opened
from tests.ingest.kafka_tools import fill, producing, ship, transaction
from tests.servers import RunningKafka
from workers.store import StoredBatch


class Line:
    """Spool, Kafka and planner of one test; the ledger is written by hand, as workers would."""

    def __init__(self, shared: SharedSettings, kafka: KafkaSettings) -> None:
        self.shared, self.kafka = shared, kafka
        self.root = shared.data_dir / "spool"
        self.handed: list[Batch] = []

    async def spool(self, count: int, *, age_s: int = 0) -> Path:
        return await fill(self.root, [pack(event(age_s)) for _ in range(count)])

    async def plan(self) -> None:
        log = KafkaLog(self.kafka, batch_events=30, instance="a")
        settings = PlannerSettings(linger_ms=1, poll_ms=10, batch_events=30)
        ledger, view = Ledger(self.shared.clickhouse), KafkaView(self.kafka, self.root)
        planner = Planner(log, ledger, self.handed.append, settings)
        try:
            for _ in range(400):
                await planner.turn()
                if all(one.plan.planned == one.end for one in await view.partitions()):
                    break
        finally:
            await view.close()
            await log.close()
            ledger.close()

    def stored(self, batches: list[Batch]) -> list[StoredBatch]:
        """As a worker stored them, a dead letter in each that has an event."""
        reader = KafkaReader(self.kafka)
        events = [len(reader.read(batch)) for batch in batches]
        reader.close()
        return [
            stored(batch.where, batch.first, batch.last, events=count, dead=min(1, count))
            for batch, count in zip(batches, events, strict=True)
        ]


def event(age_s: int) -> Event:
    return Event(
        id=new_id(NOW_MS), created_ms=NOW_MS - age_s * 1000, project_id="default", provider="openai", api="openai.chat",
        method="POST", path="/", outcome="success", latency_ms=1,
    )  # fmt: skip


@pytest_asyncio.fixture
async def line(shared: SharedSettings, kafka: KafkaSettings) -> AsyncIterator[Line]:
    yield Line(shared, kafka)


async def page_of(line: Line, *, root: Path | None = None) -> dict[str, Any]:
    """The page, of this test's topic alone: others have left theirs in the ledger."""
    async with opened(line.shared, log_view=KafkaView(line.kafka, root or line.root)) as world:
        answer = await (await world.client()).get("/v1/pipeline")
    assert answer.status_code == 200, answer.text
    page = answer.json()
    models.PipelineOut.model_validate(page)
    assert adds_up(page)
    mine = [part for part in page["partitions"] if part["topic"] == line.kafka.requests_topic]
    sums = {
        name: sum(part[name] for part in mine)
        for name in (
            "logged",
            "planned",
            "unplanned",
            "skipped",
            "outstanding",
            "stored",
            "dead_lettered",
            "without_event",
        )
    }
    return {**page, **sums, "shipped": sum(spool["shipped"] for spool in page["spools"])}


async def test_every_event_is_in_one_stage_from_the_spool_to_its_row(line: Line) -> None:
    folder = await line.spool(100, age_s=60)
    before = await page_of(line)
    assert (before["shipped"], before["unshipped"], before["logged"]) == (0, 100, 0)
    assert 55 < before["oldest_unstored_age_s"] - (datetime.now(UTC).timestamp() - NOW_MS / 1000) < 65

    await asyncio.to_thread(ship, folder, line.kafka)
    await line.spool(20)
    shipped = await page_of(line)
    markers = shipped["logged"] - 100
    assert markers > 0
    assert (shipped["shipped"], shipped["unshipped"]) == (100, 20)
    assert (shipped["planned"], shipped["unplanned"], shipped["skipped"]) == (0, 100 + markers, 0)
    assert shipped["oldest_unstored_at"] == before["oldest_unstored_at"]

    await line.plan()
    planned = await page_of(line)
    assert (planned["outstanding"], planned["unplanned"], planned["stored"]) == (100 + markers, 0, 0)
    assert planned["lag_events"] == 20 + 100 + markers

    rows = line.stored(line.handed)
    async with opened(line.shared) as world:
        world.confirm(*rows[:2])
    some = await page_of(line)
    done = sum(row.batch.next_offset - row.batch.first for row in rows[:2])
    assert some["outstanding"] == 100 + markers - done
    assert some["stored"] + some["dead_lettered"] + some["without_event"] == done

    async with opened(line.shared) as world:
        world.confirm(*rows[2:])
    rest = await page_of(line)
    assert (rest["outstanding"], rest["unplanned"], rest["without_event"]) == (0, 0, markers)
    assert rest["stored"] + rest["dead_lettered"] == rest["shipped"] == 100
    assert rest["dead_lettered"] == sum(row.dead for row in rows)
    assert (rest["unshipped"], rest["lag_events"]) == (20, 20)
    # What is left is young.
    assert rest["oldest_unstored_age_s"] < before["oldest_unstored_age_s"]


async def test_a_spool_of_another_machine_is_known_by_what_was_shipped_of_it(line: Line, tmp_path: Path) -> None:
    folder = await line.spool(30)
    await asyncio.to_thread(ship, folder, line.kafka)
    await line.spool(5)
    elsewhere = await page_of(line, root=tmp_path / "another machine")
    (spool,) = elsewhere["spools"]
    assert (spool["present"], spool["shipped"], spool["unshipped"]) == (False, 30, None)
    assert (elsewhere["unshipped"], elsewhere["unshipped_spools_unseen"]) == (0, 1)


async def test_what_was_deleted_before_planning_began_is_skipped_and_not_outstanding(line: Line) -> None:
    async with producing(line.kafka, f"{line.kafka.group_prefix}.by-hand") as producer:
        await transaction(producer, line.kafka, [pack(event(10))] * 50)
        await transaction(producer, line.kafka, [pack(event(5))] * 3)
    view = KafkaView(line.kafka, line.root)
    await view.partitions()
    assert view._admin is not None
    await view._admin.delete_records({TopicPartition(line.kafka.requests_topic, 0): RecordsToDelete(before_offset=51)})
    await view.close()
    page = await page_of(line)
    assert (page["skipped"], page["unplanned"], page["outstanding"], page["logged"]) == (51, 4, 0, 55)
    await line.plan()
    page = await page_of(line)
    assert (page["skipped"], page["unplanned"], page["outstanding"]) == (51, 0, 4)


async def test_where_only_markers_are_left_nothing_is_old(line: Line) -> None:
    async with producing(line.kafka, f"{line.kafka.group_prefix}.by-hand") as producer:
        await transaction(producer, line.kafka, [pack(event(10))], abort=True)
    page = await page_of(line)
    assert (page["unplanned"], page["oldest_unstored_at"]) == (2, None)


async def test_a_broker_that_is_away_is_told_and_found_again(
    line: Line, broker: RunningKafka, kafka: KafkaSettings
) -> None:
    quick = kafka.model_copy(update={"call_timeout_s": 2, "request_timeout_s": 1})
    async with opened(line.shared, log_view=KafkaView(quick, line.root)) as world:
        client = await world.client()
        assert (await client.get("/v1/pipeline")).status_code == 200
        broker.child.kill()
        try:
            world.app.state.services.pipeline._read_at = float("-inf")
            away = await client.get("/v1/pipeline")
        finally:
            broker.child.start()
        assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
        assert (await client.get("/v1/pipeline")).status_code == 200
