"""What workers publish where Kafka is the log: each stored request in the enriched topic, each dead letter in the dead one.

At least once, always between the rows and the ledger. A task that finds its batch in the ledger is done without another
look, so whatever the ledger confirms must be out before; and what is out has its row, so that a consumer may ask for it
at once. A worker that dies in between leaves no ledger row: the batch is handed out again and published again.

The tables stay the truth: `dead_letters` is what a replay reads and what counts, the dead topic is its copy for others.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from ingest.kafka_publisher import Message
from ingest.log import Record
from schemas.batch import Partition
from schemas.enriched import Cache, Cost, EnrichedRequest, Key, Session, Trace, Usage, encode
from schemas.settings import KafkaSettings
from workers import metrics
from workers.store import Row


class Sender(Protocol):
    """`ingest.kafka_publisher.KafkaPublisher`."""

    def publish(self, topic: str, messages: Sequence[Message]) -> None: ...

    def close(self) -> None: ...


class Letter(NamedTuple):
    """One dead letter as its topic has it."""

    where: Partition
    record: Record
    reason: str
    message: str


class Publisher:
    """Publishes what a batch came to. Blocking."""

    def __init__(self, settings: KafkaSettings, sender: Sender) -> None:
        self._settings = settings
        self._sender = sender

    def publish(self, requests: Iterable[Row], letters: Iterable[Letter]) -> None:
        """All of them are in Kafka when it returns.

        Args:
            requests: in the order of `store.REQUESTS`.

        Raises:
            LogUnavailable: publish the same again.
        """
        if self._settings.publish_enriched:
            self._send("enriched", self._settings.enriched_topic, [request_message(row) for row in requests])
        if self._settings.publish_dead_letters:
            self._send("dead", self._settings.dead_topic, [letter_message(letter) for letter in letters])

    def close(self) -> None:
        self._sender.close()

    def _send(self, label: str, topic: str, messages: Sequence[Message]) -> None:
        self._sender.publish(topic, messages)
        metrics.published.labels(label).inc(len(messages))


def request_message(row: Row) -> Message:
    """Pure."""
    request = enriched(row)
    return Message(str(request.id).encode(), encode(request))


def letter_message(letter: Letter) -> Message:
    """The event's bytes as they are, what is known of its death in headers. Pure."""
    place = f"{letter.where}:{letter.record.offset}"
    return Message(
        place.encode(),
        letter.record.payload,
        (
            ("reason", letter.reason.encode()),
            ("message", letter.message.encode()[:_MESSAGE_BYTES]),
            ("topic", letter.where.topic.encode()),
            ("partition", str(letter.where.number).encode()),
            ("offset", str(letter.record.offset).encode()),
        ),
    )


_MESSAGE_BYTES = 500
"""With the other headers less than what the shipper leaves free in the largest record."""


def enriched(row: tuple[Any, ...]) -> EnrichedRequest:
    """A row of `store.REQUESTS` in the words of `GET /v1/requests`. Pure."""
    (
        project_id, created_ms, id_, key_id, key_name, provider, api, _method, path, requested_model, model, stream,
        status, outcome, error_code, _error_message, stop_reason, name, user_id, session_id, session_path,
        session_name, trace_id, _span_id, parent_id, properties, _features, usage_source, input_tokens, output_tokens,
        cache_read_tokens, cache_write_tokens, reasoning_tokens, input_audio_tokens, output_audio_tokens, cost_usd,
        cost_source, prices_as_of, latency_ms, first_token_ms, overhead_ms, cache_status, _request_bytes,
        _response_bytes,
    ) = row  # fmt: skip
    usage = Usage(
        usage_source, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
        input_audio_tokens, output_audio_tokens,
    )  # fmt: skip
    return EnrichedRequest(
        id=id_,
        project_id=project_id,
        created_at=_iso(created_ms),
        provider=provider,
        api=api,
        path=path,
        requested_model=requested_model or None,
        model=model or None,
        status=status,
        outcome=outcome,
        error_code=error_code or None,
        stream=bool(stream),  # a row that comes from the table has a number
        stop_reason=stop_reason or None,
        name=name or None,
        user_id=user_id or None,
        session=Session(session_id or None, session_path or None, session_name or None),
        trace=Trace(trace_id or None, parent_id or None),
        properties=properties,
        key=Key(key_id or None, key_name or None),
        usage=usage,
        cost=Cost(None if cost_usd is None else f"{cost_usd:.10f}", cost_source or None, prices_as_of or None),
        latency_ms=round(latency_ms, 3),
        first_token_ms=None if first_token_ms is None else round(first_token_ms, 3),
        overhead_ms=None if overhead_ms is None else round(overhead_ms, 3),
        cache=Cache(cache_status),
    )


def _iso(ms: int) -> str:
    """`2026-11-21T05:00:00.123Z`."""
    return f"{datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:19]}.{ms % 1000:03d}Z"  # strftime: 4 µs
