"""A row's delay runs from its answer's end to the first query that holds it; a row that never came is missing."""

import pytest

from load_tests.freshness import Freshness, look, note_rows, read_answers, read_page, summarised


def test_the_first_sighting_of_a_row_counts() -> None:
    seen: dict[str, float] = {}

    note_rows(seen, ["a"], 10.0)
    note_rows(seen, ["b", "a"], 11.0)

    assert seen == {"a": 10.0, "b": 11.0}


def test_a_row_that_never_came_is_missing_and_has_no_delay() -> None:
    answers = read_answers("a\t1000\nb\t2000\nc\t3000\n")

    found = summarised(answers, {"a": 1.25, "b": 2.5, "foreign": 9.0})

    assert found == Freshness(answered=3, seen=2, missing=1, p50_s=0.25, p99_s=0.5, max_s=0.5)


def test_looking_goes_on_to_older_pages_until_one_brings_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"start": (["e", "d"], "2"), "2": (["c", "b"], "3"), "3": (["a"], None)}
    asked: list[str] = []

    def page(url: str, words: str, key: str | None) -> tuple[list[str], str | None]:
        asked.append("start" if "start=" in words else words.rpartition("cursor=")[2])
        return pages[asked[-1]]

    monkeypatch.setattr("load_tests.freshness.page", page)
    seen = {"b": 1.0, "a": 1.0}

    look(seen, "http://control", None, 0)
    assert (asked, sorted(seen)) == (["start", "2", "3"], ["a", "b", "c", "d", "e"])

    asked.clear()
    look(seen, "http://control", None, 0)
    assert asked == ["start"]

    asked.clear()
    look(seen, "http://control", None, 0, whole=True)
    assert asked == ["start", "2", "3"]


def test_a_page_of_the_api_gives_ids_and_the_next_cursor() -> None:
    body = {"requests": [{"id": "a", "model": "m"}], "next_cursor": "x", "range": {}}

    assert read_page(body) == (["a"], "x")
