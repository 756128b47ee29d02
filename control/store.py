"""ClickHouse as the API reads it: bounded threads, bounded queries, values bound by the server, never pasted into SQL."""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from control import metrics
from control.errors import Busy, ControlError, QueryTimeout, QueryTooLarge, StoreDown
from control.scope import PROJECT, Query
from ingest.clickhouse import StoreError, connect, store_errors
from schemas.settings import ClickHouseSettings, ControlBounds

T = TypeVar("T")
Row = tuple[Any, ...]

_TIMED_OUT = {159, 160, 209}
_TOO_LARGE = {158, 191, 241, 307, 396}
_OF_A_PROJECT = re.compile(
    r"\b(?:FROM|JOIN)\s+(requests|bodies|attempts|scores|property_updates|\w+_by_(?:minute|hour|day|week))\b"
)
_GRACE_S = 2.0
"""How much longer we wait for an answer than the server may work on it."""


class Store:
    """Queries and the rows that people add. One client a thread at a time; a client that failed is thrown away."""

    def __init__(self, settings: ClickHouseSettings, *, timeout_s: float, bounds: ControlBounds) -> None:
        self._settings = settings.model_copy(update={"query_timeout_s": timeout_s + _GRACE_S})
        self._timeout_s = timeout_s
        self._bounds = bounds
        self._threads = ThreadPoolExecutor(bounds.queries, thread_name_prefix="query")
        self._running = asyncio.Semaphore(bounds.queries)
        self._waiting = 0
        self._readers: deque[Client] = deque()
        self._writers: deque[Client] = deque()

    async def rows(self, query: Query, sql: str, *, name: str) -> list[Row]:
        """Rows of one project.

        Args:
            query: whose scope and values the SQL refers to.
            name: of the query, for the metrics.

        Raises:
            StoreDown, Busy: try again later.
            QueryTimeout, QueryTooLarge: a narrower time range may pass.
        """
        # The one rule that may never be broken: no table of projects is read without the caller's own project.
        if sql.count(PROJECT) < len(_OF_A_PROJECT.findall(sql)):
            raise AssertionError("a query without its project")
        return await self._ask(sql, query.values, name)

    async def ledger_rows(self, sql: str, values: Mapping[str, object] | None = None, *, name: str) -> list[Row]:
        """Rows of tables that belong to no project."""
        if _OF_A_PROJECT.search(sql):
            raise AssertionError("a table of projects, read without one")
        return await self._ask(sql, values or {}, name)

    async def _ask(self, sql: str, values: Mapping[str, object], name: str) -> list[Row]:
        def ask() -> list[Row]:
            return self._with(self._readers, self._reader, lambda client: client.execute(sql, dict(values) or None))

        return await self._run(ask, name)

    async def insert(self, table: str, columns: Sequence[str], rows: Sequence[Row], *, name: str) -> None:
        """Durable when it returns. Small inserts of many callers become one part (the server gathers them).

        Raises:
            StoreDown, Busy: nothing is confirmed; the same rows may be written again, the newest wins.
        """

        def write() -> None:
            self._with(
                self._writers,
                self._writer,
                lambda client: client.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES", list(rows)),
            )

        await self._run(write, name)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for client in (*self._readers, *self._writers):
            client.disconnect()

    async def _run(self, work: Callable[[], T], name: str) -> T:
        started = time.perf_counter()
        try:
            if self._running.locked() and self._waiting >= self._bounds.queries_waiting:
                raise Busy("too many queries are waiting already; try again in a second")
            self._waiting += 1
            metrics.queries_waiting.inc()
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._running.acquire()
            except TimeoutError:
                raise Busy(f"no query ended within {self._timeout_s:g} s; try again later") from None
            finally:
                self._waiting -= 1
                metrics.queries_waiting.dec()
            # Held until the thread is free again, also when the caller has gone: a thread cannot be cancelled.
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
            future.add_done_callback(self._free)
            return await asyncio.shield(future)
        except ControlError as error:
            metrics.query_failures.labels(name, error.code).inc()
            raise
        finally:
            metrics.query_seconds.labels(name).observe(time.perf_counter() - started)

    def _free(self, future: "asyncio.Future[Any]") -> None:
        self._running.release()
        if not future.cancelled():
            # Looked at, so that a caller who left does not leave a warning behind.
            future.exception()

    def _with(self, idle: "deque[Client]", make: Callable[[], Client], do: Callable[[Client], T]) -> T:
        try:
            client = idle.pop()
        except IndexError:
            client = make()
        try:
            with store_errors():
                done = do(client)
        except StoreError as error:
            client.disconnect()
            raise self._ours(error) from error
        except BaseException:
            client.disconnect()
            raise
        idle.append(client)
        return done

    def _ours(self, error: StoreError) -> ControlError:
        cause = error.__cause__
        code = cause.code if isinstance(cause, driver_errors.ServerException) else None
        if code in _TIMED_OUT:
            return QueryTimeout(f"the query took longer than {self._timeout_s:g} s; ask for a narrower time range")
        if code in _TOO_LARGE:
            return QueryTooLarge("the query reads or gives more than one may; ask for a narrower time range")
        if isinstance(cause, TimeoutError):
            return QueryTimeout(f"ClickHouse did not answer within {self._timeout_s + _GRACE_S:g} s")
        return StoreDown(f"rows cannot be read or written just now ({error}); try again later")

    def _reader(self) -> Client:
        bounds = self._bounds
        return connect(
            self._settings,
            server_side_params=True,
            network_compression_method="lz4",
            readonly=1,
            max_execution_time=self._timeout_s,
            timeout_overflow_mode="throw",
            max_memory_usage=bounds.query_memory_bytes,
            max_rows_to_read=bounds.query_read_rows,
            max_bytes_to_read=bounds.query_read_bytes,
            max_result_rows=200_000,
            result_overflow_mode="throw",
            # A list reads few granules here and there: handing each to a thread pool, or an index read twice, costs more.
            local_filesystem_read_method="pread",
            use_skip_indexes_on_data_read=0,
        )

    def _writer(self) -> Client:
        return connect(
            self._settings,
            network_compression_method="lz4",
            max_execution_time=self._timeout_s,
            async_insert=1,
            wait_for_async_insert=1,
            async_insert_busy_timeout_max_ms=100,
            async_insert_use_adaptive_busy_timeout=0,
        )
