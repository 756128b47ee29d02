import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from ingest.log import Record
from schemas.event import Event, pack
from tests.workers.case import Case, once
from workers import rows
from workers.enrich import enrich
from workers.letters import Selection, count_dead_letters
from workers.replay import Reconciliation, Replayer


def kill(case: Case, monkeypatch: pytest.MonkeyPatch, events: list[Event | bytes]) -> None:
    """Enrich a batch with code so broken that every event of it dies."""
    with monkeypatch.context() as patch:
        patch.setattr(rows, "settle", _broken)
        enrich(case.batch(events), case.services())


def _broken(*args: object, **kwargs: object) -> object:
    raise KeyError("broken")


def run(
    case: Case, *, events_max: int = 1000, seen: list[tuple[int, int]] | None = None, **chosen: object
) -> Reconciliation:
    selection = msgspec.structs.replace(Selection(topic=case.topic), **chosen)
    replayer = Replayer(
        case.settings,
        prices=case.prices,
        keep_days=90,
        events_max=events_max,
        progress=lambda counts, done: None if seen is None else seen.append((counts.stored_now, done)),
    )
    try:
        return replayer.letters(selection)
    finally:
        replayer.close()


def test_letters_become_rows_once_the_cause_is_mended(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event() for _ in range(5)])
    assert case.counts() == once(0, dead=5)
    seen: list[tuple[int, int]] = []

    counts = run(case, events_max=2, seen=seen)

    assert counts == Reconciliation(read=5, stored_now=5)
    assert seen == [(2, 2), (4, 4), (5, 5)]
    assert case.counts() == once(5, dead=5, ledger=4)


def test_a_second_replay_stores_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event() for _ in range(3)])
    run(case)

    assert run(case) == Reconciliation(read=3, stored_before=3)
    assert run(case, events_max=2) == Reconciliation(read=3, stored_before=3)
    assert case.counts() == once(3, dead=3, ledger=2)


def test_replays_at_once_store_each_letter_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event() for _ in range(40)])

    with ThreadPoolExecutor(3) as both:
        found = list(both.map(lambda _: run(case, events_max=5), range(3)))

    assert all(counts.read == counts.stored_now + counts.stored_before == 40 for counts in found)
    assert case.counts() == once(40, dead=40, ledger=9)


def test_a_replay_broken_off_between_row_and_ledger_goes_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event()])
    with monkeypatch.context() as patch:
        patch.setattr("workers.store._ledger_row", _broken)
        with pytest.raises(KeyError):
            run(case)
    assert case.counts() == once(1, dead=1, ledger=1)

    assert run(case) == Reconciliation(read=1, stored_before=1)
    assert case.counts() == once(1, dead=1, ledger=1)


def test_what_is_still_poison_dies_again_and_is_counted_by_reason(case: Case) -> None:
    long_ago = case.event(created_ms=0)
    enrich(case.batch([b"no event", long_ago, case.event(id="?")]), case.services())

    counts = run(case)

    assert counts == Reconciliation(read=3, dead_again=3, reasons={"not_an_event": 1, "too_old": 1, "bad_value": 1})
    assert case.counts() == once(0, dead=3)


def test_damaged_bytes_are_never_stored_even_if_they_can_be_read(case: Case) -> None:
    enrich(case.batch([Record(0, pack(case.event()), corrupt=True)]), case.services())

    assert run(case) == Reconciliation(read=1, dead_again=1, reasons={"corrupt": 1})


def test_letters_are_chosen_by_offset_reason_and_time(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [*[case.event() for _ in range(4)], b"no event"])
    now_ms = time.time_ns() // 1_000_000

    assert run(case, first=1, last=2).read == 2
    assert run(case, reason="not_an_event").read == 1
    assert run(case, died_from_ms=now_ms + 60_000).read == 0
    assert run(case, died_from_ms=now_ms - 60_000, died_until_ms=now_ms + 60_000, partition=0).read == 5
    assert run(case, partition=1).read == 0
    assert count_dead_letters(case.settings, Selection(topic=case.topic)) == 5


def test_more_letters_than_a_page_are_each_read_once(case: Case) -> None:
    enrich(case.batch([b"no event"] * 10), case.services())

    assert run(case, events_max=3).read == 10


def test_letters_chosen_by_other_words_are_not_taken_for_those_stored_before(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same first and last letter, others in between: their token is not that of the replay before."""
    kill(case, monkeypatch, [case.event(), b"no event", case.event(), case.event()])
    run(case, first=0, last=0)
    with monkeypatch.context() as patch:
        patch.setattr("workers.store._ledger_row", _broken)
        with pytest.raises(KeyError):
            run(case, first=3)

    assert run(case) == Reconciliation(read=4, stored_before=2, stored_now=1, dead_again=1, reasons={"not_an_event": 1})
    assert case.counts() == once(3, dead=4, ledger=3)
