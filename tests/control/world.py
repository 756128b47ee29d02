"""An app over real servers, and rows to ask it for."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import httpx

from control.app import create_app
from control.keys import Keys
from control.pipeline import LogView
from ingest.clickhouse import connect
from schemas.ids import new_id
from schemas.settings import ControlBounds, ControlSettings, SharedSettings
from workers.store import Store, StoredBatch

NOW_MS = int(datetime.now(UTC).timestamp() * 1000)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class World:
    def __init__(self, app: Any, shared: SharedSettings, project: str) -> None:
        self.app = app
        self.shared = shared
        self.project = project
        self.clients: list[httpx.AsyncClient] = []

    @property
    def keys(self) -> Keys:
        keys: Keys = self.app.state.services.keys
        return keys

    async def client(self, *permissions: str, project: str | None = None) -> httpx.AsyncClient:
        """A caller with a key of the test's own project, or of another."""
        made = await self.keys.create(
            name="test", project=project or self.project, permissions=permissions or ("read",)
        )
        return self.bare(headers={"Authorization": f"Bearer {made.text}"})

    def bare(self, *, peer: str = "127.0.0.1", host: str = "localhost:8585", **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, client=(peer, 50_000), raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url=f"http://{host}", timeout=30, **options)
        self.clients.append(client)
        return client

    def store(self, rows: Sequence[dict[str, Any]], table: str = "requests") -> None:
        client = connect(self.shared.clickhouse, async_insert=0, network_compression_method="lz4")
        columns = list(rows[0])
        client.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES", [tuple(row[c] for c in columns) for row in rows]
        )
        client.disconnect()

    def confirm(self, *batches: StoredBatch) -> None:
        """Into the ledger, as workers do it."""
        store = Store(self.shared.clickhouse)
        for batch in batches:
            store.confirm(batch)
        store.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        client = connect(self.shared.clickhouse)
        rows: list[tuple[Any, ...]] = client.execute(sql)
        client.disconnect()
        return rows

    def request(self, **columns: Any) -> dict[str, Any]:
        """A stored request of this test's project, a minute old unless said otherwise."""
        created_ms = columns.pop("created_ms", NOW_MS - 60_000)
        row = {
            "project_id": self.project,
            "created_at": datetime.fromtimestamp(created_ms / 1000, UTC),
            "id": uuid.UUID(new_id(created_ms)),
            "key_id": "k1",
            "key_name": "web",
            "provider": "openai",
            "api": "openai.chat",
            "method": "POST",
            "path": "/v1/chat/completions",
            "requested_model": "gpt-4o",
            "model": "gpt-4o-2024-08-06",
            "stream": True,
            "status": 200,
            "outcome": "success",
            "error_code": "",
            "error_message": "",
            "stop_reason": "stop",
            "name": "",
            "user_id": "u1",
            "session_id": "",
            "session_path": "",
            "session_name": "",
            "trace_id": "",
            "span_id": "",
            "parent_id": "",
            "properties": {"environment": "production"},
            "features": {},
            "usage_source": "reported",
            "input_tokens": 48,
            "output_tokens": 14,
            "cache_read_tokens": 8,
            "cache_write_tokens": 0,
            "reasoning_tokens": 4,
            "input_audio_tokens": 0,
            "output_audio_tokens": 0,
            "cost_usd": Decimal("0.00026"),
            "cost_source": "genai-prices 0.2.3",
            "prices_as_of": "2026-11-01",
            "latency_ms": 812.0,
            "first_token_ms": 230.0,
            "overhead_ms": 0.4,
            "cache_status": "miss",
            "request_bytes": 100,
            "response_bytes": 200,
        }
        assert columns.keys() <= row.keys(), columns.keys() - row.keys()
        return {**row, **columns}

    def unknown(self, **columns: Any) -> dict[str, Any]:
        """A request of which nothing is known but that it was made."""
        nothing = dict.fromkeys(
            (
                "status", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens",
                "input_audio_tokens", "output_audio_tokens", "cost_usd", "first_token_ms", "overhead_ms",
            )
        )  # fmt: skip
        said = dict.fromkeys(("model", "requested_model", "key_id", "key_name", "stop_reason", "user_id"), "")
        sources = {"usage_source": "none", "cost_source": "", "prices_as_of": "", "properties": {}}
        return self.request(**{**nothing, **said, **sources, "outcome": "cancelled", **columns})


@asynccontextmanager
async def opened(
    shared: SharedSettings,
    *,
    auth: Literal["required", "local"] = "required",
    bounds: ControlBounds | None = None,
    log_view: LogView | None = None,
    timeout_s: float = 10,
) -> AsyncIterator[World]:
    settings = ControlSettings(auth=auth, query_timeout_s=timeout_s)
    app = create_app(settings, shared, bounds=bounds, log_view=log_view)
    async with app.router.lifespan_context(app):
        project = f"p{uuid.uuid4().hex[:12]}"
        world = World(app, shared, project)
        await world.keys.create_project(project)
        yield world
        for client in world.clients:
            await client.aclose()
