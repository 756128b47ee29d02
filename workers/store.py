"""The worker's side of ClickHouse: what is known of a batch, and its rows, each table in one block under its token.

A block inserted again under its token is dropped, in the table and in every rollup behind it, as long as it is cut the
same way. So nothing here may split it: the client sends one block whatever its size, and the server is told to gather
what comes out of a view into one block too. (With the defaults 100,000 users of one batch left the view in 256 blocks
once it aggregated in two levels; squashing alone, or single-level alone, still left several.)
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec

from ingest.clickhouse import StoreUnavailable, connect, store_errors
from ingest.moment import Moment
from schemas.batch import Batch, Confirmation
from schemas.settings import ClickHouseSettings
from workers import metrics

log = logging.getLogger("heliograph.worker")

_UNBOUNDED = 1 << 40
_INSERT_SETTINGS: dict[str, object] = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "insert_block_size": _UNBOUNDED,  # the driver's own: rows of a block it sends
    "max_insert_block_size": _UNBOUNDED,
    "min_insert_block_size_rows": _UNBOUNDED,
    "min_insert_block_size_bytes": _UNBOUNDED,
    "group_by_two_level_threshold": 0,
    "group_by_two_level_threshold_bytes": 0,
    # A batch may hold events of any week that is kept; ClickHouse's own bound of 100 would refuse it for ever.
    "max_partitions_per_insert_block": 0,
    "materialized_views_ignore_errors": 0,
}

WEEKS_WIDE = 26
"""An insert takes a place in the window of 10,000 tokens for each week it touches. Beyond this many weeks fewer than
400 inserts separate a batch from its forgetting, which is said in the log and counted."""


class Table(NamedTuple):
    name: str
    columns: tuple[str, ...]


REQUESTS = Table(
    "requests",
    (
        "project_id", "created_at", "id", "key_id", "key_name", "provider", "api", "method", "path",
        "requested_model", "model", "stream", "status", "outcome", "error_code", "error_message", "stop_reason",
        "name", "user_id", "session_id", "session_path", "session_name", "trace_id", "span_id", "parent_id",
        "properties", "features", "usage_source", "input_tokens", "output_tokens", "cache_read_tokens",
        "cache_write_tokens", "reasoning_tokens", "input_audio_tokens", "output_audio_tokens", "cost_usd",
        "cost_source", "prices_as_of", "latency_ms", "first_token_ms", "overhead_ms", "cache_status",
        "request_bytes", "response_bytes",
    ),
)  # fmt: skip
BODIES = Table(
    "bodies",
    (
        "project_id", "created_at", "id",
        "request", "request_tail", "request_left_out", "request_type", "request_reference",
        "response", "response_tail", "response_left_out", "response_type", "response_reference",
    ),
)  # fmt: skip
ATTEMPTS = Table(
    "attempts",
    ("project_id", "created_at", "id", "number", "provider", "status", "started_at", "latency_ms", "reason"),
)
SUMS = Table(
    "batches_by_partition",
    ("topic", "partition", "batches", "offsets", "events", "rows", "dead_lettered", "last", "newest_event_at"),
)
DEAD_LETTERS = Table("dead_letters", ("topic", "partition", "offset", "error", "message", "payload"))
LEDGER = Table(
    "batches",
    ("topic", "partition", "first", "last", "events", "rows", "dead_lettered", "oldest_event_at", "newest_event_at"),
)  # fmt: skip

Row = tuple[object, ...]


class Verdict(NamedTuple):
    """Why an event is a dead letter."""

    reason: str
    message: str


class Standing(NamedTuple):
    """What the store knows of a batch before it is worked on."""

    confirmation: Confirmation | None
    """Its row in the ledger: then it is done."""
    dead: Mapping[int, Verdict]
    """By offset, what an earlier attempt has sent to the dead letters. That verdict stands, whatever a newer version of
    the code would say: an event must not be in both places."""


class Identity(NamedTuple):
    """What tells one request's row from every other."""

    project_id: str
    created_ms: int
    id: UUID


class StoredBatch(msgspec.Struct, frozen=True):
    """One batch as the tables take it."""

    batch: Batch
    events: int
    requests: Sequence[Row]
    bodies: Sequence[Row]
    attempts: Sequence[Row]
    dead_letters: Sequence[Row]
    dead: int
    """Events in the dead letters, those of earlier attempts among them."""
    oldest_ms: int
    newest_ms: int
    salt: str = ""
    """Of a replay, which does not know what the first attempt held: tells its blocks from any other's."""

    @property
    def token(self) -> str:
        return f"{self.batch.token}:{self.salt}" if self.salt else self.batch.token

    @property
    def confirmation(self) -> Confirmation:
        return Confirmation(self.batch, self.events, self.events - self.dead, self.dead)


# The ledger and the dead letters in one question, since every batch asks it: 2 ms.
_STANDING = """
SELECT 1 AS done, toUInt64(events), rows, dead_lettered, '', '' FROM batches
WHERE topic = %(topic)s AND partition = %(partition)s AND first = %(first)s AND last = %(last)s LIMIT 1
UNION ALL
SELECT 0, offset, 0, 0, toString(error), message FROM dead_letters
WHERE topic = %(topic)s AND partition = %(partition)s AND offset BETWEEN %(first)s AND %(last)s
"""
_TIMES = """
SELECT count() FROM batches
WHERE topic = %(topic)s AND partition = %(partition)s AND first = %(first)s AND last = %(last)s
"""
_COVERED = """
SELECT first, last FROM batches
WHERE topic = %(topic)s AND partition = %(partition)s AND first <= %(last)s AND last >= %(first)s
"""
_OF_IDENTITIES = """
SELECT {columns} FROM {table}
WHERE project_id IN %(projects)s AND created_at BETWEEN fromUnixTimestamp64Milli(%(first_ms)s)
AND fromUnixTimestamp64Milli(%(last_ms)s) AND id IN %(ids)s
"""
_IDENTITIES_MAX = 1000


class Store:
    """Writes over one connection, opened at its first use. Not for sharing between threads."""

    def __init__(self, settings: ClickHouseSettings, *, look_holds_s: float = math.inf) -> None:
        """
        Args:
            look_holds_s: how long after `standing` anything may be inserted.
        """
        self._client = connect(settings, **_INSERT_SETTINGS)
        self._look_holds_s = look_holds_s
        self._looked: Moment | None = None

    def standing(self, batch: Batch) -> Standing:
        """Whether a batch is done, and which of its events are dead letters already.

        Raises:
            StoreUnavailable, StoreRefused: nothing is known.
        """
        asked = {"topic": batch.topic, "partition": batch.partition, "first": batch.first, "last": batch.last}
        self._looked = Moment()
        with store_errors():
            found = self._client.execute(_STANDING, asked)
        done = next((row for row in found if row[0]), None)
        return Standing(
            confirmation=None if done is None else Confirmation(batch, *done[1:4]),
            dead={row[1]: Verdict(*row[4:]) for row in found if not row[0]},
        )

    def times(self, batch: Batch) -> int:
        """How many rows the ledger has of exactly this batch. A replay may leave several.

        Raises:
            StoreUnavailable, StoreRefused: nothing is known.
        """
        asked = {"topic": batch.topic, "partition": batch.partition, "first": batch.first, "last": batch.last}
        with store_errors():
            ((times,),) = self._client.execute(_TIMES, asked)
        return int(times)

    def covered(self, batch: Batch) -> list[range]:
        """The offsets of this range that are in the ledger, as whatever batches.

        Raises:
            StoreUnavailable, StoreRefused: nothing is known.
        """
        asked = {"topic": batch.topic, "partition": batch.partition, "first": batch.first, "last": batch.last}
        with store_errors():
            found = self._client.execute(_COVERED, asked)
        return [range(first, last + 1) for first, last in found]

    def stored(self, identities: Iterable[Identity], table: Table = REQUESTS) -> set[Identity]:
        """Those of these requests that have a row, or a row in another table of theirs.

        Raises:
            StoreUnavailable, StoreRefused: nothing is known.
        """
        wanted = set(identities)
        found = self._of(wanted, table, ("project_id", "created_at", "id"))
        return {Identity(*row) for row in found} & wanted  # type: ignore[arg-type]

    def requests(self, identities: Iterable[Identity]) -> list[Row]:
        """The rows of these requests, in the order of `REQUESTS`.

        Raises:
            StoreUnavailable, StoreRefused: nothing is known.
        """
        wanted = set(identities)
        return [row for row in self._of(wanted, REQUESTS, REQUESTS.columns) if Identity(*row[:3]) in wanted]  # type: ignore[arg-type]

    def _of(self, identities: Iterable[Identity], table: Table, columns: Sequence[str]) -> Iterator[Row]:
        """Rows of these requests, and perhaps of others whose ids are the same."""
        wanted = sorted(identities, key=lambda identity: identity.created_ms)
        shown = ["toUnixTimestamp64Milli(created_at)" if name == "created_at" else name for name in columns]
        sql = _OF_IDENTITIES.format(columns=", ".join(shown), table=table.name)
        for start in range(0, len(wanted), _IDENTITIES_MAX):
            part = wanted[start : start + _IDENTITIES_MAX]
            asked = {
                "projects": tuple({identity.project_id for identity in part}),
                "ids": tuple(identity.id for identity in part),
                "first_ms": part[0].created_ms,
                "last_ms": part[-1].created_ms,
            }
            with store_errors():
                yield from self._client.execute(sql, asked)

    def insert(self, work: StoredBatch) -> None:
        """Insert a whole batch but for its ledger row. Safe to do again, from anywhere in the middle and by several at
        once.

        The order matters: an event in `requests` has its body and attempts, and an event is among the dead letters
        before the rest of its batch can be seen.

        Raises:
            StoreUnavailable: the same batch may be inserted again.
            StoreRefused: no retry can help until somebody has changed something.
        """
        token = work.token
        self._note_spread(work)
        self.insert_block(DEAD_LETTERS, work.dead_letters, _dead_token(work))
        self.insert_block(BODIES, work.bodies, token)
        self.insert_block(ATTEMPTS, work.attempts, token)
        self.insert_block(REQUESTS, work.requests, token)

    def confirm(self, work: StoredBatch) -> Confirmation:
        """Last of all, the batch's row in the ledger. From then on nobody looks at the batch again, so before it, it is
        counted in the sums.

        Raises:
            StoreUnavailable, StoreRefused: nothing is confirmed.
        """
        self.insert_block(SUMS, [_sums_row(work)], work.token)
        self.insert_block(LEDGER, [_ledger_row(work)], work.token)
        return work.confirmation

    def insert_block(self, table: Table, rows: Sequence[Row], token: str) -> None:
        """Insert `rows` as one block under `token`; none is no insert.

        Raises:
            StoreUnavailable, StoreRefused: as `insert`.
        """
        if not rows:
            return
        if self._looked is not None and self._looked.longer_ago_than(self._look_holds_s):
            # No time limit ends who was suspended with its whole machine. Others have the batch by now, and may have
            # stored so many more that its tokens are forgotten.
            raise StoreUnavailable(f"more than {self._look_holds_s:g} s went by since the ledger was looked at")
        # Columns, not rows: 160,000 rows/s against 86,000. Lists, since the driver changes its columns in place.
        columns = [list(column) for column in zip(*rows, strict=True)]
        started = time.perf_counter()
        with store_errors():
            self._client.execute(
                f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES",
                columns,
                columnar=True,
                settings={**_INSERT_SETTINGS, "insert_deduplication_token": token},
            )
        metrics.insert_seconds.labels(table.name).observe(time.perf_counter() - started)
        metrics.rows.labels(table.name).inc(len(rows))

    def close(self) -> None:
        self._client.disconnect()

    def _note_spread(self, work: StoredBatch) -> None:
        created = REQUESTS.columns.index("created_at")
        weeks = {row[created] // 604_800_000 for row in work.requests}  # type: ignore[operator]
        if len(weeks) > WEEKS_WIDE:
            metrics.wide_batches.inc()
            log.warning(
                "a batch is spread over many weeks; send history in order of time",
                extra={"batch": work.batch.token, "weeks": len(weeks)},
            )


def _ledger_row(work: StoredBatch) -> Row:
    batch = work.batch
    counts = (work.events, work.confirmation.rows, work.dead)
    return (batch.topic, batch.partition, batch.first, batch.last, *counts, work.oldest_ms, work.newest_ms)


def _sums_row(work: StoredBatch) -> Row:
    batch = work.batch
    counts = (1, batch.next_offset - batch.first, work.events, work.confirmation.rows, work.dead)
    return (batch.topic, batch.partition, *counts, batch.last, work.newest_ms)


def _dead_token(work: StoredBatch) -> str:
    """Made of the letters' offsets: a later attempt that finds one more must not have it dropped as a repeat."""
    offset = DEAD_LETTERS.columns.index("offset")
    offsets = ",".join(str(row[offset]) for row in work.dead_letters)
    return f"{work.token}:{hashlib.sha256(offsets.encode()).hexdigest()[:16]}"
