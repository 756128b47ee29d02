"""What is said of a request later: scores, feedback, properties."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from control import facts, models
from control.auth import Caller
from control.filters import read_uuid
from control.routes.parameters import HELICONE_ERRORS, Writer, now_ms
from control.services import services_of
from control.web import Json

router = APIRouter(tags=["facts"])


async def known(request: Request, id_: str, caller: Caller) -> Any:
    services = services_of(request)
    found = read_uuid(id_, "id")
    await facts.require_request(services.store, caller.project_id, found, now_ms=now_ms(), kept_days=services.kept_days)
    return found


@router.post(
    "/v1/request/{id}/score",
    summary="Score a request",
    status_code=201,
    response_model=models.HeliconeAnswer[None],
    responses=HELICONE_ERRORS,
)
async def score(request: Request, id: str, body: models.ScoresIn, caller: Writer) -> Response:
    """Numbers (decimals too) or booleans by name; said again, the newest counts."""
    found = await known(request, id, caller)
    await facts.add_scores(services_of(request).store, caller.project_id, found, body.scores)
    return Json({"data": None, "error": None}, 201)


@router.post(
    "/v1/request/{id}/feedback",
    summary="Rate a request",
    response_model=models.HeliconeAnswer[None],
    responses=HELICONE_ERRORS,
)
async def feedback(request: Request, id: str, body: models.FeedbackIn, caller: Writer) -> Response:
    found = await known(request, id, caller)
    await facts.add_feedback(
        services_of(request).store, caller.project_id, found, rating=body.rating, comment=body.comment
    )
    return Json({"data": None, "error": None})


@router.put(
    "/v1/request/{id}/property",
    summary="Set a property of a request",
    response_model=models.HeliconeAnswer[None],
    responses=HELICONE_ERRORS,
)
async def put_property(request: Request, id: str, body: models.PropertyIn, caller: Writer) -> Response:
    services = services_of(request)
    found = await known(request, id, caller)
    await facts.put_property(
        services.store,
        caller.project_id,
        found,
        key=body.key,
        value=body.value,
        value_bytes_max=services.property_bytes,
    )
    return Json({"data": None, "error": None})
