"""One event as rows. Pure: no I/O, no clock.

Every value is checked against what its column can hold, since a value that does not fit would otherwise fail the
insert of its whole batch, again and again: nothing that comes from an event may do that.
"""

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import NamedTuple
from uuid import UUID

import msgspec

from pricing.answer import read_answer
from pricing.cost import cost
from pricing.prices import PriceBook
from pricing.reading import Answer
from pricing.settle import NOTHING, SettledUsage, settle
from pricing.usage import Usage as PricedUsage
from schemas.apis import is_of_stored
from schemas.event import Attempt, Body, Event, Reading, Usage, UsageSource
from schemas.providers import catalogue
from workers.store import Row

DAY_MS = 86_400_000

_INT16_MAX = 2**15 - 1
_UINT8_MAX = 2**8 - 1
_UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1
_TIME_MS_MAX = 4_102_444_800_000
"""The year 2100: the rollups' DateTime ends in 2106."""
_FLOAT_MAX = 1e12
_COST_MAX = Decimal(100_000_000)
"""Decimal(18, 10) ends there."""
_COST_STEP = Decimal("1e-10")
_TEXT_MAX = 2000


class Poison(Exception):
    """This event can never become a row. `message` says why in words that hold nothing of its bodies."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class Window(NamedTuple):
    """The times an event may bear, milliseconds since 1970: from `first_ms` to before `end_ms`."""

    first_ms: int
    end_ms: int


def window_at(now_ms: int, *, keep_days: int) -> Window:
    """What is kept, and up to a day ahead for clocks that go wrong.

    In whole days, so that a batch tried twice is judged alike: what it may bear moves at midnight UTC alone.
    """
    today_ms = now_ms - now_ms % DAY_MS
    return Window(today_ms - keep_days * DAY_MS, today_ms + 2 * DAY_MS)


class EventRows(NamedTuple):
    """In the order of `store.REQUESTS`, `BODIES` and `ATTEMPTS`."""

    request: Row
    body: Row | None
    attempts: list[Row]


class Said(NamedTuple):
    """What a call's answer says and what it used."""

    model: str | None = None
    stop_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    failed: bool = False
    """The answer is an error, whatever its status."""
    usage: Usage = Usage()
    cost_usd: Decimal | None = None
    cost_source: str | None = None
    prices_as_of: str | None = None


def rows_of(event: Event, *, prices: PriceBook, window: Window, whole: Event | None = None) -> EventRows:
    """The rows of one event.

    Args:
        whole: the same event with the bodies that were moved to the object store, where there are such.

    Raises:
        Poison: it can never become rows.
    """
    if event.v != 1:
        raise Poison("unknown_version", f"event version {event.v}")
    id_ = uuid_of(event.id)
    created_ms = checked_time(event.created_ms)
    if not window.first_ms <= created_ms < window.end_ms:
        reason = "too_old" if created_ms < window.first_ms else "in_future"
        raise Poison(reason, f"created_ms {created_ms} is outside {window.first_ms} to {window.end_ms}")
    said = what_was_said(event if whole is None else whole, prices)
    usage = said.usage
    request, response = event.request, event.response
    identity = (event.project_id, created_ms, id_)
    row = (
        *identity,
        event.key_id or "",
        event.key_name or "",
        event.provider,
        event.api,
        event.method,
        event.path,
        event.requested_model or "",
        event.model_override or said.model or event.requested_model or "",
        event.stream,
        _status("status", event.status),
        "error" if said.failed and event.outcome == "success" else event.outcome,
        event.error_code or said.error_code or "",
        (event.error_message or said.error_message or "")[:_TEXT_MAX],
        said.stop_reason or "",
        event.name or "",
        event.user_id or "",
        event.session_id or "",
        event.session_path or "",
        event.session_name or "",
        event.trace_id or "",
        event.span_id or "",
        event.parent_id or "",
        event.properties,
        event.features,
        usage.source,
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
        usage.input_audio_tokens,
        usage.output_audio_tokens,
        said.cost_usd,
        said.cost_source or "",
        said.prices_as_of or "",
        _number("latency_ms", event.latency_ms),
        None if event.first_token_ms is None else _number("first_token_ms", event.first_token_ms),
        None if event.overhead_ms is None else _number("overhead_ms", event.overhead_ms),
        event.cache_status,
        0 if request is None else _whole("request.size", request.size, _UINT32_MAX),
        0 if response is None else _whole("response.size", response.size, _UINT64_MAX),
    )
    body = None
    if request is not None or response is not None:
        body = (
            *identity,
            *_kept(request, event.request_type),
            *_kept(response, event.response_type),
        )
    attempts: list[Row] = []
    if event.attempts:
        _whole("attempts", len(event.attempts), _UINT8_MAX)
        attempts = [(*identity, *_attempt(number, attempt)) for number, attempt in enumerate(event.attempts, 1)]
    return EventRows(row, body, attempts)


def what_was_said(event: Event, prices: PriceBook) -> Said:
    """What the call's answer says, from the edge's own reading of it or from its body.

    A call that no provider answered used nothing we know of: usage `none`, cost unknown. Nor did one that only reads or
    manages a stored answer: what its answer names was used by the call that had it generated.
    """
    status = _provider_status(event)
    if event.outcome == "refused" or (status is None and event.attempts):
        return Said()  # What the client was sent are our own words.
    if event.reading is not None:
        return _from_reading(event, event.reading, prices)
    response = event.response
    if response is None or not (response.head or response.tail):
        return Said()
    answer = read_answer(
        event.api,
        response.head,
        tail=response.tail,
        size=response.size,
        stream=event.stream,
        content_type=event.response_type or "",
    )
    settled = _settled(event, status, answer)
    usd, source, as_of = _priced(event, answer.model, settled.usage, prices)
    error = answer.error
    return Said(
        model=answer.model,
        # A stream that was cut ended for a reason of its own, which is not the model's.
        stop_reason=answer.stop_reason if answer.complete else None,
        error_code=None if error is None else (error.code or error.type),
        error_message=None if error is None else error.message,
        failed=error is not None,
        usage=_usage(settled.source, settled.usage),
        cost_usd=usd,
        cost_source=source,
        prices_as_of=as_of,
    )


def _settled(event: Event, status: int | None, answer: Answer) -> SettledUsage:
    if is_of_stored(event.method, event.path):
        # The POST that began a background response could name no tokens, so here alone they can be seen; with no cost,
        # since each fetch names them again.
        if event.method == "GET" and answer.background and answer.usage is not None:
            return SettledUsage("reported", answer.usage)
        return NOTHING
    request = event.request or _NO_BODY
    return settle(
        event.api,
        provider=event.provider,
        model=answer.model or event.requested_model,
        status=status,
        answer=answer,
        request_body=request.head,
        request_tail=request.tail,
        request_size=request.size,
    )


def _from_reading(event: Event, reading: Reading, prices: PriceBook) -> Said:
    """The same of an answer whose body never left the edge."""
    if is_of_stored(event.method, event.path):
        reading = msgspec.structs.replace(reading, usage=Usage(), counts={}, cost_usd=None)
    cost_usd = None if reading.cost_usd is None else _usd(reading.cost_usd)
    source, as_of = (None, None) if cost_usd is None else (reading.cost_source, reading.prices_as_of)
    if reading.cost_usd is None or event.cache_status == "hit":
        classes = {name: count for name in _COUNTS if (count := getattr(reading.usage, name)) is not None}
        used = msgspec.convert({**classes, **reading.counts}, PricedUsage, strict=False)
        cost_usd, source, as_of = _priced(event, reading.model, used, prices)
    return Said(
        model=reading.model,
        stop_reason=reading.stop_reason if reading.complete else None,
        error_code=reading.error_code,
        failed=reading.error_code is not None,
        usage=_usage(reading.usage.source, reading.usage),
        cost_usd=cost_usd,
        cost_source=source,
        prices_as_of=as_of,
    )


def _provider_status(event: Event) -> int | None:
    """What the provider answered: the last that did. Calls logged without the proxy have no attempts."""
    if not event.attempts:
        return event.status
    return next((attempt.status for attempt in reversed(event.attempts) if attempt.status is not None), None)


def _priced(
    event: Event, answered_model: str | None, usage: PricedUsage, prices: PriceBook
) -> tuple[Decimal | None, str | None, str | None]:
    """US dollars, where the price is from and of which day; all None where the cost is not known or another call's."""
    if is_of_stored(event.method, event.path):
        return None, None, None
    if event.cache_status == "hit":
        return Decimal(0), "cache", None  # The provider was not asked; what the answer used once stays in the row.
    if not usage:
        return None, None, None
    provider = catalogue().get(event.provider)
    price = prices.find(
        provider=event.provider,
        genai_prices_id=None if provider is None else provider.genai_prices_id,
        model=event.model_override or answered_model or event.requested_model,
    )
    found = cost(price, usage, at_ms=event.created_ms)
    return (None, None, None) if found is None else (found.usd, found.source, found.prices_as_of)


_NO_BODY = Body()
_COUNTS = tuple(name for name in Usage.__struct_fields__ if name != "source")


def _usage(source: UsageSource, counted: PricedUsage | Usage) -> Usage:
    """Counts as their columns hold them. One beyond four thousand million is a mistake, so it is not known."""
    if source == "none":
        return Usage()
    counts = [getattr(counted, name) for name in _COUNTS]
    if any(count is not None and not 0 <= count <= _UINT32_MAX for count in counts):
        counts = [count if count is not None and 0 <= count <= _UINT32_MAX else None for count in counts]
    return Usage(source, *counts)


def _usd(text: str) -> Decimal | None:
    try:
        usd = Decimal(text)
    except InvalidOperation:
        return None
    if not usd.is_finite() or not 0 <= usd < _COST_MAX:
        return None
    return usd.quantize(_COST_STEP, ROUND_HALF_EVEN)


def uuid_of(text: str) -> UUID:
    """
    Raises:
        Poison: it is no UUID.
    """
    try:
        return UUID(text)
    except ValueError:
        raise Poison("bad_value", "id is not a UUID") from None


def checked_time(ms: int, name: str = "created_ms") -> int:
    """
    Raises:
        Poison: no DateTime64 we store can hold it.
    """
    return _whole(name, ms, _TIME_MS_MAX)


def _whole(name: str, value: int, largest: int) -> int:
    if not 0 <= value <= largest:
        raise Poison("bad_value", f"{name} is not within 0 and {largest}")
    return value


def _number(name: str, value: float) -> float:
    if not -_FLOAT_MAX <= value <= _FLOAT_MAX:  # NaN is not either
        raise Poison("bad_value", f"{name} is not a number that can be stored")
    return value


def _status(name: str, status: int | None) -> int | None:
    return None if status is None else _whole(name, status, _INT16_MAX)


def _kept(body: Body | None, type_: str | None) -> Sequence[object]:
    if body is None:
        return (b"", b"", "", type_ or "", "")
    return (body.head, body.tail, body.left_out or "", type_ or "", body.reference or "")


def _attempt(number: int, attempt: Attempt) -> Sequence[object]:
    return (
        number,
        attempt.provider,
        _status("attempt.status", attempt.status),
        checked_time(attempt.started_ms, "attempt.started_ms"),
        _number("attempt.latency_ms", attempt.latency_ms),
        attempt.reason or "",
    )
