"""Real workers: Celery's processes, a real Valkey, a real ClickHouse, and a spool as an edge writes it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import redis

from infra.local import valkey as local_valkey
from ingest.ledger import Ledger
from ingest.spool import open_spool
from ingest.spool_log import partition_of
from schemas.batch import Batch, Confirmation
from schemas.event import Event, pack
from schemas.settings import RedisSettings, SettingsError, SharedSettings, SpoolSettings, WorkerSettings
from tests.servers import REPOSITORY, running, valkey_child
from tests.workers.case import Case, once
from tests.workers.worker_process import Setup
from workers.app import QUEUE, Opened, create_app, price_book
from workers.sender import Sender

T = TypeVar("T")

_PATIENCE_S = 60.0


class Bench:
    """A spool with one batch of 20 events, a queue to send it by, and workers to be started and killed."""

    def __init__(self, case: Case, redis_url: str, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.redis_url = redis_url
        self.shared = SharedSettings(clickhouse=case.settings, redis=RedisSettings.model_validate({"url": redis_url}))
        self.sender = Sender(self.shared)
        self.batch = asyncio.run(_spooled(folder / "spool", [case.event() for _ in range(20)]))
        case.topic = self.batch.topic
        self.hung = folder / "hung"

    @contextmanager
    def worker(self, **changes: object) -> Iterator[subprocess.Popen[bytes]]:
        clickhouse = self.case.settings
        setup = Setup(
            clickhouse={
                **clickhouse.model_dump(include={"host", "port", "user", "database"}),
                "password": clickhouse.password.get_secret_value(),
            },
            redis_url=self.redis_url,
            spool=str(self.folder / "spool"),
            hung=str(self.hung),
        )
        file = self.folder / "setup.json"
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(setup, **changes)))
        log = (self.folder / "worker.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.worker_process", str(file)],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            finally:
                _kill_group(process)
                log.close()

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()

    def confirmed(self) -> Confirmation:
        """Waits for the batch's row in the ledger."""
        ledger = Ledger(self.case.settings)
        try:
            found = wait_for(lambda: ledger.confirmed(self.batch.where, 0), self.log)
        finally:
            ledger.close()
        (confirmation,) = found
        return confirmation


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def _spooled(root: Path, events: list[Event]) -> Batch:
    spool = open_spool(root, SpoolSettings())
    for event in events:
        spool.append(pack(event))
    await spool.close()
    where = partition_of(spool.folder)
    return Batch(where.topic, where.number, 0, len(events) - 1)


def wait_for(ready: Callable[[], T], log: Callable[[], str]) -> T:
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := ready()):
        assert time.monotonic() < deadline, log()
        time.sleep(0.05)
    return found


@pytest.fixture
def bench(case: Case, valkey: str, tmp_path: Path) -> Iterator[Bench]:
    client = redis.Redis.from_url(valkey)
    client.flushall()
    client.close()
    bench = Bench(case, valkey, tmp_path)
    yield bench
    bench.sender.close()


def test_a_batch_that_is_sent_is_stored(bench: Bench) -> None:
    with bench.worker():
        bench.sender.send(bench.batch)

        assert bench.confirmed().rows == 20

    assert bench.case.counts() == once(20)
    assert "Traceback" not in bench.log()


def test_a_process_killed_in_the_middle_of_a_task_gives_it_back_at_once(bench: Bench) -> None:
    with bench.worker(hang_at="requests"):
        bench.sender.send(bench.batch)
        pid = int(wait_for(lambda: bench.hung.exists() and bench.hung.read_text(), bench.log))
        assert bench.case.counts()["bodies"] == 20
        os.kill(pid, signal.SIGKILL)

        assert bench.confirmed().rows == 20

    assert bench.case.counts() == once(20)


@pytest.mark.parametrize("table", ["bodies", "batches"])
def test_a_worker_killed_whole_in_the_middle_of_a_task_loses_and_doubles_nothing(bench: Bench, table: str) -> None:
    with bench.worker(hang_at=table) as first:
        bench.sender.send(bench.batch)
        wait_for(bench.hung.exists, bench.log)
        _kill_group(first)
    with bench.worker():
        bench.sender.send(bench.batch)  # as the planner does with what is overdue

        assert bench.confirmed().rows == 20

    assert bench.case.counts() == once(20)


def test_a_task_that_hangs_is_ended_and_its_batch_can_be_stored_again(bench: Bench) -> None:
    with bench.worker(hang_at="requests", time_limit_s=5):
        bench.sender.send(bench.batch)
        wait_for(lambda: "was not stored" in bench.log(), bench.log)
        bench.sender.send(bench.batch)

        assert bench.confirmed().rows == 20

    assert bench.case.counts() == once(20)


def test_a_batch_sent_many_times_over_is_stored_once(bench: Bench) -> None:
    for _ in range(10):
        bench.sender.send(bench.batch)
    with bench.worker(processes=2):
        bench.confirmed()
        client = redis.Redis.from_url(bench.redis_url)
        wait_for(lambda: client.llen(QUEUE) == 0 and not client.exists("heliograph:unacked"), bench.log)
        client.close()

    assert bench.case.counts() == once(20)


def test_a_worker_outlives_its_broker(case: Case, tmp_path: Path) -> None:
    """Valkey is killed, comes back with what was queued, and the worker goes on by itself."""
    server = local_valkey.prepare(tmp_path / "valkey")
    with running(valkey_child(server)) as child:
        bench = Bench(case, server.url, tmp_path)
        with bench.worker() as worker:
            wait_for(lambda: "ready" in bench.log(), bench.log)
            child.kill()
            time.sleep(1)
            child.start()
            bench.sender.send(bench.batch)

            assert bench.confirmed().rows == 20
            assert worker.poll() is None
        bench.sender.close()
    assert server.password not in bench.log()


def test_a_time_limit_beyond_the_visibility_timeout_stops_the_start() -> None:
    settings = WorkerSettings(time_limit_s=60, visibility_timeout_s=60)

    with pytest.raises(SettingsError, match="WORKER_TIME_LIMIT_S = 60"):
        create_app(SharedSettings(), settings, _no_reader)


def test_a_worker_without_a_broker_does_not_start() -> None:
    with pytest.raises(SettingsError, match="HELIOGRAPH_REDIS__URL"):
        create_app(SharedSettings(), WorkerSettings(), _no_reader)


def test_a_bad_price_file_stops_the_start_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[[price]]\nprovider = "openai"\nmodel = "m"\ninpt = 1\n')

    with pytest.raises(SettingsError, match=r"prices\.toml.*did you mean input"):
        price_book(WorkerSettings(price_overrides=file))


def _no_reader() -> Opened:
    raise AssertionError("not opened before the fork")
