import asyncio
import math
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from billiard.exceptions import SoftTimeLimitExceeded  # type: ignore[import-untyped]

from ingest.clickhouse import StoreRefused, StoreUnavailable, connect
from ingest.log import LogGap, LogUnavailable, Record
from ingest.migrations import migrate
from ingest.objects import Objects
from pricing import settle as settle_module
from pricing.prices import PriceBook
from schemas.batch import Batch
from schemas.event import Body, pack
from schemas.ids import new_id
from schemas.settings import ClickHouseSettings, ObjectSettings, RetentionSettings
from tests.servers import running_clickhouse
from tests.workers.case import Case, once
from workers import rows
from workers.enrich import compute, compute_parts, enrich, now_ms
from workers.store import ATTEMPTS, BODIES, DEAD_LETTERS, LEDGER, REQUESTS, SUMS, Row, Store, StoredBatch, Table

DAY_MS = 86_400_000


class Killed(BaseException):
    """Stands for a process that ends here."""


class KilledStore(Store):
    """Dies at one insert, before or after the server has taken it."""

    def __init__(self, settings: ClickHouseSettings, *, at: str, after: bool) -> None:
        super().__init__(settings)
        self._at = at
        self._after = after

    def insert_block(self, table: Table, rows: Sequence[Row], token: str) -> None:
        if table.name == self._at and not self._after:
            raise Killed
        super().insert_block(table, rows, token)
        if table.name == self._at:
            raise Killed


def test_a_batch_becomes_rows_bodies_attempts_rollups_and_a_ledger_row(case: Case) -> None:
    batch = case.batch([case.event() for _ in range(5)])

    confirmation = enrich(batch, case.services())

    assert (confirmation.events, confirmation.rows, confirmation.dead_lettered) == (5, 5, 0)
    assert case.counts() == once(5)


def test_a_repeated_batch_changes_nothing_in_rows_or_rollups(case: Case) -> None:
    batch = case.batch([case.event() for _ in range(50)])
    first = enrich(batch, case.services())

    assert enrich(batch, case.services()) == first
    assert case.counts() == once(50)
    assert case.reader.reads == 1, "a batch in the ledger is not even read"


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("table", [t.name for t in (DEAD_LETTERS, BODIES, ATTEMPTS, REQUESTS, LEDGER)])
def test_killed_at_any_insert_and_repeated_counts_once(case: Case, table: str, *, after: bool) -> None:
    batch = case.batch([*[case.event() for _ in range(20)], b"no event"])
    with pytest.raises(Killed):
        enrich(batch, case.services(KilledStore(case.settings, at=table, after=after)))

    confirmation = enrich(batch, case.services())

    assert (confirmation.events, confirmation.rows, confirmation.dead_lettered) == (21, 20, 1)
    assert case.counts() == once(20, dead=1)


def test_a_batch_spread_over_weeks_counts_once_when_killed_and_repeated(case: Case) -> None:
    batch = case.batch([case.event(created_ms=now_ms() - week * 7 * DAY_MS) for week in range(4) for _ in range(5)])
    with pytest.raises(Killed):
        enrich(batch, case.services(KilledStore(case.settings, at="requests", after=True)))

    enrich(batch, case.services())

    assert case.counts() == once(20)


def test_two_workers_with_the_same_batch_at_once_count_once(case: Case) -> None:
    for _ in range(5):
        batch = case.batch([case.event() for _ in range(100)])
        together = threading.Barrier(2)
        services = [case.services(BarrierStore(case.settings, together)) for _ in range(2)]
        with ThreadPoolExecutor(2) as workers:
            both = list(workers.map(lambda own, batch=batch: enrich(batch, own), services))
        assert both[0] == both[1]

    assert case.counts() == once(500, ledger=5)


class BarrierStore(Store):
    """Starts to insert when the other is about to."""

    def __init__(self, settings: ClickHouseSettings, together: threading.Barrier) -> None:
        super().__init__(settings)
        self._together = together

    def insert(self, work: StoredBatch) -> object:  # type: ignore[override]
        self._together.wait(timeout=30)
        return super().insert(work)


def moved(case: Case, objects: Objects, count: int) -> list[Record]:
    """Events whose answers are objects of 300 kB; the usage stands in them."""
    records = []
    for offset in range(count):
        event = case.event()
        assert event.response is not None
        answer = event.response.head[:-1] + b',"more":"' + b"x" * 300_000 + b'"}'
        name = f"bodies/p/{offset}"
        asyncio.run(objects.put(name, answer))
        body = Body(size=len(answer), reference=name)
        records.append(Record(offset, pack(msgspec.structs.replace(event, response=body))))
    return records


def test_a_batch_read_in_parts_comes_to_the_same_rows(case: Case, tmp_path: Path) -> None:
    objects = Objects(ObjectSettings(read_bytes=1024 * 1024), tmp_path)
    records = [*moved(case, objects, 12), Record(12, b"no event"), Record(13, pack(case.event()))]
    window = rows.window_at(now_ms(), keep_days=90)
    assert len(list(objects.parts(records))) > 2

    computed = compute_parts(records, objects, prices=case.prices, window=window)

    assert computed == compute(records, prices=case.prices, window=window, bodies=objects.bodies_of(records))
    assert computed.events == 14
    assert [row[REQUESTS.columns.index("input_tokens")] for row in computed.requests] == [100] * 13


def test_the_bodies_of_a_batch_are_never_all_held_at_once(case: Case, tmp_path: Path) -> None:
    objects = Objects(ObjectSettings(read_bytes=1024 * 1024), tmp_path)
    records = moved(case, objects, 40)
    window = rows.window_at(now_ms(), keep_days=90)
    compute_parts(records[:1], objects, prices=case.prices, window=window)  # what is made once

    tracemalloc.start()
    compute_parts(records, objects, prices=case.prices, window=window)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most_bytes < 4 * 1024 * 1024  # of 12 MB


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    """A store whose windows of tokens, which are counted in inserts, hold two."""
    with running_clickhouse(tmp_path_factory.mktemp("forgetful")) as settings:
        migrate(settings, RetentionSettings())
        client = connect(settings)
        for (table,) in client.execute(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND " + _KEEPS
        ):
            client.execute(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 2")
        client.disconnect()
        yield settings


@pytest.fixture
def forgetful_case(forgetful: ClickHouseSettings, prices: PriceBook) -> Iterator[Case]:
    case = Case(forgetful, prices)
    yield case
    case.close()


def test_the_ledger_stops_a_batch_whose_token_is_forgotten(forgetful_case: Case) -> None:
    case = forgetful_case
    batches = [case.batch([case.event() for _ in range(10)]) for _ in range(6)]
    services = case.services()
    for batch in batches:
        enrich(batch, services)

    for batch in batches:
        enrich(batch, services)

    assert case.counts() == once(60, ledger=6)
    # Without the ledger it would have been counted twice, which shows that the window had moved on.
    case.query("TRUNCATE TABLE batches")
    enrich(batches[0], services)
    assert case.counts()["requests"] == 70


class SuspendedStore(Store):
    """Sleeps before one insert, and much goes on meanwhile."""

    def __init__(self, settings: ClickHouseSettings, *, at: str, meanwhile: Callable[[], None]) -> None:
        super().__init__(settings, look_holds_s=1)
        self._at = at
        self._meanwhile = meanwhile

    def insert_block(self, table: Table, rows: Sequence[Row], token: str) -> None:
        if table.name == self._at:
            self._meanwhile()
        super().insert_block(table, rows, token)


@pytest.mark.parametrize("table", [t.name for t in (DEAD_LETTERS, BODIES, ATTEMPTS, REQUESTS, SUMS, LEDGER)])
def test_a_worker_that_slept_until_its_tokens_were_forgotten_inserts_nothing_more(
    forgetful_case: Case, table: str
) -> None:
    case = forgetful_case
    batches = [case.batch([*[case.event() for _ in range(10)], b"no event"]) for _ in range(6)]

    def meanwhile() -> None:
        services = case.services()
        for batch in batches:
            enrich(batch, services)
        time.sleep(1)

    with pytest.raises(StoreUnavailable, match="since the ledger was looked at"):
        enrich(batches[0], case.services(SuspendedStore(case.settings, at=table, meanwhile=meanwhile)))

    assert case.counts() == once(60, dead=6, ledger=6)


_KEEPS = "engine IN ('MergeTree', 'AggregatingMergeTree', 'SummingMergeTree') AND name != 'migrations'"


def test_a_hundred_thousand_users_are_one_block_in_every_table(case: Case) -> None:
    """A view that leaves a block in pieces gives each a token by its place, which a repeat need not give again."""
    batch = case.batch([case.event(session_id="s")])
    services = case.services()
    enrich(batch, services)
    (template,) = compute(
        case.reader.read(batch), prices=case.prices, window=rows.window_at(now_ms(), keep_days=90)
    ).requests
    user, session, properties = (REQUESTS.columns.index(name) for name in ("user_id", "session_id", "properties"))
    many: list[Row] = []
    for n in range(100_000):
        row = list(template)
        row[user], row[session], row[properties] = f"user {n}", f"session {n}", {"number": str(n)}
        many.append(tuple(row))
    before = _fresh_parts(case)

    services.store.insert_block(REQUESTS, many, f"many {case.topic}")
    services.store.insert_block(REQUESTS, many, f"many {case.topic}")

    grown = Counter(table for table, _ in _fresh_parts(case) - before)
    assert {"requests", "requests_by_minute", "requests_by_hour"} <= grown.keys()
    assert set(grown.values()) == {1}, grown
    assert case.counts() == once(100_001, attempts=1, ledger=1) | {"bodies": 1}


def _fresh_parts(case: Case) -> set[tuple[str, str]]:
    """Parts as they were inserted, by table and name; a merged one is still listed for some minutes."""
    found = case.query(
        "SELECT table, name FROM system.parts WHERE database = currentDatabase() AND min_block_number = max_block_number"
    )
    return {(str(table), str(name)) for table, name in found}


def test_a_body_of_many_megabytes_is_one_block(case: Case) -> None:
    body = Body(size=1_000_000, head=b"x" * 1_000_000)
    batch = case.batch([case.event(response=body, outcome="refused") for _ in range(100)])
    with pytest.raises(Killed):
        enrich(batch, case.services(KilledStore(case.settings, at="bodies", after=True)))

    enrich(batch, case.services())

    assert case.counts() == once(100)


def test_an_empty_range_is_confirmed_with_no_rows(case: Case) -> None:
    batch = Batch(case.topic, 0, 10, 19)

    confirmation = enrich(batch, case.services())

    assert (confirmation.events, confirmation.rows, confirmation.dead_lettered) == (0, 0, 0)
    assert case.counts()["ledger"] == 1
    ((oldest,),) = case.query("SELECT oldest_event_at FROM batches WHERE topic = %(topic)s")
    assert isinstance(oldest, datetime)
    assert abs((datetime.now(UTC) - oldest).total_seconds()) < 60


POISON = [
    pytest.param({"id": "not-a-uuid"}, "bad_value", id="an id that is no UUID"),
    pytest.param({"status": 70_000}, "bad_value", id="a status beyond sixteen bits"),
    pytest.param({"status": -1}, "bad_value", id="a negative status"),
    pytest.param({"latency_ms": math.nan}, "bad_value", id="a latency that is no number"),
    pytest.param({"overhead_ms": math.inf}, "bad_value", id="an endless overhead"),
    pytest.param({"request": Body(size=2**40)}, "bad_value", id="a size beyond its column"),
    pytest.param({"response": Body(size=-1)}, "bad_value", id="a negative size"),
    pytest.param({"v": 2}, "unknown_version", id="an event of a later version"),
    pytest.param({"created_ms": 0}, "too_old", id="1970"),
    pytest.param({"created_ms": 2**62}, "bad_value", id="a year beyond every calendar"),
    pytest.param({"created_ms": 4_000_000_000_000}, "in_future", id="2096"),
]


@pytest.mark.parametrize(("changes", "reason"), POISON)
def test_an_event_with_an_impossible_value_dies_alone(case: Case, changes: dict[str, object], reason: str) -> None:
    batch = case.batch([case.event(), case.event(**changes), case.event()])

    confirmation = enrich(batch, case.services())

    assert (confirmation.events, confirmation.rows, confirmation.dead_lettered) == (3, 2, 1)
    assert case.counts() == once(2, dead=1)
    ((error, offset, payload),) = case.query(
        "SELECT error, offset, hex(payload) FROM dead_letters WHERE topic = %(topic)s"
    )
    assert (error, offset) == (reason, 1)
    assert bytes.fromhex(str(payload)) == case.reader.read(batch)[1].payload


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"", "not_an_event", id="nothing"),
        pytest.param(b"\xc1\xff\x00", "not_an_event", id="no msgpack"),
        pytest.param(msgspec.msgpack.encode([1, 2]), "not_an_event", id="another shape"),
        pytest.param(msgspec.msgpack.encode({"id": 5}), "not_an_event", id="another type"),
        pytest.param(b"\x81\xa2id\xa2\xff\xfe", "not_an_event", id="text that is no UTF-8"),
    ],
)
def test_bytes_that_are_no_event_die_alone(case: Case, payload: bytes, reason: str) -> None:
    enrich(case.batch([payload, case.event()]), case.services())

    assert case.counts() == once(1, dead=1)
    assert case.query("SELECT error FROM dead_letters WHERE topic = %(topic)s") == [(reason,)]


def test_a_record_whose_checksum_failed_dies_even_if_it_can_be_read(case: Case) -> None:
    enrich(case.batch([Record(0, pack(case.event()), corrupt=True)]), case.services())

    assert case.query("SELECT error FROM dead_letters WHERE topic = %(topic)s") == [("corrupt",)]
    assert case.counts()["requests"] == 0


@pytest.mark.parametrize("days", [89, 1, 0, -1], ids=["nearly too old", "yesterday", "now", "a day ahead"])
def test_times_within_retention_and_a_day_ahead_are_stored(case: Case, days: int) -> None:
    confirmation = enrich(case.batch([case.event(created_ms=now_ms() - days * DAY_MS)]), case.services())

    assert (confirmation.rows, confirmation.dead_lettered) == (1, 0)
    assert case.counts()["requests"] == 1


def test_a_mistake_of_ours_kills_one_event_and_tells_its_place_not_its_words(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settle = settle_module.settle

    def broken(*args: object, **kwargs: object) -> object:
        if b"secret" in kwargs["request_body"]:  # type: ignore[operator]
            raise KeyError("the secret of the body")
        return settle(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "settle", broken)
    secret = Body(size=6, head=b"secret")

    enrich(case.batch([case.event(), case.event(request=secret), case.event()]), case.services())

    assert case.counts() == once(2, dead=1)
    ((error, message),) = case.query("SELECT error, message FROM dead_letters WHERE topic = %(topic)s")
    assert error == "compute_failed"
    assert "KeyError in test_enrich.py: broken:" in str(message)
    assert "secret" not in str(message)
    assert all("secret" not in str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize("trouble", [SoftTimeLimitExceeded, MemoryError])
def test_time_and_memory_running_out_are_never_the_events_fault(
    case: Case, monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]
) -> None:
    batch = case.batch([case.event(), case.event()])
    with monkeypatch.context() as patch:
        patch.setattr(rows, "settle", _raising(trouble))
        with pytest.raises(trouble):
            enrich(batch, case.services())
    assert case.counts() == once(0, ledger=0)

    enrich(batch, case.services())

    assert case.counts() == once(2)


def _raising(error: type[Exception]) -> object:
    def raising(*args: object, **kwargs: object) -> object:
        raise error

    return raising


def test_a_dead_letter_stays_one_when_newer_code_would_take_the_event(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker called it poison and was killed; the second, newer, sees nothing wrong with it."""
    batch = case.batch([case.event(), case.event()])
    with monkeypatch.context() as patch:
        patch.setattr(rows, "settle", _raising(KeyError))
        with pytest.raises(Killed):
            enrich(batch, case.services(KilledStore(case.settings, at="dead_letters", after=True)))

    confirmation = enrich(batch, case.services())

    assert (confirmation.rows, confirmation.dead_lettered) == (0, 2)
    assert case.counts() == once(0, dead=2)


def test_a_stored_event_never_becomes_a_dead_letter_as_well(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker stored it and was killed before the ledger; the second, a bad deploy, cannot read it."""
    batch = case.batch([case.event(), case.event()])
    with pytest.raises(Killed):
        enrich(batch, case.services(KilledStore(case.settings, at="requests", after=True)))
    with monkeypatch.context() as patch:
        patch.setattr(rows, "settle", _raising(KeyError))
        confirmation = enrich(batch, case.services())

    assert (confirmation.rows, confirmation.dead_lettered) == (2, 0)
    assert case.counts() == once(2)


def test_another_dead_letter_of_a_repeated_batch_is_not_lost(case: Case) -> None:
    """Its token is made of its letters: that of the first attempt would drop it."""
    batch = case.batch([b"first", pack(case.event()), case.event()])
    with pytest.raises(Killed):
        enrich(batch, case.services(KilledStore(case.settings, at="dead_letters", after=True)))
    # The log is what it was; what changes is what our code makes of it.
    case.reader.records[case.topic][1] = Record(1, b"second")

    enrich(batch, case.services())

    assert case.counts() == once(1, dead=2)


def test_clickhouse_down_confirms_nothing_and_later_all_once(prices: PriceBook, tmp_path: Path) -> None:
    with running_clickhouse(tmp_path / "ch") as settings:
        migrate(settings, RetentionSettings())
        case = Case(settings, prices)
        batch = case.batch([case.event() for _ in range(10)])
        services = case.services()
        enrich(case.batch([case.event()]), services)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            enrich(batch, services)
    with running_clickhouse(tmp_path / "ch") as settings:
        case.settings = settings
        again = case.services()

        assert enrich(batch, again).rows == 10
        assert case.counts() == once(11, ledger=2)
        case.close()


def test_a_missing_table_is_told_from_a_server_that_is_away(case: Case) -> None:
    unmigrated = case.settings.model_copy(update={"database": "default"})

    with pytest.raises(StoreRefused):
        enrich(case.batch([case.event()]), case.services(Store(unmigrated)))


@pytest.mark.parametrize("trouble", [LogUnavailable, LogGap])
def test_trouble_with_the_log_fails_the_whole_batch(
    case: Case, monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]
) -> None:
    batch = case.batch([case.event()])
    with monkeypatch.context() as patch:
        patch.setattr(case.reader, "read", _raising(trouble))
        with pytest.raises(trouble):
            enrich(batch, case.services())

    assert case.counts() == once(0, ledger=0)
    enrich(batch, case.services())
    assert case.counts() == once(1)


def test_a_clients_own_id_sent_twice_is_two_requests(case: Case) -> None:
    id_ = new_id()

    enrich(case.batch([case.event(id=id_), case.event(id=id_)]), case.services())

    assert case.counts() == once(2)
