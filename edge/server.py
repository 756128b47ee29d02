"""Serves the edge: uvicorn listens, starts and stops; every connection is one of ours."""

import logging
import resource

import uvicorn

from edge.connection import ClientConnection
from schemas.settings import EdgeSettings

log = logging.getLogger("heliograph.edge")

_BACKLOG = 2048
_OTHER_FILES = 256


def serve(settings: EdgeSettings) -> None:
    """Serve until SIGTERM or SIGINT; calls under way are given time to end."""
    _allow_files(settings)
    uvicorn.run(
        "edge.app:create",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http=ClientConnection,
        ws="none",
        lifespan="on",
        interface="asgi3",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=settings.stop_timeout_s,
        proxy_headers=False,
        log_config=None,
    )


def _allow_files(settings: EdgeSettings) -> None:
    """Every connection is an open file, and most systems begin with 1,024 of them."""
    wanted = settings.bounds.connections + settings.upstream.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if max(allowed, soft) < wanted:
        log.warning("fewer files may be open than the bounds allow connections", extra={"may": hard, "wanted": wanted})
