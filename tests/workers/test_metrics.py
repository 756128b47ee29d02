"""What the workers count. Counters only grow, so each test looks at the difference it makes."""

import pytest
from prometheus_client import REGISTRY

from schemas.batch import Batch
from schemas.settings import SharedSettings
from tests.workers.case import Case
from workers.app import BatchFailed, Opened, _Process
from workers.enrich import enrich


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_stored_batch_counts_its_events_rows_letters_and_freshness(case: Case) -> None:
    names: tuple[tuple[str, dict[str, str]], ...] = (
        ("heliograph_worker_batches_total", {"outcome": "stored"}),
        ("heliograph_worker_events_total", {}),
        ("heliograph_worker_dead_letters_total", {"reason": "not_an_event"}),
        ("heliograph_worker_rows_total", {"table": "requests"}),
        ("heliograph_worker_insert_seconds_count", {"table": "requests"}),
        ("heliograph_worker_step_seconds_count", {"step": "compute"}),
        ("heliograph_worker_freshness_seconds_count", {}),
    )
    before = [value(name, **labels) for name, labels in names]

    enrich(case.batch([case.event(), b"no event", case.event()]), case.services())

    grown = [value(name, **labels) - was for (name, labels), was in zip(names, before, strict=True)]
    assert grown == [1, 2, 1, 2, 1, 1, 2]


def test_a_repeated_batch_is_counted_as_such(case: Case) -> None:
    batch = case.batch([case.event()])
    enrich(batch, case.services())
    before = value("heliograph_worker_batches_total", outcome="repeated")

    enrich(batch, case.services())

    assert value("heliograph_worker_batches_total", outcome="repeated") - before == 1


def test_a_store_that_is_away_is_told_in_one_line_and_counted(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    away = SharedSettings(clickhouse=case.settings.model_copy(update={"port": 25099}))
    process = _Process(away, case.prices, lambda: Opened(case.reader), time_limit_s=60)
    before = value("heliograph_worker_batches_total", outcome="unavailable")

    with pytest.raises(BatchFailed, match="unavailable"):
        process.run(Batch(case.topic, 0, 0, 9))

    assert value("heliograph_worker_batches_total", outcome="unavailable") - before == 1
    (line,) = [record for record in caplog.records if record.name == "heliograph.worker"]
    assert line.exc_info is None
    process.stop()
