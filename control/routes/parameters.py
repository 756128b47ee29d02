"""What the routes share: who may ask, the parameters that many take, the errors that all may give."""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from control import models
from control.auth import Caller, identify, require
from control.errors import BadRequest
from control.filters import NAMES, OUTCOMES, Filters, read_filters
from control.ranking import RANKS, Rank
from control.scope import Range, iso, read_range
from control.services import Services, services_of
from schemas.keys import Permission

PAGE = 50

# Documented here, read in auth.py: both headers are looked at by hand.
Bearer = Annotated[Any, Security(HTTPBearer(auto_error=False, description="a Heliograph key", scheme_name="key"))]
HeliconeAuth = Annotated[
    Any,
    Security(APIKeyHeader(name="Helicone-Auth", auto_error=False, description="Bearer <key>", scheme_name="helicone")),
]


def needs(permission: Permission) -> Callable[..., Awaitable[Caller]]:
    """Who is calling, once it is known that they may."""

    async def caller(request: Request, _bearer: Bearer, _helicone: HeliconeAuth) -> Caller:
        services = services_of(request)
        found = await identify(request, services.keys, local=services.settings.auth == "local")
        require(found, permission)
        return found

    return caller


Reader = Annotated[Caller, Depends(needs("read"))]
Writer = Annotated[Caller, Depends(needs("write"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
Start = Annotated[
    str | None,
    Query(description="from this time on: ISO 8601 or milliseconds since 1970", examples=["2026-11-14T00:00:00Z"]),
]
End = Annotated[str | None, Query(description="up to before this time", examples=["2026-11-21T00:00:00Z"])]
Limit = Annotated[int, Query(description="most rows of the page", examples=[50])]

_COMMON = frozenset({"start", "end", "limit"})
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": models.Error, "description": "a parameter that may not be; the answer names it"},
    401: {"model": models.Error, "description": "no key, or one that is unknown, revoked or expired"},
    403: {"model": models.Error, "description": "the key lacks the permission"},
    422: {"model": models.Error, "description": "a body that may not be, or a query that reads too much"},
    503: {"model": models.Error, "description": "a part is down (its code says which); try again"},
    504: {"model": models.Error, "description": "the query took too long; ask for a narrower time range"},
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": models.Error, "description": "this project has none"}}
HELICONE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": models.HeliconeAnswer[None], "description": said["description"]}
    for status, said in ERRORS.items()
}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def range_of(services: Services, start: str | None, end: str | None) -> Range:
    return read_range(start, end, now_ms=now_ms(), default_days=services.settings.default_range_days)


def limit_of(services: Services, limit: int) -> int:
    most = services.settings.query_rows_max
    if not 1 <= limit <= most:
        raise BadRequest("limit", limit, f"must be 1 to {most}")
    return limit


def filters_of(request: Request, services: Services, *others: str) -> Filters:
    return read_filters(request.query_params.multi_items(), others=_COMMON | set(others), bounds=services.bounds)


def range_shape(range_: Range) -> dict[str, str]:
    return {"start": iso(range_.start_ms), "end": iso(range_.end_ms)}


def read_rank(sort: str) -> Rank:
    if sort not in RANKS:
        raise BadRequest("sort", sort, f"must be one of {', '.join(RANKS)}")
    return sort  # type: ignore[return-value]


def _described(name: str) -> str:
    if name == "status":
        return "a status (429), a class (4xx), or none; several times: any of them"
    if name == "outcome":
        return f"one of {', '.join(OUTCOMES)}; several times: any of them"
    if name == "key":
        return "id or name of a key; several times: any of them"
    if name == "stream":
        return "true or false"
    if name.endswith(("_min", "_max")):
        field = name.rpartition("_")[0]
        unit = {"cost": "US dollars", "latency_ms": "ms", "first_token_ms": "ms"}.get(field, "tokens")
        return f"{'at least' if name.endswith('_min') else 'at most'}, {unit}"
    return "exactly this; several times: any of them"


FILTER_PARAMETERS: dict[str, Any] = {
    "parameters": [
        *(
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": _described(name),
                "schema": {"type": "string"}
                if name == "stream" or name.endswith(("_min", "_max"))
                else {"type": "array", "items": {"type": "string"}},
            }
            for name in NAMES
        ),
        {
            "name": "property",
            "in": "query",
            "required": False,
            "description": "`property.<name>=<value>`, as `property.environment=production`; several times: any of them",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "style": "form",
            "explode": True,
        },
    ]
}
