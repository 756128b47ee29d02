"""ClickHouse killed with -9 while a batch goes in, and the same batch again after its restart."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import clickhouse
from ingest.migrations import migrate
from pricing.prices import PriceBook
from schemas.settings import RetentionSettings
from tests.servers import Child, clickhouse_child, running, settings_of
from tests.workers.case import Case, once
from workers.enrich import compute_parts, now_ms, stored_batch
from workers.rows import window_at
from workers.store import Store, StoredBatch


class Killable:
    """A store with tables, and the server behind it."""

    def __init__(self, server: clickhouse.ClickHouseServer, child: Child, prices: PriceBook) -> None:
        self._child = child
        self.case = Case(settings_of(server), prices)
        self.tables = server.data_dir / "clickhouse" / "data" / "store"

    def work(self, events: int) -> StoredBatch:
        """A batch ready to go in."""
        batch = self.case.batch([self.case.event() for _ in range(events)])
        records = self.case.reader.read(batch)
        window = window_at(now_ms(), keep_days=90)
        store = Store(self.case.settings)
        computed = compute_parts(records, None, prices=self.case.prices, window=window, dead={})
        work = stored_batch(batch, computed, store)
        store.close()
        return work

    def insert(self, work: StoredBatch) -> None:
        store = Store(self.case.settings)
        store.insert(work)
        store.confirm(work)
        store.close()

    def kill(self) -> None:
        self._child.kill()

    def start(self) -> None:
        self._child.start()

    def newest_parts(self) -> list[Path]:
        """Of each table that remembers tokens, what went in last."""
        parts = []
        for log in self.tables.glob("*/*/deduplication_logs"):
            found = [one for one in log.parent.iterdir() if one.name[0] in "0123456789a" and one.is_dir()]
            if found:
                parts.append(max(found, key=lambda part: int(part.name.split("_")[1])))
        return parts


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory, prices: PriceBook) -> Iterator[Killable]:
    server = clickhouse.prepare(tmp_path_factory.mktemp("killed"))
    with running(clickhouse_child(server)) as child:
        made = Killable(server, child, prices)
        migrate(made.case.settings, RetentionSettings())
        yield made


def test_a_batch_that_was_in_before_the_kill_counts_once_in_every_table(killable: Killable) -> None:
    work = killable.work(3)
    killable.insert(work)
    killable.kill()
    killable.start()

    killable.insert(work)

    assert killable.case.counts() == once(3)


def test_a_batch_whose_parts_were_not_written_any_more_is_stored_by_its_repeat(killable: Killable) -> None:
    before = killable.case.counts()
    killable.insert(killable.work(2))
    work = killable.work(5)
    killable.insert(work)
    parts = killable.newest_parts()
    killable.kill()
    # What a kill leaves between a token, which ClickHouse writes first, and its part.
    for part in parts:
        shutil.rmtree(part)
    killable.start()

    killable.insert(work)

    assert len(parts) == 14
    assert killable.case.counts() == once(int(str(before["requests"])) + 7, ledger=int(str(before["ledger"])) + 2)
