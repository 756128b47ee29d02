"""What others are told: each stored request and each dead letter, at least once, whatever dies in between."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.partitioner import DefaultPartitioner

from control.rows import SELECT, request_shape
from ingest.kafka_client import connection
from ingest.kafka_publisher import KafkaPublisher, Message
from ingest.kafka_thread import KafkaThread
from ingest.log import LogUnavailable
from schemas.enriched import EnrichedRequest
from schemas.settings import KafkaSettings
from tests.workers.case import Case, once
from workers import rows
from workers.enrich import Services, enrich
from workers.publish import Publisher
from workers.store import Row, Store, Table


class Sent:
    """Keeps what would go to Kafka."""

    def __init__(self, *, fails: int = 0) -> None:
        self.messages: dict[str, list[Message]] = {}
        self.fails = fails

    def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if self.fails:
            self.fails -= 1
            raise LogUnavailable("Kafka is away")
        self.messages.setdefault(topic, []).extend(messages)

    def close(self) -> None:
        pass

    def ids(self) -> list[str]:
        return sorted(message.key.decode() for message in self.messages.get("requests.enriched.v1", []))

    def dead(self) -> list[bytes]:
        return sorted(message.key for message in self.messages.get("requests.dead.v1", []))


class Killed(BaseException):
    pass


class KilledStore(Store):
    """Dies at one insert, before or after the server has taken it."""

    at = ""
    after = False

    def insert_block(self, table: Table, rows: Sequence[Row], token: str) -> None:
        if table.name == self.at and not self.after:
            raise Killed
        super().insert_block(table, rows, token)
        if table.name == self.at:
            raise Killed


def telling(
    case: Case, sent: Sent, *, kafka: KafkaSettings | None = None, at: str = "", after: bool = False
) -> Services:
    """A fresh worker process that publishes, and dies at one insert where it is told to."""
    store = KilledStore(case.settings)
    store.at, store.after = at, after
    publisher = Publisher(kafka or KafkaSettings(), sent)
    return msgspec.structs.replace(case.services(store), publisher=publisher)


def test_a_stored_batch_is_published_once_and_not_again_when_it_is_repeated(case: Case) -> None:
    events = [case.event() for _ in range(5)]
    batch, sent = case.batch(events), Sent()

    enrich(batch, telling(case, sent))
    enrich(batch, telling(case, sent))

    assert sent.ids() == sorted(event.id for event in events)


@pytest.mark.parametrize(
    ("at", "after", "times"),
    [
        pytest.param("requests", False, 1, id="before its rows"),
        pytest.param("requests", True, 1, id="between its rows and publishing"),
        pytest.param("batches", False, 2, id="between publishing and the ledger"),
        pytest.param("batches", True, 1, id="after the ledger"),
    ],
)
def test_a_worker_that_dies_leaves_no_request_untold(case: Case, at: str, after: bool, times: int) -> None:
    events = [case.event() for _ in range(5)]
    batch, sent = case.batch([*events, b"no event"]), Sent()
    with pytest.raises(Killed):
        enrich(batch, telling(case, sent, at=at, after=after))

    enrich(batch, telling(case, sent))

    assert sent.ids() == sorted([event.id for event in events] * times)
    assert sent.dead() == [f"{case.topic}:0:5".encode()] * times
    assert case.counts() == once(5, dead=1)


def test_an_event_is_never_published_before_it_has_its_row(case: Case) -> None:
    batch, sent = case.batch([case.event()]), Sent()
    with pytest.raises(Killed):
        enrich(batch, telling(case, sent, at="requests"))

    assert sent.messages == {}


def test_a_failed_publish_fails_the_batch_and_its_rows_count_once(case: Case) -> None:
    events = [case.event() for _ in range(5)]
    batch, sent = case.batch(events), Sent(fails=1)
    with pytest.raises(LogUnavailable):
        enrich(batch, telling(case, sent))
    assert case.counts() == once(5, ledger=0)

    enrich(batch, telling(case, sent))

    assert sent.ids() == sorted(event.id for event in events)
    assert case.counts() == once(5)


def test_a_row_that_newer_code_cannot_read_is_published_all_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker stored it and was killed before publishing; the second, a bad deploy, calls it poison."""
    event = case.event()
    batch, sent = case.batch([event]), Sent()
    with pytest.raises(Killed):
        enrich(batch, telling(case, sent, at="requests", after=True))
    with monkeypatch.context() as patch:
        patch.setattr(rows, "settle", _broken)
        enrich(batch, telling(case, sent))

    (message,) = sent.messages["requests.enriched.v1"]
    request = msgspec.json.decode(message.value, type=EnrichedRequest)
    assert (str(request.id), request.usage.input_tokens, request.cost.usd) == (event.id, 100, "0.0004500000")
    assert sent.dead() == []


def _broken(*args: object, **kwargs: object) -> object:
    raise KeyError("broken")


def test_what_is_turned_off_is_not_published(case: Case) -> None:
    batch, sent = case.batch([case.event(), b"no event"]), Sent()
    off = KafkaSettings(publish_enriched=False, publish_dead_letters=False)

    enrich(batch, telling(case, sent, kafka=off))

    assert not any(sent.messages.values())
    assert case.counts() == once(1, dead=1)


def test_unknown_is_null_and_never_zero(case: Case) -> None:
    batch, sent = case.batch([case.event(response=None, status=None, outcome="cancelled", user_id=None)]), Sent()

    enrich(batch, telling(case, sent))

    (message,) = sent.messages["requests.enriched.v1"]
    told = json.loads(message.value)
    assert told["cost"] == {"usd": None, "source": None, "prices_as_of": None}
    assert told["usage"].pop("source") == "none"
    assert set(told["usage"].values()) == {None}
    assert [told[name] for name in ("status", "user_id", "first_token_ms", "stop_reason")] == [None] * 4
    assert told["session"] == {"id": None, "path": None, "name": None}


# -- With the real broker.


@pytest.fixture
def publisher(kafka: KafkaSettings) -> Iterator[Publisher]:
    thread = KafkaThread()
    publisher = Publisher(kafka, KafkaPublisher(kafka, thread))
    yield publisher
    publisher.close()
    thread.close()


async def _all(kafka: KafkaSettings, topic: str) -> list[ConsumerRecord]:
    wheres = [TopicPartition(topic, number) for number in range(kafka.partitions)]
    consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **connection(kafka))
    await consumer.start()
    try:
        consumer.assign(wheres)
        wanted = sum((await consumer.end_offsets(wheres)).values())
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(20):
            while len(found) < wanted:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
        return found
    finally:
        await consumer.stop()


def in_topic(kafka: KafkaSettings, topic: str) -> list[ConsumerRecord]:
    return asyncio.run(_all(kafka, topic))


def test_a_record_says_what_the_api_says_and_no_more(case: Case, kafka: KafkaSettings, publisher: Publisher) -> None:
    events = [
        case.event(
            session_id="s1", session_path="/a", trace_id="t" * 32, key_id="k1", key_name="one", first_token_ms=12.25
        ),
        case.event(stream=True, name="greeting", cache_status="hit"),
        case.event(outcome="error", status=500, error_code="upstream_unreachable", error_message="secret words"),
    ]
    enrich(case.batch(events), msgspec.structs.replace(case.services(), publisher=publisher))

    records = in_topic(kafka, kafka.enriched_topic)

    rows = case.query(f"SELECT {SELECT} FROM requests WHERE project_id = %(project)s")
    said = {shape["id"]: shape for shape in map(request_shape, rows)}
    assert len(records) == len(said) == 3
    for record in records:
        told = json.loads(record.value)
        assert told.pop("project_id") == case.project
        # Of these two the API only says that they are not there yet.
        shape = said[told["id"]]
        del shape["prompt"], shape["cache"]["of"]
        assert told == shape
        assert record.key.decode() == told["id"]
        for secret in (b"hello", b"secret words", b"Authorization"):
            assert secret not in record.value
    costs = {Decimal(json.loads(record.value)["cost"]["usd"]) for record in records}
    assert costs == {Decimal("0.00045"), Decimal(0)}


def test_a_key_is_found_where_every_client_of_kafka_looks_for_it(
    case: Case, kafka: KafkaSettings, publisher: Publisher
) -> None:
    events = [case.event() for _ in range(50)]
    enrich(case.batch(events), msgspec.structs.replace(case.services(), publisher=publisher))

    records = in_topic(kafka, kafka.enriched_topic)

    assert sorted(record.key.decode() for record in records) == sorted(event.id for event in events)
    everywhere = list(range(kafka.partitions))
    assert all(record.partition == DefaultPartitioner()(record.key, everywhere, everywhere) for record in records)


def test_a_dead_letter_is_in_the_topic_as_it_was_with_why_it_died(
    case: Case, kafka: KafkaSettings, publisher: Publisher
) -> None:
    batch = case.batch([case.event(), b"no event"])
    enrich(batch, msgspec.structs.replace(case.services(), publisher=publisher))

    (record,) = in_topic(kafka, kafka.dead_topic)

    assert record.value == b"no event"
    headers = dict(record.headers)
    assert headers.pop("message")
    assert headers == {
        "reason": b"not_an_event",
        "topic": case.topic.encode(),
        "partition": b"0",
        "offset": str(batch.last).encode(),
    }
    assert case.counts() == once(1, dead=1)


def test_more_than_a_batch_of_records_takes_is_published_whole(kafka: KafkaSettings, publisher: Publisher) -> None:
    thread = KafkaThread()
    sender = KafkaPublisher(kafka, thread)
    messages = [Message(f"{number}".encode(), f"{number:06}".encode() * 1000) for number in range(600)]
    try:
        sender.publish(kafka.enriched_topic, messages)
    finally:
        sender.close()
        thread.close()

    found = in_topic(kafka, kafka.enriched_topic)
    assert sorted((record.key, record.value) for record in found) == sorted(message[:2] for message in messages)


def test_a_topic_that_is_missing_fails_in_time(kafka: KafkaSettings) -> None:
    thread = KafkaThread()
    sender = KafkaPublisher(kafka.model_copy(update={"call_timeout_s": 2}), thread)
    began = time.monotonic()
    try:
        with pytest.raises(LogUnavailable, match=r"publishing in nowhere"):
            sender.publish("nowhere", [Message(b"k", b"v")])
    finally:
        sender.close()
        thread.close()
    assert time.monotonic() - began < 10
