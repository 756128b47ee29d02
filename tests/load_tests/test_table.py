"""Figures are medians, latency is counted in p50s of direct, everyone at their better, and a missing figure is never ok."""

from typing import Any

import pytest

from load_tests import table
from load_tests.measure import Phase, Window, calmest, problem_of


def window(
    phase: str,
    *,
    candidate: str = "heliograph",
    cpu_s: float = 0.0,
    calls: int = 10**6,
    other_share: float = 0.0,
    stolen_share: float = 0.0,
    **figures: Any,
) -> Window:
    whole = {"rps": 100.0, "ok": 100, "ok_total": 100, "non_2xx_total": 0, "statuses": {"200": 100}, "errors": {}}
    whole |= {"latency_us": None, "first_byte_us": None, "chunk_latency_us": None, "chunks_per_s": 0.0}
    return Window(
        candidate,
        phase,
        whole | figures,
        cpu_s=cpu_s,
        other_share=other_share,
        stolen_share=stolen_share,
        upstream_calls=calls,
    )


def test_cpu_is_taken_per_answered_call_of_the_window() -> None:
    figures = table.window_figures([window("busy", cpu_s=0.9, rps=5_000.0, ok=10_000)])

    assert figures["cpu_us"] == pytest.approx(90)


def test_whoever_is_faster_with_fewer_calls_at_a_time_is_compared_at_their_better() -> None:
    litellm = table.window_figures([window("busy", rps=66.0), window("eight", rps=100.0)])
    ours = table.window_figures([window("busy", rps=8_000.0), window("eight", rps=9_000.0)])

    compared = table.with_comparisons({"litellm": litellm, "heliograph": ours})

    assert compared["heliograph"]["over_litellm"] == 90


def test_added_latency_is_what_direct_does_not_have_in_p50s_of_direct() -> None:
    direct = {"p50_us": 10.0, "p99_us": 20.0, "first_byte_us": 100.0}
    ours = {"p50_us": 210.0, "p99_us": 420.0, "first_byte_us": 600.0}

    compared = table.with_comparisons({"direct": direct, "heliograph": ours})["heliograph"]

    assert (compared["added_p50"], compared["added_p99"], compared["added_first_byte"]) == (20, 40, 50)


def test_a_figure_is_the_median_of_the_rounds_that_have_it() -> None:
    assert table.medians([{"a": 1.0}, {"a": 9.0, "b": 4.0}, {"a": 2.0}]) == {"a": 2.0, "b": 4.0}


def test_a_candidate_near_to_what_client_and_mock_can_do_is_named() -> None:
    named = table.limited_by_us(
        {"direct": {"calls_per_s": 100.0}, "nginx": {"calls_per_s": 71.0}, "heliograph": {"calls_per_s": 12.0}}
    )

    assert [note.split(":")[0] for note in named] == ["nginx"]


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        pytest.param({"rss_mb": 150.0}, "ok", id="just at the limit"),
        pytest.param({"rss_mb": 150.1}, "miss", id="above it"),
        pytest.param({}, "n/a", id="not measured"),
    ],
)
def test_a_budget_that_was_not_measured_is_never_ok(figures: table.Figures, verdict: str) -> None:
    assert table.verdicts(figures, disturbed=False)["rss_mb"] == verdict


def test_a_disturbed_run_leaves_only_steady_verdicts_without_a_question_mark() -> None:
    found = table.verdicts({"rss_mb": 100.0, "over_nginx": 0.3, "chunk_p99_us": 2_000.0}, disturbed=True)

    assert (found["rss_mb"], found["over_nginx"], found["chunk_p99_us"]) == ("ok", "ok?", "miss?")


def test_every_budget_stands_in_the_table_beside_our_figure() -> None:
    ours = {"added_p50": 30.0, "chunks_per_s": 31_000.0}
    lines = table.render({"direct": {"p50_us": 10.0}, "heliograph": ours}, disturbed=False)

    assert next(line for line in lines if "added p50" in line).split()[-4:] == ["30.0", "≤", "25", "miss"]
    assert next(line for line in lines if "128 streams" in line).split()[-4:] == ["31,000", "≥", "30,000", "ok"]
    assert len({line.index("≤") for line in lines if "≤" in line}) <= 5


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        pytest.param(window("busy"), None, id="all answered"),
        pytest.param(window("busy", non_2xx_total=3, statuses={"429": 3}), "429", id="refusals"),
        pytest.param(window("busy", errors={"reset": 2, "cut": 0}), "reset", id="lost connections"),
        pytest.param(window("busy", calls=7), "only 7 calls reached the mock", id="answers the mock never gave"),
    ],
)
def test_a_window_with_failures_or_answers_from_elsewhere_is_named(seen: Window, words: str | None) -> None:
    problem = problem_of(seen)

    assert problem is None if words is None else problem is not None and words in problem


def test_the_first_calm_window_counts_and_no_further_one_is_looked_for() -> None:
    seen = iter([window("one", stolen_share=0.3), window("one", stolen_share=0.005, rps=1.0), window("one")])

    counts, set_aside = calmest(lambda: next(seen), tries=6)

    assert (counts.figures["rps"], set_aside) == (1.0, 1)


def test_a_phase_with_shorter_windows_has_as_many_more_tries() -> None:
    assert Phase("busy", 64, stream=False).windows(2.0, tries=6) == (2.0, 6)
    assert Phase("streams", 8, stream=True, longest_s=0.5).windows(2.0, tries=6) == (0.5, 24)
    assert Phase("streams", 8, stream=True, longest_s=0.5).windows(0.2, tries=1) == (0.2, 1)


def test_where_none_is_calm_the_calmest_counts_whatever_its_figures() -> None:
    shares = [(0.0, 0.3), (0.04, 0.02), (0.2, 0.0)]
    seen = iter(
        window("one", rps=float(i), other_share=other, stolen_share=stolen) for i, (other, stolen) in enumerate(shares)
    )

    counts, set_aside = calmest(lambda: next(seen), tries=3)

    assert (counts.figures["rps"], set_aside) == (1.0, 2)


def test_a_window_the_hypervisor_took_a_tenth_of_is_disturbed_as_one_that_others_used() -> None:
    windows = [window("one"), window("one", stolen_share=0.11), window("one", other_share=0.11)]

    assert table.disturbed_windows(windows) == windows[1:]
