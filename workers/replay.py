"""Brings events into the tables that are not there, and leaves alone what is: dead letters whose cause is mended, and
ranges of Kafka whose rows were lost.

One piece, of at most `events_max` events:

1. Compute its rows. Ask the tables which of its requests are there; what is missing is stored, and nothing else. So it
   does not matter how the events were cut into batches the first time, or whether their tokens are still remembered.
2. Where rows are missing, the rollups must not count them still, or they would count twice.
3. Publish what is missing, where Kafka is the log. Before it is stored, unlike a worker: the next replay passes over
   what has its row.
4. Insert it under a token of its own, made of the range, of the requests in it, and of how often the ledger has had this
   range: the same when it is tried again or by two at once, another when rows were lost again since.
5. One row in the ledger, of topic `dead/…` or `replay/…`, which no planner ever plans.

A replay may be broken off and run again at any time. ClickHouse or Kafka away is waited for, with the piece as it was: a
server that died in the middle of an insert may have the row and not the rollup, and the same block mends that.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from ingest.clickhouse import StoreError, StoreUnavailable
from ingest.log import LogUnavailable, RangeReader, Record
from ingest.objects import Objects
from pricing.prices import PriceBook
from schemas.batch import Batch
from schemas.settings import ClickHouseSettings
from workers import rows
from workers.enrich import Computed, DeadLetter, compute_parts, dead_row, note_dead, now_ms
from workers.letters import Selection, dead_letters
from workers.publish import Letter, Publisher
from workers.rollups import Rollups, Slice, slices_of
from workers.store import ATTEMPTS, BODIES, Identity, Row, Store, StoredBatch

T = TypeVar("T")

log = logging.getLogger("heliograph.replay")

LETTERS_PREFIX = "dead/"
"""Before a letter's topic in the ledger: `dead/requests.v1`."""
RANGES_PREFIX = "replay/"

_PAUSE_S = 0.5
_SOUND_MAX = 100_000
"""Hours and days remembered as compared; beyond it they are compared again."""
_SETTLE_TRIES = 5
"""Times that rollups are compared with rows: an insert under way may show in the one before the other."""


class RollupsAhead(StoreError):
    """Rows were deleted that the rollups still count. The message says where and what to do."""


class Swallowed(StoreError):
    """ClickHouse took rows for a repeat that are nowhere. Run the replay again: it comes with another token."""


class Reconciliation(msgspec.Struct):
    """What became of the events that were read: `read` is the sum of the others."""

    read: int = 0
    stored_before: int = 0
    """Had their row already."""
    stored_now: int = 0
    dead_again: int = 0
    reasons: dict[str, int] = {}
    """Of those dead again, by reason."""


class _Plan(msgspec.Struct, frozen=True):
    """One piece, looked at."""

    work: StoredBatch
    missing: frozenset[Identity]
    untold: Sequence[Row]
    """Rows that stand in no batch of the ledger, so that nobody knows whether they were published."""
    letters: Sequence[DeadLetter]
    """Those that are not among the dead letters yet."""
    counts: Reconciliation


class Replayer:
    """Holds its connections for one replay. Not for sharing between threads."""

    def __init__(
        self,
        settings: ClickHouseSettings,
        *,
        prices: PriceBook,
        keep_days: int,
        objects: Objects | None = None,
        publisher: Publisher | None = None,
        events_max: int = 1000,
        patience_s: float = 60.0,
        progress: Callable[[Reconciliation, int], None] | None = None,
    ) -> None:
        """
        Args:
            keep_days: how long requests are kept; an older event stays dead.
            events_max: events held and stored at a time.
            patience_s: how long ClickHouse or Kafka may be away.
            progress: called after each piece with the counts so far and the offsets done with.
        """
        self._settings = settings
        self._store = Store(settings)
        self._rollups = Rollups(settings)
        self._sound: set[Slice] = set()
        self._prices = prices
        self._window = rows.window_at(now_ms(), keep_days=keep_days)
        self._objects = objects
        self._publisher = publisher
        self._events_max = events_max
        self._patience_s = patience_s
        self._progress = progress
        self._done = 0
        self.counts = Reconciliation()

    def letters(self, selection: Selection) -> Reconciliation:
        """Try every chosen dead letter again, in the order of their places in the log. They stay where they are.

        Raises:
            StoreError, LogUnavailable: what was stored until then is; run it again for the rest.
        """
        for where, records in dead_letters(self._settings, selection, letters_max=self._events_max):
            batch = Batch(where.topic, where.number, records[0].offset, records[-1].offset)
            self._piece(batch, records, LETTERS_PREFIX)
            self._note(len(records))
        return self.counts

    def ranges(self, ranges: Iterable[Batch], reader: RangeReader) -> Reconciliation:
        """Bring in what is missing of these ranges of the log. Every offset must lie before what its planner has yet to
        see stored, or a worker would count it as well.

        Raises:
            StoreError, LogError: what was stored until then is; run it again for the rest.
        """
        for whole in ranges:
            for first in range(whole.first, whole.next_offset, self._events_max):
                last = min(first + self._events_max, whole.next_offset) - 1
                batch = Batch(whole.topic, whole.partition, first, last)
                records = self._patiently(lambda batch=batch: reader.read(batch))  # type: ignore[misc]
                if records:
                    self._piece(batch, records, RANGES_PREFIX)
                self._note(last - first + 1)
        return self.counts

    def close(self) -> None:
        self._store.close()
        self._rollups.close()
        if self._publisher is not None:
            self._publisher.close()

    def _piece(self, batch: Batch, records: Sequence[Record], prefix: str) -> None:
        plan = self._patiently(lambda: self._look(batch, records, prefix))
        if plan.letters:
            note_dead(batch, plan.letters)
        if plan.work.requests or plan.letters:
            self._patiently(lambda: self._carry_out(batch, plan))
        elif plan.untold:
            self._patiently(lambda: self._publish(batch, plan))
        self._add(plan.counts)

    def _look(self, batch: Batch, records: Sequence[Record], prefix: str) -> _Plan:
        """Steps 1 and 2: what is missing. Reads only."""
        store = self._store
        computed = compute_parts(records, self._objects, prices=self._prices, window=self._window)
        ledgered = Batch(prefix + batch.topic, batch.partition, batch.first, batch.last)
        # Before the tables: whoever stores this range meanwhile makes the ledger's count rise after them.
        times = store.times(ledgered)
        unreadable = {letter.identity for letter in computed.dead_letters if letter.identity is not None}
        identities = computed.identities
        found = store.stored({*identities, *unreadable})
        missing = frozenset(identities) - found
        self._check_rollups(missing)
        dead_again = [letter for letter in computed.dead_letters if letter.identity not in found]
        letters = [] if prefix == LETTERS_PREFIX else self._new_letters(batch, dead_again)
        requests = [row for row, identity in zip(computed.requests, identities, strict=True) if identity in missing]
        counts = Reconciliation(
            read=len(records),
            stored_before=len(records) - len(requests) - len(dead_again),
            stored_now=len(requests),
            dead_again=len(dead_again),
        )
        for letter in dead_again:
            counts.reasons[letter.reason] = counts.reasons.get(letter.reason, 0) + 1
        at_ms = now_ms()
        work = StoredBatch(
            batch=ledgered,
            events=len(records),
            requests=requests,
            bodies=_of(missing - store.stored(missing, BODIES), computed.bodies),
            attempts=_of(missing - store.stored(missing, ATTEMPTS), computed.attempts),
            dead_letters=[dead_row(batch, letter) for letter in letters],
            dead=len(dead_again),
            oldest_ms=int(min(computed.ended_ms, default=at_ms)),
            newest_ms=int(max(computed.ended_ms, default=at_ms)),
            salt=f"{times}:{_digest(missing)}",
        )
        untold = self._untold(batch, computed, found) if prefix == RANGES_PREFIX else []
        return _Plan(work=work, missing=missing, untold=untold, letters=letters, counts=counts)

    def _carry_out(self, batch: Batch, plan: _Plan) -> None:
        """Steps 3 to 5. The same again and again until it is done."""
        self._publish(batch, plan)
        self._store.insert(plan.work)
        lost = plan.missing - self._store.stored(plan.missing)
        self._store.confirm(plan.work)
        if lost:
            raise Swallowed(
                f"ClickHouse dropped {len(lost)} rows of {plan.work.batch.token} as a repeat of what is not there; "
                "run the replay again"
            )

    def _publish(self, batch: Batch, plan: _Plan) -> None:
        if self._publisher is not None:
            self._publisher.publish(
                [*plan.work.requests, *plan.untold],
                [Letter(batch.where, letter.record, letter.reason, letter.message) for letter in plan.letters],
            )

    def _new_letters(self, batch: Batch, dead: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Those to be kept. What is only too old had its row once, which has been deleted in its time."""
        known = self._store.standing(batch).dead if dead else {}
        return [letter for letter in dead if letter.record.offset not in known and letter.reason != "too_old"]

    def _untold(self, batch: Batch, computed: Computed, found: set[Identity]) -> list[Row]:
        """Rows whose worker died between them and the ledger, and whose batch nobody handed out again."""
        if self._publisher is None or not found:
            return []
        ours = Batch(RANGES_PREFIX + batch.topic, batch.partition, batch.first, batch.last)
        covered = [*self._store.covered(batch), *self._store.covered(ours)]
        return [
            row
            for row, offset, identity in zip(computed.requests, computed.offsets, computed.identities, strict=True)
            if identity in found and not any(offset in one for one in covered)
        ]

    def _check_rollups(self, missing: frozenset[Identity]) -> None:
        """Once for each hour and day, before this replay first adds to it."""
        new = slices_of(missing) - self._sound
        ahead: dict[Slice, int] = {}
        for _ in range(_SETTLE_TRIES):
            ahead = self._rollups.ahead(new)
            if not ahead:
                if len(self._sound) > _SOUND_MAX:
                    self._sound.clear()
                self._sound |= new
                return
            time.sleep(_PAUSE_S)
        one, more = min(ahead.items())
        first = time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.first_ms / 1000))
        raise RollupsAhead(
            f"rows are gone that the rollups still count: {more} of project {one.project_id} in the "
            f"{one.width_ms // 3_600_000} h from {first} UTC"
            + (f", and so in {len(ahead) - 1} hours or days more" if len(ahead) > 1 else "")
            + ". Storing them would count them twice: docs/operations.md, 'Rows are lost'"
        )

    def _note(self, offsets: int) -> None:
        self._done += offsets
        if self._progress is not None:
            self._progress(self.counts, self._done)

    def _add(self, counts: Reconciliation) -> None:
        total = self.counts
        total.read += counts.read
        total.stored_before += counts.stored_before
        total.stored_now += counts.stored_now
        total.dead_again += counts.dead_again
        for reason, count in counts.reasons.items():
            total.reasons[reason] = total.reasons.get(reason, 0) + count

    def _patiently(self, step: Callable[[], T]) -> T:
        end = time.monotonic() + self._patience_s
        waiting = False
        while True:
            try:
                return step()
            except (StoreUnavailable, LogUnavailable) as error:
                if time.monotonic() >= end:
                    raise
                if not waiting:
                    log.warning("the replay waits", extra={"error": str(error)})
                waiting = True
                time.sleep(_PAUSE_S)


def _of(identities: frozenset[Identity], found: Iterable[Row]) -> list[Row]:
    return [row for row in found if Identity(*row[:3]) in identities]  # type: ignore[arg-type]


def _digest(identities: Iterable[Identity]) -> str:
    named = sorted(f"{one.project_id}/{one.created_ms}/{one.id}" for one in identities)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]
