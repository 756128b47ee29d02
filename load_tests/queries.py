"""How long the control API's queries take over a month of requests, and what a request costs to keep.

    python -m load_tests.queries                                                # an embedded server of its own
    python -m load_tests.queries --data build/queries                           # the same, its rows kept for the next time
    python -m load_tests.queries --clickhouse 127.0.0.1:9000 --password … --rows 30000000

Rows are made by the server itself: 30 days, nine tenths of them in one project, users and sessions and ids random, the
rest spread over twenty projects. All but the last day is merged as it would be by then: the rollups' tables merge what is
older than six hours. Once the server has merged the rest as it likes, each question is asked over HTTP (in
process) `--runs` times; the median counts. Beside it stands the CPU time ClickHouse took: on a machine that others use,
that over its cores is what the question costs. Rows that were kept grow old: after a day, fill anew.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
from pydantic import SecretStr

from control.app import create_app
from control.keys import open_keys
from ingest.clickhouse import connect, store_errors
from ingest.migrations import migrate
from schemas.settings import ClickHouseSettings, ControlSettings, RetentionSettings, SharedSettings
from tests.servers import running_clickhouse

DAYS = 30
BLOCK = 1_000_000
BUDGET_MS = 300.0
BYTES_BUDGET = 120.0
BIG = "default"
SETTLE_S = 300
"""Longest wait for merges."""

# m: which model, s: how it ended (of 10,000), z1 and z2: normal, so that sizes and times are lognormal.
FILL = """
INSERT INTO requests SELECT
  project_id, created_at,
  toUUID(concat(substring(h, 1, 8), '-', substring(h, 9, 4), '-7', substring(r1, 1, 3), '-',
    ['8', '9', 'a', 'b'][1 + rand(11) % 4], substring(r1, 4, 3), '-', substring(r2, 1, 12))) AS id,
  ['', 'k-web', 'k-batch', 'k-mobile'][1 + rand(12) % 4] AS key_id,
  ['', 'web', 'batch', 'mobile'][indexOf(['', 'k-web', 'k-batch', 'k-mobile'], key_id)] AS key_name,
  ['openai', 'openai', 'openai', 'openai', 'openai', 'anthropic', 'anthropic', 'anthropic', 'google', 'groq', 'together',
    'mistral'][m] AS provider,
  ['openai.chat', 'openai.chat', 'openai.chat', 'openai.responses', 'openai.embeddings', 'anthropic.messages',
    'anthropic.messages', 'anthropic.messages', 'gemini.generate', 'openai.chat', 'openai.chat', 'openai.chat'][m] AS api,
  'POST' AS method,
  ['/v1/chat/completions', '/v1/chat/completions', '/v1/chat/completions', '/v1/responses', '/v1/embeddings',
    '/v1/messages', '/v1/messages', '/v1/messages', '/v1beta/models/gemini:generateContent', '/openai/v1/chat/completions',
    '/v1/chat/completions', '/v1/chat/completions'][m] AS path,
  ['gpt-4o', 'gpt-4o-mini', 'gpt-4.1', 'o3', 'text-embedding-3-small', 'claude-sonnet-4-5', 'claude-haiku-4-5',
    'claude-opus-4-1', 'gemini-2.5-flash', 'llama-3.3-70b', 'qwen-2.5-72b', 'mistral-large'][m] AS requested_model,
  if(s < 9500 OR s >= 9950, concat(requested_model, ['-2024-08-06', '', '-2025-04-14'][1 + m % 3]), requested_model)
    AS model,
  rand(13) % 10 < 4 AND m != 5 AS stream,
  multiIf(s < 9500, 200, s < 9700, 429, s < 9850, 500, s < 9920, 400, s < 9950, 503, NULL) AS status,
  multiIf(s < 9500, 'success', s < 9950, 'error', s < 9980, 'cancelled', 'timeout') AS outcome,
  multiIf(s < 9500, '', s < 9700, 'rate_limit_exceeded', s < 9850, 'server_error', s < 9920, 'invalid_request_error',
    s < 9950, 'overloaded', '') AS error_code,
  if(s >= 9500 AND s < 9950, concat('The provider answered ', toString(ifNull(status, 0)), ': request req_',
    substring(r2, 1, 12), ' could not be served, try again later.'), '') AS error_message,
  if(s < 9500, ['stop', 'stop', 'stop', 'length', 'tool_calls'][1 + rand(14) % 5], '') AS stop_reason,
  if(rand(15) % 4 = 0, ['summarise', 'classify', 'answer', 'extract'][1 + rand(16) % 4], '') AS name,
  if(rand(17) % 20 = 0, '', concat('user_', lower(hex(sipHash64(toUInt32(pow(200000, rand(18) / 4294967296))))))) AS user_id,
  if(rand(19) % 10 < 3, toString(reinterpretAsUUID(sipHash128(intDiv(n, 400) * 40 + rand(20) % 15))), '') AS session_id,
  if(session_id = '', '', ['/chat', '/chat/plan', '/chat/plan/tool', '/chat/answer'][1 + rand(21) % 4]) AS session_path,
  if(session_id = '', '', ['support', 'coding'][1 + rand(22) % 2]) AS session_name,
  if(rand(23) % 10 = 0, concat(r1, r2), '') AS trace_id,
  if(trace_id = '', '', lower(hex(rand64(24)))) AS span_id,
  '' AS parent_id,
  map('environment', ['production', 'production', 'production', 'staging', 'dev'][1 + rand(25) % 5],
    'feature', concat('feature-', toString(toUInt8(pow(20, rand(26) / 4294967296)))),
    'customer', concat('cust-', toString(toUInt32(pow(2000, rand(27) / 4294967296))))) AS properties,
  map() AS features,
  multiIf(s < 9500, multiIf(rand(28) % 100 < 97, 'reported', rand(28) % 100 < 99, 'counted', 'estimated'),
    s >= 9950, 'estimated', 'none') AS usage_source,
  if(usage_source = 'none', NULL, toUInt32(exp(6.5 + 1.1 * z1))) AS input_tokens,
  if(usage_source = 'none', NULL, if(m = 5, 0, toUInt32(exp(5.2 + z2)))) AS output_tokens,
  if(usage_source != 'reported', NULL, if(rand(31) % 4 = 0, toUInt32(input_tokens * 0.7), 0)) AS cache_read_tokens,
  if(usage_source != 'reported', NULL, 0) AS cache_write_tokens,
  if(usage_source != 'reported', NULL, if(m = 4, intDiv(output_tokens, 2), 0)) AS reasoning_tokens,
  if(usage_source != 'reported', NULL, 0) AS input_audio_tokens,
  if(usage_source != 'reported', NULL, 0) AS output_audio_tokens,
  if(usage_source = 'none', NULL, toDecimal64((input_tokens * [250, 15, 200, 200, 2, 300, 100, 1500, 30, 59, 120, 200][m]
    + output_tokens * [1000, 60, 800, 800, 0, 1500, 500, 7500, 250, 79, 120, 600][m]) / 1e8, 10)) AS cost_usd,
  if(usage_source = 'none', '', 'genai-prices 0.2.3') AS cost_source,
  if(usage_source = 'none', '', '2026-11-01') AS prices_as_of,
  toFloat32(120 + exp(6.6 + 0.8 * z2) + 300 * exp(z1 * 0.5)) AS latency_ms,
  if(stream AND s < 9500, toFloat32(latency_ms * (0.15 + 0.2 * rand(33) / 4294967296)), NULL) AS first_token_ms,
  toFloat32(0.1 + 0.2 * exp(z1 * 0.4)) AS overhead_ms,
  ['off', 'off', 'off', 'miss', 'miss', 'hit'][1 + rand(34) % 6] AS cache_status,
  toUInt32(ifNull(input_tokens, 200) * 4.4 + rand(35) % 200) AS request_bytes,
  toUInt64(ifNull(output_tokens, 20) * 5.1 + 600 + rand(36) % 150) AS response_bytes,
  created_at + toIntervalMillisecond(toUInt32(latency_ms) + 200 + rand(37) % 300) AS inserted_at
FROM (
  SELECT number AS n, 1 + toUInt32(12 * pow(rand(1) / 4294967296, 1.8)) AS m, rand(2) % 10000 AS s,
    randNormal(0, 1, 3) AS z1, randNormal(0, 1, 4) AS z2,
    if(rand(5) % 10 = 0, concat('team-', toString(rand(6) % 20)), 'default') AS project_id,
    fromUnixTimestamp64Milli(toInt64($end - ($rows - number - rand(9) / 4294967296) * $step), 'UTC')
      AS created_at,
    lower(hex(toUInt64(toUnixTimestamp64Milli(created_at)))) AS h,
    leftPad(lower(hex(rand64(7))), 16, '0') AS r1, leftPad(lower(hex(rand64(8))), 16, '0') AS r2
  FROM numbers($first, $count)
)
"""


class Question(NamedTuple):
    name: str
    path: str


def fill(settings: ClickHouseSettings, rows: int) -> None:
    client = connect(settings.model_copy(update={"query_timeout_s": 3600}), network_compression_method="lz4")
    ((present,),) = client.execute("SELECT count() FROM requests")
    end = time.time_ns() // 1_000_000
    for first in range(present, rows, BLOCK):
        if rows - BLOCK <= first:
            merge_rollups(settings)
        values = {
            "end": end,
            "rows": rows,
            "step": DAYS * 86_400_000 / rows,
            "first": first,
            "count": min(BLOCK, rows - first),
        }
        # No settings of a reader here: these are our own inserts, the same blocks a worker would make.
        client.execute(Template(FILL).substitute(values))
        print(f"\r{first + values['count']:,} rows", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    client.disconnect()


def merge_rollups(settings: ClickHouseSettings) -> None:
    client = connect(settings.model_copy(update={"query_timeout_s": 3600}), network_compression_method="lz4")
    used_before_ms = cpu_ms(settings)
    tables = client.execute(
        "SELECT name FROM system.tables WHERE database = currentDatabase() "
        "AND create_table_query LIKE '%min_age_to_force_merge_seconds%'"
    )
    for (name,) in tables:
        client.execute(f"OPTIMIZE TABLE {name} FINAL")
    client.disconnect()
    print(f"\rrollups merged in {(cpu_ms(settings) - used_before_ms) / 1000:.0f} s of CPU")


def settle(settings: ClickHouseSettings) -> None:
    """Wait until nothing is merged any more, as on a machine that takes a month for these rows."""
    client = connect(settings, network_compression_method="lz4")
    deadline = time.monotonic() + SETTLE_S
    quiet = 0
    while quiet < 5 and time.monotonic() < deadline:
        ((merges,),) = client.execute("SELECT count() FROM system.merges")
        quiet = 0 if merges else quiet + 1
        time.sleep(1)
    client.disconnect()


def questions(settings: ClickHouseSettings) -> Iterator[Question]:
    client = connect(settings, network_compression_method="lz4")
    ((heavy,),) = client.execute(
        f"SELECT user_id FROM users_by_day WHERE project_id = '{BIG}' AND user_id != '' GROUP BY user_id "
        "ORDER BY sum(requests) DESC LIMIT 1"
    )
    ((light,),) = client.execute(
        f"SELECT user_id FROM users_by_day WHERE project_id = '{BIG}' GROUP BY user_id "
        "HAVING sum(requests) BETWEEN 40 AND 80 ORDER BY user_id LIMIT 1"
    )
    ((session,),) = client.execute(f"SELECT any(session_id) FROM sessions_by_day WHERE project_id = '{BIG}'")
    ((id_,),) = client.execute(f"SELECT id FROM requests WHERE project_id = '{BIG}' LIMIT 1 OFFSET 1000")
    client.disconnect()
    now = datetime.now(UTC)
    week = f"start={(now - timedelta(days=7)).strftime('%Y-%m-%dT%H:%M:%SZ')}"
    day = f"start={(now - timedelta(days=1)).strftime('%Y-%m-%dT%H:%M:%SZ')}"
    yield Question("list", "/v1/requests")
    yield Question("list, model", "/v1/requests?model=claude-opus-4-1")
    yield Question("list, model nobody uses", "/v1/requests?model=nobody")
    yield Question("list, busiest user", f"/v1/requests?user_id={heavy}")
    yield Question("list, rare user", f"/v1/requests?user_id={light}")
    yield Question("list, user nobody is", "/v1/requests?user_id=nobody")
    yield Question("list, common property", "/v1/requests?property.environment=dev")
    yield Question("list, rare property", "/v1/requests?property.customer=cust-1990")
    yield Question("list, property nobody has", "/v1/requests?property.customer=nobody")
    yield Question("list, 5xx", "/v1/requests?status=5xx")
    yield Question("list, session", f"/v1/requests?session_id={session}")
    yield Question("list, dearest", "/v1/requests?sort=cost")
    yield Question("list, slowest", "/v1/requests?sort=latency")
    yield Question("list, most tokens", "/v1/requests?sort=tokens")
    yield Question("one by id", f"/v1/requests/{id_}")
    yield Question("one by a foreign id", "/v1/requests/01000000-0000-4000-a000-000000000009")
    yield Question("30 d, total", "/v1/metrics")
    yield Question("30 d by day", "/v1/metrics?group_by=time&bucket=1d")
    yield Question("30 d by hour", "/v1/metrics?group_by=time&bucket=1h")
    yield Question("7 d by hour and model", f"/v1/metrics?group_by=time,model&bucket=1h&{week}")
    yield Question("30 d by model", "/v1/metrics?group_by=model")
    yield Question("30 d by provider", "/v1/metrics?group_by=provider")
    yield Question("30 d by status", "/v1/metrics?group_by=status")
    yield Question("30 d, one model by day", "/v1/metrics?group_by=time&bucket=1d&model=gpt-4o-mini")
    yield Question("1 d by 5 minutes", f"/v1/metrics?group_by=time&bucket=5m&{day}")
    yield Question("30 d by user", "/v1/metrics?group_by=user&sort=cost")
    yield Question("30 d, one user by day", f"/v1/metrics?group_by=time&bucket=1d&user_id={light}")
    yield Question("30 d by property", "/v1/metrics?group_by=property.customer&sort=cost")
    yield Question("7 d by property and hour", f"/v1/metrics?group_by=time,property.feature&bucket=1h&{week}")
    yield Question("30 d, one property by day", "/v1/metrics?group_by=time&bucket=1d&property.environment=dev")
    yield Question("30 d, users by cost", "/v1/users")
    yield Question("30 d, users last seen", "/v1/users?sort=last_seen")
    yield Question("30 d, sessions last seen", "/v1/sessions")
    yield Question("30 d, sessions by cost", "/v1/sessions?sort=cost")
    yield Question("1 d, property by model, raw", f"/v1/metrics?group_by=model&property.environment=dev&{day}")
    yield Question("30 d, rare user by model, raw", f"/v1/metrics?group_by=model&user_id={light}")
    yield Question("30 d by key", "/v1/metrics?group_by=key")
    yield Question("30 d, one key by day", "/v1/metrics?group_by=time&bucket=1d&key=web")
    yield Question("30 d, property by model", "/v1/metrics?group_by=model&property.environment=dev")


async def ask(settings: ClickHouseSettings, runs: int) -> bool:
    """Print the table. False: a question took longer than its budget."""
    within = True
    with TemporaryDirectory() as folder:
        shared = SharedSettings(data_dir=Path(folder), clickhouse=settings)
        async with open_keys(shared) as keys:
            key = (await keys.create(name="load", permissions=["read"])).text
        app = create_app(ControlSettings(query_timeout_s=60), shared)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://control", headers=headers, timeout=120
            ) as client:
                print(f"{'question':36}{'median ms':>10}{'worst':>8}{'CPU ms':>8}{'rows':>7}  source")
                for question in questions(settings):
                    times = []
                    used_before_ms = cpu_ms(settings)
                    for _ in range(runs):
                        started = time.perf_counter()
                        answer = await client.get(question.path)
                        times.append((time.perf_counter() - started) * 1000)
                    used_ms = (cpu_ms(settings) - used_before_ms) / runs
                    said = answer.json()
                    listed = next(
                        (said[name] for name in ("requests", "rows", "users", "sessions") if name in said), [said]
                    )
                    median = statistics.median(times)
                    late = median > BUDGET_MS
                    within = within and not late
                    note = f"{said.get('source', '')}{'' if answer.status_code in (200, 404) else answer.text[:200]}"
                    mark = " OVER BUDGET" if late else ""
                    print(
                        f"{question.name:36}{median:10.0f}{max(times):8.0f}{used_ms:8.0f}{len(listed):7}  {note}{mark}",
                        flush=True,
                    )
    return within


def cpu_ms(settings: ClickHouseSettings) -> float:
    """CPU time the server has used for queries and merges since it started."""
    client = connect(settings, network_compression_method="lz4")
    ((used,),) = client.execute(
        "SELECT sum(value) / 1000 FROM system.events WHERE event IN ('UserTimeMicroseconds', 'SystemTimeMicroseconds')"
    )
    client.disconnect()
    return float(used)


def storage(settings: ClickHouseSettings) -> float:
    """Bytes on disk a request, rollups included, bodies not; printed by table."""
    client = connect(settings, network_compression_method="lz4")
    ((requests,),) = client.execute("SELECT count() FROM requests")
    tables = client.execute(
        "SELECT table, sum(rows), sum(bytes_on_disk), count() FROM system.parts WHERE active AND database = %(database)s "
        "AND table NOT IN ('migrations', 'bodies') GROUP BY table ORDER BY 3 DESC",
        {"database": settings.database},
    )
    client.disconnect()
    print(f"\n{'table':24}{'rows':>12}{'MB':>9}{'bytes a request':>17}{'parts':>7}")
    for table, rows, size, parts in tables:
        print(f"{table:24}{rows:12,}{size / 1e6:9.1f}{size / requests:17.1f}{parts:7}")
    total = float(sum(size for _, _, size, _ in tables) / requests)
    print(f"{'all':24}{requests:12,}{'':9}{total:17.1f}   (at most {BYTES_BUDGET:g})")
    return total


@contextmanager
def server(given: argparse.Namespace) -> Iterator[ClickHouseSettings]:
    """The server named, else one of our own."""
    if given.clickhouse is not None:
        host, _, port = given.clickhouse.rpartition(":")
        yield ClickHouseSettings(
            host=host, port=int(port), user=given.user, password=SecretStr(given.password), database=given.database
        )
        return
    with TemporaryDirectory(prefix="heliograph-load-") as folder, running_clickhouse(given.data or Path(folder)) as own:
        yield own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the embedded server, kept (default: a temporary one)")
    parser.add_argument("--clickhouse", help="host:port of another server's native protocol")
    parser.add_argument("--user", default="heliograph")
    parser.add_argument("--password", default="")
    parser.add_argument(
        "--database", default="heliograph_queries", help="made there; its rows are kept for the next time"
    )
    parser.add_argument("--rows", type=int, default=30_000_000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with server(given) as settings:
        migrate(settings, RetentionSettings())
        with store_errors():
            fill(settings, given.rows)
            settle(settings)
            size = storage(settings)
            print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        within = asyncio.run(ask(settings, given.runs))
    return 0 if within and size <= BYTES_BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
