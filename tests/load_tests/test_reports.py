"""The tables of pipeline, chaos and soak: what breaks a rule is marked, named and decides the exit status."""

import pytest

from load_tests import chaos, pipeline, soak
from load_tests.enrichment import Figures
from load_tests.freshness import Freshness
from load_tests.memory import Memory
from load_tests.silent_readers import Cost
from load_tests.steady import Outcome
from load_tests.storage import Size, Storage
from load_tests.whole import PROGRAMS

FRESH = Freshness(answered=100, seen=100, missing=0, p50_s=0.3, p99_s=0.9, max_s=1.0)
ENRICHED = Figures(events=10_000, clock_s=4.0, cpu_s=1.0, steps={})
STORED = Storage(1000, [Size("bodies", 1000, 500.0), Size("requests", 1000, 70.0), Size("attempts", 1000, 20.0)])


def test_every_figure_within_its_budget_is_ok_and_bodies_have_none() -> None:
    figures = [
        *pipeline.freshness_figures(FRESH), *pipeline.enrichment_figures(ENRICHED), *pipeline.storage_figures(STORED),
    ]  # fmt: skip
    table = {figure.label: figure for figure in figures}

    assert [figure.verdict for figure in table.values() if figure.budget] == ["ok"] * 5
    assert table["stored without bodies, bytes a request"].value == 90
    assert table["  with bodies of about 1.5 KB"].value == 590


@pytest.mark.parametrize(
    ("fresh", "verdict"),
    [
        pytest.param(Freshness(100, 100, 0, 0.3, 1.6, 2.0), "miss", id="late"),
        pytest.param(Freshness(100, 99, 1, 0.3, 0.9, 1.0), "miss", id="a row missing"),
        pytest.param(Freshness(100, 0, 100, None, None, None), "n/a", id="no row at all"),
    ],
)
def test_a_row_that_is_late_or_missing_is_told(fresh: Freshness, verdict: str) -> None:
    assert verdict in [figure.verdict for figure in pipeline.freshness_figures(fresh)]


def test_a_kill_that_broke_a_rule_is_marked_in_its_line_and_told_below() -> None:
    fine = chaos.Seen("edge", 600, 30, 1, 2, 600, 4.0, 0, 1.9, 0.0, 0.4, True)
    broken = chaos.Seen(
        "worker", 600, 0, 3, 0, 597, 4.0, 0, 1.9, 0.0, 0.4, True, ["3 answered calls have no row, 0 at most may"]
    )

    lines = chaos.report([fine, broken], rate=100)

    assert next(line for line in lines if line.startswith("edge ")).endswith("ok")
    assert next(line for line in lines if line.startswith("worker ")).endswith("BROKEN")
    assert lines[-1] == "BROKEN worker: 3 answered calls have no row, 0 at most may"


def test_each_kill_that_leaves_the_edge_alone_allows_neither_loss_nor_failure() -> None:
    strict = {kill.name for kill in chaos.KILLS.values() if not kill.takes_edge and not kill.may_lose}

    assert strict >= {"planner", "worker", "worker-child", "clickhouse", "valkey", "control", "metrics", "outage-20s"}
    assert all(kill.takes_edge for kill in chaos.KILLS.values() if kill.may_lose)


def soaked(*, edge_mb: list[float], silence: Cost, failed: int = 0) -> soak.Soak:
    outcome = Outcome({}, 100, {"ok_total": 100 - failed, "statuses": {}, "errors": {}})
    samples = {name: [Memory(50.0, 40.0)] * len(edge_mb) for name in PROGRAMS}
    samples["edge"] = [Memory(rss, rss / 2) for rss in edge_mb]
    return soak.Soak([2.0 * number for number in range(len(edge_mb))], samples, outcome, outcome, silence)


CHEAP = Cost(8, 4.0, 13.0, closed=True)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        pytest.param(soaked(edge_mb=[140.0] * 60, silence=CHEAP), [], id="flat and small"),
        pytest.param(soaked(edge_mb=[100.0] * 11 + [120.0] * 49, silence=CHEAP), [], id="grown while it warmed up"),
        pytest.param(soaked(edge_mb=[100.0 + n / 2 for n in range(60)], silence=CHEAP), ["grew by 23.5"], id="growing"),
        pytest.param(soaked(edge_mb=[151.0] * 60, silence=CHEAP), ["took 151 MB"], id="big"),
        pytest.param(soaked(edge_mb=[140.0] * 60, silence=CHEAP, failed=1), ["plain", "streams"], id="a call failed"),
        pytest.param(
            soaked(edge_mb=[140.0] * 60, silence=Cost(8, 17.0, 20.0, True)), ["never read"], id="dear readers"
        ),
        pytest.param(
            soaked(edge_mb=[140.0] * 60, silence=Cost(8, 4.0, 13.0, False)), ["never read"], id="upstream left open"
        ),
    ],
)
def test_a_soak_tells_each_rule_that_is_broken(found: soak.Soak, told: list[str]) -> None:
    problems = soak.broken(found)

    assert len(problems) == len(told)
    assert all(words in problem for words, problem in zip(told, problems, strict=True))
    assert soak.report(found)
