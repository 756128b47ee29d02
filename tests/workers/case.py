"""One test's own corner of the store, and what its tables should hold."""

import itertools
import time
from collections.abc import Sequence

import msgspec

from ingest.clickhouse import connect
from ingest.log import Record
from pricing.prices import PriceBook
from schemas.batch import Batch
from schemas.event import Attempt, Body, Event, pack
from schemas.ids import new_id
from schemas.settings import ClickHouseSettings
from workers.enrich import Services
from workers.store import Store

_numbers = itertools.count(1)


def once(events: int, *, dead: int = 0, attempts: int | None = None, ledger: int = 1) -> dict[str, object]:
    """The counts of `events` stored events, each with one attempt."""
    return {
        "requests": events,
        "bodies": events,
        "attempts": events if attempts is None else attempts,
        "by_minute": events,
        "by_hour": events,
        "totals": events,
        "by_user": events,
        "ledger": ledger,
        "dead_letters": dead,
        "rollups": {events} - {0},
    }


class Reader:
    """A log in memory: records by topic, as a spool or Kafka would give them again and again."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}
        self.reads = 0

    def read(self, batch: Batch) -> list[Record]:
        self.reads += 1
        return [r for r in self.records.get(batch.topic, []) if batch.first <= r.offset <= batch.last]

    def close(self) -> None:
        pass


class Case:
    """One test's own corner of the store: a topic, a project, and a log of its own."""

    def __init__(self, settings: ClickHouseSettings, prices: PriceBook) -> None:
        number = next(_numbers)
        self.settings = settings
        self.prices = prices
        self.topic = f"spool/test{number}-{time.time_ns():x}"
        self.project = f"project-{number}-{time.time_ns():x}"
        self.reader = Reader()
        self.opened: list[Store] = []

    def services(self, store: Store | None = None) -> Services:
        """What a fresh worker process would hold."""
        store = store or Store(self.settings)
        self.opened.append(store)
        return Services(store=store, reader=self.reader, prices=self.prices, keep_days=90)

    def event(self, **changes: object) -> Event:
        now_ms = time.time_ns() // 1_000_000
        request = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}'
        response = (
            b'{"id":"x","object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":'
            b'{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}'
        )
        event = Event(
            id=new_id(now_ms),
            created_ms=now_ms - 1000,
            project_id=self.project,
            provider="openai",
            api="openai.chat",
            method="POST",
            path="/v1/chat/completions",
            requested_model="gpt-4o",
            status=200,
            outcome="success",
            latency_ms=800.0,
            overhead_ms=0.5,
            user_id=f"u{next(_numbers) % 7}",
            properties={"environment": "test"},
            request=Body(size=len(request), head=request),
            request_type="application/json",
            response=Body(size=len(response), head=response),
            response_type="application/json",
            attempts=[Attempt(provider="openai", started_ms=now_ms - 999, latency_ms=799.0, status=200)],
        )
        return msgspec.structs.replace(event, **changes)

    def batch(self, records: Sequence[Event | bytes | Record]) -> Batch:
        """Put events (or bytes that are none) into the log and cut them as one batch."""
        log = self.reader.records.setdefault(self.topic, [])
        first = log[-1].offset + 1 if log else 0
        for place, item in enumerate(records, start=first):
            if isinstance(item, Record):
                log.append(item)
            else:
                log.append(Record(place, item if isinstance(item, bytes) else pack(item)))
        return Batch(self.topic, 0, first, first + max(len(records), 1) - 1)

    def counts(self) -> dict[str, object]:
        project = {"project": self.project, "topic": self.topic, "dead": f"dead/{self.topic}"}
        client = connect(self.settings)
        try:
            ((found,),) = client.execute(_COUNTS, project)
        finally:
            client.disconnect()
        counts = dict(zip(_COUNTED, found, strict=True))
        assert counts.pop("cost") == counts.pop("rollup_cost"), "the rollup's cost is not the rows'"
        return counts | {"rollups": {count for (count,) in self.query(self._rollups()) if count}}

    def _rollups(self) -> str:
        """A question for the requests that each rollup holds, whichever there are; one may take none of them."""
        tables = self.query(
            "SELECT table FROM system.columns WHERE database = currentDatabase() AND name = 'requests' "
            "AND table IN (SELECT name FROM system.tables WHERE database = currentDatabase() "
            "AND engine LIKE '%%AggregatingMergeTree')"
        )
        assert len(tables) >= 3
        return " UNION ALL ".join(
            f"SELECT sum(requests) FROM {table} WHERE project_id = %(project)s" for (table,) in tables
        )

    def query(self, sql: str, **asked: object) -> list[tuple[object, ...]]:
        client = connect(self.settings)
        try:
            return list(client.execute(sql, {"project": self.project, "topic": self.topic, **asked}))
        finally:
            client.disconnect()

    def row(self) -> dict[str, object]:
        """The test's only request, by column."""
        client = connect(self.settings)
        try:
            rows, types = client.execute(
                "SELECT * FROM requests WHERE project_id = %(project)s", {"project": self.project}, True
            )
        finally:
            client.disconnect()
        (row,) = rows
        return {name: value for (name, _), value in zip(types, row, strict=True)}

    def close(self) -> None:
        for store in self.opened:
            store.close()


_COUNTED = (
    "requests", "bodies", "attempts", "by_minute", "by_hour", "totals", "by_user", "ledger", "dead_letters", "cost",
    "rollup_cost",
)  # fmt: skip
_COUNTS = """
SELECT tuple(
    (SELECT count() FROM requests WHERE project_id = %(project)s),
    (SELECT count() FROM bodies WHERE project_id = %(project)s),
    (SELECT count() FROM attempts WHERE project_id = %(project)s),
    (SELECT sum(requests) FROM requests_by_minute WHERE project_id = %(project)s),
    (SELECT sum(requests) FROM requests_by_hour WHERE project_id = %(project)s),
    (SELECT sum(requests) FROM totals_by_hour WHERE project_id = %(project)s),
    (SELECT sum(requests) FROM users_by_day WHERE project_id = %(project)s),
    (SELECT count() FROM batches WHERE topic IN (%(topic)s, %(dead)s)),
    (SELECT count() FROM dead_letters WHERE topic = %(topic)s),
    (SELECT toString(toDecimal128(ifNull(sum(cost_usd), 0), 10)) FROM requests WHERE project_id = %(project)s),
    (SELECT toString(toDecimal128(sum(cost_usd), 10)) FROM requests_by_minute WHERE project_id = %(project)s)
)
"""
