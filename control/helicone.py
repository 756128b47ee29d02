"""Helicone's request queries over our rows: its filter tree, its sorts, its row."""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

from typing import Any
from uuid import UUID

import msgspec

from control.errors import BadRequest
from control.facts import FEEDBACK, scores_of
from control.helicone_filter import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    RESPONSE_CREATED_MS,
    STATUS,
    read_filter,
)
from control.moved import MovedBodies
from control.requests import bodies_shape, find_row, read_bodies, references_of
from control.rows import NOTHING_MOVED
from control.scope import DAY_MS, PROJECT, Query, Range, iso, text, windows
from control.store import Row, Store
from control.updates import property_updates
from schemas.settings import ControlBounds

LIMIT_MAX = 1000
OFFSET_MAX = 100_000

_COLUMNS = (
    "id",
    "toUnixTimestamp64Milli(created_at)",
    RESPONSE_CREATED_MS,
    STATUS,
    "toString(model)",
    "toString(requested_model)",
    "toString(path)",
    "user_id",
    "properties",
    "session_id",
    "session_path",
    "toString(session_name)",
    "toString(provider)",
    "latency_ms",
    "first_token_ms",
    PROMPT_TOKENS,
    COMPLETION_TOKENS,
    "reasoning_tokens",
    "cache_write_tokens",
    "cache_read_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "cost_usd",
    "toString(cache_status)",
    "toUnixTimestamp64Milli(inserted_at)",
    "request_bytes",
    "response_bytes",
)
_SELECT = ", ".join(_COLUMNS)

_SORTS = {
    "created_at": "created_at",
    "latency": "latency_ms",
    "time_to_first_token": "first_token_ms",
    "total_tokens": f"({PROMPT_TOKENS} + {COMPLETION_TOKENS})",
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "cost": "cost_usd",
    "user_id": "user_id",
    "body_model": "model",
    "is_cached": "(cache_status = 'hit')",
}
_BODY_ELSEWHERE = {"_heliograph": "left_out", "reason": "answer_too_large: ask for GET /v1/request/{id}"}


class RequestQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The body of a request query."""

    filter: Any = "all"
    offset: int = 0
    limit: int = 25
    sort: dict[str, Any] = {}
    is_cached: bool | None = None
    include_inputs: bool | None = None
    is_part_of_experiment: bool | None = None
    is_scored: bool | None = None


class CountQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    filter: Any = "all"
    is_cached: bool | None = None
    is_part_of_experiment: bool | None = None
    is_scored: bool | None = None


def read_query(body: bytes, kind: "type[RequestQuery] | type[CountQuery]") -> "RequestQuery | CountQuery":
    """
    Raises:
        BadRequest: not JSON, or not this shape.
    """
    try:
        asked = msgspec.json.decode(body or b"{}", type=kind)
    except RecursionError:
        raise BadRequest("filter", "too deep to read", "a flatter tree") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest("body", body[:100].decode(errors="replace"), str(error)) from None
    if asked.is_part_of_experiment:
        raise BadRequest("isPartOfExperiment", True, "there are no experiments here")
    if isinstance(asked, RequestQuery):
        if not 0 <= asked.limit <= LIMIT_MAX:
            raise BadRequest("limit", asked.limit, f"0 to {LIMIT_MAX}")
        if not 0 <= asked.offset <= OFFSET_MAX:
            raise BadRequest("offset", asked.offset, f"0 to {OFFSET_MAX}")
    return asked


def build(
    project_id: str, asked: "RequestQuery | CountQuery", *, now_ms: int, default_days: int, bounds: ControlBounds
) -> tuple[Query, str]:
    """The scope and the conditions of a query. Its tree's own times, where it has any, take the default's place."""
    default = Range((now_ms - default_days * DAY_MS) // DAY_MS * DAY_MS, now_ms + 60_000)
    # Read twice: the conditions that look into other tables are scoped by the range the tree itself gives.
    found = read_filter(asked.filter, Query(project_id, default), bounds=bounds)
    end_ms = default.end_ms if found.end_ms is None else found.end_ms
    start_ms = found.start_ms
    if start_ms is None:
        start_ms = (min(end_ms, now_ms) - default_days * DAY_MS) // DAY_MS * DAY_MS
    query = Query(project_id, Range(max(0, start_ms), max(end_ms, start_ms + 1)))
    where = f" AND {read_filter(asked.filter, query, bounds=bounds).sql}"
    if asked.is_cached is not None:
        where += f" AND {'' if asked.is_cached else 'NOT '}(cache_status = 'hit')"
    if asked.is_scored is not None:
        scored = f"SELECT request_id FROM scores WHERE {PROJECT} AND name != {query.bind('String', FEEDBACK)}"
        where += f" AND id {'' if asked.is_scored else 'NOT '}IN ({scored})"
    return query, where


async def query_requests(
    store: Store, query: Query, where: str, asked: RequestQuery, *, bounds: ControlBounds
) -> list[dict[str, Any]]:
    order, by_time, descending = _order(asked.sort, query)
    if asked.limit == 0:
        return []
    rows: list[Row] = []
    ranges = windows(query.range, newest_first=descending) if by_time and not asked.offset else [query.range]
    for range_ in ranges:
        seen = query.narrowed(range_)
        limit = seen.bind("UInt32", asked.limit - len(rows))
        rows += await store.rows(
            seen,
            f"SELECT {_SELECT} FROM requests WHERE {seen.within()}{where} ORDER BY {order} "
            f"LIMIT {limit} OFFSET {seen.bind('UInt32', asked.offset)}",
            name="helicone_requests",
        )
        if len(rows) >= asked.limit:
            break
    return await _shapes(store, query, rows, with_bodies=True, answer_bytes=bounds.answer_bytes)


async def count_requests(store: Store, query: Query, where: str) -> int:
    rows = await store.rows(query, f"SELECT count() FROM requests WHERE {query.within()}{where}", name="helicone_count")
    return int(rows[0][0])


async def one_request(
    store: Store,
    moved: MovedBodies,
    project_id: str,
    id_: UUID,
    *,
    now_ms: int,
    kept_days: int,
    with_bodies: bool,
) -> dict[str, Any]:
    """
    Raises:
        NotFound: this project has none.
    """
    _, row = await find_row(store, project_id, id_, now_ms=now_ms, kept_days=kept_days, select=_SELECT)
    query = Query(project_id, Range(row[1], row[1] + 1))
    shapes = await _shapes(store, query, [row], with_bodies=with_bodies, answer_bytes=None, moved=moved)
    return shapes[0]


def _order(sort: dict[str, Any], query: Query) -> tuple[str, bool, bool]:
    """ORDER BY, whether it is time alone, and whether it falls."""
    if not sort:
        return "created_at DESC, id DESC", True, True
    if len(sort) > 1:
        raise BadRequest("sort", sorted(sort), "one field")
    ((field, direction),) = sort.items()
    if field == "random":
        if direction is not True:
            raise BadRequest("sort.random", direction, "must be true")
        return "rand()", False, True
    if field == "properties":
        if not isinstance(direction, dict) or len(direction) != 1:
            raise BadRequest("sort.properties", direction, 'must be {name: "asc" | "desc"}')
        ((name, direction),) = direction.items()
        column = f"properties[{query.bind('String', text(name.lower(), 'sort.properties'))}]"
    elif field in _SORTS:
        column = _SORTS[field]
    else:
        raise BadRequest("sort", field, f"must be among {', '.join((*_SORTS, 'properties', 'random'))}")
    if direction not in ("asc", "desc"):
        raise BadRequest(f"sort.{field}", direction, "must be asc or desc")
    ties = "" if field == "created_at" else f"created_at {direction}, "
    return f"{column} {direction} NULLS LAST, {ties}id {direction}", field == "created_at", direction == "desc"


async def _shapes(
    store: Store,
    query: Query,
    rows: list[Row],
    *,
    with_bodies: bool,
    answer_bytes: int | None,
    moved: MovedBodies | None = None,
) -> list[dict[str, Any]]:
    """
    Args:
        moved: where moved bodies are read back from; None: rows of a list name the place only.
    """
    ids = [row[0] for row in rows]
    updates = await property_updates(store, query, ids)
    scores = await scores_of(store, query, ids)
    bodies: dict[UUID, Row] = {}
    shown = ids
    if with_bodies and rows:
        if answer_bytes is not None:
            shown = await _that_fit(store, query, ids, answer_bytes)
        times = [row[1] for row in rows]
        bodies = await read_bodies(store, query.narrowed(Range(min(times), max(times) + 1)), shown) if shown else {}
    fitting = set(shown)
    shapes = []
    for row in rows:
        id_ = row[0]
        if not with_bodies:
            request = response = None
        elif id_ in fitting:
            body = bodies.get(id_)
            found = NOTHING_MOVED if moved is None else await moved.fetch(query.project_id, references_of(body))
            request, response = bodies_shape(body, row[-2], row[-1], found)
        else:
            request = response = _BODY_ELSEWHERE
        shapes.append(_shape(row, updates.get(id_, {}), scores.get(id_, {}), request, response))
    return shapes


async def _that_fit(store: Store, query: Query, ids: list[UUID], answer_bytes: int) -> list[UUID]:
    """The first of these whose bodies together stay below the bound."""
    rows = await store.rows(
        query,
        "SELECT id, length(request) + length(request_tail) + length(response) + length(response_tail) FROM bodies "
        f"WHERE {query.within()} AND id IN {query.bind('Array(UUID)', [str(id_) for id_ in ids])}",
        name="body_sizes",
    )
    sizes: dict[UUID, int] = {id_: size for id_, size in rows}
    fitting: list[UUID] = []
    total = 0
    for id_ in ids:
        total += sizes.get(id_, 0)
        if total > answer_bytes and fitting:
            break
        fitting.append(id_)
    return fitting


def _shape(
    row: Row, updates: dict[str, str], scores: dict[str, dict[str, Any]], request: Any, response: Any
) -> dict[str, Any]:
    (
        id_, created_ms, response_ms, status, model, requested_model, path, user_id, properties, session_id, session_path,
        session_name, provider, latency_ms, first_token_ms, prompt_tokens, completion_tokens, reasoning_tokens,
        cache_write_tokens, cache_read_tokens, input_audio, output_audio, cost_usd, cache_status, inserted_ms, _, _,
    ) = row  # fmt: skip
    named = {name.lower(): value for name, value in {**properties, **updates}.items()}
    for name, value in (
        ("Helicone-Session-Id", session_id),
        ("Helicone-Session-Path", session_path),
        ("Helicone-Session-Name", session_name),
    ):
        if value:
            named[name] = value
    known = prompt_tokens is not None and completion_tokens is not None
    feedback = scores.get(FEEDBACK)
    cost = None if cost_usd is None else float(cost_usd)
    return {
        "response_id": str(id_),
        "response_created_at": iso(response_ms),
        "response_body": response,
        "response_status": status,
        "response_model": model or None,
        "request_id": str(id_),
        "request_created_at": iso(created_ms),
        "request_body": request,
        "request_path": path,
        "request_user_id": user_id or None,
        "request_properties": named,
        "request_model": requested_model or None,
        "model_override": None,
        "helicone_user": None,
        "provider": provider.upper(),
        "delay_ms": round(latency_ms),
        "time_to_first_token": None if first_token_ms is None else round(first_token_ms),
        "total_tokens": prompt_tokens + completion_tokens if known else None,
        "prompt_tokens": prompt_tokens,
        "prompt_cache_write_tokens": cache_write_tokens,
        "prompt_cache_read_tokens": cache_read_tokens,
        "completion_tokens": completion_tokens,
        "reasoning_tokens": reasoning_tokens,
        "prompt_audio_tokens": input_audio,
        "completion_audio_tokens": output_audio,
        "cost": cost,
        "costUSD": cost,
        "prompt_id": None,
        "prompt_version": None,
        "feedback_created_at": None if feedback is None else feedback["at"],
        "feedback_id": None if feedback is None else str(id_),
        "feedback_rating": None if feedback is None else bool(feedback["value"]),
        "signed_body_url": None,
        "llmSchema": None,
        "country_code": None,
        "asset_ids": None,
        "asset_urls": None,
        "scores": {name: said["value"] for name, said in scores.items()} or None,
        "properties": named,
        "assets": [],
        "target_url": None,
        "model": model or requested_model or "",
        "cache_reference_id": None,
        "cache_enabled": cache_status != "off",
        "updated_at": iso(inserted_ms),
        "request_referrer": None,
        "ai_gateway_body_mapping": None,
        "storage_location": "clickhouse",
    }
