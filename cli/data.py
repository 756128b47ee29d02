"""Commands for what is stored: migrate, replay, reset."""

import os
import shutil
from datetime import UTC, datetime

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli.environment import console, data_dir, errors, read_env_file, shared_settings
from ingest.clickhouse import StoreError


def migrate() -> None:
    """Bring the ClickHouse tables and the control database to this version's form. Safe to run again."""
    from control.database import upgrade
    from ingest.migrations import migrate as migrate_tables

    shared = shared_settings()
    try:
        done = migrate_tables(shared.clickhouse, shared.retention)
    except StoreError as error:
        errors.print(f"[bold red]ClickHouse could not be migrated:[/] {error}")
        raise typer.Exit(1) from None
    for name in done:
        console.print(f"  [green]✓[/] {name}")
    upgrade(shared)
    console.print("Tables and control data are up to date." if done else "Everything was up to date.")


def replay(
    since: datetime | None = typer.Option(None, "--from", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Died at or after (UTC)."),
    until: datetime | None = typer.Option(None, "--to", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Died before (UTC)."),
    topic: str = typer.Option("", help="Only this topic's dead letters."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Try each one, store nothing."),
) -> None:
    """Try dead letters again. Each counts once, however often this is run."""
    from schemas.settings import WorkerSettings, load
    from workers.replay import replay_dead_letters

    shared = shared_settings()
    with Progress(
        TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("replay", total=None)
        result = replay_dead_letters(
            shared,
            load(WorkerSettings),
            since=since.replace(tzinfo=UTC) if since else None,
            until=until.replace(tzinfo=UTC) if until else None,
            topic=topic or None,
            dry_run=dry_run,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    table = Table("what", "dead letters", title="Replay", title_justify="left")
    for what, count in (
        ("read", result.read),
        ("stored before", result.already_stored),
        ("stored now" if not dry_run else "would be stored", result.stored),
        ("dead again", result.dead_again),
    ):
        table.add_row(what, f"{count:,}")
    console.print(table)


def reset(yes: bool = typer.Option(False, "--yes", help="Do not ask.")) -> None:
    """Delete this machine's data folder: calls, keys, everything. Asks first."""
    from infra.local.lock import DataDirHeld, hold

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
    except DataDirHeld as error:
        errors.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    console.print("Deleted. The next start is a fresh one.")
