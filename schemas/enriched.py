"""Enriched request v1: what `requests.enriched.v1` says of one stored request, as JSON. Keyed by the request's id.

In the words of `GET /v1/requests`, with the project beside them. Null is unknown, never 0. Bodies, error texts and
credentials are not part of it. Fields are only ever added, always with a default, and none changes its type:
`requests.enriched.v1.schema.json` is the published form, and a test holds a change of it to that rule.
"""

from typing import Annotated, Literal
from uuid import UUID

import msgspec

from schemas.event import Outcome, UsageSource

CacheStatus = Literal["off", "miss", "hit", "shadow"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Milliseconds = Annotated[float, msgspec.Meta(description="milliseconds")]


class Session(msgspec.Struct, frozen=True):
    id: str | None
    path: str | None
    name: str | None


class Trace(msgspec.Struct, frozen=True):
    trace_id: str | None
    parent_id: str | None


class Key(msgspec.Struct, frozen=True):
    """The Heliograph key that the call came with; never the key itself."""

    id: str | None
    name: str | None


class Usage(msgspec.Struct, frozen=True):
    """LLM tokens by class. Reads and writes of a cache are part of `input_tokens`, reasoning is part of
    `output_tokens`."""

    source: Annotated[
        UsageSource,
        msgspec.Meta(
            description="reported by the provider; counted by the model's own tokenizer; estimated by another; none: unknown"
        ),
    ]
    input_tokens: Count | None
    output_tokens: Count | None
    cache_read_tokens: Count | None
    cache_write_tokens: Count | None
    reasoning_tokens: Count | None
    input_audio_tokens: Count | None
    output_audio_tokens: Count | None


class Cost(msgspec.Struct, frozen=True):
    """What the call cost."""

    usd: Annotated[
        Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]{10}$")] | None,
        msgspec.Meta(description="US dollars, a decimal number as text; null: the price or the usage is not known"),
    ]
    source: Annotated[str | None, msgspec.Meta(description="where the price is from: genai-prices with its version, …")]
    prices_as_of: Annotated[str | None, msgspec.Meta(description="of which day the price is, as that source has it")]


class Cache(msgspec.Struct, frozen=True):
    status: CacheStatus


class EnrichedRequest(msgspec.Struct, frozen=True):
    """One stored request."""

    id: Annotated[UUID, msgspec.Meta(description="the request's id, and the record's key: a repeat has the same")]
    project_id: str
    created_at: Annotated[
        str, msgspec.Meta(description="when the call came in, UTC", extra_json_schema={"format": "date-time"})
    ]
    provider: str
    api: str
    path: str
    requested_model: str | None
    model: Annotated[str | None, msgspec.Meta(description="as the answer names it, else as it was requested")]
    status: Annotated[int | None, msgspec.Meta(description="HTTP status that the client was given")]
    outcome: Outcome
    error_code: str | None
    stream: bool
    stop_reason: str | None
    name: str | None
    user_id: str | None
    session: Session
    trace: Trace
    properties: dict[str, str]
    key: Key
    usage: Usage
    cost: Cost
    latency_ms: Milliseconds
    first_token_ms: Milliseconds | None
    overhead_ms: Milliseconds | None
    cache: Cache


encode = msgspec.json.Encoder().encode
