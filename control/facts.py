"""What is said of a request after it was stored: scores, feedback, properties. Rows of their own; the newest wins."""
# ruff: noqa: S608 - what goes into SQL here is columns of a whitelist and names of bound values.

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from control.errors import BadRequest
from control.requests import find_row
from control.scope import PROJECT, Query, iso, text
from control.store import Row, Store
from schemas.ids import time_of

FEEDBACK = "helicone-score-feedback"
"""The name Helicone gives a rating among the scores."""
SCORES_MAX = 100
NAME_BYTES_MAX = 256
COMMENT_BYTES_MAX = 4096
_TOO_YOUNG_TO_ASK_S = 900

_SCORE_COLUMNS = ("project_id", "request_id", "name", "value", "comment", "source", "created_at")


async def require_request(store: Store, project_id: str, id_: UUID, *, now_ms: int, kept_days: int) -> None:
    """
    Raises:
        NotFound: this project has no such request, as far as one can know: one of the last minutes may be on its way.
    """
    made = time_of(id_)
    if made is not None and abs(now_ms / 1000 - made.timestamp()) < _TOO_YOUNG_TO_ASK_S:
        return
    await find_row(store, project_id, id_, now_ms=now_ms, kept_days=kept_days, select="id")


async def add_scores(store: Store, project_id: str, id_: UUID, scores: Mapping[str, Any]) -> None:
    """
    Args:
        scores: numbers, or booleans as 1 and 0, by name.

    Raises:
        BadRequest: a name or value that may not be.
    """
    if not 0 < len(scores) <= SCORES_MAX:
        raise BadRequest("scores", len(scores), f"1 to {SCORES_MAX} scores")
    rows = [
        _score_row(project_id, id_, read_name("scores", name), read_score(name, value))
        for name, value in scores.items()
    ]
    await store.insert("scores", _SCORE_COLUMNS, rows, name="insert_scores")


async def add_feedback(store: Store, project_id: str, id_: UUID, *, rating: bool, comment: str | None) -> None:
    said = text(comment or "", "comment")
    if len(said.encode()) > COMMENT_BYTES_MAX:
        raise BadRequest("comment", said, f"at most {COMMENT_BYTES_MAX} bytes")
    row = _score_row(project_id, id_, FEEDBACK, float(rating), comment=said)
    await store.insert("scores", _SCORE_COLUMNS, [row], name="insert_scores")


async def put_property(store: Store, project_id: str, id_: UUID, *, key: str, value: str, value_bytes_max: int) -> None:
    name = read_name("key", key).lower()
    if len(text(value, "value").encode()) > value_bytes_max:
        raise BadRequest("value", value, f"at most {value_bytes_max} bytes")
    await store.insert(
        "property_updates",
        ("project_id", "request_id", "name", "value", "created_at"),
        [(project_id, id_, name, value, datetime.now(UTC))],
        name="insert_properties",
    )


async def scores_of(store: Store, query: Query, ids: list[UUID]) -> dict[UUID, dict[str, dict[str, Any]]]:
    """By request and name: the newest `value`, `comment`, `source` and `at`."""
    if not ids:
        return {}
    rows = await store.rows(
        query,
        "SELECT request_id, toString(name), argMax(value, created_at), argMax(comment, created_at), "
        "argMax(toString(source), created_at), toUnixTimestamp64Milli(max(created_at)) FROM scores "
        f"WHERE {PROJECT} AND request_id IN {query.bind('Array(UUID)', [str(id_) for id_ in ids])} "
        "GROUP BY request_id, name ORDER BY name",
        name="scores",
    )
    found: dict[UUID, dict[str, dict[str, Any]]] = {}
    for id_, name, value, comment, source, at in rows:
        found.setdefault(id_, {})[name] = {
            "value": value,
            "comment": comment or None,
            "source": source or None,
            "at": iso(at),
        }
    return found


async def facts_of(store: Store, project_id: str, id_: UUID, *, now_ms: int, kept_days: int) -> dict[str, Any]:
    """Everything said of one request after the fact.

    Raises:
        NotFound: this project has none.
    """
    query, _ = await find_row(store, project_id, id_, now_ms=now_ms, kept_days=kept_days, select="id")
    scores = (await scores_of(store, query, [id_])).get(id_, {})
    feedback = scores.pop(FEEDBACK, None)
    updates = await store.rows(
        query,
        "SELECT toString(name), argMax(value, created_at), toUnixTimestamp64Milli(max(created_at)) FROM property_updates "
        f"WHERE {PROJECT} AND request_id = {query.bind('UUID', id_)} GROUP BY name ORDER BY name",
        name="property_updates",
    )
    return {
        "id": str(id_),
        "scores": scores,
        "feedback": None
        if feedback is None
        else {"rating": bool(feedback["value"]), "comment": feedback["comment"], "at": feedback["at"]},
        "properties": {name: {"value": value, "at": iso(at)} for name, value, at in updates},
    }


def read_name(field: str, name: str) -> str:
    if not 0 < len(text(name, field).encode()) <= NAME_BYTES_MAX or not name.isprintable():
        raise BadRequest(field, name, f"a name has 1 to {NAME_BYTES_MAX} printable bytes")
    return name


def read_score(name: str, value: Any) -> float:
    expected = "must be a finite number, or true or false"
    if not isinstance(value, bool | int | float):
        raise BadRequest(f"scores.{name}", value, expected)
    try:
        number = float(value)
    except OverflowError:
        raise BadRequest(f"scores.{name}", value, expected) from None
    if not math.isfinite(number):
        raise BadRequest(f"scores.{name}", value, expected)
    return number


def _score_row(project_id: str, id_: UUID, name: str, value: float, *, comment: str = "") -> Row:
    now = datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)
    return (project_id, id_, name, value, comment, "api", now)
