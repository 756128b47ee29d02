"""A stored request as the API gives it: null is unknown, never 0."""

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec

from control.moved import Moved, NotShown
from control.scope import iso

COLUMNS = (
    "id",
    "toUnixTimestamp64Milli(created_at)",
    "provider",
    "api",
    "path",
    "requested_model",
    "model",
    "status",
    "toString(outcome)",
    "error_code",
    "stream",
    "stop_reason",
    "name",
    "user_id",
    "session_id",
    "session_path",
    "session_name",
    "trace_id",
    "parent_id",
    "properties",
    "key_id",
    "key_name",
    "toString(usage_source)",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "cost_usd",
    "cost_source",
    "prices_as_of",
    "latency_ms",
    "first_token_ms",
    "overhead_ms",
    "toString(cache_status)",
)
SELECT = ", ".join(COLUMNS)
NOTHING_MOVED: Moved = MappingProxyType({})


def request_shape(row: tuple[Any, ...], updates: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One row of `SELECT` as lists give it.

    Args:
        updates: properties said after the fact, the newest of each.
    """
    (
        id_, created_ms, provider, api, path, requested_model, model, status, outcome, error_code, stream, stop_reason,
        name, user_id, session_id, session_path, session_name, trace_id, parent_id, properties, key_id, key_name,
        usage_source, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
        input_audio_tokens, output_audio_tokens, cost_usd, cost_source, prices_as_of, latency_ms, first_token_ms,
        overhead_ms, cache_status,
    ) = row  # fmt: skip
    return {
        "id": str(id_),
        "created_at": iso(created_ms),
        "provider": provider,
        "api": api,
        "path": path,
        "requested_model": requested_model or None,
        "model": model or None,
        "status": status,
        "outcome": outcome,
        "error_code": error_code or None,
        "stream": bool(stream),
        "stop_reason": stop_reason or None,
        "name": name or None,
        "user_id": user_id or None,
        "session": {"id": session_id or None, "path": session_path or None, "name": session_name or None},
        "trace": {"trace_id": trace_id or None, "parent_id": parent_id or None},
        "properties": {**properties, **updates} if updates else properties,
        "key": {"id": key_id or None, "name": key_name or None},
        "usage": {
            "source": usage_source,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_read_tokens": cache_read_tokens,
            "cache_write_tokens": cache_write_tokens,
            "reasoning_tokens": reasoning_tokens,
            "input_audio_tokens": input_audio_tokens,
            "output_audio_tokens": output_audio_tokens,
        },
        "cost": {"usd": money(cost_usd), "source": cost_source or None, "prices_as_of": prices_as_of or None},
        "latency_ms": milliseconds(latency_ms),
        "first_token_ms": milliseconds(first_token_ms),
        "overhead_ms": milliseconds(overhead_ms),
        "cache": {"status": cache_status, "of": None},
        "prompt": None,
    }


def body_shape(
    *, whole: str | bytes, tail: str | bytes, size: int, left_out: str, reference: str, moved: Moved = NOTHING_MOVED
) -> msgspec.Raw | str | dict[str, Any] | None:
    """A stored body: JSON as it was sent where it is JSON, else its text; what is not whole says so.

    A body that is not whole is an object with the key `_heliograph`: `truncated` with `size`, `head` and `tail`,
    `left_out` with the `reason`, `gone` (its bytes were moved and are no longer kept), or `stored_elsewhere`, with the
    `reference` and, where it was looked for, the `problem`. None: there was none.

    Args:
        moved: what was found behind references.
    """
    if reference:
        found = moved.get(reference)
        if found is NotShown.GONE:
            return {"_heliograph": "gone", "size": size, "reference": reference}
        if not isinstance(found, str | bytes):
            problem = {} if found is None else {"problem": found.value}
            return {"_heliograph": "stored_elsewhere", "size": size, "reference": reference, **problem}
        whole = found
    if left_out:
        return {"_heliograph": "left_out", "size": size, "reason": left_out}
    if tail:
        return {"_heliograph": "truncated", "size": size, "head": as_text(whole), "tail": as_text(tail)}
    if not whole:
        return None
    if isinstance(whole, str):
        encoded = whole.encode()
        try:
            # Checked and passed on as it was sent: numbers keep all their digits.
            msgspec.json.decode(encoded, type=msgspec.Raw)
            return msgspec.Raw(encoded)
        except (msgspec.DecodeError, RecursionError):
            return whole
    return as_text(whole)


def as_text(value: str | bytes) -> str:
    """The driver gives bytes where a string is not UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def money(value: Decimal | None) -> str | None:
    """US dollars with all ten decimals, as text: a JSON number would lose some."""
    return None if value is None else f"{value:.10f}"


def milliseconds(value: float | None) -> float | int | None:
    """At most a microsecond's worth of digits; whole numbers as such."""
    if value is None:
        return None
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded
