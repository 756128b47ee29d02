"""The API that people and dashboards read, and where they manage keys. Never on the hot path.

Each call: who is it (auth), what does it ask (filters, checked), one or two bounded queries of its own project, and the
rows as the contract has them.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from control import facts, helicone, models, people
from control.auth import Caller, identify, require
from control.database import Database
from control.errors import BadRequest, ControlError, Forbidden, StoreDown
from control.filters import NAMES, OUTCOMES, Filters, read_filters, read_uuid
from control.health import Health
from control.keys import KeyInfo, Keys, connect_redis, parse_expiry, stopped_within
from control.measures import GROUPS, RANKS, Asked, Rank, measure, read_bucket, read_groups
from control.moved import MovedBodies
from control.pipeline import LogView, PartitionView, Pipeline, ShippedSpool
from control.requests import SORT_FIELDS, Order, SortField, list_requests, one_request, read_cursor
from control.scope import Query as ScopedQuery
from control.scope import Range, iso, read_range
from control.store import Store
from control.web import Json, Watch, on_control_error, on_http_error, on_validation_error
from ingest.log import LogError
from ingest.objects import Objects
from schemas.batch import Partition
from schemas.keys import Permission
from schemas.settings import ControlBounds, ControlSettings, SharedSettings

log = logging.getLogger("heliograph.control")

PAGE = 50


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
    _add_routes(app)
    if dashboard is not None:
        app.mount("/", StaticFiles(directory=dashboard, html=True), name="dashboard")
    return app


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


async def _on_log_error(request: Request, error: Exception) -> Response:
    log.warning("the log cannot be looked at", extra={"error": str(error)})
    down = StoreDown(f"the log cannot be looked at just now ({type(error).__name__}); try again")
    return await on_control_error(request, down)


# Documented here, read in auth.py: both headers are looked at by hand.
_Bearer = Annotated[Any, Security(HTTPBearer(auto_error=False, description="a Heliograph key", scheme_name="key"))]
_HeliconeAuth = Annotated[
    Any,
    Security(APIKeyHeader(name="Helicone-Auth", auto_error=False, description="Bearer <key>", scheme_name="helicone")),
]


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def needs(permission: Permission) -> Callable[..., Awaitable[Caller]]:
    """Who is calling, once it is known that they may."""

    async def caller(request: Request, _bearer: _Bearer, _helicone: _HeliconeAuth) -> Caller:
        services = services_of(request)
        found = await identify(request, services.keys, local=services.settings.auth == "local")
        require(found, permission)
        return found

    return caller


Reader = Annotated[Caller, Depends(needs("read"))]
Writer = Annotated[Caller, Depends(needs("write"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
Start = Annotated[
    str | None,
    Query(description="from this time on: ISO 8601 or milliseconds since 1970", examples=["2026-11-14T00:00:00Z"]),
]
End = Annotated[str | None, Query(description="up to before this time", examples=["2026-11-21T00:00:00Z"])]
Limit = Annotated[int, Query(description="most rows of the page", examples=[50])]

_COMMON = frozenset({"start", "end", "limit"})
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": models.Error, "description": "a parameter that may not be; the answer names it"},
    401: {"model": models.Error, "description": "no key, or one that is unknown, revoked or expired"},
    403: {"model": models.Error, "description": "the key lacks the permission"},
    422: {"model": models.Error, "description": "a body that may not be, or a query that reads too much"},
    503: {"model": models.Error, "description": "a part is down (its code says which); try again"},
    504: {"model": models.Error, "description": "the query took too long; ask for a narrower time range"},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": models.Error, "description": "this project has none"}}
_HELICONE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": models.HeliconeAnswer[None], "description": said["description"]}
    for status, said in _ERRORS.items()
}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _range(services: Services, start: str | None, end: str | None) -> Range:
    return read_range(start, end, now_ms=_now_ms(), default_days=services.settings.default_range_days)


def _limit(services: Services, limit: int) -> int:
    most = services.settings.query_rows_max
    if not 1 <= limit <= most:
        raise BadRequest("limit", limit, f"must be 1 to {most}")
    return limit


def _filters(request: Request, services: Services, *others: str) -> Filters:
    return read_filters(request.query_params.multi_items(), others=_COMMON | set(others), bounds=services.bounds)


def _range_shape(range_: Range) -> dict[str, str]:
    return {"start": iso(range_.start_ms), "end": iso(range_.end_ms)}


def _add_routes(app: FastAPI) -> None:
    _add_requests(app)
    _add_sums(app)
    _add_facts(app)
    _add_helicone(app)
    _add_keys(app)
    _add_health(app)


def _add_requests(app: FastAPI) -> None:
    @app.get(
        "/v1/requests",
        tags=["requests"],
        summary="Requests, page by page",
        response_model=models.RequestPage,
        responses=_ERRORS,
        openapi_extra=_FILTER_PARAMETERS,
    )
    async def requests(
        request: Request,
        caller: Reader,
        start: Start = None,
        end: End = None,
        sort: Annotated[str | None, Query(description=f"one of {', '.join(SORT_FIELDS)}; default time")] = None,
        order: Annotated[str | None, Query(description="desc (default) or asc; what is unknown comes last")] = None,
        limit: Limit = PAGE,
        cursor: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
    ) -> Response:
        """The newest first. Pages stay whole while new requests arrive; a cursor keeps the first page's time range."""
        services = services_of(request)
        filters = _filters(request, services, "sort", "order", "cursor")
        by, falling = _sort(sort), _order(order)
        at = None if cursor is None else read_cursor(cursor, filters, sort=by, order=falling)
        page = await list_requests(
            services.store,
            ScopedQuery(caller.project_id, _range(services, start, end)),
            filters,
            sort=at.sort if at else by or "time",
            order=at.order if at else falling or "desc",
            limit=_limit(services, limit),
            cursor=at,
        )
        return Json({"requests": page.requests, "next_cursor": page.next_cursor, "range": _range_shape(page.range)})

    @app.get(
        "/v1/requests/{id}",
        tags=["requests"],
        summary="One request with its attempts and bodies",
        response_model=models.WholeRequest,
        responses={**_ERRORS, **_NOT_FOUND},
    )
    async def request_by_id(request: Request, id: str, caller: Reader) -> Response:
        services = services_of(request)
        return Json(
            await one_request(
                services.store,
                services.moved,
                caller.project_id,
                read_uuid(id, "id"),
                now_ms=_now_ms(),
                kept_days=services.kept_days,
            )
        )

    @app.get(
        "/v1/requests/{id}/facts",
        tags=["requests"],
        summary="What was said of a request later: scores, feedback, properties",
        response_model=models.Facts,
        responses={**_ERRORS, **_NOT_FOUND},
    )
    async def request_facts(request: Request, id: str, caller: Reader) -> Response:
        services = services_of(request)
        return Json(
            await facts.facts_of(
                services.store, caller.project_id, read_uuid(id, "id"), now_ms=_now_ms(), kept_days=services.kept_days
            )
        )


def _sort(sort: str | None) -> SortField | None:
    if sort is not None and sort not in SORT_FIELDS:
        raise BadRequest("sort", sort, f"must be one of {', '.join(SORT_FIELDS)}")
    return sort  # type: ignore[return-value]


def _order(order: str | None) -> Order | None:
    if order not in (None, "asc", "desc"):
        raise BadRequest("order", order, "must be asc or desc")
    return order  # type: ignore[return-value]


def _rank(sort: str) -> Rank:
    if sort not in RANKS:
        raise BadRequest("sort", sort, f"must be one of {', '.join(RANKS)}")
    return sort  # type: ignore[return-value]


def _offset(offset: int) -> int:
    if not 0 <= offset <= 100_000:
        raise BadRequest("offset", offset, "must be 0 to 100000")
    return offset


def _add_sums(app: FastAPI) -> None:
    @app.get(
        "/v1/metrics",
        tags=["sums"],
        summary="Requests, errors, tokens, cost and latency, over time and by group",
        response_model=models.Metrics,
        responses=_ERRORS,
        openapi_extra=_FILTER_PARAMETERS,
    )
    async def metrics(
        request: Request,
        caller: Reader,
        start: Start = None,
        end: End = None,
        group_by: Annotated[
            str, Query(description=f"up to 3 of {', '.join(GROUPS)}, with commas", examples=["time,model"])
        ] = "",
        bucket: Annotated[str, Query(description="width of `time`: 5m, 1h, 7d, or auto", examples=["1h"])] = "auto",
        sort: Annotated[str, Query(description="without time: requests, cost or tokens, most first")] = "requests",
        quantiles: Annotated[
            bool | None,
            Query(description="true: also where only raw rows can tell; false: never; left out: where cheap"),
        ] = None,
        limit: Limit = 100,
    ) -> Response:
        """Sums are of what is known, with how many requests are not. Exact from every source; quantiles are t-digests.

        With `time`, rows come in its order and a bucket without requests has none; without it, most of `sort` first.
        """
        services = services_of(request)
        range_ = _range(services, start, end)
        groups = read_groups(group_by)
        bucket_ms = read_bucket(bucket, range_) if "time" in groups else None
        rank = _rank(sort)
        if rank == "last_seen":
            raise BadRequest("sort", sort, "must be one of requests, cost, tokens")
        answer = await measure(
            services.store,
            ScopedQuery(caller.project_id, range_),
            Asked(
                groups=tuple(group for group in groups if group != "time"),
                bucket_ms=bucket_ms,
                filters=_filters(request, services, "group_by", "bucket", "sort", "quantiles"),
                quantiles=quantiles,
            ),
            now_ms=_now_ms(),
            limit=_limit(services, limit),
            rank=rank,
        )
        return Json(
            {
                "source": answer.source,
                "bucket": None if bucket_ms is None else f"{bucket_ms // 1000}s",
                "range": _range_shape(answer.range),
                "rows": answer.rows,
                "truncated": answer.truncated,
            }
        )

    async def page_of(
        request: Request, caller: Caller, kind: people.Kind, start: str | None, end: str | None, sort: str, limit: int,
        offset: int, name: str | None, user_id: list[str] | None,
    ) -> Response:  # fmt: skip
        services = services_of(request)
        range_ = _range(services, start, end)
        found, more = await people.list_people(
            services.store,
            ScopedQuery(caller.project_id, range_),
            kind,
            rank=_rank(sort),
            limit=_limit(services, limit),
            offset=_offset(offset),
            now_ms=_now_ms(),
            filters=Filters(exact={"user_id": user_id} if user_id else {}),
            name=name,
        )
        return Json({kind: found, "more": more, "range": _range_shape(range_)})

    @app.get(
        "/v1/users",
        tags=["sums"],
        summary="Users and what they used",
        response_model=models.UserPage,
        responses=_ERRORS,
    )
    async def users(
        request: Request,
        caller: Reader,
        start: Start = None,
        end: End = None,
        sort: Annotated[str, Query(description=f"one of {', '.join(RANKS)}, most or newest first")] = "cost",
        limit: Limit = PAGE,
        offset: Annotated[int, Query(description="rows to pass over")] = 0,
        user_id: Annotated[list[str] | None, Query(description="only these; may be given several times")] = None,
    ) -> Response:
        """Requests that named no user are one row, with `user_id` null."""
        _known(request, "start", "end", "sort", "limit", "offset", "user_id")
        return await page_of(request, caller, "users", start, end, sort, limit, offset, None, _values(request, user_id))

    @app.get(
        "/v1/sessions",
        tags=["sums"],
        summary="Sessions and what they used",
        response_model=models.SessionPage,
        responses=_ERRORS,
    )
    async def sessions(
        request: Request,
        caller: Reader,
        start: Start = None,
        end: End = None,
        sort: Annotated[str, Query(description=f"one of {', '.join(RANKS)}, most or newest first")] = "last_seen",
        limit: Limit = PAGE,
        offset: Annotated[int, Query(description="rows to pass over")] = 0,
        name: Annotated[str | None, Query(description="only sessions of this name")] = None,
        user_id: Annotated[
            list[str] | None, Query(description="only of these users; may be given several times")
        ] = None,
    ) -> Response:
        """Sums over the session's requests within the time range."""
        _known(request, "start", "end", "sort", "limit", "offset", "name", "user_id")
        return await page_of(
            request, caller, "sessions", start, end, sort, limit, offset, name, _values(request, user_id)
        )


def _known(request: Request, *names: str) -> None:
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise BadRequest(name, value, f"there is no such parameter; there are {', '.join(names)}")


def _values(request: Request, values: list[str] | None) -> list[str] | None:
    most = services_of(request).bounds.filter_values
    if values is not None and len(values) > most:
        raise BadRequest("user_id", len(values), f"at most {most} values")
    return values


def _add_facts(app: FastAPI) -> None:
    async def known(request: Request, id_: str, caller: Caller) -> Any:
        services = services_of(request)
        found = read_uuid(id_, "id")
        await facts.require_request(
            services.store, caller.project_id, found, now_ms=_now_ms(), kept_days=services.kept_days
        )
        return found

    @app.post(
        "/v1/request/{id}/score",
        tags=["facts"],
        summary="Score a request",
        status_code=201,
        response_model=models.HeliconeAnswer[None],
        responses=_HELICONE_ERRORS,
    )
    async def score(request: Request, id: str, body: models.ScoresIn, caller: Writer) -> Response:
        """Numbers (decimals too) or booleans by name; said again, the newest counts."""
        found = await known(request, id, caller)
        await facts.add_scores(services_of(request).store, caller.project_id, found, body.scores)
        return Json({"data": None, "error": None}, 201)

    @app.post(
        "/v1/request/{id}/feedback",
        tags=["facts"],
        summary="Rate a request",
        response_model=models.HeliconeAnswer[None],
        responses=_HELICONE_ERRORS,
    )
    async def feedback(request: Request, id: str, body: models.FeedbackIn, caller: Writer) -> Response:
        found = await known(request, id, caller)
        await facts.add_feedback(
            services_of(request).store, caller.project_id, found, rating=body.rating, comment=body.comment
        )
        return Json({"data": None, "error": None})

    @app.put(
        "/v1/request/{id}/property",
        tags=["facts"],
        summary="Set a property of a request",
        response_model=models.HeliconeAnswer[None],
        responses=_HELICONE_ERRORS,
    )
    async def put_property(request: Request, id: str, body: models.PropertyIn, caller: Writer) -> Response:
        services = services_of(request)
        found = await known(request, id, caller)
        await facts.put_property(
            services.store,
            caller.project_id,
            found,
            key=body.key,
            value=body.value,
            value_bytes_max=services.property_bytes,
        )
        return Json({"data": None, "error": None})


def _add_helicone(app: FastAPI) -> None:
    # Before /v1/request/{id}, which would take these paths for ids.
    @app.post(
        "/v1/request/query-clickhouse",
        tags=["helicone"],
        summary="Requests by Helicone's filter tree",
        status_code=201,
        response_model=models.HeliconeAnswer[list[models.HeliconeRow]],
        responses=_HELICONE_ERRORS,
        openapi_extra={"requestBody": {"content": {"application/json": {"example": _QUERY_EXAMPLE}}}},
    )
    async def query_clickhouse(request: Request, caller: Reader) -> Response:
        """A tree without `request_created_at` looks at the newest days alone (CONTROL_DEFAULT_RANGE_DAYS)."""
        services = services_of(request)
        asked = helicone.read_query(await request.body(), helicone.RequestQuery)
        assert isinstance(asked, helicone.RequestQuery)
        query, where = _built(services, caller, asked)
        rows = await helicone.query_requests(services.store, query, where, asked, bounds=services.bounds)
        return Json({"data": rows, "error": None}, 201)

    @app.post(
        "/v1/request/count/query",
        tags=["helicone"],
        summary="How many requests a filter tree finds",
        status_code=201,
        response_model=models.HeliconeAnswer[int],
        responses=_HELICONE_ERRORS,
        openapi_extra={"requestBody": {"content": {"application/json": {"example": {"filter": "all"}}}}},
    )
    async def count_query(request: Request, caller: Reader) -> Response:
        services = services_of(request)
        query, where = _built(services, caller, helicone.read_query(await request.body(), helicone.CountQuery))
        return Json({"data": await helicone.count_requests(services.store, query, where), "error": None}, 201)

    @app.get(
        "/v1/request/{id}",
        tags=["helicone"],
        summary="One request as Helicone's row",
        response_model=models.HeliconeAnswer[models.HeliconeRow],
        responses={**_HELICONE_ERRORS, 404: {"model": models.HeliconeAnswer[None], "description": "there is none"}},
    )
    async def helicone_request(
        request: Request,
        id: str,
        caller: Reader,
        include_body: Annotated[
            bool, Query(alias="includeBody", description="with request_body and response_body")
        ] = True,
    ) -> Response:
        services = services_of(request)
        row = await helicone.one_request(
            services.store,
            services.moved,
            caller.project_id,
            read_uuid(id, "id"),
            now_ms=_now_ms(),
            kept_days=services.kept_days,
            with_bodies=include_body,
            bounds=services.bounds,
        )
        return Json({"data": row, "error": None})


def _built(
    services: Services, caller: Caller, asked: helicone.RequestQuery | helicone.CountQuery
) -> tuple[ScopedQuery, str]:
    return helicone.build(
        caller.project_id,
        asked,
        now_ms=_now_ms(),
        default_days=services.settings.default_range_days,
        bounds=services.bounds,
    )


def _add_keys(app: FastAPI) -> None:
    @app.get("/v1/me", tags=["keys"], summary="Whose key this is", response_model=models.Me, responses=_ERRORS)
    async def me(request: Request, _bearer: _Bearer, _helicone: _HeliconeAuth) -> Response:
        services = services_of(request)
        caller = await identify(request, services.keys, local=services.settings.auth == "local")
        return Json({"project_id": caller.project_id, "key_id": caller.key_id, "permissions": list(caller.permissions)})

    @app.get(
        "/v1/projects",
        tags=["keys"],
        summary="The projects this key sees: its own",
        response_model=models.ProjectList,
        responses=_ERRORS,
    )
    async def projects(request: Request, caller: Reader) -> Response:
        found = [p for p in await services_of(request).keys.list_projects() if p.id == caller.project_id]
        return Json({"projects": [{"id": p.id, "created_at": iso(p.created_ms)} for p in found]})

    @app.get("/v1/keys", tags=["keys"], summary="This project's keys", response_model=models.KeyList, responses=_ERRORS)
    async def keys(request: Request, caller: Admin) -> Response:
        """Revoked and expired ones too."""
        return Json(
            {"keys": [_key_shape(info) for info in await services_of(request).keys.list_keys(caller.project_id)]}
        )

    @app.post(
        "/v1/keys",
        tags=["keys"],
        summary="Make a key of this project",
        status_code=201,
        response_model=models.KeyCreated,
        responses=_ERRORS,
    )
    async def create_key(request: Request, body: models.KeyIn, caller: Admin) -> Response:
        made = await services_of(request).keys.create(
            name=body.name,
            project=caller.project_id,
            permissions=body.permissions,
            expires_in_ms=None if body.expires is None else parse_expiry(body.expires),
        )
        return Json({"key": made.text, "info": _key_shape(made.info), "published": made.published}, 201)

    @app.delete(
        "/v1/keys/{id_or_name}",
        tags=["keys"],
        summary="Revoke a key of this project",
        response_model=models.KeyRevoked,
        responses={**_ERRORS, **_NOT_FOUND, 409: {"model": models.Error, "description": "several keys have this name"}},
    )
    async def revoke_key(request: Request, id_or_name: str, caller: Admin) -> Response:
        """In force at every edge within a second; at once here."""
        if id_or_name == caller.key_id:
            raise Forbidden("a key does not revoke itself; `heliograph keys revoke` does")
        revoked = await services_of(request).keys.revoke(id_or_name, caller.project_id)
        return Json({"info": _key_shape(revoked.info), "published": revoked.published})


def _key_shape(info: KeyInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "name": info.name,
        "project_id": info.project_id,
        "permissions": info.permissions,
        "last4": info.last4,
        "state": info.state(_now_ms()),
        "created_at": iso(info.created_ms),
        "expires_at": None if info.expires_ms is None else iso(info.expires_ms),
        "revoked_at": None if info.revoked_ms is None else iso(info.revoked_ms),
    }


def _add_health(app: FastAPI) -> None:
    @app.get(
        "/v1/pipeline",
        tags=["pipeline"],
        summary="Where every event is, in counters that add up",
        response_model=models.PipelineOut,
        responses=_ERRORS,
    )
    async def pipeline(request: Request, caller: Reader) -> Response:
        """Of all projects together: counts and ages, nobody's rows."""
        return Json(await services_of(request).pipeline.page())

    @app.get("/healthz", tags=["pipeline"], summary="This process lives", response_model=models.Alive)
    async def healthz() -> Response:
        return Json({"status": "ok"})

    @app.get(
        "/readyz",
        tags=["pipeline"],
        summary="Whether every part up to the newest row works",
        response_model=models.Ready,
        responses={503: {"model": models.Ready, "description": "a part does not; it is named, with what to do"}},
    )
    async def readyz(request: Request) -> Response:
        ready, parts = await services_of(request).health.ready()
        return Json({"ready": ready, "parts": parts}, 200 if ready else 503)


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
_QUERY_EXAMPLE = {
    "filter": {
        "left": {"request_response_rmt": {"model": {"contains": "gpt-4o"}}},
        "operator": "and",
        "right": {"request_response_rmt": {"properties": {"environment": {"equals": "production"}}}},
    },
    "sort": {"created_at": "desc"},
    "limit": 10,
    "offset": 0,
}


def _described(name: str) -> str:
    if name == "status":
        return "a status (429), a class (4xx), or none; several times: any of them"
    if name == "outcome":
        return f"one of {', '.join(OUTCOMES)}; several times: any of them"
    if name == "key":
        return "id or name of a key; several times: any of them"
    if name == "stream":
        return "true or false"
    if name.endswith(("_min", "_max")):
        field = name.rpartition("_")[0]
        unit = {"cost": "US dollars", "latency_ms": "ms", "first_token_ms": "ms"}.get(field, "tokens")
        return f"{'at least' if name.endswith('_min') else 'at most'}, {unit}"
    return "exactly this; several times: any of them"


_FILTER_PARAMETERS: dict[str, Any] = {
    "parameters": [
        *(
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": _described(name),
                "schema": {"type": "string"}
                if name == "stream" or name.endswith(("_min", "_max"))
                else {"type": "array", "items": {"type": "string"}},
            }
            for name in NAMES
        ),
        {
            "name": "property",
            "in": "query",
            "required": False,
            "description": "`property.<name>=<value>`, as `property.environment=production`; several times: any of them",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "style": "form",
            "explode": True,
        },
    ]
}
