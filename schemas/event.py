"""Event v1: what the edge says of one finished call. It is the spool's record and the Kafka topic's.

Packed as a msgpack map by field name, bodies as raw bytes. Fields are only ever added, always with a default:
`event.v1.schema.json` is the published form, and a test holds a change of it to that rule.
"""

from typing import Literal

import msgspec

Outcome = Literal["success", "error", "cancelled", "refused", "timeout"]
UsageSource = Literal["reported", "counted", "estimated", "none"]


class Body(msgspec.Struct, omit_defaults=True):
    """What is kept of one body, content coding undone. A long body keeps its head and its tail."""

    size: int = 0
    """Bytes of the whole body as it was seen, kept or not."""
    head: bytes = b""
    """The first bytes; all of them where `tail` is empty and `left_out` is null."""
    tail: bytes = b""
    """The last bytes of a body too long to keep; between `head` and `tail` there is a hole."""
    left_out: str | None = None
    """Why nothing is kept: `asked` (Helicone-Omit-…), `content_type` (not text), `encoding`, `spool_full`."""
    reference: str | None = None
    """Where the bytes are, when a large body was moved to the object store."""


class Attempt(msgspec.Struct, omit_defaults=True):
    """One try at one upstream."""

    provider: str
    started_ms: int
    """Milliseconds since 1970, UTC."""
    latency_ms: float
    status: int | None = None
    """The upstream's HTTP status; null when no answer came."""
    reason: str | None = None
    """Our error code, when the try did not end in a whole answer."""


class Usage(msgspec.Struct, omit_defaults=True, frozen=True):
    """Tokens by class. Null is unknown, never zero. Reads and writes of a cache are part of `input_tokens`,
    reasoning is part of `output_tokens` (OpenTelemetry's GenAI habit)."""

    source: UsageSource = "none"
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None


class Reading(msgspec.Struct, omit_defaults=True, frozen=True):
    """What an answer says, read at the edge because its body must not leave it (Helicone-Omit-…)."""

    model: str | None = None
    stop_reason: str | None = None
    error_code: str | None = None
    complete: bool = True
    usage: Usage = Usage()
    counts: dict[str, int | float | str] = {}
    """Everything said of the usage, by the names of `pricing.usage.Usage`: the price needs more than the classes above."""
    cost_usd: str | None = None
    """Decimal as text."""
    cost_source: str | None = None
    prices_as_of: str | None = None


class Event(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One call, whatever became of it."""

    v: int = 1
    id: str
    """UUID of the request; a UUIDv7 unless the client named its own."""
    created_ms: int
    """When the call came in, milliseconds since 1970, UTC."""
    project_id: str
    key_id: str | None = None
    key_name: str | None = None

    provider: str
    """Id in the provider catalogue, or the host name of a provider that is not in it."""
    api: str
    """Shape of the call: `openai.chat`, `anthropic.messages`, …, `other` (schemas/apis.py)."""
    method: str
    path: str
    """Path as sent upstream, without its query."""
    requested_model: str | None = None
    model_override: str | None = None
    stream: bool = False

    status: int | None = None
    """Status the client was given; null when it left before there was one."""
    outcome: Outcome
    error_code: str | None = None
    """Ours, when the failure is ours to name."""
    error_message: str | None = None

    latency_ms: float
    """From the call's arrival to its last byte."""
    first_token_ms: float | None = None
    """From the call's arrival to the first byte of a streamed answer's body."""
    overhead_ms: float | None = None
    """The edge's own part of `latency_ms`."""

    name: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    session_path: str | None = None
    session_name: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    parent_id: str | None = None
    properties: dict[str, str] = msgspec.field(default_factory=dict)
    features: dict[str, str] = msgspec.field(default_factory=dict)
    """Headers of features this edge does not have yet, as sent."""

    request: Body | None = None
    request_type: str | None = None
    """Content-Type of the request, without parameters."""
    response: Body | None = None
    response_type: str | None = None
    reading: Reading | None = None
    attempts: list[Attempt] = msgspec.field(default_factory=list)
    cache_status: Literal["off", "miss", "hit", "shadow"] = "off"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)

pack = _encoder.encode


class BadEvent(ValueError):
    """These bytes are not an event v1. No retry can help."""


def unpack(payload: bytes) -> Event:
    """The event in one record's payload. Fields this version does not know are passed over.

    Raises:
        BadEvent: not msgpack, or not this shape; the message says where.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadEvent(str(error)) from error
