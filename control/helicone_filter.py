"""Helicone's filter tree as conditions over our rows.

`"all"` | `{"request_response_rmt": {field: {operator: value}}}` | `{"left", "operator": "and" | "or", "right"}`. Every
field comes from the table below and every value is bound; what is not known is refused, never passed over.
"""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, Literal

from control.errors import BadRequest
from control.facts import FEEDBACK
from control.filters import read_uuid
from control.scope import PROJECT, Query, read_time, text
from schemas.settings import ControlBounds

Kind = Literal["text", "number", "boolean", "time", "uuid"]

TABLES: Final = ("request_response_rmt", "request_response_versioned", "request_response_log")
_SESSIONS = {
    "helicone-session-id": "session_id",
    "helicone-session-path": "session_path",
    "helicone-session-name": "session_name",
}

# Helicone's habit: prompt tokens without what came from or went into a cache, completion without reasoning.
PROMPT_TOKENS: Final = (
    "(toInt64(input_tokens) - toInt64(ifNull(cache_read_tokens, 0)) - toInt64(ifNull(cache_write_tokens, 0)))"
)
COMPLETION_TOKENS: Final = "(toInt64(output_tokens) - toInt64(ifNull(reasoning_tokens, 0)))"
STATUS: Final = "multiIf(outcome = 'cancelled', -3, outcome = 'timeout', -2, toInt32(status))"
RESPONSE_CREATED_MS: Final = "(toUnixTimestamp64Milli(created_at) + toInt64(round(latency_ms)))"

FIELDS: Final[dict[str, tuple[str, Kind]]] = {
    "request_id": ("id", "uuid"),
    "request_created_at": ("created_at", "time"),
    "response_created_at": (f"fromUnixTimestamp64Milli({RESPONSE_CREATED_MS}, 'UTC')", "time"),
    "model": ("model", "text"),
    "provider": ("upper(provider)", "text"),
    "user_id": ("user_id", "text"),
    "status": (STATUS, "number"),
    "latency": ("latency_ms", "number"),
    "time_to_first_token": ("first_token_ms", "number"),
    "cost": ("cost_usd", "number"),
    "prompt_tokens": (PROMPT_TOKENS, "number"),
    "completion_tokens": (COMPLETION_TOKENS, "number"),
    "total_tokens": (f"({PROMPT_TOKENS} + {COMPLETION_TOKENS})", "number"),
    "prompt_cache_read_tokens": ("cache_read_tokens", "number"),
    "prompt_cache_write_tokens": ("cache_write_tokens", "number"),
    "reasoning_tokens": ("reasoning_tokens", "number"),
    "prompt_audio_tokens": ("input_audio_tokens", "number"),
    "completion_audio_tokens": ("output_audio_tokens", "number"),
    "cache_enabled": ("(cache_status != 'off')", "boolean"),
    "cached": ("(cache_status = 'hit')", "boolean"),
    "path": ("path", "text"),
    "request_path": ("path", "text"),
    # Helicone's alone: nothing here says anything of them, so that every row's is null.
    **{
        name: ("CAST(NULL AS Nullable(String))", "text")
        for name in (
            "country_code",
            "target_url",
            "cache_reference_id",
            "prompt_id",
            "prompt_version",
            "request_referrer",
        )
    },
    **{name: ("CAST(NULL AS Nullable(Bool))", "boolean") for name in ("threat", "is_passthrough_billing")},
}
NESTED: Final = ("properties", "search_properties", "scores")
BODIES: Final = ("request_body", "response_body")

_TEXT_OPERATORS = ("equals", "not-equals", "like", "ilike", "contains", "not-contains")
_ORDER_OPERATORS = {"equals": "=", "not-equals": "!=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPERATORS: Final = (*_TEXT_OPERATORS, "gt", "gte", "lt", "lte")


class Condition:
    """SQL of a tree, and the request times it allows at most."""

    def __init__(self, sql: str, start_ms: int | None = None, end_ms: int | None = None) -> None:
        self.sql = sql
        self.start_ms = start_ms
        self.end_ms = end_ms


def read_filter(tree: Any, query: Query, *, bounds: ControlBounds) -> Condition:
    """
    Raises:
        BadRequest: names the field, operator or value that may not be, or the bound a tree is beyond.
    """
    left = [bounds.filter_nodes]

    def node(tree: Any, depth: int) -> Condition:
        left[0] -= 1
        if left[0] < 0:
            raise BadRequest("filter", f"more than {bounds.filter_nodes} nodes", "a smaller tree")
        if depth > bounds.filter_depth:
            raise BadRequest("filter", f"deeper than {bounds.filter_depth}", "a flatter tree")
        if tree == "all":
            return Condition("1")
        if not isinstance(tree, dict):
            raise BadRequest("filter", tree, '"all", a branch {left, operator, right}, or a leaf')
        if tree.keys() & {"left", "right", "operator"}:
            return branch(tree, depth)
        return leaf(tree)

    def branch(tree: dict[str, Any], depth: int) -> Condition:
        if tree.keys() != {"left", "right", "operator"}:
            raise BadRequest("filter", sorted(map(str, tree)), "a branch has exactly left, operator and right")
        if tree["operator"] not in ("and", "or"):
            raise BadRequest("filter.operator", tree["operator"], "must be and, or or")
        one, other = node(tree["left"], depth + 1), node(tree["right"], depth + 1)
        sql = f"({one.sql} {tree['operator'].upper()} {other.sql})"
        starts, ends = (one.start_ms, other.start_ms), (one.end_ms, other.end_ms)
        if tree["operator"] == "and":
            return Condition(sql, _last(starts), _first(ends))
        # Either side may hold, so only what both of them bound is bounded.
        return Condition(sql, None if None in starts else _first(starts), None if None in ends else _last(ends))

    def leaf(tree: dict[str, Any]) -> Condition:
        found = Condition("1")
        parts = []
        for table, fields in tree.items():
            if table in ("properties", "search_properties"):
                # Helicone also has them outside a table.
                fields = {table: fields}
            elif table not in TABLES:
                raise BadRequest("filter", table, f"must be {TABLES[0]}, properties, or a branch")
            if not isinstance(fields, dict) or not fields:
                raise BadRequest(f"filter.{table}", fields, "must be {field: {operator: value}}")
            for field, said in fields.items():
                for name, operator, value in _comparisons(str(field), said):
                    left[0] -= 1
                    if left[0] < -1:
                        raise BadRequest("filter", f"more than {bounds.filter_nodes} nodes", "a smaller tree")
                    condition = compare(query, str(field), name, operator, value, bounds=bounds)
                    parts.append(condition.sql)
                    found.start_ms = _last((found.start_ms, condition.start_ms))
                    found.end_ms = _first((found.end_ms, condition.end_ms))
        found.sql = f"({' AND '.join(parts)})" if parts else "1"
        return found

    return node(tree, 1)


def compare(
    query: Query, field: str, name: str | None, operator: str, value: Any, *, bounds: ControlBounds
) -> Condition:
    """One comparison.

    Args:
        name: of the property or score, for the fields that nest one deeper.
    """
    where = f"filter.{field}" if name is None else f"filter.{field}.{name}"
    if isinstance(value, str) and len(text(value, where).encode()) > bounds.value_bytes:
        raise BadRequest(where, value, f"at most {bounds.value_bytes} bytes")
    if field in ("properties", "search_properties"):
        assert name is not None
        return Condition(_property(query, where, name, operator, value))
    if field == "scores" or field == FEEDBACK:
        return Condition(_score(query, where, name or FEEDBACK, operator, value))
    if field in BODIES:
        return Condition(_body(query, where, field.removesuffix("_body"), operator, value))
    column, kind = FIELDS[field]
    if field == "provider" and isinstance(value, str):
        # Helicone writes providers in capitals, and so do its clients.
        value = value.upper()
    if kind == "time":
        return _time(query, where, field, column, operator, value)
    readers: dict[str, Callable[[], str]] = {
        "text": lambda: _text(query, where, column, operator, value),
        "number": lambda: _number(query, where, column, operator, value),
        "boolean": lambda: _boolean(where, column, operator, value),
        "uuid": lambda: _uuid(query, where, column, operator, value),
    }
    return Condition(readers[kind]())


def _comparisons(field: str, said: Any) -> list[tuple[str | None, str, Any]]:
    """Name, operator and value of each comparison of one field."""
    if field not in FIELDS and field not in NESTED and field not in BODIES and field != FEEDBACK:
        known = ", ".join((*FIELDS, *NESTED, *BODIES, FEEDBACK))
        raise BadRequest("filter", field, f"there is no such field here; there are {known}")
    if not isinstance(said, dict) or not said:
        raise BadRequest(f"filter.{field}", said, "must be {operator: value}")
    named = [(str(name), said[name]) for name in said] if field in NESTED else [(None, said)]
    found: list[tuple[str | None, str, Any]] = []
    for name, operators in named:
        if not isinstance(operators, dict) or not operators:
            raise BadRequest(f"filter.{field}", operators, "must be {operator: value}")
        for operator, value in operators.items():
            if operator not in OPERATORS:
                raise BadRequest(f"filter.{field}", operator, f"must be among {', '.join(OPERATORS)}")
            found.append((name, operator, value))
    return found


def _text(query: Query, where: str, column: str, operator: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequest(where, value, "must be text")
    if operator not in _TEXT_OPERATORS:
        raise BadRequest(where, operator, f"text has the operators {', '.join(_TEXT_OPERATORS)}")
    bound = query.bind("String", value)
    return {
        "equals": f"{column} = {bound}",
        "not-equals": f"{column} != {bound}",
        "like": f"{column} LIKE {_pattern(query, value)}",
        "ilike": f"{column} ILIKE {_pattern(query, value)}",
        "contains": f"positionCaseInsensitiveUTF8({column}, {bound}) > 0",
        "not-contains": f"positionCaseInsensitiveUTF8({column}, {bound}) = 0",
    }[operator]


def _body(query: Query, where: str, column: str, operator: str, value: Any) -> str:
    """What stands in `bodies`, head and tail. Of a body that does not, nothing can be said, nor its contrary."""
    said = operator.removeprefix("not-")
    head, tail = (_text(query, where, part, said, value) for part in (column, f"{column}_tail"))
    found = f"({head} AND {column}_tail = '')" if said == "equals" else f"({head} OR {column}_tail != '' AND {tail})"
    unknown = f"({column}_left_out != '' OR {column}_reference != '')"
    holds = found if said == operator else f"NOT {found}"
    return f"id IN (SELECT id FROM bodies WHERE {query.within()} AND {holds} AND NOT {unknown})"


def _pattern(query: Query, value: str) -> str:
    # A backslash escapes the next character; at the very end it escapes nothing and ClickHouse refuses it.
    trailing = len(value) - len(value.rstrip("\\"))
    return query.bind("String", value + "\\" if trailing % 2 else value)


def _number(query: Query, where: str, column: str, operator: str, value: Any) -> str:
    if operator not in _ORDER_OPERATORS:
        raise BadRequest(where, operator, f"a number has the operators {', '.join(_ORDER_OPERATORS)}")
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("not a number")
        number = Decimal(str(value))
        if not number.is_finite() or abs(number) > 10**15:
            raise ValueError("no number of ours")
    except (ValueError, ArithmeticError):
        raise BadRequest(where, value, "must be a number") from None
    sign = _ORDER_OPERATORS[operator]
    if column == "cost_usd":
        return f"ifNull({column} {sign} {query.bind('Decimal(38, 10)', f'{number:.10f}')}, {int(operator == 'not-equals')})"
    return f"ifNull({column} {sign} {query.bind('Float64', float(number))}, {int(operator == 'not-equals')})"


def _boolean(where: str, column: str, operator: str, value: Any) -> str:
    if operator not in ("equals", "not-equals"):
        raise BadRequest(where, operator, "a boolean has the operators equals, not-equals")
    if value in ("true", "false"):
        value = value == "true"
    if not isinstance(value, bool):
        raise BadRequest(where, value, "must be true or false")
    return column if value == (operator == "equals") else f"NOT {column}"


def _uuid(query: Query, where: str, column: str, operator: str, value: Any) -> str:
    if operator in ("equals", "not-equals"):
        if not isinstance(value, str):
            raise BadRequest(where, value, "must be a UUID")
        return f"{column} {'=' if operator == 'equals' else '!='} {query.bind('UUID', read_uuid(value, where))}"
    return _text(query, where, f"toString({column})", operator, value)


def _time(query: Query, where: str, field: str, column: str, operator: str, value: Any) -> Condition:
    if operator not in _ORDER_OPERATORS:
        raise BadRequest(where, operator, f"a time has the operators {', '.join(_ORDER_OPERATORS)}")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRequest(where, value, "must be ISO 8601 or milliseconds since 1970")
    moment = read_time(str(value), where)
    bound = query.bind("Int64", moment)
    sql = f"{column} {_ORDER_OPERATORS[operator]} fromUnixTimestamp64Milli({bound}, 'UTC')"
    if field != "request_created_at":
        return Condition(sql)
    start = moment if operator in ("gt", "gte", "equals") else None
    end = moment + 1 if operator in ("lt", "lte", "equals") else None
    return Condition(sql, start, end)


def _property(query: Query, where: str, name: str, operator: str, value: Any) -> str:
    if (column := _SESSIONS.get(name.lower())) is not None:
        return _text(query, where, column, operator, value)
    bound = query.bind("String", text(name.lower(), where))
    newest = f"SELECT request_id FROM property_updates WHERE {PROJECT} AND name = {bound} GROUP BY request_id"
    stored = _text(query, where, f"properties[{bound}]", operator, value)
    said = _text(query, where, "argMax(value, created_at)", operator, value)
    return f"(id IN ({newest} HAVING {said}) OR ({stored} AND id NOT IN ({newest})))"


def _score(query: Query, where: str, name: str, operator: str, value: Any) -> str:
    if isinstance(value, bool) or value in ("true", "false"):
        value = int(value in (True, "true"))
    bound = query.bind("String", text(name, where))
    compared = _number(query, where, "argMax(value, created_at)", operator, value)
    return f"id IN (SELECT request_id FROM scores WHERE {PROJECT} AND name = {bound} GROUP BY request_id HAVING {compared})"


def _first(moments: tuple[int | None, ...]) -> int | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _last(moments: tuple[int | None, ...]) -> int | None:
    return max((moment for moment in moments if moment is not None), default=None)
