"""Helicone's own request queries, in its shapes."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from control import helicone, models
from control.auth import Caller
from control.filters import read_uuid
from control.routes.parameters import HELICONE_ERRORS, Reader, now_ms
from control.scope import Query as ScopedQuery
from control.services import Services, services_of
from control.web import Json

router = APIRouter(tags=["helicone"])

_QUERY_EXAMPLE = {
    "filter": {
        "left": {"request_response_rmt": {"model": {"contains": "gpt-4o"}}},
        "operator": "and",
        "right": {"request_response_rmt": {"properties": {"environment": {"equals": "production"}}}},
    },
    "sort": {"created_at": "desc"},
    "limit": 10,
    "offset": 0,
}


# Before /v1/request/{id}, which would take these paths for ids.
@router.post(
    "/v1/request/query-clickhouse",
    summary="Requests by Helicone's filter tree",
    status_code=201,
    response_model=models.HeliconeAnswer[list[models.HeliconeRow]],
    responses=HELICONE_ERRORS,
    openapi_extra={"requestBody": {"content": {"application/json": {"example": _QUERY_EXAMPLE}}}},
)
async def query_clickhouse(request: Request, caller: Reader) -> Response:
    """A tree without `request_created_at` looks at the newest days alone (CONTROL_DEFAULT_RANGE_DAYS).

    `request_body` and `response_body` look at the text that is kept beside the request: of a long one its head and its
    tail. A body that was moved to the object store or left out matches neither `contains` nor `not-contains`, and no
    other operator.
    """
    services = services_of(request)
    asked = helicone.read_query(await request.body(), helicone.RequestQuery)
    assert isinstance(asked, helicone.RequestQuery)
    query, where = _built(services, caller, asked)
    rows = await helicone.query_requests(services.store, query, where, asked, bounds=services.bounds)
    return Json({"data": rows, "error": None}, 201)


@router.post(
    "/v1/request/count/query",
    summary="How many requests a filter tree finds",
    status_code=201,
    response_model=models.HeliconeAnswer[int],
    responses=HELICONE_ERRORS,
    openapi_extra={"requestBody": {"content": {"application/json": {"example": {"filter": "all"}}}}},
)
async def count_query(request: Request, caller: Reader) -> Response:
    services = services_of(request)
    query, where = _built(services, caller, helicone.read_query(await request.body(), helicone.CountQuery))
    return Json({"data": await helicone.count_requests(services.store, query, where), "error": None}, 201)


@router.get(
    "/v1/request/{id}",
    summary="One request as Helicone's row",
    response_model=models.HeliconeAnswer[models.HeliconeRow],
    responses={**HELICONE_ERRORS, 404: {"model": models.HeliconeAnswer[None], "description": "there is none"}},
)
async def helicone_request(
    request: Request,
    id: str,
    caller: Reader,
    include_body: Annotated[bool, Query(alias="includeBody", description="with request_body and response_body")] = True,
) -> Response:
    services = services_of(request)
    row = await helicone.one_request(
        services.store,
        services.moved,
        caller.project_id,
        read_uuid(id, "id"),
        now_ms=now_ms(),
        kept_days=services.kept_days,
        with_bodies=include_body,
    )
    return Json({"data": row, "error": None})


def _built(
    services: Services, caller: Caller, asked: helicone.RequestQuery | helicone.CountQuery
) -> tuple[ScopedQuery, str]:
    return helicone.build(
        caller.project_id,
        asked,
        now_ms=now_ms(),
        default_days=services.settings.default_range_days,
        bounds=services.bounds,
    )
