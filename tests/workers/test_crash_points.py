"""Design §4 with the services as real processes: one is killed exactly before or after each step that matters, or stopped
there while others go on. When all has settled every event is in one row, and in each rollup once.

The worker of a log serves all tests of this module: Celery starts the process again that was killed.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.services import FENCED_STATUS
from ingest.topics import migrate_topics
from pricing.prices import PriceBook
from schemas.batch import Batch
from schemas.settings import ClickHouseSettings, KafkaSettings
from tests.ingest.kafka_tools import ends
from tests.servers import RunningKafka
from tests.workers.case import Case
from tests.workers.dying_process import Orders
from tests.workers.line import Line, Service, opened
from workers.sender import Sender

VISIBILITY_TIMEOUT_S = 15
OTHER_CUTS = 7
"""Events of a batch for a planner that comes second: boundaries that were not kept would show."""


_CONFIRM = ("batches_by_partition", "batches")
"""The sums come first."""


def points(*names: str) -> list[str]:
    return [f"{when} {name}" for name in names for when in ("before", "after")]


def queue(valkey: str, number: int) -> str:
    """Of workers that take nothing from others: one more database of the server."""
    return f"{valkey.rpartition('/')[0]}/{number}"


@pytest.fixture(scope="module")
def told(broker: RunningKafka) -> KafkaSettings:
    """With the topics that the shared worker publishes in."""
    name = f"crash-{time.time_ns():x}"
    settings = broker.settings.model_copy(
        update={
            "requests_topic": f"{name}.requests",
            "enriched_topic": f"{name}.enriched",
            "dead_topic": f"{name}.dead",
            "group_prefix": name,
        }
    )
    asyncio.run(migrate_topics(settings))
    return settings


@pytest.fixture(scope="module")
def worker(
    clickhouse: ClickHouseSettings,
    prices: PriceBook,
    valkey: str,
    told: KafkaSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    home = Line(Case(clickhouse, prices), queue(valkey, 1), tmp_path_factory.mktemp("crash-kafka"), told)
    with opened(home):
        yield home.start("worker")


@pytest.fixture
def line(
    case: Case, kafka: KafkaSettings, told: KafkaSettings, valkey: str, worker: Service, tmp_path: Path
) -> Iterator[Line]:
    """On Kafka, with the shared worker."""
    kafka = kafka.model_copy(update={"enriched_topic": told.enriched_topic, "dead_topic": told.dead_topic})
    with opened(Line(case, queue(valkey, 1), tmp_path, kafka)) as line:
        yield line
    worker.withdraw()


@pytest.fixture(scope="module")
def spool_root(
    clickhouse: ClickHouseSettings, prices: PriceBook, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A data folder with a worker on its spools."""
    root = tmp_path_factory.mktemp("crash-spool")
    with opened(Line(Case(clickhouse, prices), queue(valkey, 2), root, None)) as home:
        home.start("worker")
        yield root


@pytest.fixture
def spool_line(case: Case, valkey: str, spool_root: Path) -> Iterator[Line]:
    """On the spool, with the shared worker."""
    with opened(Line(case, queue(valkey, 2), spool_root, None)) as line:
        yield line


def killed(service: Service) -> bool:
    return service.ended() == -signal.SIGKILL


# Killed at each point.


@pytest.mark.parametrize("point", points("produce", "commit"))
def test_a_shipper_killed_at_this_point_loses_and_doubles_nothing(line: Line, point: str) -> None:
    line.write(60)
    line.ship()  # so that it does not die at the first position, which is a transaction as well
    line.write(60)
    line.start("plan")
    shipper = line.start("ship", orders=Orders(point, "kill"), SHIPPER_TRANSACTION_EVENTS=25)
    assert killed(shipper), shipper.log()

    shipper.start()

    line.settle()


@pytest.mark.parametrize("point", points("boundary", "hand-out", "commit"))
def test_a_planner_on_kafka_killed_at_this_point_loses_and_doubles_nothing(line: Line, point: str) -> None:
    line.write(60)
    line.ship()
    planner = line.start("plan", orders=Orders(point, "kill"))
    assert killed(planner), planner.log()
    line.write(30)
    line.ship()

    planner.start(PLANNER_BATCH_EVENTS=OTHER_CUTS)

    line.settle()


@pytest.mark.parametrize("point", points("boundary", "hand-out", "commit"))
def test_a_planner_on_the_spool_killed_at_this_point_loses_and_doubles_nothing(spool_line: Line, point: str) -> None:
    line = spool_line
    line.write(60)
    planner = line.start("plan", orders=Orders(point, "kill", line.case.topic))
    assert killed(planner), planner.log()
    line.write(30)

    planner.start(PLANNER_BATCH_EVENTS=OTHER_CUTS)

    line.settle()


@pytest.mark.parametrize("point", points("dead_letters", "bodies", "attempts", "requests", "publish", *_CONFIRM))
def test_a_worker_killed_at_this_point_loses_and_doubles_nothing(line: Line, worker: Service, point: str) -> None:
    line.write(60)
    line.ship()
    worker.order(Orders(point, "kill", line.case.topic))

    line.start("plan")

    died = line.wait_for(worker.done)
    assert worker.passed(died)[-1] == point
    line.settle()


# Two at once.


def test_a_planner_that_wakes_up_after_another_took_over_writes_and_hands_out_nothing(line: Line) -> None:
    """It stopped with boundaries at hand that were not written; the other has cut the same events otherwise."""
    line.write(60)
    line.ship()
    first = line.start("plan", orders=Orders("before boundary", "stop"))
    line.wait_for(first.done)
    second = line.start("plan", PLANNER_BATCH_EVENTS=OTHER_CUTS)
    line.settle()

    os.kill(first.pid, signal.SIGCONT)
    line.write(60)
    line.ship()

    line.wait_for(lambda: "dealt anew" in first.log())
    line.settle()
    assert first.passed(first.pid)[1] != "after boundary"
    assert first.alive
    assert second.alive


def test_of_two_shippers_of_a_spool_the_older_can_commit_nothing(line: Line, tmp_path: Path) -> None:
    """It stopped in the middle of a transaction; the other, on a copy of the folder, has shipped the same events."""
    line.write(60)
    line.ship()
    line.write(60)
    # Time enough that only the other's claim can end it.
    patient: dict[str, Any] = {"HELIOGRAPH_KAFKA__TRANSACTION_TIMEOUT_S": 60, "HELIOGRAPH_KAFKA__CALL_TIMEOUT_S": 60}
    older = line.start("ship", orders=Orders("before commit", "stop"), **patient)
    line.wait_for(older.done)
    copy = tmp_path / "copy"
    shutil.copytree(line.spool, copy / "spool" / "edge-0", ignore=shutil.ignore_patterns("lock", "*.lock"))
    line.start("ship", root=copy, **patient)
    line.start("plan")
    line.settle()

    os.kill(older.pid, signal.SIGCONT)

    assert older.ended() == FENCED_STATUS, older.log()
    assert "another shipper has claimed the spool" in " ".join(older.log().split())
    time.sleep(0.5)  # what it may have committed would be planned by now
    line.settle()


@pytest.mark.parametrize("table", ["dead_letters", "bodies", "attempts", "requests", *_CONFIRM])
def test_a_worker_that_hung_until_another_had_stored_its_batch_counts_nothing_twice(
    line: Line, worker: Service, table: str
) -> None:
    """The planner handed it out again; the first goes on from where it stood, within its time limit."""
    line.write(60)
    line.ship()
    worker.order(Orders(f"before {table}", "stop", line.case.topic))
    line.start("plan")
    stopped = line.wait_for(worker.done)
    line.settle()

    os.kill(stopped, signal.SIGCONT)

    line.wait_for(lambda: worker.passed(stopped)[-1] == "after batches")
    line.check()


def test_a_worker_suspended_past_its_time_limit_inserts_nothing_when_it_wakes_up(
    case: Case, kafka: KafkaSettings, valkey: str, tmp_path: Path
) -> None:
    """With its whole machine, so that nothing could end its task: Redis has given that to another worker since."""
    quick: dict[str, Any] = {
        "WORKER_PROCESSES": 1,
        "WORKER_TIME_LIMIT_S": VISIBILITY_TIMEOUT_S - 1,
        "WORKER_VISIBILITY_TIMEOUT_S": VISIBILITY_TIMEOUT_S,
    }
    with opened(Line(case, queue(valkey, 3), tmp_path, kafka)) as line:
        line.write(60)
        line.ship()
        first = line.start("worker", orders=Orders("before requests", "stop"), **quick)
        line.start("plan", PLANNER_BATCH_EVENTS=1000, PLANNER_OVERDUE_S=600)
        stopped = line.wait_for(first.done)
        os.kill(first.pid, signal.SIGSTOP)
        line.start("worker", **quick)
        line.settle()

        os.kill(stopped, signal.SIGCONT)

        line.wait_for(lambda: "since the ledger was looked at" in first.log())
        os.kill(first.pid, signal.SIGCONT)
        assert first.passed(stopped)[-1] == "before requests"
        line.settle()


def test_a_batch_handed_to_two_workers_at_the_same_moment_counts_once(line: Line, worker: Service) -> None:
    """They wait for each other before each insert, before publishing and before the ledger."""
    line.write(60)
    line.ship()
    worker.order(Orders("", "meet", line.case.topic))
    sender = Sender(line.shared)
    assert line.kafka is not None
    for number, end in asyncio.run(ends(line.kafka)).items():
        for _ in range(2 if end else 0):
            sender.send(Batch(line.kafka.requests_topic, number, 0, end - 1))
    sender.close()

    def met() -> set[int]:
        return {len(list(place.iterdir())) for place in worker.folder.iterdir() if place.is_dir()}

    line.wait_for(lambda: line.counted() == len(line.sent) + len(line.junk) and met() == {2})
    line.check()
