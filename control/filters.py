"""What a list or a metric is asked for, as conditions: every column from a whitelist, every value bound."""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

import difflib
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal, get_args
from uuid import UUID

import msgspec

from control.errors import BadRequest
from control.scope import PROJECT, Query, text
from schemas.settings import ControlBounds

Outcome = Literal["success", "error", "cancelled", "refused", "timeout"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
PROPERTY = "property."

TOTAL_TOKENS = "(toUInt64(input_tokens) + output_tokens)"
_EXACT = {
    "model": "model",
    "requested_model": "requested_model",
    "provider": "provider",
    "user_id": "user_id",
    "session_id": "session_id",
    "name": "name",
}
_RANGES = {
    "cost": ("cost_usd", "Decimal(38, 10)"),
    "latency_ms": ("latency_ms", "Float64"),
    "first_token_ms": ("first_token_ms", "Float64"),
    "tokens": (TOTAL_TOKENS, "UInt64"),
    "input_tokens": ("input_tokens", "UInt64"),
    "output_tokens": ("output_tokens", "UInt64"),
}
BY_HOUR = {"model", "provider", "status", "outcome"}
"""What the rollups by minute, hour and day tell apart, in the words of `Filters.fields`."""
NAMES: tuple[str, ...] = (
    *_EXACT,
    "key",
    "status",
    "outcome",
    "stream",
    "id",
    *(f"{name}_{end}" for name in _RANGES for end in ("min", "max")),
)
_STATUS_CLASS = re.compile(r"([1-5])xx", re.IGNORECASE)


class Filters(msgspec.Struct, frozen=True):
    """What was asked for, checked and not yet SQL. Values of one field are alternatives, fields must all hold."""

    exact: dict[str, list[str]] = {}
    keys: list[str] = []
    statuses: list[tuple[int, int] | None] = []
    """Ranges of statuses, both ends in; None: no status at all."""
    outcomes: list[str] = []
    stream: bool | None = None
    ids: list[str] = []
    ranges: dict[str, tuple[str | None, str | None]] = {}
    """By field: least and most, as text of a number."""
    properties: dict[str, list[str]] = {}

    @property
    def fields(self) -> set[str]:
        """What it looks at, in the words of `group_by`."""
        found = set(self.exact) | set(self.ranges) | {PROPERTY + name for name in self.properties}
        for name in ("keys", "statuses", "outcomes", "ids"):
            if getattr(self, name):
                found.add({"keys": "key", "statuses": "status", "outcomes": "outcome", "ids": "id"}[name])
        if self.stream is not None:
            found.add("stream")
        return found


def read_filters(parameters: Sequence[tuple[str, str]], *, others: frozenset[str], bounds: ControlBounds) -> Filters:
    """The filters among the parameters of a call's query.

    Args:
        parameters: names and values in the order they were given; a name may come several times.
        others: names that mean something else to this call.

    Raises:
        BadRequest: an unknown name (with the nearest right one), or a value that may not be.
    """
    given: dict[str, list[str]] = {}
    for name, value in parameters:
        if name in others:
            continue
        if name not in NAMES and not name.startswith(PROPERTY):
            near = difflib.get_close_matches(name, [*NAMES, *others, PROPERTY + "<name>"], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadRequest(name, value, f"there is no such parameter{hint}")
        if len(text(value, name).encode()) > bounds.value_bytes:
            raise BadRequest(name, value, f"at most {bounds.value_bytes} bytes")
        if "\0" in name:
            raise BadRequest(name, value, "a name holds no NUL")
        if name.startswith(PROPERTY):
            name = name.lower()
        given.setdefault(name, []).append(value)
        if len(given[name]) > bounds.filter_values:
            raise BadRequest(name, len(given[name]), f"at most {bounds.filter_values} values")
    properties = {name.removeprefix(PROPERTY): values for name, values in given.items() if name.startswith(PROPERTY)}
    if "" in properties or len(properties) > 20:
        raise BadRequest(PROPERTY, len(properties), "property.<name>=<value>, at most 20 of them")
    return Filters(
        exact={name: given[name] for name in _EXACT if name in given},
        keys=given.get("key", []),
        statuses=[_status(value) for value in given.get("status", [])],
        outcomes=[_one_of("outcome", value, OUTCOMES) for value in given.get("outcome", [])],
        stream=_flag(given),
        ids=[str(read_uuid(value, "id")) for value in given.get("id", [])],
        ranges={
            name: bounds_of
            for name in _RANGES
            if (bounds_of := (_number(given, f"{name}_min"), _number(given, f"{name}_max"))) != (None, None)
        },
        properties=properties,
    )


def conditions(filters: Filters, query: Query, *, updated: frozenset[str] = frozenset()) -> str:
    """SQL over the columns of `requests`, beginning with ` AND`, or nothing.

    Args:
        updated: names of properties that were changed after the fact in this project, so a row alone cannot tell.
    """
    parts = []
    for name, values in filters.exact.items():
        parts.append(_among(query, _EXACT[name], values))
    if filters.keys:
        parts.append(key_condition(filters.keys, query))
    if filters.statuses:
        parts.append(status_condition(filters.statuses, query, "status"))
    if filters.outcomes:
        parts.append(_among(query, "outcome", filters.outcomes))
    if filters.stream is not None:
        parts.append("stream" if filters.stream else "NOT stream")
    if filters.ids:
        parts.append(f"id IN {query.bind('Array(UUID)', filters.ids)}")
    for name, (least, most) in filters.ranges.items():
        column, kind = _RANGES[name]
        if least is not None:
            parts.append(f"{column} >= {query.bind(kind, least)}")
        if most is not None:
            parts.append(f"{column} <= {query.bind(kind, most)}")
    for name, values in filters.properties.items():
        parts.append(property_condition(query, name, values, updated=name in updated))
    return "".join(f" AND {part}" for part in parts)


def rolled_conditions(filters: Filters, query: Query) -> str:
    """The same over the columns of a rollup, as far as rollups have them: keys, model, provider, status, outcome."""
    parts = []
    if filters.keys:
        parts.append(key_condition(filters.keys, query))
    for field in ("model", "provider"):
        if field in filters.exact:
            parts.append(_among(query, field, filters.exact[field]))
    if filters.statuses:
        parts.append(status_condition(filters.statuses, query, "ifNull(status, 0)"))
    if filters.outcomes:
        parts.append(_among(query, "outcome", filters.outcomes))
    return "".join(f" AND {part}" for part in parts)


def property_condition(query: Query, name: str, values: Sequence[str], *, updated: bool) -> str:
    """Requests whose property has one of these values now."""
    bound = query.bind("String", name)
    stored = " OR ".join(f"properties[{bound}] = {query.bind('String', value)}" for value in values)
    # A property that is not there reads as an empty string.
    stored = f"(({stored}) AND mapContains(properties, {bound}))" if "" in values else f"({stored})"
    if not updated:
        return stored
    newest = f"SELECT request_id FROM property_updates WHERE {PROJECT} AND name = {bound} GROUP BY request_id"
    wanted = query.bind("Array(String)", list(values))
    return f"(id IN ({newest} HAVING argMax(value, created_at) IN {wanted}) OR ({stored} AND id NOT IN ({newest})))"


def key_condition(keys: Sequence[str], query: Query) -> str:
    """Requests made with one of these keys, by id or by name."""
    named = query.bind("Array(String)", list(keys))
    return f"(key_id IN {named} OR key_name IN {named})"


def status_condition(statuses: Sequence[tuple[int, int] | None], query: Query, column: str) -> str:
    parts = []
    for status in statuses:
        if status is None:
            parts.append(f"{column} IS NULL" if column == "status" else f"{column} = 0")
        else:
            low, high = (query.bind("Int16", end) for end in status)
            parts.append(f"{column} BETWEEN {low} AND {high}")
    return f"({' OR '.join(parts)})"


def read_uuid(value: str, field: str) -> UUID:
    """
    Raises:
        BadRequest: not a UUID.
    """
    # UUID() also takes braces and urn:, which no index would find again in a log.
    if re.fullmatch(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}", value, re.ASCII):
        return UUID(value)
    raise BadRequest(field, value, "must be a UUID like 0193f2a4-5b6c-7d8e-9f01-23456789abcd")


def _among(query: Query, column: str, values: Sequence[str]) -> str:
    if len(values) == 1:
        return f"{column} = {query.bind('String', values[0])}"
    return f"{column} IN {query.bind('Array(String)', list(values))}"


def _status(value: str) -> tuple[int, int] | None:
    if value == "none":
        return None
    if found := _STATUS_CLASS.fullmatch(value):
        low = int(found[1]) * 100
        return low, low + 99
    if re.fullmatch(r"[1-9][0-9]{2}", value, re.ASCII):
        return int(value), int(value)
    raise BadRequest("status", value, "must be a status like 429, a class like 4xx, or none")


def _one_of(field: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise BadRequest(field, value, f"must be one of {', '.join(choices)}")
    return value


def _flag(given: dict[str, list[str]]) -> bool | None:
    values = given.get("stream")
    if values is None:
        return None
    if len(values) != 1 or values[0].lower() not in ("true", "false"):
        raise BadRequest("stream", ",".join(values), "must be true or false")
    return values[0].lower() == "true"


def _number(given: dict[str, list[str]], name: str) -> str | None:
    values = given.get(name)
    if values is None:
        return None
    whole = "tokens" in name
    expected = "must be a whole number, 0 or more" if whole else "must be a number, 0 or more"
    try:
        number = Decimal(values[0])
    except InvalidOperation:
        raise BadRequest(name, values[0], expected) from None
    if len(values) != 1 or not number.is_finite() or not 0 <= number <= 10**15:
        raise BadRequest(name, ",".join(values), expected)
    if whole and number != number.to_integral_value():
        raise BadRequest(name, values[0], expected)
    return str(int(number)) if whole else f"{number:.10f}"
