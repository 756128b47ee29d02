"""Tries dead letters again, one by one: each is a batch of its own, with a token and a row in the ledger.

So a replay may be broken off, repeated, and run by several at once. A letter that has become a row stays among the dead
letters, which are never changed; the ledger says that it is done.
"""

from collections.abc import Callable, Iterator

import msgspec

from ingest.clickhouse import connect, store_errors
from ingest.log import Record
from pricing.prices import PriceBook
from schemas.batch import Batch, Partition
from schemas.settings import ClickHouseSettings
from workers import rows
from workers.enrich import DeadLetter, compute, now_ms, stored_batch
from workers.store import Store

TOPIC_PREFIX = "dead/"
"""Before a letter's topic in the ledger and in its token: `dead/requests.v1`."""

_PAGE = 64
"""Letters held at a time; each may carry a few megabytes."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters. What is None does not choose."""

    topic: str | None = None
    partition: int | None = None
    first: int | None = None
    """Least offset."""
    last: int | None = None
    """Greatest offset."""
    reason: str | None = None
    died_from_ms: int | None = None
    """Milliseconds since 1970; from this time on."""
    died_until_ms: int | None = None
    """Before this time."""


class Reconciliation(msgspec.Struct):
    """What became of the letters that were read: `read` is the sum of the others."""

    read: int = 0
    stored_before: int = 0
    """Had their row already, from an earlier replay or from their own batch."""
    stored_now: int = 0
    dead_again: int = 0
    reasons: dict[str, int] = {}
    """Of those dead again, by reason."""


class _Letter(msgspec.Struct, frozen=True):
    where: Partition
    offset: int
    reason: str
    payload: bytes

    @property
    def batch(self) -> Batch:
        return Batch(TOPIC_PREFIX + self.where.topic, self.where.number, self.offset, self.offset)


def replay_dead_letters(
    settings: ClickHouseSettings,
    *,
    prices: PriceBook,
    keep_days: int,
    selection: Selection | None = None,
    progress: Callable[[Reconciliation], None] | None = None,
) -> Reconciliation:
    """Try every chosen dead letter again, in the order of their places in the log.

    About 20 letters a second, since each is an insert of its own; what has been stored stays so when it is broken off.

    Args:
        keep_days: how long requests are kept; an older event stays dead.
        selection: left out: all there are.
        progress: called after each letter with the counts so far.

    Raises:
        StoreUnavailable, StoreRefused: what was stored until then is; run it again for the rest.
    """
    store = Store(settings)
    window = rows.window_at(now_ms(), keep_days=keep_days)
    counts = Reconciliation()
    try:
        for letter in _letters(settings, selection or Selection()):
            _count(counts, _try_again(letter, store, prices, window))
            if progress is not None:
                progress(counts)
    finally:
        store.close()
    return counts


_Became = DeadLetter | bool
"""A letter that died again, else whether its row was written now."""


def _try_again(letter: _Letter, store: Store, prices: PriceBook, window: rows.Window) -> _Became:
    if store.standing(letter.batch).confirmation is not None:
        return False
    # Bytes that once failed their checksum might parse by chance, into something nobody sent.
    record = Record(letter.offset, letter.payload, corrupt=letter.reason == "corrupt")
    computed = compute([record], prices=prices, window=window)
    if computed.dead_letters:
        return computed.dead_letters[0]
    had_row = bool(store.stored(computed.identities))
    if had_row:
        computed.requests, computed.bodies, computed.attempts = [], [], []
    store.insert(stored_batch(letter.batch, computed, store))
    return not had_row


def _count(counts: Reconciliation, became: _Became) -> None:
    counts.read += 1
    if isinstance(became, DeadLetter):
        counts.dead_again += 1
        counts.reasons[became.reason] = counts.reasons.get(became.reason, 0) + 1
    elif became:
        counts.stored_now += 1
    else:
        counts.stored_before += 1


_CONDITIONS = {
    "topic": "topic = %(topic)s",
    "partition": "partition = %(partition)s",
    "first": "offset >= %(first)s",
    "last": "offset <= %(last)s",
    "reason": "error = %(reason)s",
    "died_from_ms": "died_at >= fromUnixTimestamp64Milli(%(died_from_ms)s)",
    "died_until_ms": "died_at < fromUnixTimestamp64Milli(%(died_until_ms)s)",
}


def count_dead_letters(settings: ClickHouseSettings, selection: Selection | None = None) -> int:
    """How many letters a replay would read.

    Raises:
        StoreUnavailable, StoreRefused.
    """
    where, asked = _where(selection or Selection())
    client = connect(settings)
    try:
        with store_errors():
            query = f"SELECT uniqExact(topic, partition, offset) FROM dead_letters{where}"  # noqa: S608
            ((count,),) = client.execute(query, asked)
    finally:
        client.disconnect()
    return int(count)


def _letters(settings: ClickHouseSettings, selection: Selection) -> Iterator[_Letter]:
    """Page by page, each letter once, in the order of the table's key."""
    where, asked = _where(selection)
    after = ""
    client = connect(settings)
    try:
        while True:
            with store_errors():
                # Payloads are bytes, so all text comes as bytes.
                found = client.execute(
                    f"SELECT topic, partition, offset, error, payload FROM dead_letters{where}{after} "  # noqa: S608
                    f"ORDER BY topic, partition, offset LIMIT 1 BY topic, partition, offset LIMIT {_PAGE}",
                    asked,
                    settings={"strings_as_bytes": True},
                )
            for topic, partition, offset, reason, payload in found:
                yield _Letter(Partition(topic.decode(), partition), offset, reason.decode(), payload)
            if len(found) < _PAGE:
                return
            asked |= {"after_topic": found[-1][0].decode(), "after_partition": partition, "after_offset": offset}
            after = (
                f" {'AND' if where else 'WHERE'} (topic, partition, offset) > "
                "(%(after_topic)s, %(after_partition)s, %(after_offset)s)"
            )
    finally:
        client.disconnect()


def _where(selection: Selection) -> tuple[str, dict[str, object]]:
    asked = {name: value for name in _CONDITIONS if (value := getattr(selection, name)) is not None}
    where = " AND ".join(_CONDITIONS[name] for name in asked)
    return (f" WHERE {where}" if where else ""), asked
