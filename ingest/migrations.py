"""Brings the ClickHouse tables to this version's form: numbered SQL files, each recorded once it has run."""

import math
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from ingest.clickhouse import connect, store_errors
from schemas.settings import ClickHouseSettings, RetentionSettings

_TTL = {
    "requests": ("created_at", "requests_days"),
    "attempts": ("created_at", "requests_days"),
    "scores": ("created_at", "requests_days"),
    "property_updates": ("created_at", "requests_days"),
    "bodies": ("created_at", "bodies_days"),
    "dead_letters": ("died_at", "dead_letter_days"),
    "batches": ("inserted_at", "ledger_days"),
    "requests_by_minute": ("minute", "rollup_days"),
    "requests_by_hour": ("hour", "rollup_days"),
    "requests_by_day": ("day", "rollup_days"),
    "totals_by_hour": ("hour", "rollup_days"),
    "users_by_day": ("day", "rollup_days"),
    "users_by_week": ("week", "rollup_days"),
    "sessions_by_day": ("day", "rollup_days"),
    "properties_by_hour": ("hour", "rollup_days"),
    "property_models_by_day": ("day", "rollup_days"),
    "keys_by_hour": ("hour", "rollup_days"),
}


class Migration(NamedTuple):
    name: str
    statements: list[str]


def migrations(*, replicated: bool) -> Iterator[Migration]:
    """Every migration in order, its engines filled in."""
    for file in sorted((files("schemas") / "migrations").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".sql"):
            continue
        text = re.sub(r"^\s*--.*$", "", file.read_text(), flags=re.MULTILINE)
        text = re.sub(r"\{\{engine (\w+)\}\}", r"Replicated\1" if replicated else r"\1", text)
        # The window must hold more inserts than can be repeated; an insert takes a place per partition it touches.
        window = "replicated_deduplication_window" if replicated else "non_replicated_deduplication_window"
        seconds = f", {window}_seconds = 604800" if replicated else ""  # an hour, unless told
        text = text.replace("{{dedup}}", f"{window} = 10000{seconds}")
        yield Migration(file.name.removesuffix(".sql"), [s.strip() for s in text.split(";") if s.strip()])


def migrate(settings: ClickHouseSettings, retention: RetentionSettings, *, kafka_hours: int = 0) -> list[str]:
    """Create the database, run what has not run, set retention. Safe to run at any time, by several at once.

    Args:
        kafka_hours: how long Kafka keeps events; as long as it does, the ledger keeps their batches.

    Returns:
        Names of the migrations that ran.

    Raises:
        StoreUnavailable: run it again.
        StoreRefused: a statement is wrong for this server.
    """
    done: list[str] = []
    with store_errors():
        first = connect(settings.model_copy(update={"database": "default"}))
        first.execute(f"CREATE DATABASE IF NOT EXISTS {settings.database}")
        first.disconnect()
        client = connect(settings)
        engine = "ReplicatedMergeTree" if settings.replicated else "MergeTree"
        client.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name String, applied_at DateTime DEFAULT now()) "
            f"ENGINE = {engine} ORDER BY name"
        )
        applied = {name for (name,) in client.execute("SELECT name FROM migrations")}
        for migration in migrations(replicated=settings.replicated):
            if migration.name in applied:
                continue
            for statement in migration.statements:
                client.execute(statement)
            client.execute("INSERT INTO migrations (name) VALUES", [(migration.name,)])
            done.append(migration.name)
        _set_retention(client, _at_least(retention, kafka_hours), settings.database)
        client.disconnect()
    return done


def _at_least(retention: RetentionSettings, kafka_hours: int) -> RetentionSettings:
    """A replay asks the ledger for what it reads in Kafka and of dead letters, whatever their age."""
    days = max(retention.ledger_days, retention.dead_letter_days, math.ceil(kafka_hours / 24))
    return retention.model_copy(update={"ledger_days": days})


def _set_retention(client: "object", retention: RetentionSettings, database: str) -> None:
    for table, (column, setting) in _TTL.items():
        days = getattr(retention, setting)
        wanted = f"toDateTime({column}) + toIntervalDay({days})"
        ((definition,),) = client.execute(  # type: ignore[attr-defined]
            "SELECT create_table_query FROM system.tables WHERE database = %(database)s AND name = %(table)s",
            {"database": database, "table": table},
        )
        if wanted not in definition:
            # Old parts follow at their next merge; a change of days must not rewrite a table at once.
            client.execute(  # type: ignore[attr-defined]
                f"ALTER TABLE {table} MODIFY TTL {wanted} SETTINGS materialize_ttl_after_modify = 0"
            )
