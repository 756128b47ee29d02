"""Commands for what is stored: migrate, replay, reset."""

import asyncio
import os
import shutil
from datetime import UTC, datetime

import typer

from cli.environment import console, data_dir, errors, read_env_file, settings_errors, shared_settings
from schemas.settings import KafkaSettings


def migrate() -> None:
    """Bring the ClickHouse tables and the control database to this version's form. Safe to run again."""
    from control.keys import open_keys
    from ingest.clickhouse import StoreError
    from ingest.migrations import migrate as migrate_tables

    shared = shared_settings()
    try:
        done = migrate_tables(shared.clickhouse, shared.retention)
    except StoreError as error:
        errors.print(f"[bold red]ClickHouse could not be migrated:[/] {error}")
        raise typer.Exit(1) from None
    if shared.kafka.bootstrap_servers is not None:
        done = [*done, *_migrate_topics(shared.kafka)]
    for name in done:
        console.print(f"  [green]✓[/] {name}")

    async def control_data() -> None:
        async with open_keys(shared) as keys:  # opening brings the database up to date
            await keys.publish()

    asyncio.run(control_data())
    console.print("Tables and control data are up to date." if done else "Everything was up to date.")


def _migrate_topics(settings: KafkaSettings) -> list[str]:
    from ingest.log import LogError
    from ingest.topics import check_topics, migrate_topics

    try:
        with settings_errors():
            done = asyncio.run(migrate_topics(settings))
            for wrong in asyncio.run(check_topics(settings)):
                errors.print(f"[yellow]{wrong}[/]")
    except LogError as error:
        errors.print(f"[bold red]Kafka's topics could not be migrated:[/] {error}")
        raise typer.Exit(1) from None
    return done


_TIME = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
_FROM = typer.Option(None, "--from", formats=_TIME, help="Only letters that died at or after this time (UTC).")
_TO = typer.Option(None, "--to", formats=_TIME, help="Only letters that died before it (UTC).")


def replay(
    died_from: datetime | None = _FROM,
    died_to: datetime | None = _TO,
    topic: str = typer.Option("", help="Only letters of this topic (as a batch names it)."),
    reason: str = typer.Option("", help="Only letters that died of this."),
) -> None:
    """Try dead letters again. Each counts once, however often this is run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from ingest.clickhouse import StoreError
    from schemas.settings import WorkerSettings, load
    from workers.app import price_book
    from workers.replay import Selection, count_dead_letters, replay_dead_letters

    shared = shared_settings()
    chosen = Selection(
        topic=topic or None,
        reason=reason or None,
        died_from_ms=_epoch_ms(died_from),
        died_until_ms=_epoch_ms(died_to),
    )
    try:
        total = count_dead_letters(shared.clickhouse, chosen)
        with Progress(
            TextColumn("replaying"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as progress:
            task = progress.add_task("replay", total=total)
            result = replay_dead_letters(
                shared.clickhouse,
                prices=price_book(load(WorkerSettings)),
                keep_days=shared.retention.requests_days,
                selection=chosen,
                progress=lambda counts: progress.update(task, completed=counts.read),
            )
    except StoreError as error:
        errors.print(f"[bold red]Replay broke off:[/] {error}\nWhat was stored stays; run it again for the rest.")
        raise typer.Exit(1) from None
    table = Table("", "dead letters", title="Replay", title_justify="left")
    table.columns[1].justify = "right"
    for what, count in (
        ("read", result.read),
        ("stored before", result.stored_before),
        ("stored now", result.stored_now),
        ("dead again", result.dead_again),
        *((f"  {why}", count) for why, count in result.reasons.items()),
    ):
        table.add_row(what, f"{count:,}")
    console.print(table)


def _epoch_ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.replace(tzinfo=UTC).timestamp() * 1000)


def reset(yes: bool = typer.Option(False, "--yes", help="Do not ask.")) -> None:
    """Delete this machine's data folder: calls, keys, everything. Asks first."""
    from infra.local.errors import FolderHeld
    from infra.local.lock import hold

    read_env_file()
    folder = data_dir().absolute()
    if not folder.exists():
        console.print(f"{folder} does not exist; there is nothing to delete.")
        return
    if not any((folder / mark).exists() for mark in ("spool", "clickhouse", "valkey", "control.db", "run")):
        errors.print(f"[red]{folder} does not look like a data folder of Heliograph; nothing was deleted.[/]")
        raise typer.Exit(1)
    size = sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names)
    if not yes:
        typer.confirm(f"Delete {folder} ({size / 1e6:,.0f} MB: every call, key and setting kept there)?", abort=True)
    try:
        with hold(folder):
            shutil.rmtree(folder)
    except FolderHeld as error:
        errors.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    console.print("Deleted. The next start is a fresh one.")
