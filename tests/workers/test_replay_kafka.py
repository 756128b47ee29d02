"""Rows brought back from Kafka: what is missing, once, in every table and rollup, whatever dies in between."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from infra.local import clickhouse as local_clickhouse
from ingest.kafka_ranges import NothingThere, ranges_by_offset, ranges_by_time
from ingest.kafka_reader import KafkaReader
from ingest.migrations import migrate
from schemas.batch import Batch
from schemas.settings import ClickHouseSettings, KafkaSettings, RetentionSettings
from tests.ingest.kafka_tools import ends, fill, ship
from tests.servers import REPOSITORY, clickhouse_child, running, running_clickhouse, settings_of
from tests.workers.behind import Behind
from tests.workers.case import Case
from tests.workers.test_publish import Sent
from workers.publish import Publisher
from workers.replay import Reconciliation, Replayer, RollupsAhead

_ROLLUPS = "database = currentDatabase() AND engine LIKE '%%AggregatingMergeTree'"
_OF_REQUESTS = ("requests", "bodies", "attempts")


@pytest.fixture
def path(case: Case, kafka: KafkaSettings, tmp_path: Path) -> Iterator[Behind]:
    one = Behind(case, kafka, tmp_path)
    yield one
    one.close()


def everything(kafka: KafkaSettings) -> list[Batch]:
    return asyncio.run(ranges_by_time(kafka, since_ms=0, until_ms=None))


def replay(
    path: Behind, ranges: list[Batch] | None = None, *, events_max: int = 37, sent: Sent | None = None
) -> Reconciliation:
    reader = KafkaReader(path.kafka)
    replayer = Replayer(
        path.case.settings,
        prices=path.case.prices,
        keep_days=90,
        events_max=events_max,
        patience_s=20,
        publisher=None if sent is None else Publisher(KafkaSettings(), sent),
    )
    try:
        return replayer.ranges(everything(path.kafka) if ranges is None else ranges, reader)
    finally:
        replayer.close()
        reader.close()


def tables(case: Case) -> dict[str, object]:
    """All that the tables and rollups hold of the test's project, in comparable form."""
    found: dict[str, object] = {}
    for table in _OF_REQUESTS:
        found[table] = sorted(
            map(repr, case.query(f"SELECT * EXCEPT(inserted_at) FROM {table} WHERE project_id = %(project)s"))
            if table == "requests"
            else map(repr, case.query(f"SELECT * FROM {table} WHERE project_id = %(project)s"))
        )
    for table in rollups(case):
        columns = case.query(
            "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = %(table)s",
            table=table,
        )
        keys = [name for name, type_ in columns if "Aggregate" not in str(type_)]
        sums = [
            f"{'min' if '(min' in str(type_) else 'max' if '(max' in str(type_) else 'sum'}({name})"
            for name, type_ in columns
            if str(type_).startswith("Simple")
        ]
        by = ", ".join(map(str, keys))
        found[table] = sorted(
            map(
                repr,
                case.query(f"SELECT {by}, {', '.join(sums)} FROM {table} WHERE project_id = %(project)s GROUP BY {by}"),
            )
        )
    found["dead_letters"] = sorted(
        map(repr, case.query("SELECT * EXCEPT(died_at) FROM dead_letters WHERE topic = %(topic)s"))
    )
    return found


def rollups(case: Case) -> list[str]:
    return [str(name) for (name,) in case.query(f"SELECT name FROM system.tables WHERE {_ROLLUPS}")]


def delete(case: Case, names: list[str], where: str = "1") -> None:
    for table in names:
        case.query(f"ALTER TABLE {table} DELETE WHERE project_id = %(project)s AND {where} SETTINGS mutations_sync = 2")


async def test_a_replay_of_what_is_there_changes_nothing(path: Behind) -> None:
    await path.run([*[path.case.event() for _ in range(300)], b"no event"])
    before, ledger = tables(path.case), path.case.counts()["ledger"]

    for events_max in (37, 1000):
        counts = await asyncio.to_thread(replay, path, events_max=events_max)
        assert counts == Reconciliation(read=301, stored_before=300, dead_again=1, reasons={"not_an_event": 1})

    assert tables(path.case) == before
    assert path.case.counts()["ledger"] == ledger


async def test_what_a_project_lost_comes_back_exactly_and_once(path: Behind) -> None:
    theirs = path.case.project
    await path.run([path.case.event(project_id=f"{theirs}-other") for _ in range(100)])
    await path.run([path.case.event() for _ in range(300)])
    before = tables(path.case)
    for times in range(2):  # lost again: its token is not that of the replay before
        await asyncio.to_thread(delete, path.case, [*_OF_REQUESTS, *rollups(path.case)])
        assert path.case.counts()["requests"] == 0

        counts = await asyncio.to_thread(replay, path)

        assert counts == Reconciliation(read=400, stored_before=100, stored_now=300), times
        assert tables(path.case) == before
    assert await asyncio.to_thread(replay, path) == Reconciliation(read=400, stored_before=400)
    assert tables(path.case) == before


async def test_a_fresh_clickhouse_gets_all_that_kafka_holds(path: Behind, tmp_path: Path) -> None:
    await path.run([*[path.case.event() for _ in range(200)], b"no event", path.case.event(id="no uuid")])
    before = tables(path.case)
    with running_clickhouse(tmp_path / "fresh") as fresh:
        migrate(fresh, RetentionSettings())
        path.case.settings = fresh
        assert tables(path.case)["requests"] == []

        counts = await asyncio.to_thread(replay, path)

        assert counts == Reconciliation(
            read=202, stored_now=200, dead_again=2, reasons={"not_an_event": 1, "bad_value": 1}
        )
        assert tables(path.case) == before
        assert (await asyncio.to_thread(replay, path, events_max=11)).stored_now == 0
        assert tables(path.case) == before


async def test_neither_forgotten_tokens_nor_other_boundaries_count_twice(path: Behind, tmp_path: Path) -> None:
    with running_clickhouse(tmp_path / "forgetful") as forgetful:
        migrate(forgetful, RetentionSettings())
        path.case.settings = forgetful
        for table in ["batches", "dead_letters", *_OF_REQUESTS, *rollups(path.case)]:
            path.case.query(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 1")
        old = path.services
        path.services = msgspec.structs.replace(old, store=path.case.services().store)
        path.ledger.close()
        path.ledger = type(path.ledger)(forgetful)
        await path.run([path.case.event() for _ in range(300)])
        before = tables(path.case)

        await asyncio.to_thread(delete, path.case, [*_OF_REQUESTS, *rollups(path.case)])
        for events_max in (41, 7, 1000):
            await asyncio.to_thread(replay, path, events_max=events_max)

        assert tables(path.case) == before
        path.ledger.close()


async def test_rows_that_the_rollups_still_count_are_refused(path: Behind) -> None:
    await path.run([path.case.event() for _ in range(50)])
    await asyncio.to_thread(delete, path.case, list(_OF_REQUESTS))
    before = tables(path.case)

    with pytest.raises(RollupsAhead, match=f"50 of project {path.case.project} in the [0-9]+ h from 20"):
        await asyncio.to_thread(replay, path)

    assert tables(path.case) == before


async def test_only_what_came_in_at_that_time_is_read(path: Behind) -> None:
    await path.run([path.case.event() for _ in range(10)])
    await asyncio.sleep(0.05)
    between_ms = time.time_ns() // 1_000_000
    await path.run([path.case.event() for _ in range(5)])

    since = await ranges_by_time(path.kafka, since_ms=between_ms, until_ms=None)
    until = await ranges_by_time(path.kafka, since_ms=None, until_ms=between_ms)

    assert (await asyncio.to_thread(replay, path, since)).read == 5
    assert (await asyncio.to_thread(replay, path, until)).read == 10
    with pytest.raises(
        NothingThere, match=r"no event .* came into Kafka from 20.*: the oldest event there came in at 20"
    ):
        await ranges_by_time(path.kafka, since_ms=between_ms + 60_000, until_ms=None)
    with pytest.raises(NothingThere, match=r"before 1970-01-01 00:00:01 UTC: the oldest event there came in at 20"):
        await ranges_by_time(path.kafka, since_ms=None, until_ms=1000)


async def test_offsets_that_are_not_there_are_named_with_those_that_are(path: Behind) -> None:
    await path.run([path.case.event() for _ in range(40)])
    (one, *_) = await ranges_by_time(path.kafka, since_ms=0, until_ms=None)
    assert await ranges_by_offset(path.kafka, one.partition, first=None, last=None) == [one]
    some = await ranges_by_offset(path.kafka, one.partition, first=one.first + 2, last=one.first + 4)
    assert (await asyncio.to_thread(replay, path, some)).read == 3

    held = f"{one.topic}:{one.partition} holds {one.first} to {one.last}"
    with pytest.raises(NothingThere, match=f"offsets 0 to 999 are not all there; {held}"):
        await ranges_by_offset(path.kafka, one.partition, first=0, last=999)
    with pytest.raises(NothingThere, match="has no partition 17; it has 0 to 2"):
        await ranges_by_offset(path.kafka, 17, first=None, last=None)
    elsewhere = path.kafka.model_copy(update={"requests_topic": "nowhere"})
    with pytest.raises(NothingThere, match="there is no topic nowhere in Kafka; run: heliograph migrate"):
        await ranges_by_time(elsewhere, since_ms=0, until_ms=None)


async def test_what_is_still_the_planners_is_left_to_it(path: Behind) -> None:
    """A worker may be about to store it: whoever comes second would not know of the first."""
    await path.run([path.case.event() for _ in range(20)])
    before = await ranges_by_time(path.kafka, since_ms=0, until_ms=None)
    late = await fill(path.root / "late", [b"late"] * 30)
    await asyncio.to_thread(ship, late, path.kafka)

    assert await ranges_by_time(path.kafka, since_ms=0, until_ms=None) == before
    told = []
    for partition, end in (await ends(path.kafka)).items():
        if [end] != [one.next_offset for one in before if one.partition == partition] and end:
            with pytest.raises(NothingThere) as refused:
                await ranges_by_offset(path.kafka, partition, first=None, last=end - 1)
            told.append(str(refused.value))
    assert told
    assert all("are still the planner's to see stored" in text or "was never planned" in text for text in told)


async def test_what_is_stored_now_is_published_and_nothing_else(path: Behind) -> None:
    events = [path.case.event() for _ in range(50)]
    await path.run([*events, b"no event"])
    lost = [event.id for event in events[:20]]
    await asyncio.to_thread(delete, path.case, [*_OF_REQUESTS, *rollups(path.case)])
    await asyncio.to_thread(replay, path)
    ids = ", ".join(f"'{one}'" for one in lost)
    await asyncio.to_thread(delete, path.case, list(_OF_REQUESTS), f"id IN ({ids})")
    await asyncio.to_thread(delete, path.case, rollups(path.case))
    sent = Sent()

    await asyncio.to_thread(replay, path, sent=sent)

    assert sent.ids() == sorted(lost)
    assert sent.dead() == []


async def test_a_row_whose_batch_was_never_confirmed_is_published(path: Behind) -> None:
    """Its worker died between row and ledger, and the planner's offset was set beyond it by hand."""
    events = [path.case.event() for _ in range(5)]
    await path.run(events)
    path.case.query("ALTER TABLE batches DELETE WHERE topic = %(topic)s SETTINGS mutations_sync = 2")
    sent = Sent()

    counts = await asyncio.to_thread(replay, path, sent=sent)

    assert counts == Reconciliation(read=5, stored_before=5)
    assert sent.ids() == sorted(event.id for event in events)


async def test_clickhouse_killed_in_the_middle_is_waited_for_and_nothing_counts_twice(
    path: Behind, tmp_path: Path
) -> None:
    await path.run([path.case.event() for _ in range(600)])
    before = tables(path.case)
    server = local_clickhouse.prepare(tmp_path / "killed")
    child = clickhouse_child(server)
    with running(child):
        path.case.settings = settings_of(server)
        migrate(path.case.settings, RetentionSettings())

        def trouble() -> None:
            for _ in range(4):
                time.sleep(0.35)
                child.kill()
                child.start()

        with ThreadPoolExecutor(1) as killer:
            troubled = killer.submit(trouble)
            counts = await asyncio.to_thread(replay, path, events_max=10)
            troubled.result()

            # The server ends with the thread that started it.
            assert counts == Reconciliation(read=600, stored_now=600)
            assert tables(path.case) == before


# -- The command.


@contextmanager
def command(path: Behind, *arguments: str, settings: ClickHouseSettings) -> "Iterator[subprocess.Popen[str]]":
    kafka, environment = path.kafka, dict(os.environ)
    environment |= {
        "HELIOGRAPH_DATA_DIR": str(path.root / "data"),
        "HELIOGRAPH_REDIS__URL": "redis://127.0.0.1:1",
        "HELIOGRAPH_CLICKHOUSE__HOST": str(settings.host),
        "HELIOGRAPH_CLICKHOUSE__PORT": str(settings.port),
        "HELIOGRAPH_CLICKHOUSE__USER": settings.user,
        "HELIOGRAPH_CLICKHOUSE__PASSWORD": settings.password.get_secret_value(),
        "HELIOGRAPH_CLICKHOUSE__DATABASE": settings.database,
        "WORKER_REPLAY_EVENTS": "10",
    }
    if kafka.bootstrap_servers is not None:
        assert kafka.sasl.password is not None
        environment |= {
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "HELIOGRAPH_KAFKA__SECURITY_PROTOCOL": kafka.security_protocol,
            "HELIOGRAPH_KAFKA__SASL__USERNAME": str(kafka.sasl.username),
            "HELIOGRAPH_KAFKA__SASL__PASSWORD": kafka.sasl.password.get_secret_value(),
            "HELIOGRAPH_KAFKA__REQUESTS_TOPIC": kafka.requests_topic,
            "HELIOGRAPH_KAFKA__ENRICHED_TOPIC": kafka.enriched_topic,
            "HELIOGRAPH_KAFKA__DEAD_TOPIC": kafka.dead_topic,
            "HELIOGRAPH_KAFKA__GROUP_PREFIX": kafka.group_prefix,
        }
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "replay", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(path: Behind, *arguments: str) -> tuple[int, str, str]:
    with command(path, *arguments, settings=path.case.settings) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, " ".join(err.split())


async def test_a_replay_that_is_killed_and_run_again_is_exact(path: Behind, tmp_path: Path) -> None:
    await path.run([*[path.case.event() for _ in range(400)], b"no event"])
    before = tables(path.case)
    with running_clickhouse(tmp_path / "fresh") as fresh:
        migrate(fresh, RetentionSettings())
        path.case.settings = fresh
        for stored in (30, 150, 280):
            with command(path, "kafka", "--all", settings=fresh) as process:
                while int(str(path.case.query("SELECT count() FROM requests")[0][0])) < stored:
                    assert process.poll() is None
                    await asyncio.sleep(0.01)
                process.kill()

        status, out, err = await asyncio.to_thread(ended, path, "kafka", "--all")

        assert status == 0, err
        numbers = {name.strip(): int(count) for name, count in re.findall(r"│ ?([a-z_ ]+?) +│ +(\d+) │", out)}
        assert numbers["read"] == 401
        assert 280 <= numbers["stored before"] < 400
        assert numbers["stored before"] + numbers["stored now"] + numbers["dead again"] == 401
        assert tables(path.case) == before


def test_the_command_says_what_is_missing(path: Behind) -> None:
    assert ended(path, "kafka")[:1] == (2,)
    status, _, err = ended(path, "kafka", "--since", "2026-01-01T00:00:00", "--until", "2026-01-01T01:00:00")
    assert status == 2
    assert "no event that may be replayed came into Kafka from 2026-01-01 00:00:00 UTC" in err
    status, _, err = ended(path, "kafka", "--partition", "0", "--from", "5", "--to", "7")
    assert status == 2
    assert f"offsets 5 to 7 are not all there; {path.kafka.requests_topic}:0 holds nothing" in err
    path.kafka = KafkaSettings()
    status, _, err = ended(path, "kafka", "--all")
    assert status == 2
    assert "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS is not set" in err
