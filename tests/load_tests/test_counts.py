"""Every way in which rows, rollups, ledger and spools can disagree is named, and agreement is silent."""

from collections.abc import Mapping
from typing import Any

import pytest

from load_tests import counts
from load_tests.counts import Ledger, Row, Spool, Stored

TOPIC = "spool/a"
WHOLE = Stored(
    rows={f"id-{number}": Row(1, 100.0) for number in range(5)},
    sums={"requests_by_minute": ((5, 50, 20, 1), (5, 50, 20, 1))},
    bodies=(5, 5),
    attempts=(5, 5),
    ledger=[Ledger(TOPIC, 0, 0, 2, 3, 3, 0, 1), Ledger(TOPIC, 0, 3, 4, 2, 2, 0, 1)],
    ledger_sums={(TOPIC, 0): (2, 5, 5, 5, 0)},
    dead_letters=0,
    spools={TOPIC: Spool(end=5, committed=5, dropped=0)},
)


def changed(**fields: Any) -> Stored:
    return Stored(**{**WHOLE.__dict__, **fields})


def test_what_adds_up_has_no_problem() -> None:
    assert counts.problems(WHOLE) == []
    assert counts.settled(WHOLE.spools)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"rows": {**WHOLE.rows, "id-0": Row(2, 100.0)}}, "2 rows in requests for id-0", id="a row twice"),
        pytest.param(
            {"sums": {"users_by_day": ((6, 60, 24, 1), (5, 50, 20, 1))}},
            "users_by_day: 6 requests",
            id="a rollup twice",
        ),
        pytest.param({"bodies": (6, 5)}, "bodies: 6 rows of 5", id="a body twice"),
        pytest.param({"bodies": (4, 4)}, "bodies: 4 rows of 4", id="a body missing"),
        pytest.param({"attempts": (6, 5)}, "attempts: 6 rows", id="an attempt twice"),
        pytest.param({"ledger_sums": {}}, f"sums of {TOPIC}:0: []", id="a partition without sums"),
        pytest.param(
            {"ledger_sums": {(TOPIC, 0): (3, 7, 7, 7, 0)}},
            "but its batches are [2, 5, 5, 5, 0]",
            id="a batch counted twice",
        ),
        pytest.param({"dead_letters": 1}, "1 dead letters", id="a dead letter"),
        pytest.param({"ledger": [*WHOLE.ledger[:1]]}, "ends at 3, its spool at 5", id="a batch missing at the end"),
        pytest.param(
            {"ledger": [*WHOLE.ledger[1:]]}, "a gap before spool/a:3:4, due was 0", id="a batch missing before"
        ),
        pytest.param(
            {"ledger": [WHOLE.ledger[0], Ledger(TOPIC, 0, 2, 4, 3, 3, 0, 1)]},
            "an overlap before spool/a:2:4, due was 3",
            id="two batches that share an event",
        ),
        pytest.param(
            {"ledger": [WHOLE.ledger[0], Ledger(TOPIC, 0, 3, 4, 2, 2, 0, 2)]}, "2 ledger rows", id="a ledger row twice"
        ),
        pytest.param(
            {"ledger": [WHOLE.ledger[0], Ledger(TOPIC, 0, 3, 4, 2, 1, 0, 1)]},
            "2 events, 1 rows, 0 dead",
            id="an event gone",
        ),
        pytest.param({"spools": {TOPIC: Spool(5, 5, dropped=2)}}, "2 events dropped", id="events dropped"),
        pytest.param({"spools": {TOPIC: Spool(5, 3, dropped=0)}}, "not settled", id="not settled"),
    ],
)
def test_what_does_not_add_up_is_named(fields: Mapping[str, Any], named: str) -> None:
    assert any(named in problem for problem in counts.problems(changed(**fields)))


def test_each_spool_has_a_ledger_from_its_own_beginning() -> None:
    other = Ledger("spool/b", 0, 0, 0, 1, 1, 0, 1)
    stored = changed(
        rows={**WHOLE.rows, "id-9": Row(1, 1.0)},
        sums={},
        bodies=(6, 6),
        attempts=(6, 6),
        ledger=[*WHOLE.ledger, other],
        ledger_sums={**WHOLE.ledger_sums, ("spool/b", 0): (1, 1, 1, 1, 0)},
        spools={**WHOLE.spools, "spool/b": Spool(1, 1, 0)},
    )

    assert counts.problems(stored) == []


def test_an_answered_call_without_a_row_is_lost_and_a_row_nobody_saw_answered_is_not() -> None:
    assert counts.lost({"id-0": 1.0, "id-77": 1.0}, WHOLE) == {"id-77"}


@pytest.mark.parametrize(
    ("rate", "linger_ms", "events"),
    [
        pytest.param(100, 10, 2, id="one in the group and one just ending"),
        pytest.param(50, 10, 2, id="half a call is a call"),
        pytest.param(1000, 10, 11, id="ten and one"),
    ],
)
def test_the_bound_is_one_group_and_the_call_just_being_ended(rate: float, linger_ms: float, events: int) -> None:
    assert counts.lost_at_most(rate, linger_ms, {"id-0": 99.0}, killed_s=100.0) == events


def test_calls_that_ended_together_in_the_last_group_are_all_within_the_bound_and_older_ones_are_not() -> None:
    answered = {"old": 99.985, **{f"id-{number}": 99.995 for number in range(7)}}

    assert counts.lost_at_most(100, 10, answered, killed_s=100.0) == 8


def test_the_age_of_the_oldest_lost_call_is_told() -> None:
    answered = {"id-0": 99.9, "id-1": 99.98}

    assert counts.oldest_lost_ms(answered, ["id-1"], killed_s=100.0) == pytest.approx(20)
    assert counts.oldest_lost_ms(answered, [], killed_s=100.0) == 0


def test_all_is_visible_again_when_the_last_late_row_has_come() -> None:
    answered = {"id-0": 99.5, "id-1": 90.0, "id-2": 95.0}
    stored = changed(rows={"id-0": Row(1, 100.0), "id-1": Row(1, 97.0), "id-2": Row(1, 98.0)})

    assert counts.visible_again_s(answered, stored, killed_s=92.0) == 6.0
    assert counts.visible_again_s({"id-0": 99.5}, stored, killed_s=92.0) == 0.0
