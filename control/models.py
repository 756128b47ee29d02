"""The API's answers and bodies as types: what the OpenAPI document says, and what the tests hold every answer to."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

from schemas.keys import Permission

T = TypeVar("T")

Money = Annotated[str, Field(description="US dollars, ten decimals, as text", examples=["0.0002600000"])]
Time = Annotated[str, Field(description="UTC, milliseconds", examples=["2026-11-21T05:00:00.123Z"])]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Shape):
    code: str = Field(description="fixed, for programs", examples=["bad_request"])
    message: str = Field(examples=["limit = 5000: must be 1 to 1000"])
    field: str | None = Field(None, description="the parameter or field that may not be so")
    value: str | None = Field(None, description="what it was, cut where long")
    expected: str | None = Field(None, description="what would be right")


class Error(Shape):
    error: ErrorDetail


class Session(Shape):
    id: str | None
    path: str | None
    name: str | None


class Trace(Shape):
    trace_id: str | None
    parent_id: str | None


class KeyRef(Shape):
    id: str | None
    name: str | None


class Usage(Shape):
    source: Literal["reported", "counted", "estimated", "none"] = Field(
        description="reported by the provider, counted with the model family's own tokenizer, estimated with another"
    )
    input_tokens: int | None = Field(description="everything that went in, cache reads and writes included")
    output_tokens: int | None = Field(description="everything that came out, reasoning included")
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    input_audio_tokens: int | None
    output_audio_tokens: int | None


class Cost(Shape):
    usd: Money | None
    source: str | None = Field(examples=["genai-prices 0.2.3"])
    prices_as_of: str | None = Field(examples=["2026-11-01"])


class Cache(Shape):
    status: Literal["off", "miss", "hit", "shadow"]
    of: str | None = Field(description="the request whose answer was served")


class LlmRequest(Shape):
    """One LLM call. Null is unknown, never 0."""

    id: str = Field(examples=["0193f2a4-5b6c-7d8e-9f01-23456789abcd"])
    created_at: Time
    provider: str = Field(examples=["openai"])
    api: str = Field(examples=["openai.chat"])
    path: str = Field(examples=["/v1/chat/completions"])
    requested_model: str | None = Field(examples=["gpt-4o"])
    model: str | None = Field(examples=["gpt-4o-2024-08-06"])
    status: int | None = Field(examples=[200])
    outcome: Literal["success", "error", "cancelled", "refused", "timeout"]
    error_code: str | None
    stream: bool
    stop_reason: str | None
    name: str | None
    user_id: str | None
    session: Session
    trace: Trace
    properties: dict[str, str] = Field(examples=[{"environment": "production"}])
    key: KeyRef
    usage: Usage
    cost: Cost
    latency_ms: float
    first_token_ms: float | None
    overhead_ms: float | None = Field(description="the gateway's own part of latency_ms")
    cache: Cache
    prompt: dict[str, Any] | None


class Attempt(Shape):
    provider: str
    status: int | None
    started_at: Time
    latency_ms: float
    reason: str | None = Field(description="our error code, when the try did not end in a whole answer")


class WholeRequest(LlmRequest):
    """With its attempts and bodies. A body is JSON where it was JSON, else its text, else null.

    One that is not whole is an object with `_heliograph`: `truncated` (with size, head, tail), `left_out` (with the
    reason), `gone` (a large one that is no longer kept) or `stored_elsewhere` (a large one with its reference, and the
    problem that keeps it from being shown: `too_large`, `unavailable`).
    """

    attempts: list[Attempt]
    request: Any
    response: Any


class TimeRange(Shape):
    start: Time
    end: Time


class RequestPage(Shape):
    requests: list[LlmRequest]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page; null: this was the last")
    range: TimeRange


class Score(Shape):
    value: float
    comment: str | None
    source: str | None
    at: Time


class Feedback(Shape):
    rating: bool
    comment: str | None
    at: Time


class PropertyUpdate(Shape):
    value: str
    at: Time


class Facts(Shape):
    """What was said of a request after it was stored, the newest of each."""

    id: str
    scores: dict[str, Score]
    feedback: Feedback | None
    properties: dict[str, PropertyUpdate]


class Tokens(Shape):
    """Sums of what is known. A class that no request told is null, never 0."""

    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    known_requests: int = Field(description="requests whose tokens are known; the sums are theirs")
    reported_requests: int = Field(description="of these, by the provider's own report")
    unknown_requests: int


class CostSum(Shape):
    usd: Money | None = Field(description="sum of the known costs; null: none is known")
    known_requests: int
    unknown_requests: int


class Quantiles(Shape):
    p50: float
    p90: float
    p95: float
    p99: float


class MetricRow(BaseModel):
    """The groups asked for, `time` first where there is a bucket, then the numbers."""

    # The groups asked for are fields too, `property.<name>` among them.
    model_config = ConfigDict(extra="allow")

    requests: int
    errors: int = Field(description="everything but outcome success")
    tokens: Tokens
    cost: CostSum
    latency_ms: Quantiles | None = Field(description="null: none, or this source keeps none (`quantiles=true`)")
    first_token_ms: Quantiles | None = Field(description="of streamed answers")


class Metrics(Shape):
    source: Literal["raw", "minute", "hour", "totals", "keys", "users", "properties", "property_models"] = Field(
        description="the rollup most of the range was read from; its ragged ends are always raw"
    )
    bucket: str | None = Field(examples=["1h"], description="width of `time`, in seconds with an s")
    range: TimeRange
    rows: list[MetricRow]
    truncated: bool = Field(description="there are more rows than were given")


class User(Shape):
    user_id: str | None = Field(description="null: requests that named no user")
    requests: int
    errors: int
    tokens: Tokens
    cost: CostSum
    first_seen: Time
    last_seen: Time


class SessionSum(Shape):
    session_id: str
    name: str | None
    user_id: str | None
    requests: int
    errors: int
    tokens: Tokens
    cost: CostSum
    first_seen: Time
    last_seen: Time


class UserPage(Shape):
    users: list[User]
    more: bool
    range: TimeRange


class SessionPage(Shape):
    sessions: list[SessionSum]
    more: bool
    range: TimeRange


class KeyOut(Shape):
    id: str
    name: str
    project_id: str
    permissions: list[Permission]
    last4: str = Field(description="the key's last four characters, to know it by")
    state: Literal["active", "expired", "revoked"]
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None


class KeyList(Shape):
    keys: list[KeyOut]


class KeyIn(Shape):
    name: str = Field(examples=["web"])
    permissions: list[str] = Field(["proxy", "read"], description="among proxy, read, write, admin")
    expires: str | None = Field(None, description="30d, 12h, 90m, 3600s or 2w from now; left out: never")


class KeyCreated(Shape):
    key: str = Field(description="the key itself: shown this once, stored nowhere")
    info: KeyOut
    published: bool = Field(description="false: edges learn of it as soon as Redis is back")


class KeyRevoked(Shape):
    info: KeyOut
    published: bool = Field(description="false: edges let it pass until Redis is back")


class ProjectOut(Shape):
    id: str
    created_at: Time


class PartitionOut(Shape):
    topic: str
    partition: int
    present: bool = Field(description="false: known from the ledger alone, its log is gone")
    logged: int = Field(description="the next offset after the newest record")
    planned: int
    unplanned: int
    skipped: int
    outstanding: int
    stored: int
    dead_lettered: int
    without_event: int
    batches: int
    committed: int
    freed: int | None = Field(description="the oldest offset still in the log")
    paused: str | None


class SpoolOut(Shape):
    id: str
    present: bool = Field(description="false: on another machine, known by what Kafka has of it")
    shipped: int = Field(description="its next event that is not in Kafka yet")
    unshipped: int | None = Field(description="null: on another machine, whose Prometheus page knows")


class PipelineOut(Shape):
    """accepted = spooled + dropped; logged = planned + unplanned + skipped; planned = stored + dead_lettered +
    without_event + outstanding.

    Where the spools are the log, spooled = logged. Where Kafka is, spooled = shipped + unshipped (and what was planned
    straight from spools before), and from `logged` on the numbers are Kafka's offsets, of which some hold no event.
    """

    at: Time
    accepted: int = Field(description="calls that gave an event")
    dropped: int = Field(description="events a full spool of this machine refused: lost, and counted")
    spooled: int = Field(description="events written to spools")
    shipped: int | None = Field(description="of these, in Kafka; null: the spools are the log")
    unshipped: int | None = Field(description="of these, not yet in Kafka, in spools of this machine")
    unshipped_spools_unseen: int = Field(
        description="spools of other machines: what they hold unshipped is not counted"
    )
    logged: int = Field(description="offsets of the log")
    planned: int = Field(description="of these, given to batches")
    unplanned: int = Field(description="of these, not yet")
    skipped: int = Field(description="of these, never: gone before the first plan, or passed over by hand")
    outstanding: int = Field(description="planned, and their batch not yet in the ledger")
    stored: int = Field(description="rows in ClickHouse")
    dead_lettered: int
    without_event: int = Field(description="offsets that hold no event (Kafka's transaction markers)")
    replayed: int = Field(description="rows that `heliograph replay` has brought back, besides those stored")
    lag_events: int = Field(description="unshipped + unplanned + outstanding")
    newest_visible_at: Time | None
    newest_visible_age_s: float | None
    oldest_unstored_at: Time | None
    oldest_unstored_age_s: float | None
    paused: list[str]
    spools: list[SpoolOut] | None = Field(description="null: the spools are the log, and among the partitions")
    partitions: list[PartitionOut]


class Part(Shape):
    ok: bool
    problem: str | None
    remedy: str | None


class Ready(Shape):
    ready: bool
    parts: dict[str, Part]


class Alive(Shape):
    status: Literal["ok"]


class HeliconeAnswer(Shape, Generic[T]):
    """Helicone's own shape: exactly one of the two is not null."""

    data: T | None
    error: str | None


class ScoresIn(Shape):
    scores: dict[str, StrictBool | StrictInt | StrictFloat] = Field(examples=[{"quality": 0.8, "helpful": True}])


class FeedbackIn(Shape):
    rating: StrictBool
    comment: str | None = None


class PropertyIn(Shape):
    key: str = Field(examples=["environment"])
    value: str = Field(examples=["production"])


class Me(Shape):
    project_id: str
    key_id: str | None = Field(description="null: a caller on this machine without a key")
    permissions: list[Permission]


class ProjectList(Shape):
    projects: list[ProjectOut]


class HeliconeRow(BaseModel):
    """Helicone's row. Tokens by Helicone's habit: prompt without cached ones, completion without reasoning."""

    model_config = ConfigDict(extra="allow")

    request_id: str
    request_created_at: Time
    response_status: int | None = Field(description="-3: cancelled, -2: timed out")
    request_properties: dict[str, str]
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cost: float | None = Field(description="US dollars; null: unknown")
    costUSD: float | None
    delay_ms: int
    time_to_first_token: int | None
    provider: str = Field(examples=["OPENAI"])
    request_body: Any
    response_body: Any
