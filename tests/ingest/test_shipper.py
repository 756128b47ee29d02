"""The shipper against the real broker: design §4, step 2."""

import asyncio
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from aiokafka import TopicPartition

from ingest import frames, metrics
from ingest.kafka_client import admin
from ingest.log import LogError, LogGap, Plan
from ingest.objects import Objects
from ingest.shipper import Fenced, Spread, agreed_position, first_position
from ingest.spool_log import SpoolLog
from ingest.spool_plan import read_plan, spool_owner, write_plan
from ingest.spool_watch import SpoolWatch
from schemas.event import Body, Event, pack, unpack
from schemas.ids import new_id
from schemas.settings import KafkaSettings, ObjectSettings, ShipperSettings
from tests.ingest.kafka_tools import (
    QUICK,
    Beside,
    ends,
    fill,
    in_kafka,
    number_of,
    numbers,
    payload,
    producing,
    ship,
    shipper,
    shipping,
    transaction,
    wait_for,
)
from tests.servers import REPOSITORY, RunningKafka

SMALL_TRANSACTIONS = ShipperSettings(linger_ms=1, poll_ms=2, retry_s=0.2, transaction_events=50, batch_bytes=16 * 1024)


def filled(tmp_path: Path, count: int, *, start: int = 0) -> Path:
    return asyncio.run(fill(tmp_path / "spool", [payload(number) for number in range(start, start + count)]))


def position_of(folder: Path, kafka: KafkaSettings) -> int:
    async def ask() -> int:
        async with admin(kafka) as client:
            where = TopicPartition(kafka.requests_topic, 0)
            found = await client.list_consumer_group_offsets(shipper(folder, kafka).group, partitions=[where])
            return int(found[where].offset)

    return asyncio.run(ask())


def test_every_event_arrives_once_with_its_bytes(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 3000)
    ship(folder, kafka)
    records = in_kafka(kafka)
    assert numbers(records) == list(range(3000))
    assert {record.payload for record in records} == {payload(number) for number in range(3000)}
    assert position_of(folder, kafka) == 3000


def test_a_second_run_begins_where_the_first_ended(tmp_path: Path, kafka: KafkaSettings) -> None:
    ship(filled(tmp_path, 300), kafka)
    folder = filled(tmp_path, 200, start=300)
    ship(folder, kafka)
    ship(folder, kafka)
    assert numbers(in_kafka(kafka)) == list(range(500))


def test_events_that_come_while_it_runs_are_shipped(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 10)
    with shipping(shipper(folder, kafka)):
        wait_for(lambda: read_plan(folder).committed == 10)
        filled(tmp_path, 10, start=10)
        wait_for(lambda: read_plan(folder).committed == 20)
    assert numbers(in_kafka(kafka)) == list(range(20))


def test_the_spool_is_freed_only_behind_what_kafka_has(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 3000)
    before = frames.segments(folder)
    assert len(before) > 5
    ship(folder, kafka)
    assert frames.segments(folder) == before[-1:]


def test_partitions_get_even_shares(tmp_path: Path, kafka: KafkaSettings) -> None:
    ship(filled(tmp_path, 3000), kafka, SMALL_TRANSACTIONS)
    shares = asyncio.run(ends(kafka)).values()
    assert max(shares) < 1.2 * min(shares)


def test_the_next_batch_goes_where_the_fewest_bytes_went() -> None:
    spread = Spread([0, 1, 2])
    assert {spread.next(100), spread.next(10), spread.next(100)} == {0, 1, 2}
    least = spread.next(50)
    assert spread.next(1) == least


def test_a_damaged_event_is_marked_and_the_others_are_whole(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 20)
    segment = frames.segments(folder)[0].path
    data = bytearray(segment.read_bytes())
    data[7 * (200 + frames.HEADER_BYTES) + 50] ^= 0xFF
    segment.write_bytes(data)
    ship(folder, kafka)
    records = in_kafka(kafka)
    assert [number_of(record.payload) for record in records if record.corrupt] == [7]
    assert numbers(records) == list(range(20))


def test_events_lost_with_the_power_are_told_not_passed_over(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 10)
    write_plan(folder, Plan(committed=0, cuts=(14,), shipped=True))  # a transaction had reached 14; the disk had not
    filled(tmp_path, 3, start=14)
    assert [segment.first for segment in frames.segments(folder)] == [0, 14]

    async def position() -> None:
        async with producing(kafka, "before") as producer:
            await producer.begin_transaction()
            group = shipper(folder, kafka).group
            await producer.send_offsets_to_transaction({TopicPartition(kafka.requests_topic, 0): 0}, group)
            await producer.commit_transaction()

    asyncio.run(position())
    ship(folder, kafka)
    records = in_kafka(kafka)
    assert [record.payload for record in records if record.corrupt] == [b""] * 4
    assert numbers([record for record in records if not record.corrupt]) == [*range(10), *range(14, 17)]


# Killed at any moment.


@contextmanager
def process(tmp_path: Path, kafka: KafkaSettings, *, die_at: str | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    values = kafka.model_dump(mode="json")
    values["sasl"]["password"] = kafka.sasl.password.get_secret_value() if kafka.sasl.password else None
    setup = {
        "kafka": values,
        "root": str(tmp_path / "spool"),
        "shipper": {"linger_ms": 1, "poll_ms": 2, "retry_s": 0.2, "transaction_events": 100},
        "die_at": die_at,
        "died": str(tmp_path / "died"),
    }
    path = tmp_path / "setup.json"
    path.write_bytes(msgspec.json.encode(setup))
    path.chmod(0o600)
    with subprocess.Popen([sys.executable, "-m", "tests.ingest.shipper_process", str(path)], cwd=REPOSITORY) as running:
        try:
            yield running
        finally:
            running.kill()


POINTS = [
    f"{when}_{point}" for point in ("produce", "note", "offsets", "commit", "free") for when in ("before", "after")
]


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_this_point_repeats_and_loses_nothing(tmp_path: Path, kafka: KafkaSettings, point: str) -> None:
    folder = filled(tmp_path, 500)
    if not point.endswith(("note", "free")):
        ship(folder, kafka)  # so that the first position is not what it dies at
        folder = filled(tmp_path, 500, start=500)
    else:
        folder = filled(tmp_path, 500, start=500)
    with process(tmp_path, kafka, die_at=point) as running:
        assert running.wait(30) == -signal.SIGKILL
    ship(folder, kafka)
    assert numbers(in_kafka(kafka)) == list(range(1000))


def test_killed_at_random_moments_it_repeats_and_loses_nothing(tmp_path: Path, kafka: KafkaSettings) -> None:
    """An edge that writes all the time, a shipper killed eight times: which moments, the seed says."""
    chance = random.Random(4)
    folder = filled(tmp_path, 1)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "spool")], cwd=REPOSITORY)
    try:
        for _ in range(8):
            with process(tmp_path, kafka) as running:
                time.sleep(1.0 + chance.random())  # about 0.7 s until it ships
                running.send_signal(signal.SIGKILL)
                running.wait()
    finally:
        writer.send_signal(signal.SIGTERM)
        assert writer.wait(20) == 0
    count = int((tmp_path / "spool" / "count").read_text())
    assert count > 1000
    ship(folder, kafka, ShipperSettings(linger_ms=1, poll_ms=2, drain_s=60))
    assert numbers(in_kafka(kafka)) == list(range(count))


WRITER = """
import asyncio, signal, sys
from pathlib import Path
from ingest.spool import open_spool
from schemas.settings import SpoolSettings
from tests.ingest.kafka_tools import payload

async def main():
    root = Path(sys.argv[1])
    spool = open_spool(root, SpoolSettings(linger_ms=2, segment_bytes=65536))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    number = 1
    while not stopping.is_set():
        for _ in range(5):
            spool.append(payload(number))
            number += 1
        await asyncio.sleep(0.005)
    await spool.close()
    (root / "count").write_text(str(number))

asyncio.run(main())
"""


# Two of them, and others in between.


def test_of_two_shippers_the_older_ends_and_says_so(tmp_path: Path, kafka: KafkaSettings) -> None:
    """Two machines with one spool: a copied folder, or a shared one whose locks reach only one of them."""
    folder = filled(tmp_path, 10)
    patient = kafka.model_copy(update={"transaction_timeout_s": 30})
    with shipping(shipper(folder, patient)) as older:
        wait_for(lambda: read_plan(folder).committed == 10)
        copy = tmp_path / "copy" / "edge-0"
        shutil.copytree(folder, copy)
        (copy / "lock").unlink()
        with shipping(shipper(copy, patient)):
            asyncio.run(fill(copy.parent, [payload(10)]))
            wait_for(lambda: read_plan(copy).committed == 11)
            filled(tmp_path, 1, start=10)
            error = older.ended()
    assert isinstance(error, Fenced)
    assert "another shipper has claimed the spool" in str(error)
    assert numbers(in_kafka(kafka)) == list(range(11))


def test_on_one_machine_the_second_is_turned_away(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 10)
    with shipping(shipper(folder, kafka)):
        wait_for(lambda: read_plan(folder).committed == 10)
        with pytest.raises(LogError, match="another shipper already ships"):
            shipper(folder, kafka).run()
        with pytest.raises(LogError, match="another planner or a shipper"), spool_owner(folder.parent):
            pass


def test_a_shipper_that_slept_too_long_goes_on_where_nobody_else_has_the_spool(
    tmp_path: Path, kafka: KafkaSettings
) -> None:
    """The broker ends its transaction and shuts it out, as if another had come."""
    folder = filled(tmp_path, 1)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "spool")], cwd=REPOSITORY)
    try:
        with process(tmp_path, kafka) as running:
            wait_for(lambda: read_plan(folder).committed > 100)
            for _ in range(2):
                running.send_signal(signal.SIGSTOP)
                time.sleep(kafka.transaction_timeout_s + 2)
                running.send_signal(signal.SIGCONT)
                time.sleep(1.5)
            stood_at = read_plan(folder).committed
            wait_for(lambda: read_plan(folder).committed > stood_at)
            assert running.poll() is None
    finally:
        writer.send_signal(signal.SIGTERM)
        assert writer.wait(20) == 0
    ship(folder, kafka, ShipperSettings(linger_ms=1, poll_ms=2, drain_s=60))
    assert numbers(in_kafka(kafka)) == list(range(int((tmp_path / "spool" / "count").read_text())))


def test_aborted_transactions_of_a_predecessor_are_not_read(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 100)

    async def predecessor() -> None:
        async with producing(kafka, f"{kafka.group_prefix}.shipper.{(folder / 'id').read_text()}") as producer:
            await transaction(producer, kafka, [payload(number) for number in range(50)], abort=True)

    asyncio.run(predecessor())
    ship(folder, kafka)
    assert numbers(in_kafka(kafka)) == list(range(100))


# Where the spool and Kafka meet.


def test_a_spool_its_own_planner_has_not_finished_is_not_shipped(tmp_path: Path) -> None:
    with pytest.raises(LogGap, match="not stored yet"):
        first_position(Plan(committed=5, cuts=(9,)), tmp_path)
    assert first_position(Plan(committed=9), tmp_path) == 9


def test_a_forgotten_position_is_the_spools_own_when_it_was_settled(tmp_path: Path) -> None:
    assert first_position(Plan(committed=9, shipped=True), tmp_path) == 9
    with pytest.raises(LogGap, match="no position"):
        first_position(Plan(committed=9, cuts=(12,), shipped=True), tmp_path)


@pytest.mark.parametrize(
    ("position", "told"),
    [
        pytest.param(13, "restored from a copy", id="beyond what was ever shipped"),
        pytest.param(8, "before what was committed", id="before what is surely in Kafka"),
    ],
)
def test_a_position_that_cannot_be_stops_the_shipper(tmp_path: Path, position: int, told: str) -> None:
    with pytest.raises(LogGap, match=told):
        agreed_position(Plan(committed=9, cuts=(12,), shipped=True), position, tmp_path)


@pytest.mark.parametrize("position", [9, 12])
def test_either_end_of_the_last_transaction_may_be_the_position(tmp_path: Path, position: int) -> None:
    assert agreed_position(Plan(committed=9, cuts=(12,), shipped=True), position, tmp_path) == position


async def test_a_shipped_spool_can_be_planned_by_itself_again(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = await fill(tmp_path / "spool", [payload(number) for number in range(10)])
    await asyncio.to_thread(ship, folder, kafka)
    log = SpoolLog(tmp_path / "spool", batch_events=10, batch_bytes=1000)
    (partition,) = await log.partitions()
    assert await log.load_plan(partition) == Plan(committed=10)
    write_plan(folder, Plan(committed=10, cuts=(12,), shipped=True))
    with pytest.raises(LogError, match="in the middle of a transaction"):
        await log.load_plan(partition)


# Kafka is away.


def test_a_broker_that_goes_away_and_returns_is_said_once_and_loses_nothing(
    tmp_path: Path, broker: RunningKafka, kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="heliograph.shipper")
    folder = filled(tmp_path, 100)
    retries = metrics.shipper_retries._value.get()
    with shipping(shipper(folder, kafka)):
        wait_for(lambda: read_plan(folder).committed == 100)
        broker.child.kill()
        try:
            filled(tmp_path, 100, start=100)
            wait_for(lambda: metrics.shipper_retries._value.get() >= retries + 3, timeout_s=60)
            watched = metrics.ship_lag_seconds.labels(folder.name)._value.get()
            assert metrics.ship_lag_events.labels(folder.name)._value.get() == 100
        finally:
            broker.child.start()
        wait_for(lambda: read_plan(folder).committed == 200, timeout_s=60)
    assert watched == 0.0  # these payloads are no events, so nothing is known of their age
    assert numbers(in_kafka(kafka)) == list(range(200))
    said = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert said.count("shipping waits") == 1
    assert said.count("shipping goes on") == 1


def test_a_missing_topic_is_waited_for_not_hung_on(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = filled(tmp_path, 10)
    missing = kafka.model_copy(update={"requests_topic": f"{kafka.group_prefix}.nobody-made-it"})
    beside = Beside(shipper(folder, missing))
    time.sleep(1)
    beside.shipper.stop()
    assert beside.ended(kafka.call_timeout_s + 10) is None
    assert read_plan(folder) == Plan()


# Large bodies.


def event(**changes: object) -> Event:
    now_ms = time.time_ns() // 1_000_000
    made = Event(
        id=new_id(now_ms),
        created_ms=now_ms - 5000,
        project_id="p/1",
        provider="openai",
        api="openai.chat",
        method="POST",
        path="/v1/chat/completions",
        outcome="success",
        latency_ms=1000.0,
    )
    return msgspec.structs.replace(made, **changes)


def test_a_large_body_goes_to_the_objects_and_comes_back(tmp_path: Path, kafka: KafkaSettings) -> None:
    large, tail = os.urandom(300 * 1024), b"the end"
    sent = event(
        request=Body(size=5, head=b"small"), response=Body(size=10_000_000, head=large, tail=tail), response_type="x/y"
    )
    folder = asyncio.run(fill(tmp_path / "spool", [pack(event()), pack(sent)]))
    ship(folder, kafka)
    records = in_kafka(kafka)
    (found,) = (made for record in records if (made := unpack(record.payload)).id == sent.id)
    assert found.request == sent.request
    assert found.response is not None
    assert (found.response.head, found.response.tail, found.response.size) == (b"", tail, 10_000_000)
    objects = Objects(ObjectSettings(), tmp_path)
    assert found.response.reference is not None
    assert objects.get(found.response.reference) == large
    assert list(objects.bodies_of(records).values()) == [large]
    assert max(len(record.payload) for record in records) < 1000


def test_a_large_body_has_one_name_however_often_it_is_moved(tmp_path: Path, kafka: KafkaSettings) -> None:
    sent = event(request=Body(size=300_000, head=b"x" * 300_000))
    folder = asyncio.run(fill(tmp_path / "spool", [pack(sent)]))
    with process(tmp_path, kafka, die_at="before_produce") as running:
        assert running.wait(30) == -signal.SIGKILL
    ship(folder, kafka)
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 1
    assert len(in_kafka(kafka)) == 1


def test_an_event_too_large_for_any_topic_does_not_stand_in_the_way(tmp_path: Path, kafka: KafkaSettings) -> None:
    junk = os.urandom(kafka.record_bytes_max + 1)
    folder = asyncio.run(fill(tmp_path / "spool", [payload(0), junk, payload(2)]))
    ship(folder, kafka)
    records = in_kafka(kafka)
    assert [record.payload for record in records if record.corrupt] == [b""]
    assert numbers([record for record in records if not record.corrupt]) == [0, 2]
    identity = (folder / "id").read_text()
    assert Objects(ObjectSettings(), tmp_path).get(f"unshippable/{identity}/1") == junk


def test_an_object_store_that_is_away_is_waited_for(tmp_path: Path, kafka: KafkaSettings) -> None:
    folder = asyncio.run(fill(tmp_path / "spool", [pack(event(request=Body(size=300_000, head=b"x" * 300_000)))]))
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "bodies").write_text("a file where a folder must be")
    with shipping(shipper(folder, kafka)):
        time.sleep(1.5)
        assert in_kafka(kafka) == []
        (tmp_path / "objects" / "bodies").unlink()
        wait_for(lambda: read_plan(folder).committed == 1)
    assert len(in_kafka(kafka)) == 1


def test_the_watch_tells_lag_in_events_and_seconds(tmp_path: Path) -> None:
    folder = asyncio.run(fill(tmp_path / "spool", [pack(event()) for _ in range(3)]))
    watch = SpoolWatch(folder)
    watch.shipped(1)
    watch.look()
    assert metrics.ship_lag_events.labels(folder.name)._value.get() == 2
    assert 3.9 < metrics.ship_lag_seconds.labels(folder.name)._value.get() < 60
    watch.shipped(3)
    watch.look()
    assert metrics.ship_lag_events.labels(folder.name)._value.get() == 0
    assert metrics.ship_lag_seconds.labels(folder.name)._value.get() == 0
    assert QUICK.linger_ms == 1
