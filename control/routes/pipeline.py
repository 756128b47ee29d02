"""The gateway itself: where every event is, and whether every part works."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from control import models
from control.routes.parameters import ERRORS, Reader
from control.services import services_of
from control.web import Json

router = APIRouter(tags=["pipeline"])


@router.get(
    "/v1/pipeline",
    summary="Where every event is, in counters that add up",
    response_model=models.PipelineOut,
    responses=ERRORS,
)
async def pipeline(request: Request, caller: Reader) -> Response:
    """Of all projects together: counts and ages, nobody's rows."""
    return Json(await services_of(request).pipeline.page())


@router.get("/healthz", summary="This process lives", response_model=models.Alive)
async def healthz() -> Response:
    return Json({"status": "ok"})


@router.get(
    "/readyz",
    summary="Whether every part up to the newest row works",
    response_model=models.Ready,
    responses={503: {"model": models.Ready, "description": "a part does not; it is named, with what to do"}},
)
async def readyz(request: Request) -> Response:
    ready, parts = await services_of(request).health.ready()
    return Json({"ready": ready, "parts": parts}, 200 if ready else 503)
