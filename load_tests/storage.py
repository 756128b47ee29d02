"""What a request costs to keep, by table: varied events through the real worker code into a real ClickHouse.

    python -m load_tests.storage [--events 60000]

As if 100 calls came a second: 5,000 users of whom some call far more than others, sessions of about eight calls, three
properties, a tenth traced, a thirtieth failing. Sizes are those on disk after `OPTIMIZE … FINAL`, per request.
"""

import argparse
import asyncio
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import UUID

import msgspec

from ingest.clickhouse import connect
from ingest.migrations import migrate
from ingest.spool import open_spool
from ingest.spool_log import SpoolReader, partition_of
from load_tests.enrichment import make_event
from load_tests.table import aligned
from pricing.prices import PriceBook
from schemas.batch import Batch, Partition
from schemas.event import Body, Event, pack
from schemas.ids import new_id
from schemas.settings import ClickHouseSettings, RetentionSettings, SpoolSettings
from tests.servers import running_clickhouse
from workers.enrich import Services, enrich
from workers.store import Store

EVENTS = 60_000
BATCH = 2000
RATE = 100
USERS = 5000
REPOSITORY = Path(__file__).parents[1]
NOT_KEPT_FOR_REQUESTS = ("migrations",)
FAILURE = b'{"error":{"message":"Rate limit reached","type":"tokens","param":null,"code":"rate_limit_exceeded"}}'


class Size(NamedTuple):
    table: str
    rows: int
    bytes_a_request: float


class Storage(NamedTuple):
    requests: int
    sizes: list[Size]

    @property
    def without_bodies(self) -> float:
        """Bytes a request, everything but bodies: attempts, rollups and the ledger included."""
        return sum(size.bytes_a_request for size in self.sizes if size.table != "bodies")

    @property
    def with_bodies(self) -> float:
        return sum(size.bytes_a_request for size in self.sizes)


def measure_storage(*, events: int = EVENTS) -> Storage:
    with TemporaryDirectory(prefix="heliograph-load-") as folder, running_clickhouse(Path(folder) / "ch") as settings:
        migrate(settings, RetentionSettings())
        root = Path(folder) / "spool"
        where = asyncio.run(_fill(root, events))
        services = Services(store=Store(settings), reader=SpoolReader(root), prices=PriceBook(), keep_days=90)
        for first in range(0, events, BATCH):
            enrich(Batch(where.topic, where.number, first, min(first + BATCH, events) - 1), services)
        services.close()
        return Storage(events, _sizes(settings, events))


def varied_event(number: int, dice: random.Random, words: list[str], *, start_ms: int) -> Event:
    """The `number`th of `RATE` calls a second since `start_ms`."""
    created_ms = start_ms + number * 1000 // RATE + dice.randrange(1000 // RATE)
    event = make_event(number, dice, created_ms, words)
    user = int(USERS ** dice.random())
    session = random.Random(f"{user}/{created_ms // 600_000}/{dice.randrange(2)}").getrandbits(128)
    latency_ms = 80 + dice.lognormvariate(6.5, 0.8)
    event = msgspec.structs.replace(
        event,
        id=new_id(created_ms),
        created_ms=created_ms,
        project_id="default",
        latency_ms=latency_ms,
        first_token_ms=latency_ms * dice.uniform(0.1, 0.4) if event.stream else None,
        overhead_ms=dice.lognormvariate(-1, 0.4),
        user_id=f"user_{random.Random(user).getrandbits(64):016x}",
        session_id=str(UUID(int=session)) if number % 3 else None,
        session_path=dice.choice(["/chat", "/chat/plan", "/chat/plan/tool", "/chat/answer"]) if number % 3 else None,
        properties={
            "environment": dice.choice(["production", "production", "production", "staging"]),
            "feature": f"feature-{int(20 ** dice.random())}",
            "customer": f"customer-{int(2000 ** dice.random())}",
        },
    )
    if number % 10 == 0:
        traced = {"trace_id": f"{dice.getrandbits(128):032x}", "span_id": f"{dice.getrandbits(64):016x}"}
        event = msgspec.structs.replace(event, **traced)
    if number % 30 == 7:
        event = msgspec.structs.replace(
            event,
            status=429,
            outcome="error",
            first_token_ms=None,
            response=Body(size=len(FAILURE), head=FAILURE),
            response_type="application/json",
        )
    return event


def report(storage: Storage) -> list[str]:
    lines = [["table", "rows", "bytes a request", ""]]
    lines += [[size.table, f"{size.rows:,}", f"{size.bytes_a_request:.1f}", ""] for size in storage.sizes]
    lines.append(["all but bodies", "", f"{storage.without_bodies:.1f}", ""])
    lines.append(["all", "", f"{storage.with_bodies:.1f}", ""])
    return [f"{storage.requests:,} requests, after OPTIMIZE FINAL:", *aligned(lines)]


async def _fill(root: Path, events: int) -> Partition:
    dice = random.Random(11)
    words = " ".join(path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md"))).split()
    start_ms = (time.time_ns() // 1_000_000) - events * 1000 // RATE
    spool = open_spool(root, SpoolSettings())
    for number in range(events):
        spool.append(pack(varied_event(number, dice, words, start_ms=start_ms)))
        if spool.crowded:
            await spool.room()
    await spool.close()
    return partition_of(spool.folder)


def _sizes(settings: ClickHouseSettings, events: int) -> list[Size]:
    client = connect(settings.model_copy(update={"query_timeout_s": 600.0}))
    try:
        of_ours = "active AND database = %(database)s"
        database = {"database": settings.database}
        for (table,) in client.execute(f"SELECT DISTINCT table FROM system.parts WHERE {of_ours}", database):
            client.execute(f"OPTIMIZE TABLE {table} FINAL")
        found = client.execute(
            f"SELECT table, sum(rows), sum(bytes_on_disk) FROM system.parts WHERE {of_ours} GROUP BY table ORDER BY 3 DESC",
            database,
        )
    finally:
        client.disconnect()
    return [Size(table, rows, size / events) for table, rows, size in found if table not in NOT_KEPT_FOR_REQUESTS]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.storage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=EVENTS)
    print("\n".join(report(measure_storage(events=parser.parse_args().events))))


if __name__ == "__main__":
    main()
