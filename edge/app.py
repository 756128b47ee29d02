"""The edge's application: opens its services in order, closes them in reverse, and serves health beside the hot route."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge import metrics
from edge.client import ConnectionCut, Receive, Send
from edge.deadlines import Deadlines
from edge.policies.auth import Auth
from edge.policies.snapshots import KeySnapshots
from edge.proxy import Proxy
from edge.recorder import Recorder
from edge.upstream.pool import Pool
from edge.upstream.protocol import Upstream
from edge.upstream.stock import StockUpstream
from edge.upstream.targets import Targets
from ingest.spool import Spool, open_spool
from schemas import logs
from schemas.settings import EdgeSettings, SharedSettings, load

log = logging.getLogger("heliograph.edge")

_HOUSEKEEPING_S = 1.0
_OWN_PATHS = (b"/healthz", b"/readyz")


class Edge:
    """The ASGI application. `proxy` exists between start-up and shutdown."""

    def __init__(self, settings: EdgeSettings, shared: SharedSettings) -> None:
        self._settings = settings
        self._shared = shared
        self._proxy: Proxy | None = None
        self._snapshots: KeySnapshots | None = None
        self._spool: Spool | None = None
        self._starlette = Starlette(
            routes=[Route("/healthz", self._healthy), Route("/readyz", self._ready)], lifespan=self._lifespan
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._proxy is not None and scope["raw_path"] not in _OWN_PATHS:
            await self._proxy(scope, receive, send)
        else:
            await self._starlette(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        settings, shared = self._settings, self._shared
        assert shared.redis.url is not None, "the cli fills in the embedded server's address"
        spool = self._spool = open_spool(shared.data_dir / "spool", shared.spool)
        snapshots = self._snapshots = KeySnapshots(
            shared.redis.url.get_secret_value(),
            Path(shared.data_dir) / "edge" / "keys.json",
            poll_s=settings.snapshot_poll_s,
        )
        await snapshots.start()
        upstream = _upstream(settings)
        deadlines = Deadlines()
        deadlines.start()
        self._proxy = Proxy(
            settings,
            auth=Auth(snapshots, required=settings.auth == "required"),
            targets=Targets(settings),
            upstream=upstream,
            recorder=Recorder(spool),
            deadlines=deadlines,
        )
        housekeeping = asyncio.create_task(self._keep_house(self._proxy, spool, upstream))
        _calm_collector()
        log.info("edge is ready", extra={"spool": spool.folder.name, "keys": len(snapshots.keys or {})})
        try:
            yield
        finally:
            housekeeping.cancel()
            await asyncio.gather(housekeeping, return_exceptions=True)
            metrics.publish()
            await deadlines.close()
            await upstream.close()
            await snapshots.close()
            await spool.close()
            log.info("edge is closed", extra={"events": spool.durable, "dropped": spool.dropped})

    async def _healthy(self, request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> JSONResponse:
        problems = {}
        if self._snapshots is None or (self._snapshots.keys is None and self._settings.auth == "required"):
            problems["keys"] = "no key snapshot yet: is Redis reachable, and has control published one?"
        if self._spool is None or self._spool.level == "full":
            problems["spool"] = "the spool is full: are planner, workers and ClickHouse running?"
        if problems:
            return JSONResponse({"status": "not ready", "problems": problems}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def _keep_house(self, proxy: Proxy, spool: Spool, upstream: Upstream) -> None:
        parent = os.getppid()
        while True:
            if os.getppid() != parent:
                log.warning("the process that started this one is gone; ending")
                os.kill(os.getpid(), signal.SIGTERM)
                parent = os.getppid()
            metrics.publish()
            metrics.in_flight.set(proxy.in_flight)
            metrics.spool_bytes.set(spool.disk_bytes)
            metrics.spool_queue_bytes.set(spool.queue_bytes)
            metrics.spool_events.set(spool.durable)
            if isinstance(upstream, Pool):
                metrics.upstream_connections.labels("idle").set(upstream.idle)
                metrics.upstream_connections.labels("active").set(upstream.open - upstream.idle)
                metrics.upstream_waiting.set(upstream.waiting)
            await asyncio.sleep(_HOUSEKEEPING_S)


def _upstream(settings: EdgeSettings) -> Upstream:
    if settings.upstream.client == "httpx" or settings.upstream.proxy_url is not None:
        return StockUpstream(settings.upstream, allowed_networks=settings.allowed_networks)
    return Pool(settings.upstream, allowed_networks=settings.allowed_networks)


def _calm_collector() -> None:
    """Look for circles seldom, and never among what start-up made: a call leaves none behind, and at the usual rate the
    looking took a tenth of the edge's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def _is_news(line: logging.LogRecord) -> bool:
    cut = line.exc_info is not None and line.exc_info[0] is ConnectionCut
    return not (cut or ConnectionCut.__name__ in line.getMessage())


def create() -> Edge:
    """What Granian's worker process loads. Settings come from the environment."""
    shared = load(SharedSettings)
    logs.set_up("edge", level=shared.log_level, form=shared.log_format)
    # The server logs a traceback for what leaves an application; a cut connection's event has already said why.
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    return Edge(load(EdgeSettings), shared)
