"""The API that people and dashboards read, and where they manage keys. Never on the hot path.

Each call: who is it (auth), what does it ask (filters, checked), one or two bounded queries of its own project, and the
rows as the contract has them.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from control.errors import ControlError, StoreDown
from control.pipeline import LogView
from control.routes import facts, helicone, keys, pipeline, requests, sums
from control.services import NoLog, open_services
from control.web import Watch, on_control_error, on_http_error, on_validation_error
from ingest.log import LogError
from schemas.settings import ControlBounds, ControlSettings, SharedSettings

log = logging.getLogger("heliograph.control")

_DESCRIPTION = """\
Every answer is of the project that the key belongs to. `read` is enough for every query, also for those that are POST;
`write` adds scores, feedback and properties; `admin` manages keys.

Null is unknown, never 0. Costs are US dollars as text with ten decimals. Times are UTC.

Errors are `{"error": {"code", "message", ...}}`; under `/v1/request/` they have Helicone's shape `{"data": null, "error"}`.
"""
_TAGS = [
    {"name": "requests", "description": "Every call, whatever became of it."},
    {"name": "sums", "description": "Over time, by model, user, session, property."},
    {"name": "facts", "description": "Scores, feedback and properties, said after the call."},
    {"name": "helicone", "description": "Helicone's request queries, in its shapes."},
    {"name": "keys", "description": "Keys of the caller's own project."},
    {"name": "pipeline", "description": "The gateway itself."},
]


def create_app(
    settings: ControlSettings,
    shared: SharedSettings,
    *,
    log_view: LogView | None = None,
    bounds: ControlBounds | None = None,
    dashboard: Path | None = None,
) -> FastAPI:
    """The control server as an ASGI app.

    Args:
        shared: where ClickHouse, Redis and the database are; the embedded ones' addresses filled in.
        log_view: the log as the pipeline page shows it.
        dashboard: folder of the built web page, served at `/`.
    """
    bounds = bounds or settings.bounds

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, shared, log_view or NoLog(), bounds) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Heliograph control API",
        version="1",
        summary="What became of every LLM call: requests, sums, users, sessions, and the pipeline itself.",
        description=_DESCRIPTION,
        lifespan=lifespan,
        # Both pages load their scripts from somebody else's server; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
    )
    app.add_exception_handler(ControlError, on_control_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(LogError, _on_log_error)
    app.add_middleware(Watch, body_bytes_max=bounds.body_bytes)
    for part in (requests, sums, facts, helicone, keys, pipeline):
        app.include_router(part.router)
    if dashboard is not None:
        app.mount("/", StaticFiles(directory=dashboard, html=True), name="dashboard")
    return app


async def _on_log_error(request: Request, error: Exception) -> Response:
    log.warning("the log cannot be looked at", extra={"error": str(error)})
    down = StoreDown(f"the log cannot be looked at just now ({type(error).__name__}); try again")
    return await on_control_error(request, down)
