"""Serves the edge: uvicorn listens, starts and stops; every connection is one of ours."""

import uvicorn

from edge.connection import ClientConnection
from schemas.settings import EdgeSettings

_BACKLOG = 2048


def serve(settings: EdgeSettings) -> None:
    """Serve until SIGTERM or SIGINT; calls under way are given time to end."""
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
