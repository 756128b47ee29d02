"""`heliograph doctor`: asks every part how it is, and says what to do about those that are not well."""

import asyncio
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import typer
from rich.markup import escape

from cli.environment import console, settings_errors, shared_settings
from schemas.settings import ControlSettings, EdgeSettings, MetricsSettings, SharedSettings
from schemas.variables import load

_DISK_FREE_MIN = 2 * 1024**3
_TIMEOUT_S = 5


class Finding(NamedTuple):
    """What a check saw. `remedy` is empty when all is well, and has a line for each thing to do."""

    saw: str
    remedy: str = ""


def doctor() -> None:
    """Check every part; say what is wrong and what to do. Ends with status 1 when something is."""
    shared = shared_settings()
    with settings_errors():
        edge, control, metrics = load(EdgeSettings), load(ControlSettings), load(MetricsSettings)
    metrics_page = f"http://127.0.0.1:{metrics.port}/metrics"
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("data folder", lambda: _folder(shared)),
        ("Redis", lambda: _redis(shared)),
        ("ClickHouse", lambda: _clickhouse(shared)),
        ("tables", lambda: _tables(shared)),
        ("spool", lambda: _spool(shared)),
        *([("Kafka", lambda: _kafka(shared))] if shared.kafka.bootstrap_servers is not None else []),
        ("edge", lambda: _service(f"http://127.0.0.1:{edge.port}/readyz", "heliograph edge")),
        ("control", lambda: _service(f"http://127.0.0.1:{control.port}/readyz", "heliograph control")),
        ("metrics", lambda: _service(metrics_page, "heliograph metrics")),
        ("planner", lambda: _running(metrics_page, "heliograph_planners", "heliograph plan")),
        ("workers", lambda: _running(metrics_page, "heliograph_worker_processes", "heliograph worker")),
    ]
    wrong = 0
    for name, check in checks:
        try:
            finding = check()
        except Exception as error:  # whatever goes wrong in a check is the finding
            finding = Finding(
                f"{type(error).__name__}: {error}", "see the line above; 'heliograph up' starts every part"
            )
        wrong += bool(finding.remedy)
        _show(name, finding)
    console.print("\nAll is well." if not wrong else f"\n{wrong} of {len(checks)} checks found something.")
    raise typer.Exit(1 if wrong else 0)


def _show(name: str, finding: Finding) -> None:
    mark = "[red]✗[/]" if finding.remedy else "[green]✓[/]"
    console.print(f" {mark} {name:<12} {escape(finding.saw)}", soft_wrap=True)
    for line in finding.remedy.splitlines():
        console.print(f"   {'':<12} [yellow]→ {escape(line)}[/]", soft_wrap=True)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding(version, "use Python 3.11, 3.12 or 3.13: delete .venv, then make run PYTHON=…")
    return Finding(version)


def _folder(shared: SharedSettings) -> Finding:
    folder = shared.data_dir
    probe = folder / ".doctor"
    probe.write_text("")
    probe.unlink()
    free = shutil.disk_usage(folder).free
    saw = f"{folder}, {free / 1e9:.0f} GB free"
    return Finding(saw, "free some disk: the spool needs room when the store is away" if free < _DISK_FREE_MIN else "")


def _redis(shared: SharedSettings) -> Finding:
    import redis

    assert shared.redis.url is not None
    client = redis.Redis.from_url(
        shared.redis.url.get_secret_value(), socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
    )
    try:
        info = client.info()
    except redis.RedisError as error:
        return Finding(f"not reachable: {error}", "start it with 'heliograph up', or set HELIOGRAPH_REDIS__URL")
    finally:
        client.close()
    assert isinstance(info, dict)
    name = info.get("server_name", "redis")
    return Finding(f"{name} {info.get('valkey_version', info['redis_version'])}, {info['used_memory_human']} used")


def _clickhouse(shared: SharedSettings) -> Finding:
    from ingest.clickhouse import StoreError, connect, store_errors

    settings = shared.clickhouse.model_copy(update={"database": "default", "query_timeout_s": _TIMEOUT_S})
    try:
        with store_errors():
            ((version,),) = connect(settings).execute("SELECT version()")
    except StoreError as error:
        return Finding(str(error), "start it with 'heliograph up', or set HELIOGRAPH_CLICKHOUSE__HOST and __PORT")
    return Finding(f"{version} at {settings.host}:{settings.port}")


def _tables(shared: SharedSettings) -> Finding:
    from ingest.clickhouse import StoreError, connect, store_errors
    from ingest.migrations import migrations

    wanted = [migration.name for migration in migrations(replicated=shared.clickhouse.replicated)]
    try:
        with store_errors():
            applied = {name for (name,) in connect(shared.clickhouse).execute("SELECT name FROM migrations")}
    except StoreError as error:
        return Finding(str(error), "run: heliograph migrate")
    missing = [name for name in wanted if name not in applied]
    return Finding(
        f"{len(applied)} migrations applied", f"run: heliograph migrate ({', '.join(missing)})" if missing else ""
    )


def _spool(shared: SharedSettings) -> Finding:
    from ingest.frames import segments
    from ingest.spool import dropped_events
    from ingest.spool_log import spools
    from ingest.spool_plan import read_plan

    folders = list(spools(shared.data_dir / "spool").values())
    size = sum(segment.path.stat().st_size for folder in folders for segment in segments(folder))
    paused = [plan.paused for folder in folders if (plan := read_plan(folder)).paused]
    dropped = sum(dropped_events(folder) for folder in folders)
    saw = f"{len(folders)} in use, {size / 1e6:.1f} MB"
    if paused:
        return Finding(f"{saw}; planning is paused: {paused[0]}", "mend the cause, then: heliograph plan resume")
    if dropped:
        return Finding(
            f"{saw}; {dropped:,} events were dropped because it was full", "raise HELIOGRAPH_SPOOL__BYTES_MAX"
        )
    return Finding(saw)


def _running(metrics_page: str, gauge: str, command: str) -> Finding:
    """How many processes of a kind run here, as they count themselves."""
    with urllib.request.urlopen(metrics_page, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - our own address
        found = re.search(rf"^{gauge} ([0-9.]+)$".encode(), answer.read(), re.MULTILINE)
    count = int(float(found[1])) if found else 0
    if not count:
        return Finding("none runs here", f"start everything with 'heliograph up', or this alone: {command}")
    return Finding(f"{count} run{'s' if count == 1 else ''}")


def _kafka(shared: SharedSettings) -> Finding:
    from ingest.kafka_log import KafkaPauses
    from ingest.log import LogError
    from ingest.topics import check_topics

    async def look() -> tuple[list[str], list[str]]:
        wrong = await check_topics(shared.kafka)
        pauses = KafkaPauses(shared.kafka)
        return wrong, [reason for one in await pauses.partitions() if (reason := await pauses.paused(one))]

    try:
        wrong, paused = asyncio.run(look())
    except LogError as error:
        return Finding(str(error), "start it (on this machine: make kafka); until then events wait in the spool")
    saw = f"{shared.kafka.bootstrap_servers} answers"
    if wrong:
        return Finding(f"{saw}; {'; '.join(wrong)}", "run: heliograph migrate")
    if paused:
        return Finding(f"{saw}; planning is paused: {paused[0]}", "mend the cause, then: heliograph plan resume")
    return Finding(f"{saw}, its topics are as they should be")


def _service(url: str, command: str) -> Finding:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - our own address
            return Finding(f"{url} answers {answer.status}")
    except urllib.error.HTTPError as error:
        told = error.read().decode(errors="replace")
        return Finding(
            f"{url} answers {error.code}", "\n".join(_not_ready(told)) or told or f"see the log of: {command}"
        )
    except OSError as error:
        reason = getattr(error, "reason", error)
        return Finding(
            f"{url} does not answer ({reason})", f"start everything with 'heliograph up', or this alone: {command}"
        )


def _not_ready(told: str) -> list[str]:
    """What is wrong and what to do, a line for each, from the answer of a service that is not ready; empty where it is
    in no form of ours."""
    try:
        page = msgspec.json.decode(told, type=_NotReady)
    except msgspec.DecodeError:
        return []
    failing = [(name, part) for name, part in page.parts.items() if not part.ok]
    return [
        *(f"{name}: {problem}" for name, problem in page.problems.items()),
        *(f"{name}: {'; '.join(word for word in (part.problem, part.remedy) if word)}" for name, part in failing),
    ]


class _Part(msgspec.Struct):
    ok: bool
    problem: str | None = None
    remedy: str | None = None


class _NotReady(msgspec.Struct):
    """The edge says `problems`, control its `parts`."""

    problems: dict[str, str] = {}
    parts: dict[str, _Part] = {}
