"""Requests: page by page, and one of them whole."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from control import facts, models
from control.cursors import SORT_FIELDS, Order, SortField, read_cursor
from control.errors import BadRequest
from control.filters import read_uuid
from control.requests import list_requests, one_request
from control.routes.parameters import (
    ERRORS,
    FILTER_PARAMETERS,
    NOT_FOUND,
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
)
from control.scope import Query as ScopedQuery
from control.services import services_of
from control.web import Json

router = APIRouter(tags=["requests"])


@router.get(
    "/v1/requests",
    summary="Requests, page by page",
    response_model=models.RequestPage,
    responses=ERRORS,
    openapi_extra=FILTER_PARAMETERS,
)
async def requests(
    request: Request,
    caller: Reader,
    start: Start = None,
    end: End = None,
    sort: Annotated[str | None, Query(description=f"one of {', '.join(SORT_FIELDS)}; default time")] = None,
    order: Annotated[str | None, Query(description="desc (default) or asc; what is unknown comes last")] = None,
    limit: Limit = PAGE,
    cursor: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
) -> Response:
    """The newest first. Pages stay whole while new requests arrive; a cursor keeps the first page's time range."""
    services = services_of(request)
    filters = filters_of(request, services, "sort", "order", "cursor")
    by, falling = _sort(sort), _order(order)
    at = None if cursor is None else read_cursor(cursor, filters, sort=by, order=falling)
    page = await list_requests(
        services.store,
        ScopedQuery(caller.project_id, range_of(services, start, end)),
        filters,
        sort=at.sort if at else by or "time",
        order=at.order if at else falling or "desc",
        limit=limit_of(services, limit),
        cursor=at,
    )
    return Json({"requests": page.requests, "next_cursor": page.next_cursor, "range": range_shape(page.range)})


@router.get(
    "/v1/requests/{id}",
    summary="One request with its attempts and bodies",
    response_model=models.WholeRequest,
    responses={**ERRORS, **NOT_FOUND},
)
async def request_by_id(request: Request, id: str, caller: Reader) -> Response:
    services = services_of(request)
    return Json(
        await one_request(
            services.store,
            services.moved,
            caller.project_id,
            read_uuid(id, "id"),
            now_ms=now_ms(),
            kept_days=services.kept_days,
        )
    )


@router.get(
    "/v1/requests/{id}/facts",
    summary="What was said of a request later: scores, feedback, properties",
    response_model=models.Facts,
    responses={**ERRORS, **NOT_FOUND},
)
async def request_facts(request: Request, id: str, caller: Reader) -> Response:
    services = services_of(request)
    return Json(
        await facts.facts_of(
            services.store, caller.project_id, read_uuid(id, "id"), now_ms=now_ms(), kept_days=services.kept_days
        )
    )


def _sort(sort: str | None) -> SortField | None:
    if sort is not None and sort not in SORT_FIELDS:
        raise BadRequest("sort", sort, f"must be one of {', '.join(SORT_FIELDS)}")
    return sort  # type: ignore[return-value]


def _order(order: str | None) -> Order | None:
    if order not in (None, "asc", "desc"):
        raise BadRequest("order", order, "must be asc or desc")
    return order  # type: ignore[return-value]
