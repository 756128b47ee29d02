"""The edge's application: opens its services in order, closes them in reverse, and tells its health."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge import metrics
from edge.connection import ClientConnection, Front
from edge.deadlines import Deadlines
from edge.outbox import Outbox
from edge.policies.auth import Auth
from edge.policies.snapshots import KeySnapshots
from edge.proxy import Proxy
from edge.recorder import Recorder
from edge.upstream.pool import Pool
from edge.upstream.protocol import Upstream
from edge.upstream.stock import StockUpstream
from edge.upstream.targets import Targets
from ingest.spool import Spool, SpoolError, open_spool
from schemas import logs
from schemas.settings import EdgeSettings, SharedSettings
from schemas.variables import load

log = logging.getLogger("heliograph.edge")

_HOUSEKEEPING_S = 1.0
_LAST_CALLS_S = 2.0

Message = MutableMapping[str, Any]


class Edge:
    """What uvicorn's lifespan opens and closes: afterwards every connection finds its `Front` in the state."""

    def __init__(self, settings: EdgeSettings, shared: SharedSettings) -> None:
        self._settings = settings
        self._shared = shared

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        assert scope["type"] == "lifespan", "calls do not come by ASGI"
        await receive()
        try:
            async with self._open() as front:
                scope["state"]["front"] = front
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except SpoolError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Front]:
        settings, shared = self._settings, self._shared
        assert shared.redis.url is not None, "the cli fills in the embedded server's address"
        spool = open_spool(shared.data_dir / "spool", shared.spool)
        snapshots = KeySnapshots(
            shared.redis.url.get_secret_value(),
            Path(shared.data_dir) / "edge" / "keys.json",
            poll_s=settings.snapshot_poll_s,
        )
        await snapshots.start()
        outbox = Outbox(asyncio.get_running_loop())
        upstream = _upstream(settings, outbox)
        proxy = Proxy(
            settings,
            auth=Auth(snapshots, required=settings.auth == "required"),
            targets=Targets(settings),
            upstream=upstream,
            recorder=Recorder(spool),
        )
        connections: set[ClientConnection] = set()
        deadlines = Deadlines(connections)
        deadlines.start()
        health = {b"/healthz": _healthy, b"/readyz": lambda: _ready(spool, snapshots, settings)}
        housekeeping = asyncio.create_task(self._keep_house(proxy, spool, upstream))
        _calm_collector()
        log.info("edge is ready", extra={"spool": spool.folder.name, "keys": len(snapshots.keys or {})})
        try:
            yield Front(proxy.serve, health, settings.bounds, deadlines, connections, outbox)
        finally:
            housekeeping.cancel()
            await asyncio.gather(housekeeping, return_exceptions=True)
            await upstream.close()
            await _last_calls(connections)
            metrics.publish()
            await deadlines.close()
            await snapshots.close()
            await spool.close()
            log.info("edge is closed", extra={"events": spool.durable, "dropped": spool.dropped})

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


async def _last_calls(connections: set[ClientConnection]) -> None:
    """Those the stop has cut off end too, and are put on record: first who waited for a provider, then who waits for a
    client."""
    await _ends_of(connections)
    for connection in connections:
        connection.end_call()
    await _ends_of(connections)


async def _ends_of(connections: set[ClientConnection]) -> None:
    tasks = [connection.task for connection in connections if connection.serves and connection.task is not None]
    if tasks:
        await asyncio.wait(tasks, timeout=_LAST_CALLS_S)


def _healthy() -> tuple[int, bytes]:
    return 200, b'{"status":"ok"}'


def _ready(spool: Spool, snapshots: KeySnapshots, settings: EdgeSettings) -> tuple[int, bytes]:
    problems = {}
    if snapshots.keys is None and settings.auth == "required":
        problems["keys"] = "no key snapshot yet: is Redis reachable, and has control published one?"
    if spool.failing:
        problems["spool"] = "the spool does not write: see the edge's log for what its disk says"
    elif spool.level == "full":
        problems["spool"] = "the spool is full: are planner, workers and ClickHouse running?"
    if problems:
        return 503, msgspec.json.encode({"status": "not ready", "problems": problems})
    return 200, b'{"status":"ready"}'


def _upstream(settings: EdgeSettings, outbox: Outbox) -> Upstream:
    if settings.upstream.client == "httpx" or settings.upstream.proxy_url is not None:
        return StockUpstream(settings.upstream, allowed_networks=settings.allowed_networks)
    return Pool(settings.upstream, allowed_networks=settings.allowed_networks, outbox=outbox)


def _calm_collector() -> None:
    """Look for circles seldom, and never among what start-up made: a call leaves none behind, and at the usual rate the
    looking took a tenth of the edge's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def create() -> Edge:
    """What each of the server's processes loads. Settings come from the environment."""
    shared = load(SharedSettings)
    logs.set_up("edge", level=shared.log_level, form=shared.log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return Edge(load(EdgeSettings), shared)
