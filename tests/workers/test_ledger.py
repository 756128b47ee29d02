import pytest

from ingest.clickhouse import StoreUnavailable
from ingest.ledger import Ledger
from ingest.migrations import migrate
from schemas.batch import Batch, Partition
from schemas.settings import RetentionSettings
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


def test_the_last_offset_is_known_for_longer_than_the_batches(case: Case) -> None:
    batches = [case.batch([case.event()] * n) for n in (3, 2)]
    for batch in reversed(batches):
        enrich(batch, case.services())
    case.query("ALTER TABLE batches DELETE WHERE topic = %(topic)s SETTINGS mutations_sync = 2")
    ledger = Ledger(case.settings)

    assert ledger.last(Partition(case.topic, 0)) == 4
    assert ledger.last(Partition(case.topic, 1)) is None
    ledger.close()


@pytest.mark.parametrize(
    ("retention", "kafka_hours", "days"),
    [
        pytest.param(RetentionSettings(), 168, 90, id="as the setting says"),
        pytest.param(RetentionSettings(ledger_days=10, dead_letter_days=40), 168, 40, id="as long as dead letters"),
        pytest.param(RetentionSettings(ledger_days=10, dead_letter_days=10), 24 * 50 + 1, 51, id="as long as Kafka's"),
    ],
)
def test_a_batch_is_kept_for_longer_than_anything_that_asks_for_it(
    case: Case, retention: RetentionSettings, kafka_hours: int, days: int
) -> None:
    migrate(case.settings, retention, kafka_hours=kafka_hours)
    ((definition,),) = case.query(
        "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = 'batches'"
    )
    migrate(case.settings, RetentionSettings())
    assert f"toIntervalDay({days})" in str(definition)


def test_a_ledger_that_is_away_is_told_at_once(case: Case) -> None:
    ledger = Ledger(case.settings.model_copy(update={"port": 25099}))

    with pytest.raises(StoreUnavailable):
        ledger.confirmed(Partition(case.topic, 0), 0)
