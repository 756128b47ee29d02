import pytest

from ingest.clickhouse import StoreUnavailable
from ingest.ledger import Ledger
from schemas.batch import Batch, Partition
from tests.workers.case import Case
from workers.enrich import enrich


def test_batches_from_since_on_are_confirmed_in_order(case: Case) -> None:
    batches = [case.batch([case.event()] * n) for n in (3, 1, 2)]
    for batch in reversed(batches):
        enrich(batch, case.services())
    ledger = Ledger(case.settings)

    found = ledger.confirmed(Partition(case.topic, 0), 3)
    ledger.close()

    assert [c.batch for c in found] == batches[1:]
    assert [(c.events, c.rows, c.dead_lettered) for c in found] == [(1, 1, 0), (2, 2, 0)]


def test_other_partitions_and_topics_are_not_seen(case: Case) -> None:
    batch = case.batch([case.event()])
    enrich(batch, case.services())
    enrich(Batch(case.topic, 1, 0, 5), case.services())
    ledger = Ledger(case.settings)

    assert [c.batch for c in ledger.confirmed(Partition(case.topic, 0), 0)] == [batch]
    assert ledger.confirmed(Partition(case.topic + "x", 0), 0) == []
    ledger.close()


def test_a_ledger_that_is_away_is_told_at_once(case: Case) -> None:
    ledger = Ledger(case.settings.model_copy(update={"port": 25099}))

    with pytest.raises(StoreUnavailable):
        ledger.confirmed(Partition(case.topic, 0), 0)
