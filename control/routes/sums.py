"""Sums over requests: metrics over time and by group, users, sessions."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from control import models, people
from control.auth import Caller
from control.errors import BadRequest
from control.filters import Filters
from control.measures import GROUPS, measure, read_bucket, read_groups
from control.ranking import RANKS
from control.routes.parameters import (
    ERRORS,
    FILTER_PARAMETERS,
    PAGE,
    End,
    Limit,
    Reader,
    Start,
    filters_of,
    limit_of,
    now_ms,
    range_of,
    range_shape,
    read_rank,
)
from control.scope import Query as ScopedQuery
from control.services import services_of
from control.stretches import Asked
from control.web import Json

router = APIRouter(tags=["sums"])


@router.get(
    "/v1/metrics",
    summary="Requests, errors, tokens, cost and latency, over time and by group",
    response_model=models.Metrics,
    responses=ERRORS,
    openapi_extra=FILTER_PARAMETERS,
)
async def metrics(
    request: Request,
    caller: Reader,
    start: Start = None,
    end: End = None,
    group_by: Annotated[
        str, Query(description=f"up to 3 of {', '.join(GROUPS)}, with commas", examples=["time,model"])
    ] = "",
    bucket: Annotated[str, Query(description="width of `time`: 5m, 1h, 7d, or auto", examples=["1h"])] = "auto",
    sort: Annotated[str, Query(description="without time: requests, cost or tokens, most first")] = "requests",
    quantiles: Annotated[
        bool | None,
        Query(description="true: also where only raw rows can tell; false: never; left out: where cheap"),
    ] = None,
    limit: Limit = 100,
) -> Response:
    """Sums are of what is known, with how many requests are not. Exact from every source; quantiles are t-digests.

    With `time`, rows come in its order and a bucket without requests has none; without it, most of `sort` first.
    """
    services = services_of(request)
    range_ = range_of(services, start, end)
    groups = read_groups(group_by)
    bucket_ms = read_bucket(bucket, range_) if "time" in groups else None
    if bucket_ms is None and bucket != "auto":
        raise BadRequest("bucket", bucket, "is the width of time, which group_by does not name")
    rank = read_rank(sort)
    if rank == "last_seen":
        raise BadRequest("sort", sort, "must be one of requests, cost, tokens")
    answer = await measure(
        services.store,
        ScopedQuery(caller.project_id, range_),
        Asked(
            groups=tuple(group for group in groups if group != "time"),
            bucket_ms=bucket_ms,
            filters=filters_of(request, services, "group_by", "bucket", "sort", "quantiles"),
            quantiles=quantiles,
        ),
        now_ms=now_ms(),
        limit=limit_of(services, limit),
        rank=rank,
    )
    return Json(
        {
            "source": answer.source,
            "bucket": None if bucket_ms is None else f"{bucket_ms // 1000}s",
            "range": range_shape(answer.range),
            "rows": answer.rows,
            "truncated": answer.truncated,
        }
    )


async def _page_of(
    request: Request, caller: Caller, kind: people.Kind, start: str | None, end: str | None, sort: str, limit: int,
    offset: int, name: str | None, user_id: list[str] | None,
) -> Response:  # fmt: skip
    services = services_of(request)
    range_ = range_of(services, start, end)
    found, more = await people.list_people(
        services.store,
        ScopedQuery(caller.project_id, range_),
        kind,
        rank=read_rank(sort),
        limit=limit_of(services, limit),
        offset=_offset(offset),
        now_ms=now_ms(),
        filters=Filters(exact={"user_id": user_id} if user_id else {}),
        name=name,
    )
    return Json({kind: found, "more": more, "range": range_shape(range_)})


@router.get(
    "/v1/users",
    summary="Users and what they used",
    response_model=models.UserPage,
    responses=ERRORS,
)
async def users(
    request: Request,
    caller: Reader,
    start: Start = None,
    end: End = None,
    sort: Annotated[str, Query(description=f"one of {', '.join(RANKS)}, most or newest first")] = "cost",
    limit: Limit = PAGE,
    offset: Annotated[int, Query(description="rows to pass over")] = 0,
    user_id: Annotated[list[str] | None, Query(description="only these; may be given several times")] = None,
) -> Response:
    """Requests that named no user are one row, with `user_id` null."""
    _known(request, "start", "end", "sort", "limit", "offset", "user_id")
    return await _page_of(request, caller, "users", start, end, sort, limit, offset, None, _values(request, user_id))


@router.get(
    "/v1/sessions",
    summary="Sessions and what they used",
    response_model=models.SessionPage,
    responses=ERRORS,
)
async def sessions(
    request: Request,
    caller: Reader,
    start: Start = None,
    end: End = None,
    sort: Annotated[str, Query(description=f"one of {', '.join(RANKS)}, most or newest first")] = "last_seen",
    limit: Limit = PAGE,
    offset: Annotated[int, Query(description="rows to pass over")] = 0,
    name: Annotated[str | None, Query(description="only sessions of this name")] = None,
    user_id: Annotated[list[str] | None, Query(description="only of these users; may be given several times")] = None,
) -> Response:
    """Sums over the session's requests within the time range."""
    _known(request, "start", "end", "sort", "limit", "offset", "name", "user_id")
    return await _page_of(request, caller, "sessions", start, end, sort, limit, offset, name, _values(request, user_id))


def _offset(offset: int) -> int:
    if not 0 <= offset <= 100_000:
        raise BadRequest("offset", offset, "must be 0 to 100000")
    return offset


def _known(request: Request, *names: str) -> None:
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise BadRequest(name, value, f"there is no such parameter; there are {', '.join(names)}")


def _values(request: Request, values: list[str] | None) -> list[str] | None:
    most = services_of(request).bounds.filter_values
    if values is not None and len(values) > most:
        raise BadRequest("user_id", len(values), f"at most {most} values")
    return values
