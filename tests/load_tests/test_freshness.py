"""A row's delay runs from its answer's end to the first query that holds it; a row that never came is missing."""

import pytest

from load_tests.freshness import Freshness, ids_of, note_rows, read_answers, summarised


def test_the_first_sighting_of_a_row_counts() -> None:
    seen: dict[str, float] = {}

    note_rows(seen, ["a"], 10.0)
    note_rows(seen, ["b", "a"], 11.0)

    assert seen == {"a": 10.0, "b": 11.0}


def test_a_row_that_never_came_is_missing_and_has_no_delay() -> None:
    answers = read_answers("a\t1000\nb\t2000\nc\t3000\n")

    found = summarised(answers, {"a": 1.25, "b": 2.5, "foreign": 9.0})

    assert found == Freshness(answered=3, seen=2, missing=1, p50_s=0.25, p99_s=0.5, max_s=0.5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param([{"id": "a"}], id="a bare list"),
        pytest.param({"next": None, "rows": [{"id": "a"}]}, id="a page"),
    ],
)
def test_ids_are_read_from_either_form_of_a_page(body: object) -> None:
    assert ids_of(body) == ["a"]
