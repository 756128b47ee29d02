"""One batch: look in the ledger, read its range, compute its rows, insert them. May run twice, and at the same time as
itself: what it leaves in the tables is the same.

What can go wrong is of two kinds, and they must not be mixed. Poison is what a pure step says of one event: that event
goes to the dead letters, the others land. Trouble from outside (the log, the store, memory, time) says nothing about
any event: the whole batch fails as it is, nothing is confirmed, and the planner hands it out again.
"""

import logging
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import msgspec
from billiard.exceptions import SoftTimeLimitExceeded  # type: ignore[import-untyped]

from ingest.log import RangeReader, Record
from ingest.objects import Objects, with_bodies
from pricing.prices import PriceBook
from schemas.batch import Batch, Confirmation
from schemas.event import BadEvent, Event, unpack
from workers import metrics, rows
from workers.publish import Letter, Publisher
from workers.store import DEAD_LETTERS, Identity, Row, Store, StoredBatch, Verdict

log = logging.getLogger("heliograph.worker")

# Raised wherever the code happens to be: they are never about the event that was at hand.
_FROM_OUTSIDE = (SoftTimeLimitExceeded, MemoryError)


class Services(msgspec.Struct, frozen=True):
    """What one worker process holds open."""

    store: Store
    reader: RangeReader
    prices: PriceBook
    keep_days: int
    """How long requests are kept: an older event is not stored."""
    objects: Objects | None = None
    """Where large bodies are that did not travel with their events."""
    publisher: Publisher | None = None
    """Tells others of it, where Kafka is the log."""

    def close(self) -> None:
        if self.publisher is not None:
            self.publisher.close()
        self.reader.close()
        self.store.close()


def enrich(batch: Batch, services: Services) -> Confirmation:
    """Bring one batch into the tables and the ledger.

    Returns:
        Its row in the ledger, written now or found there.

    Raises:
        LogUnavailable, StoreUnavailable: hand it out again.
        LogGap, StoreRefused: the same, and somebody must look.
    """
    with _step("look"):
        standing = services.store.standing(batch)
    if standing.confirmation is not None:
        metrics.batches.labels("repeated").inc()
        return standing.confirmation
    with _step("read"):
        records = services.reader.read(batch)
    window = rows.window_at(now_ms(), keep_days=services.keep_days)
    computed = compute_parts(records, services.objects, prices=services.prices, window=window, dead=standing.dead)
    with _step("insert"):
        work = stored_batch(batch, computed, services.store)
        services.store.insert(work)
    if services.publisher is not None:
        with _step("publish"):
            publish(work, computed, services.store, services.publisher)
    with _step("confirm"):
        confirmation = services.store.confirm(work)
    _count(computed, confirmation)
    return confirmation


class DeadLetter(msgspec.Struct, frozen=True):
    """One event that could not become a row."""

    record: Record
    reason: str
    message: str
    identity: Identity | None
    """Which request it was, where that much could be read."""


class Computed(msgspec.Struct):
    """What a batch's records came to."""

    events: int = 0
    requests: list[Row] = []
    offsets: list[int] = []
    """Where each of `requests` came from."""
    bodies: list[Row] = []
    attempts: list[Row] = []
    dead_letters: list[DeadLetter] = []
    """Those that died now."""
    dead_before: list[DeadLetter] = []
    ended_ms: list[float] = []
    """When each stored event's call ended, milliseconds since 1970."""

    @property
    def identities(self) -> list[Identity]:
        """Which requests the rows are."""
        return [Identity(*row[:3]) for row in self.requests]  # type: ignore[arg-type]


def compute_parts(
    records: Sequence[Record],
    objects: Objects | None,
    *,
    prices: PriceBook,
    window: rows.Window,
    dead: Mapping[int, Verdict] = MappingProxyType({}),
) -> Computed:
    """`compute` of one batch's records, a part at a time where all their large bodies at once would be too many bytes.

    Raises:
        ObjectsUnavailable: nothing is known of the batch.
    """
    computed = Computed()
    for part in [records] if objects is None else objects.parts(records):
        with _step("bodies"):
            bodies = {} if objects is None else objects.bodies_of(part)
        with _step("compute"):
            compute(part, prices=prices, window=window, dead=dead, bodies=bodies, into=computed)
        del bodies  # else they would be held while the next are read
    return computed


def compute(
    records: Sequence[Record],
    *,
    prices: PriceBook,
    window: rows.Window,
    dead: Mapping[int, Verdict] = MappingProxyType({}),
    bodies: Mapping[str, bytes] = MappingProxyType({}),
    into: Computed | None = None,
) -> Computed:
    """Rows and dead letters of records. Pure.

    Args:
        window: the times that events may bear.
        dead: by offset, what is a dead letter already and stays so.
        bodies: large bodies by the references of their events. They are read for the usage and stay where they are.
        into: what the records before these came to; these are added to it.
    """
    computed = Computed() if into is None else into
    computed.events += len(records)
    for record in records:
        if (verdict := dead.get(record.offset)) is not None:
            computed.dead_before.append(DeadLetter(record, *verdict, None))
            continue
        event: Event | None = None
        try:
            event = _unpacked(record)
            made = rows.rows_of(event, whole=with_bodies(event, bodies), prices=prices, window=window)
        except _FROM_OUTSIDE:
            raise
        except rows.Poison as poison:
            computed.dead_letters.append(DeadLetter(record, poison.reason, poison.message, _identity(event)))
            continue
        except Exception as error:
            letter = DeadLetter(record, "compute_failed", _place(error), _identity(event))
            computed.dead_letters.append(letter)
            continue
        computed.requests.append(made.request)
        computed.offsets.append(record.offset)
        if made.body is not None:
            computed.bodies.append(made.body)
        computed.attempts += made.attempts
        computed.ended_ms.append(event.created_ms + event.latency_ms)
    return computed


def stored_batch(batch: Batch, computed: Computed, store: Store) -> StoredBatch:
    """A batch as the tables take it. An event that has a row from an earlier attempt keeps it: should this version of
    the code call it poison, it is not a dead letter as well.

    Raises:
        StoreUnavailable, StoreRefused: of the question for such rows, asked only when an event has died.
    """
    letters = computed.dead_letters
    if identities := {letter.identity for letter in letters if letter.identity is not None}:
        stored = store.stored(identities)
        letters = [letter for letter in letters if letter.identity not in stored]
    if letters:
        note_dead(batch, letters)
    at_ms = now_ms()
    return StoredBatch(
        batch=batch,
        events=computed.events,
        requests=computed.requests,
        bodies=computed.bodies,
        attempts=computed.attempts,
        dead_letters=[dead_row(batch, letter) for letter in letters],
        dead=len(computed.dead_before) + len(letters),
        oldest_ms=int(min(computed.ended_ms, default=at_ms)),
        newest_ms=int(max(computed.ended_ms, default=at_ms)),
    )


def publish(work: StoredBatch, computed: Computed, store: Store, publisher: Publisher) -> None:
    """Tell others of the batch: all that has a row, and all that is a dead letter, of earlier attempts too.

    Raises:
        LogUnavailable, StoreUnavailable, StoreRefused: the batch must not be confirmed.
    """
    dead = {row[_OFFSET] for row in work.dead_letters}
    died = [letter for letter in computed.dead_letters if letter.record.offset in dead]
    # What this version of the code cannot read, and has a row of an earlier attempt: others are told of that row.
    identities = {letter.identity for letter in computed.dead_letters if letter.record.offset not in dead}
    rows_before = store.requests(identity for identity in identities if identity is not None)
    publisher.publish(
        [*work.requests, *rows_before],
        [
            Letter(work.batch.where, letter.record, letter.reason, letter.message)
            for letter in (*computed.dead_before, *died)
        ],
    )


_OFFSET = DEAD_LETTERS.columns.index("offset")


def note_dead(batch: Batch, letters: Sequence[DeadLetter]) -> None:
    """One line a batch, with one letter for example. Errors and places alone: what an event says is for no log."""
    log.error(
        "events became dead letters",
        extra={
            "batch": batch.token,
            "letters": len(letters),
            "reasons": dict(Counter(letter.reason for letter in letters)),
            "first_offset": letters[0].record.offset,
            "first_error": letters[0].message,
        },
    )


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def _unpacked(record: Record) -> Event:
    if record.corrupt:
        raise rows.Poison("corrupt", "its bytes are not those that were written")
    try:
        return unpack(record.payload)
    except BadEvent as error:
        raise rows.Poison("not_an_event", str(error)) from error


def _identity(event: Event | None) -> Identity | None:
    if event is None:
        return None
    try:
        return Identity(event.project_id, rows.checked_time(event.created_ms), rows.uuid_of(event.id))
    except rows.Poison:
        return None


def _place(error: Exception) -> str:
    """An error's type and where it was raised; its text may hold what the event says."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    return f"{type(error).__name__} in {frames[-1].filename.rsplit('/', 1)[-1] if frames else '?'}: {where}"


def dead_row(batch: Batch, letter: DeadLetter) -> Row:
    place = (batch.topic, batch.partition, letter.record.offset)
    return (*place, letter.reason, letter.message, letter.record.payload)


def _count(computed: Computed, confirmation: Confirmation) -> None:
    metrics.batches.labels("stored").inc()
    metrics.events.inc(confirmation.rows)
    metrics.batch_events.observe(confirmation.events)
    for letter in computed.dead_letters:
        metrics.dead_letters.labels(letter.reason).inc()
    at_ms = now_ms()
    observe = metrics.freshness_seconds.observe
    for ended_ms in computed.ended_ms:
        observe((at_ms - ended_ms) / 1000)


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        metrics.step_seconds.labels(name).observe(time.perf_counter() - started)
