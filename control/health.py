"""Whether every part up to the newest row works; what does not, and what to do about it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import select

from control.database import Database, Project
from control.errors import ControlError
from control.pipeline import Pipeline
from control.store import Store
from ingest.log import LogError

Check = Callable[[], Awaitable[str | None]]
"""Says what is wrong, or None."""

_REMEDIES = {
    "clickhouse": "see that ClickHouse runs and that HELIOGRAPH_CLICKHOUSE__HOST, __PORT, __USER and __PASSWORD are its; "
    "`heliograph migrate` makes missing tables",
    "redis": "see that Redis runs and that HELIOGRAPH_REDIS__URL is its; edges go on with the keys they know",
    "database": "see that HELIOGRAPH_DATABASE_URL can be reached, or that the disk of the data folder is not full",
    "pipeline": "see that what they wait for runs, and what its log says; `heliograph up` runs all of it. Events are safe "
    "in the log meanwhile",
}


class Health:
    def __init__(
        self,
        *,
        store: Store,
        redis: "Redis | None",
        database: Database,
        pipeline: Pipeline,
        timeout_s: float,
        freshness_s: float,
    ) -> None:
        self._store = store
        self._redis = redis
        self._database = database
        self._pipeline = pipeline
        self._timeout_s = timeout_s
        self._freshness_s = freshness_s

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        checks: dict[str, Check] = {
            "clickhouse": self._clickhouse,
            "redis": self._redis_answers,
            "database": self._database_answers,
            "pipeline": self._pipeline_is_fresh,
        }
        problems = await asyncio.gather(*(self._within_time(check) for check in checks.values()))
        parts: dict[str, Any] = {}
        for name, problem in zip(checks, problems, strict=True):
            parts[name] = {"ok": problem is None, "problem": problem, "remedy": _REMEDIES[name] if problem else None}
        return all(problem is None for problem in problems), parts

    async def _within_time(self, check: Check) -> str | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await check()
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"
        except ControlError as error:
            return error.message
        except (RedisError, LogError, OSError) as error:
            return f"{type(error).__name__}: {error}" if isinstance(error, LogError) else type(error).__name__

    async def _clickhouse(self) -> str | None:
        rows = await self._store.ledger_rows("SELECT count() FROM migrations", name="ready")
        return None if rows[0][0] else "its tables are missing"

    async def _redis_answers(self) -> str | None:
        if self._redis is None:
            return "no address is set"
        await cast(Awaitable[Any], self._redis.ping())
        return None

    async def _database_answers(self) -> str | None:
        async with self._database.reading() as connection:
            await connection.execute(select(Project.id).limit(1))
        return None

    async def _pipeline_is_fresh(self) -> str | None:
        page = await self._pipeline.page()
        if page["paused"]:
            return f"planning is paused: {'; '.join(page['paused'])}"
        age = page["oldest_unstored_age_s"]
        if age is not None and age > self._freshness_s:
            stages = (("shipper", "unshipped"), ("planner", "unplanned"), ("workers", "outstanding"))
            waits = [f"{page[waiting]} wait for the {stage}" for stage, waiting in stages if page[waiting]]
            told = [f"the oldest event without a row is {age:.0f} s old, {self._freshness_s:g} s are allowed", *waits]
            return "; ".join(told)
        return None
