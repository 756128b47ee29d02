import asyncio
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from control import models
from control.pipeline import PartitionView, ShippedSpool
from ingest.log import LogUnavailable, Plan
from schemas.batch import Batch, Partition
from schemas.settings import ClickHouseSettings, ControlBounds, RedisSettings, SharedSettings
from tests.control.world import NOW_MS, World, opened
from workers.store import LEDGER, Store, StoredBatch


class FakeLog:
    """A log at the wire: what the spool would say."""

    def __init__(self) -> None:
        self.views: list[PartitionView] = []
        self.on_their_way: list[ShippedSpool] | None = None
        self.lost = 0
        self.ages_ms: dict[int, int] = {}
        self.down = False

    async def partitions(self) -> Sequence[PartitionView]:
        if self.down:
            raise LogUnavailable("the disk is away")
        return self.views

    async def dropped(self) -> int:
        return self.lost

    async def spools(self) -> Sequence[ShippedSpool] | None:
        return self.on_their_way

    async def oldest_ms(self, first: Mapping[Partition, int]) -> int | None:
        return min((self.ages_ms[offset] for offset in first.values() if offset in self.ages_ms), default=None)

    async def close(self) -> None:
        pass


@pytest.fixture
def partition() -> Partition:
    return Partition(f"spool/{uuid.uuid4().hex}", 0)


def stored(
    partition: Partition, first: int, last: int, *, events: int | None = None, dead: int = 0, newest_ms: int = NOW_MS
) -> StoredBatch:
    """A batch whose rows are in the tables; its events are as many as its offsets unless said otherwise."""
    return StoredBatch(
        batch=Batch(partition.topic, partition.number, first, last),
        events=last - first + 1 if events is None else events,
        requests=[], bodies=[], attempts=[], dead_letters=[],
        dead=dead, oldest_ms=NOW_MS, newest_ms=newest_ms,
    )  # fmt: skip


def mine(page: dict[str, Any], partition: Partition) -> dict[str, Any]:
    (found,) = [part for part in page["partitions"] if part["topic"] == partition.topic]
    return dict(found)


def adds_up(page: dict[str, Any]) -> bool:
    return bool(
        page["accepted"] == page["spooled"] + page["dropped"]
        and page["logged"] == page["planned"] + page["unplanned"] + page["skipped"]
        and page["planned"] == page["stored"] + page["dead_lettered"] + page["without_event"] + page["outstanding"]
    )


async def test_the_counters_add_up_at_every_stage(shared: SharedSettings, partition: Partition) -> None:
    log = FakeLog()
    log.lost = 7
    log.views = [PartitionView(partition, start=0, end=100, plan=Plan(committed=40, cuts=(60, 90)))]
    log.ages_ms = {40: NOW_MS - 5000, 60: NOW_MS - 3000, 90: NOW_MS - 1000}
    async with opened(shared, log_view=log) as world:
        world.confirm(stored(partition, 0, 39, dead=2, events=39), stored(partition, 40, 59))
        page = (await (await world.client()).get("/v1/pipeline")).json()
    models.PipelineOut.model_validate(page)
    part = mine(page, partition)
    assert {name: part[name] for name in ("logged", "planned", "unplanned", "outstanding", "stored", "dead_lettered")} == {
        "logged": 100, "planned": 90, "unplanned": 10, "outstanding": 30, "stored": 57, "dead_lettered": 2,
    }  # fmt: skip
    assert part["without_event"] == 1
    assert page["dropped"] == 7
    assert adds_up(page)
    # 40–59 is in the ledger though not yet committed: the oldest without a row is 60.
    assert page["oldest_unstored_at"] == datetime.fromtimestamp((NOW_MS - 3000) / 1000, UTC).isoformat(
        timespec="milliseconds"
    ).replace("+00:00", "Z")


async def counted(shared: SharedSettings, log: FakeLog, partition: Partition) -> dict[str, Any]:
    async with opened(shared, log_view=log) as world:
        page = (await (await world.client()).get("/v1/pipeline")).json()
    models.PipelineOut.model_validate(page)
    assert adds_up(page)
    return mine(page, partition)


async def test_a_batch_that_is_confirmed_again_counts_once(world: World, partition: Partition) -> None:
    log = FakeLog()
    log.views = [PartitionView(partition, start=0, end=100, plan=Plan(committed=40, cuts=(60, 90)))]
    batches = stored(partition, 0, 39, dead=2), stored(partition, 40, 59, newest_ms=NOW_MS + 1000)
    world.confirm(*batches)
    once = await counted(world.shared, log, partition)
    assert (once["batches"], once["stored"], once["dead_lettered"], once["outstanding"]) == (2, 58, 2, 30)

    world.confirm(*batches)
    world.query("OPTIMIZE TABLE batches_by_partition FINAL")
    assert await counted(world.shared, log, partition) == once

    # Over the end of a month its row in the ledger is no repeat of the one before.
    world.store(
        [dict(zip(LEDGER.columns, (*partition, 40, 59, 20, 20, 0, *[datetime.now(UTC)] * 2), strict=True))], "batches"
    )
    assert world.query(f"SELECT count() FROM batches WHERE topic = '{partition.topic}'") == [(3,)]
    assert await counted(world.shared, log, partition) == once


async def test_a_batch_on_its_way_into_the_ledger_counts_once(
    world: World, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker, or ClickHouse, died between the sums and the ledger."""
    log = FakeLog()
    log.views = [PartitionView(partition, start=0, end=100, plan=Plan(committed=40, cuts=(60, 90)))]
    world.confirm(stored(partition, 0, 39))
    insert = Store.insert_block
    with monkeypatch.context() as dying:
        dying.setattr(Store, "insert_block", lambda self, table, *args: table is LEDGER or insert(self, table, *args))
        world.confirm(stored(partition, 40, 59))
    assert world.query(f"SELECT count() FROM batches WHERE topic = '{partition.topic}'") == [(1,)]
    half = await counted(world.shared, log, partition)
    assert (half["stored"], half["outstanding"], half["skipped"]) == (60, 30, 0)

    world.confirm(stored(partition, 40, 59))
    assert await counted(world.shared, log, partition) == half


async def test_counters_stay_when_the_ledgers_batches_have_gone(world: World, partition: Partition) -> None:
    log = FakeLog()
    log.views = [PartitionView(partition, start=0, end=100, plan=Plan(committed=60, cuts=(90,)))]
    world.confirm(stored(partition, 0, 39, dead=3), stored(partition, 40, 59))
    before = await counted(world.shared, log, partition)
    world.query(f"ALTER TABLE batches DELETE WHERE topic = '{partition.topic}' SETTINGS mutations_sync = 2")
    assert await counted(world.shared, log, partition) == before
    assert before["stored"] == 57


async def test_of_the_batches_only_those_since_the_commit_are_read(world: World, partition: Partition) -> None:
    log = FakeLog()
    log.views = [PartitionView(partition, start=0, end=200_010, plan=Plan(committed=200_000, cuts=(200_010,)))]
    world.query(
        "INSERT INTO batches (topic, partition, first, last, events, rows) "
        f"SELECT '{partition.topic}', 0, number, number, 1, 1 FROM numbers(200000)"
    )
    few = ControlBounds(query_read_rows=20_000)
    async with opened(world.shared, log_view=log, bounds=few) as bounded:
        answer = await (await bounded.client()).get("/v1/pipeline")
    assert answer.status_code == 200, answer.text


async def test_a_log_whose_folder_is_gone_still_counts(shared: SharedSettings, partition: Partition) -> None:
    async with opened(shared, log_view=FakeLog()) as world:
        world.confirm(stored(partition, 0, 9))
        page = (await (await world.client()).get("/v1/pipeline")).json()
    part = mine(page, partition)
    assert (part["present"], part["logged"], part["stored"]) == (False, 10, 10)
    assert adds_up(page)


async def test_an_offset_that_was_never_planned_is_neither_outstanding_nor_stored(
    shared: SharedSettings, partition: Partition
) -> None:
    log = FakeLog()
    log.views = [PartitionView(partition, start=1000, end=1300, plan=Plan(committed=1200, cuts=(1250,)))]
    async with opened(shared, log_view=log) as world:
        world.confirm(stored(partition, 1000, 1199))
        part = mine((await (await world.client()).get("/v1/pipeline")).json(), partition)
    assert {name: part[name] for name in ("logged", "planned", "skipped", "unplanned", "outstanding", "stored")} == {
        "logged": 1300, "planned": 250, "skipped": 1000, "unplanned": 50, "outstanding": 50, "stored": 200,
    }  # fmt: skip


async def test_a_replayed_letter_is_counted_apart_and_not_as_a_new_event(
    shared: SharedSettings, partition: Partition
) -> None:
    log = FakeLog()
    log.views = [PartitionView(partition, start=0, end=10, plan=Plan(committed=10))]
    async with opened(shared, log_view=log) as world:
        world.confirm(stored(partition, 0, 9, dead=1))
        before = (await (await world.client()).get("/v1/pipeline")).json()
        world.confirm(stored(Partition(f"dead/{partition.topic}", 0), 4, 4))
    async with opened(shared, log_view=log) as world:
        after = (await (await world.client()).get("/v1/pipeline")).json()
    assert after["replayed"] == before["replayed"] + 1
    assert {name: after[name] for name in ("accepted", "stored", "dead_lettered")} == {
        name: before[name] for name in ("accepted", "stored", "dead_lettered")
    }
    assert adds_up(after)


async def test_what_kafka_has_forgotten_of_a_spool_that_is_gone_still_counts(
    shared: SharedSettings, partition: Partition
) -> None:
    topic = Partition(f"requests-{partition.topic[-8:]}", 0)
    log = FakeLog()
    log.on_their_way = [ShippedSpool("here", shipped=5, end=8), ShippedSpool("elsewhere", shipped=7)]
    log.views = [PartitionView(topic, start=0, end=101, plan=Plan(committed=101))]
    async with opened(shared, log_view=log) as world:
        before = (await (await world.client()).get("/v1/pipeline")).json()
        world.confirm(stored(topic, 0, 100, events=100))
    async with opened(shared, log_view=log) as world:
        after = (await (await world.client()).get("/v1/pipeline")).json()
    assert (before["unshipped"], before["unshipped_spools_unseen"]) == (3, 1)
    assert after["shipped"] >= 100
    assert after["spooled"] == after["shipped"] + 3 + sum(
        part["planned"] for part in after["partitions"] if part["topic"].startswith("spool/")
    )


async def test_ready_says_which_part_is_not_and_what_to_do(shared: SharedSettings, partition: Partition) -> None:
    log = FakeLog()
    async with opened(shared, log_view=log) as world:
        client = world.bare()
        good = await client.get("/readyz")
        models.Ready.model_validate(good.json())
        assert good.status_code == 200, good.text
    log.views = [PartitionView(partition, start=0, end=1, plan=Plan())]
    log.ages_ms = {0: NOW_MS - 3_600_000}
    async with opened(shared, log_view=log) as world:
        late = await world.bare().get("/readyz")
        assert late.status_code == 503
        assert [name for name, part in late.json()["parts"].items() if not part["ok"]] == ["pipeline"]
        assert late.json()["parts"]["pipeline"]["remedy"]
    log.views = [PartitionView(partition, start=0, end=0, plan=Plan(paused="too many dead letters"))]
    async with opened(shared, log_view=log) as world:
        assert "too many dead letters" in (await world.bare().get("/readyz")).text
    log.down = True
    async with opened(shared, log_view=log) as world:
        assert (await world.bare().get("/readyz")).status_code == 503
        answer = await (await world.client()).get("/v1/pipeline")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")


async def test_the_store_down_is_503_and_never_a_hang(shared: SharedSettings) -> None:
    nowhere = ClickHouseSettings(host="127.0.0.1", port=1, password=SecretStr("x"), connect_timeout_s=0.5)
    async with opened(shared.model_copy(update={"clickhouse": nowhere})) as world:
        client = await world.client("read", "write")
        for path in (
            "/v1/requests",
            "/v1/metrics",
            "/v1/users",
            "/v1/sessions",
            f"/v1/requests/{uuid.uuid4()}",
            "/v1/pipeline",
        ):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable"), path
            assert answer.headers["retry-after"] == "1"
        answer = await client.post("/v1/request/query-clickhouse", json={})
        assert (answer.status_code, answer.json()["data"]) == (503, None)
        ready = (await client.get("/readyz")).json()
        assert not ready["parts"]["clickhouse"]["ok"]
        assert (await client.get("/healthz")).status_code == 200


async def test_the_database_down_is_503_and_not_a_401(shared: SharedSettings, tmp_path: Path) -> None:
    async with opened(shared, bounds=ControlBounds(reconcile_s=3600)) as world:
        client = await world.client()
        held = world.app.state.services.keys.database
        while held.engine.pool.checkedout():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await held.close()
        database = shared.data_dir / "control.db"
        for path in shared.data_dir.glob("control.db-*"):
            path.unlink()
        database.unlink()
        database.mkdir()
        answer = await client.get("/v1/requests")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
        assert "sqlite" not in answer.text.lower()
        ready = (await client.get("/readyz")).json()
        assert [name for name, part in ready["parts"].items() if not part["ok"]] == ["database"]


async def test_redis_down_leaves_everything_but_readiness(shared: SharedSettings) -> None:
    nowhere = RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"))
    async with opened(shared.model_copy(update={"redis": nowhere})) as world:
        client = await world.client()
        assert (await client.get("/v1/requests")).status_code == 200
        ready = (await client.get("/readyz")).json()
        assert [name for name, part in ready["parts"].items() if not part["ok"]] == ["redis"]


async def test_the_openapi_document_describes_every_route(world: World) -> None:
    document = (await world.bare().get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            assert said.get("summary"), (method, path)
            success = next(answer for status, answer in said["responses"].items() if status.startswith("2"))
            assert success["content"]["application/json"]["schema"], (method, path)
            if path not in ("/healthz", "/readyz"):
                assert said["security"], (method, path)
                assert {"401", "503"} <= set(said["responses"])
    names = {parameter["name"] for parameter in document["paths"]["/v1/requests"]["get"]["parameters"]}
    assert {"start", "end", "cursor", "limit", "model", "status", "cost_min", "property"} <= names
