"""Migrations on tables that hold requests already."""

from collections.abc import Iterator

import pytest

from ingest.migrations import migrate
from pricing.prices import PriceBook
from schemas.settings import ClickHouseSettings, RetentionSettings
from tests.servers import running_clickhouse
from tests.workers.case import Case
from workers.enrich import enrich

HOUR_MS = 3_600_000
_SUMS = (
    "sum(requests), {errors}, sum(input_tokens), sum(output_tokens), sum(reasoning_tokens), sum(known_usage), "
    "sum(cost_usd), sum(known_cost), toString(quantilesTDigestMerge(0.5, 0.9, 0.95, 0.99)(latency_ms))"
)
_TOTALS = f"SELECT hour, {_SUMS.format(errors='sum(errors)')} FROM totals_by_hour GROUP BY hour ORDER BY hour"
_ERRORS = "sumIf(requests, outcome != 'success')"
_HOURS = f"SELECT hour, {_SUMS.format(errors=_ERRORS)} FROM requests_by_hour GROUP BY hour ORDER BY hour"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with running_clickhouse(tmp_path_factory.mktemp("migrated")) as settings:
        migrate(settings, RetentionSettings())
        yield settings


def test_hours_counted_before_their_totals_were_kept_are_in_them_once(
    own: ClickHouseSettings, prices: PriceBook
) -> None:
    case = Case(own, prices)
    for name in ("requests_to_totals", "totals_by_hour"):
        case.query(f"DROP TABLE {name} SYNC")
    case.query("ALTER TABLE migrations DELETE WHERE name = '0006_totals' SETTINGS mutations_sync = 1")
    now_ms = case.event().created_ms
    outcomes = ("success", "success", "error")
    old = [case.event(created_ms=now_ms - i * HOUR_MS, outcome=outcomes[i % 3], latency_ms=100.0 + i) for i in range(9)]
    enrich(case.batch(old), case.services())

    assert migrate(own, RetentionSettings()) == ["0006_totals"]
    enrich(case.batch([case.event(created_ms=now_ms), case.event(created_ms=now_ms, outcome="error")]), case.services())
    # As if the migration had ended just before it was recorded.
    case.query("ALTER TABLE migrations DELETE WHERE name = '0006_totals' SETTINGS mutations_sync = 1")
    migrate(own, RetentionSettings())

    totals = case.query(_TOTALS)
    assert totals == case.query(_HOURS)
    assert sum(int(str(row[1])) for row in totals) == 11
    case.close()
