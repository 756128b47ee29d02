"""A migration of tables that have rows already."""

import pytest

from ingest import migrations
from ingest.clickhouse import connect
from ingest.migrations import Migration, migrate
from schemas.settings import RetentionSettings
from tests.servers import running_clickhouse

ROWS = """
INSERT INTO requests (project_id, created_at, id, model, outcome, input_tokens, output_tokens, cost_usd, latency_ms)
SELECT 'p', toDateTime64('2026-11-20 10:00:00', 3, 'UTC') + number * 600, generateUUIDv4(), 'm', 'success', number, 1,
    number / 1000, number * 10 FROM numbers({first}, {count})
"""
BY_HOUR = """
SELECT toHour(hour), sum(requests), sum(input_tokens), sum(cost_usd) * 1000, quantilesTDigestMerge(1)(latency_ms)[1],
    max(highest_cost_usd) * 1000, max(highest_latency_ms), max(highest_tokens)
FROM requests_by_hour GROUP BY hour ORDER BY hour
"""


def test_hours_counted_before_get_their_highest_and_nothing_counts_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    known = list(migrations.migrations(replicated=False))
    before = [one for one in known if one.name < "0006"]
    (highest,) = [one for one in known if one.name == "0006_highest"]

    def older(*, replicated: bool) -> list[Migration]:
        return before

    with running_clickhouse(tmp_path_factory.mktemp("migrations")) as settings:
        with monkeypatch.context() as patch:
            patch.setattr(migrations, "migrations", older)
            assert migrate(settings, RetentionSettings()) == [one.name for one in before]
        client = connect(settings)
        client.execute(ROWS.format(first=0, count=12))

        assert migrate(settings, RetentionSettings()) == ["0006_highest"]

        client.execute(ROWS.format(first=12, count=6))
        wanted = [
            (10, 6, 15, 15, 50.0, 5, 50.0, 6),
            (11, 6, 51, 51, 110.0, 11, 110.0, 12),
            (12, 6, 87, 87, 170.0, 17, 170.0, 18),
        ]
        assert client.execute(BY_HOUR) == wanted
        for statement in highest.statements:
            client.execute(statement)
        assert client.execute(BY_HOUR) == wanted
        client.disconnect()
