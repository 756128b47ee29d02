import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from ingest.log import Record
from schemas.event import Event, pack
from tests.workers.case import Case, once
from workers import replay, rows
from workers.enrich import enrich
from workers.replay import Reconciliation, Selection, count_dead_letters, replay_dead_letters


def kill(case: Case, monkeypatch: pytest.MonkeyPatch, events: list[Event | bytes]) -> None:
    """Enrich a batch with code so broken that every event of it dies."""
    with monkeypatch.context() as patch:
        patch.setattr(rows, "settle", _broken)
        enrich(case.batch(events), case.services())


def _broken(*args: object, **kwargs: object) -> object:
    raise KeyError("broken")


def run(case: Case, **changes: object) -> Reconciliation:
    selection = msgspec.structs.replace(Selection(topic=case.topic), **changes)
    return replay_dead_letters(case.settings, prices=case.prices, keep_days=90, selection=selection)


def test_letters_become_rows_once_the_cause_is_mended(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event() for _ in range(5)])
    assert case.counts() == once(0, dead=5)
    seen: list[int] = []

    counts = replay_dead_letters(
        case.settings,
        prices=case.prices,
        keep_days=90,
        selection=Selection(topic=case.topic),
        progress=lambda so_far: seen.append(so_far.stored_now),
    )

    assert counts == Reconciliation(read=5, stored_now=5)
    assert seen == [1, 2, 3, 4, 5]
    assert case.counts() == once(5, dead=5, ledger=6)


def test_a_second_replay_stores_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event() for _ in range(3)])
    run(case)

    assert run(case) == Reconciliation(read=3, stored_before=3)
    assert case.counts() == once(3, dead=3, ledger=4)


def test_replays_at_once_store_each_letter_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event() for _ in range(12)])

    with ThreadPoolExecutor(3) as both:
        found = list(both.map(lambda _: run(case), range(3)))

    assert all(counts.read == counts.stored_now + counts.stored_before == 12 for counts in found)
    assert case.counts() == once(12, dead=12, ledger=13)


def test_a_replay_broken_off_between_row_and_ledger_goes_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(case, monkeypatch, [case.event()])
    with monkeypatch.context() as patch:
        patch.setattr("workers.store._ledger_row", _broken)
        with pytest.raises(KeyError):
            run(case)
    assert case.counts() == once(1, dead=1, ledger=1)

    assert run(case) == Reconciliation(read=1, stored_before=1)
    assert case.counts() == once(1, dead=1, ledger=2)


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


def test_more_letters_than_a_page_are_each_read_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_PAGE", 3)
    enrich(case.batch([b"no event"] * 10), case.services())

    assert run(case).read == 10
