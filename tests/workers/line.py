"""Everything behind the edge as processes of their own: what they are given, what must be there when all has settled."""

import asyncio
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from ingest.kafka_client import connection
from ingest.kafka_log import committed, planner_group
from ingest.spool_log import partition_of
from ingest.spool_plan import read_plan
from schemas.batch import Partition
from schemas.event import Event, pack
from schemas.settings import KafkaSettings, RedisSettings, SharedSettings, ShipperSettings
from tests.ingest.kafka_tools import ends, fill, ship
from tests.workers.case import Case
from tests.workers.dying_process import Orders, serve

T = TypeVar("T")

_PATIENCE_S = 60.0
_END_S = 15.0
_SHIPPED = ShipperSettings(linger_ms=1, poll_ms=2, retry_s=0.2, batch_bytes=16 * 1024)
_numbers = itertools.count(1)

# What services import is imported once, 2.6 s of CPU, and each process begins as a fork of that.
_fork_server = multiprocessing.get_context("forkserver")
_fork_server.set_forkserver_preload(["tests.workers.dying_process"])


class Service:
    """One process, and the folder of its orders."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._name = name
        self._environment = environment
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self, **changes: object) -> None:
        """Once more, perhaps with other settings."""
        self._environment |= _variables(changes)
        self._process = _fork_server.Process(target=serve, args=(self._name, self.folder, self._environment))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit code, waited for; the negative signal of one that was killed."""
        self._process.join(_END_S)
        return self._process.exitcode

    def end(self) -> None:
        """In order; SIGKILL for one that does not."""
        for stopped in (self.pid, *(int(told.stem) for told in self.folder.glob("*.told"))):
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
        self._process.terminate()
        if self.ended() is None:
            self._process.kill()
            self._process.join()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def order(self, orders: Orders) -> None:
        give(self.folder, orders)

    def withdraw(self) -> None:
        (self.folder / "orders.json").unlink(missing_ok=True)

    def done(self) -> int | None:
        """The process that has carried out an order. Told once."""
        for found in self.folder.glob("*.done"):
            found.rename(found.with_suffix(".told"))
            return int(found.stem)
        return None

    def passed(self, pid: int) -> list[str]:
        """The points that a process has passed, in order."""
        lines = [line.split(" ", 1) for line in (self.folder / "passed").read_text().splitlines()]
        return [point for of, point in lines if of == str(pid)]

    def log(self) -> str:
        return (self.folder / "log").read_text()


def give(folder: Path, orders: Orders) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "orders.new"
    fresh.write_bytes(msgspec.json.encode(orders))
    fresh.rename(folder / "orders.json")


class Line:
    """One test's spool, its log (Kafka where it is given, else the spool), and its corner of the store."""

    def __init__(self, case: Case, redis_url: str, root: Path, kafka: KafkaSettings | None) -> None:
        self.case, self.root, self.kafka = case, root, kafka
        self.spool = root / "spool" / "edge-0"
        self.sent: list[Event] = []
        self.junk: list[bytes] = []
        self._redis_url = redis_url
        self._running: list[Service] = []

    @property
    def shared(self) -> SharedSettings:
        return SharedSettings(
            clickhouse=self.case.settings, redis=RedisSettings.model_validate({"url": self._redis_url})
        )

    def write(self, count: int) -> None:
        """As an edge does: events, and among them some that are none."""
        payloads: list[bytes] = []
        for number in range(count):
            if number % 10 == 5:
                self.junk.append(f"no event {number} {len(self.junk)}".encode())
                payloads.append(self.junk[-1])
                continue
            # Every rollup takes each of these once.
            event = self.case.event(session_id="s1", key_id="k1", key_name="one", properties={"padding": "x" * 300})
            self.sent.append(event)
            payloads.append(pack(event))
        folder = self.root / "spool" / "edge-0"
        if self.spool != folder:
            self.spool.rename(folder)
        asyncio.run(fill(folder.parent, payloads))
        if self.kafka is not None:
            self.case.topic = self.kafka.requests_topic
            return
        # A name of its own: below one root are the spools of all tests that share a worker.
        self.spool = folder.rename(folder.with_name(f"edge-{self.case.project}"))
        self.case.topic = partition_of(self.spool).topic

    def ship(self) -> None:
        """All there is, from this process."""
        assert self.kafka is not None
        ship(self.spool, self.kafka, _SHIPPED)

    def start(self, name: str, *, orders: Orders | None = None, root: Path | None = None, **changes: object) -> Service:
        """A service as its command runs it.

        Args:
            root: another data folder.
            changes: settings beside the usual, as variables of the environment.
        """
        folder = self.root / f"{name}-{next(_numbers)}"
        if orders is not None:
            give(folder, orders)
        service = Service(name, folder, self._environment(root or self.root, changes))
        self._running.append(service)
        return service

    def close(self) -> None:
        for service in reversed(self._running):
            service.end()

    def wait_for(self, what: Callable[[], T | None]) -> T:
        """What is asked for, once it is there and true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := what()):
            assert time.monotonic() < deadline, "".join(service.log() for service in self._running)
            time.sleep(0.02)
        return found

    def settle(self) -> None:
        """Wait until every event is in the ledger and every offset committed; then look at everything."""
        self.wait_for(lambda: self.counted() >= len(self.sent) + len(self.junk))
        self.wait_for(lambda: self._committed() == self._ends())
        self.check()

    def check(self) -> None:
        """Every event in one row or one dead letter, in each rollup once, the ledger whole, everybody told."""
        rows = {
            table: sorted(str(id_) for (id_,) in self.case.query(f"SELECT id FROM {table} WHERE {_MINE}"))
            for table in ("requests", "bodies", "attempts")
        }
        ids = sorted(event.id for event in self.sent)
        assert rows == {"requests": ids, "bodies": ids, "attempts": ids}
        dead = self.case.query("SELECT hex(payload) FROM dead_letters WHERE topic = %(topic)s")
        assert sorted(bytes.fromhex(str(payload)) for (payload,) in dead) == sorted(self.junk)
        self._check_rollups()
        self._check_ledger()
        if self.kafka is not None:
            mine = set(asyncio.run(_keys(self.kafka, self.kafka.enriched_topic))) & set(ids)
            assert mine == set(ids)

    def counted(self) -> int:
        """Events in the ledger."""
        ((events,),) = self.case.query("SELECT toInt64(sum(events)) FROM batches WHERE topic = %(topic)s")
        return int(str(events))

    def _check_rollups(self) -> None:
        sums = "sum(requests), sum(input_tokens), sum(output_tokens), toDecimal128(sum(cost_usd), 10)"
        rollups = [
            str(table)
            for (table,) in self.case.query(
                "SELECT name FROM system.tables WHERE database = currentDatabase() "
                "AND engine LIKE '%%AggregatingMergeTree' ORDER BY name"
            )
        ]
        assert len(rollups) >= 9
        found = {table: self.case.query(f"SELECT {sums} FROM {table} WHERE {_MINE}") for table in rollups}
        expected = self.case.query(f"SELECT {sums.replace('sum(requests)', 'count()')} FROM requests WHERE {_MINE}")
        assert found == dict.fromkeys(rollups, expected)

    def _check_ledger(self) -> None:
        lines = self.case.query(
            "SELECT partition, first, last, events, rows, dead_lettered FROM batches WHERE topic = %(topic)s "
            "ORDER BY partition, first"
        )
        reached: dict[object, object] = {}
        for number, first, last, *_ in lines:
            assert first == reached.get(number, 0), lines
            reached[number] = int(str(last)) + 1
        assert {number: end for number, end in self._ends().items() if end} == reached
        events, stored, dead = (sum(int(str(line[place])) for line in lines) for place in (3, 4, 5))
        assert (events, stored, dead) == (len(self.sent) + len(self.junk), len(self.sent), len(self.junk))
        sums = self.case.query(
            "SELECT sum(batches), sum(offsets), sum(events), sum(rows), sum(dead_lettered) FROM batches_by_partition "
            "WHERE topic = %(topic)s"
        )
        assert sums == [(len(lines), sum(self._ends().values()), events, stored, dead)]

    def _ends(self) -> dict[int, int]:
        if self.kafka is None:
            return {0: len(self.sent) + len(self.junk)}
        return asyncio.run(ends(self.kafka))

    def _committed(self) -> dict[int, int]:
        if self.kafka is None:
            return {0: read_plan(self.spool).committed}
        found = asyncio.run(committed(self.kafka, planner_group(self.kafka), self._partitions()))
        return {number: 0 for number in range(self.kafka.partitions)} | {
            where.number: plan.offset for where, plan in found.items()
        }

    def _partitions(self) -> Sequence[Partition]:
        assert self.kafka is not None
        return [Partition(self.kafka.requests_topic, number) for number in range(self.kafka.partitions)]

    def _environment(self, root: Path, changes: dict[str, object]) -> dict[str, str]:
        clickhouse = self.case.settings
        given: dict[str, object] = {
            "HELIOGRAPH_DATA_DIR": root,
            "HELIOGRAPH_REDIS__URL": self._redis_url,
            "HELIOGRAPH_CLICKHOUSE__HOST": clickhouse.host,
            "HELIOGRAPH_CLICKHOUSE__PORT": clickhouse.port,
            "HELIOGRAPH_CLICKHOUSE__USER": clickhouse.user,
            "HELIOGRAPH_CLICKHOUSE__PASSWORD": clickhouse.password.get_secret_value(),
            "HELIOGRAPH_CLICKHOUSE__DATABASE": clickhouse.database,
            "SHIPPER_LINGER_MS": 1,
            "SHIPPER_POLL_MS": 2,
            "SHIPPER_RETRY_S": 0.2,
            "SHIPPER_BATCH_BYTES": 16 * 1024,
            "PLANNER_LINGER_MS": 20,
            "PLANNER_POLL_MS": 10,
            "PLANNER_BATCH_EVENTS": 10,
            "PLANNER_OVERDUE_S": 2,
            "WORKER_PROCESSES": 2,
        }
        if self.kafka is not None:
            plain = self.kafka.model_dump(exclude={"sasl", "tls"}, exclude_defaults=True)
            given |= {f"HELIOGRAPH_KAFKA__{name.upper()}": value for name, value in plain.items()}
            given["HELIOGRAPH_KAFKA__SASL__USERNAME"] = self.kafka.sasl.username
            assert self.kafka.sasl.password is not None
            given["HELIOGRAPH_KAFKA__SASL__PASSWORD"] = self.kafka.sasl.password.get_secret_value()
        return _variables(given | changes)


def _variables(settings: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


@contextmanager
def opened(line: Line) -> Iterator[Line]:
    try:
        yield line
    finally:
        line.close()


_MINE = "project_id = %(project)s"


async def _keys(kafka: KafkaSettings, topic: str) -> list[str]:
    """Of every record in a topic."""
    wheres = [TopicPartition(topic, number) for number in range(kafka.partitions)]
    consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **connection(kafka))
    await consumer.start()
    try:
        consumer.assign(wheres)
        wanted = sum((await consumer.end_offsets(wheres)).values())
        found: list[str] = []
        async with asyncio.timeout(20):
            while len(found) < wanted:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += [record.key.decode() for record in records]
        return found
    finally:
        await consumer.stop()
