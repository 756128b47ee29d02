"""Serves the edge with Granian: ASGI over HTTP/1.1 on uvloop. RSGI would be faster and has no send backpressure."""

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.server import Server

from schemas.settings import EdgeSettings

_LOG_CONFIG = {
    # Granian's own lines go where ours go. A cut connection is told by an exception on purpose (proxy.py), and the
    # event says why, so those tracebacks would only be noise.
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"_granian": {"level": "WARNING", "propagate": True}, "granian.access": {"propagate": False}},
}


def serve(settings: EdgeSettings) -> None:
    """Serve until SIGTERM or SIGINT; calls under way are given time to end."""
    Server(
        "edge.app:create",
        factory=True,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        workers=settings.workers,
        # Connections beyond this wait unserved; the edge's own bound answers before that.
        backlog=max(1024, settings.bounds.calls),
        backpressure=settings.bounds.calls + 64,
        http1_settings=HTTP1Settings(
            header_read_timeout=int(settings.bounds.head_timeout_s * 1000), max_buffer_size=512 * 1024
        ),
        log_dictconfig=_LOG_CONFIG,
        log_access=False,
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=30,
    ).serve()
