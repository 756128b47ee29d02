"""What every route of the API works with, opened when the server starts and closed when it ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from fastapi import Request

from control.database import Database
from control.errors import ControlError
from control.health import Health
from control.keys import Keys, connect_redis, stopped_within
from control.moved import MovedBodies
from control.pipeline import LogView, PartitionView, Pipeline, ShippedSpool
from control.store import Store
from ingest.objects import Objects
from schemas.batch import Partition
from schemas.settings import ControlBounds, ControlSettings, SharedSettings

log = logging.getLogger("heliograph.control")


class Services(NamedTuple):
    settings: ControlSettings
    bounds: ControlBounds
    kept_days: int
    property_bytes: int
    keys: Keys
    store: Store
    moved: MovedBodies
    pipeline: Pipeline
    health: Health


class NoLog:
    """Where this process sees no log: the ledger alone is shown."""

    async def partitions(self) -> Sequence[PartitionView]:
        return []

    async def spools(self) -> Sequence[ShippedSpool] | None:
        return None

    async def dropped(self) -> int:
        return 0

    async def oldest_ms(self, first: Mapping[Partition, int]) -> int | None:
        return None

    async def close(self) -> None:
        pass


@asynccontextmanager
async def open_services(
    settings: ControlSettings, shared: SharedSettings, log_view: LogView, bounds: ControlBounds
) -> AsyncIterator[Services]:
    """Opened in order, closed in reverse. A part that is down at the start is tried again, not waited for."""
    database = Database(shared, timeout_s=bounds.database_timeout_s)
    redis = connect_redis(shared, timeout_s=bounds.redis_timeout_s)
    keys = Keys(database, redis, redis_timeout_s=bounds.redis_timeout_s)
    store = Store(shared.clickhouse, timeout_s=settings.query_timeout_s, bounds=bounds)
    moved = MovedBodies(Objects(shared.objects, shared.data_dir), bounds)
    pipeline = Pipeline(log_view, store)
    health = Health(
        store=store,
        redis=redis,
        database=database,
        pipeline=pipeline,
        timeout_s=bounds.ready_timeout_s,
        freshness_s=settings.freshness_ready_s,
    )
    with suppress(ControlError):
        await database.migrate()
    stop = asyncio.Event()
    keeper = asyncio.create_task(_keep_keys(database, keys, bounds, stop))
    try:
        yield Services(
            settings,
            bounds,
            shared.retention.requests_days,
            bounds.property_bytes,
            keys,
            store,
            moved,
            pipeline,
            health,
        )
    finally:
        stop.set()
        # Its turn ends within the timeouts of the database and of Redis.
        _, late = await asyncio.wait({keeper}, timeout=2 * (bounds.database_timeout_s + bounds.redis_timeout_s))
        if late:
            keeper.cancel()
        elif (failure := keeper.exception()) is not None:
            log.error("publishing keys had ended", exc_info=failure)
        await log_view.close()
        await asyncio.to_thread(store.close)
        if redis is not None:
            await redis.aclose()
        await database.close()


async def _keep_keys(database: Database, keys: Keys, bounds: ControlBounds, stop: asyncio.Event) -> None:
    while True:
        try:
            await database.migrate()
            break
        except ControlError as error:
            log.error("the database is not ready: %s", error)
            if await stopped_within(stop, bounds.reconcile_s):
                return
    await keys.keep_published(every_s=bounds.reconcile_s, stop=stop)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
