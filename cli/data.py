"""Commands for what is stored: migrate, reset."""

import asyncio
import os
import shutil

import typer
from rich.markup import escape

from cli.environment import console, data_dir, errors, read_env_file, settings_errors, shared_settings
from schemas.settings import KafkaSettings


def migrate() -> None:
    """Bring the ClickHouse tables and the control database to this version's form. Safe to run again."""
    from control.errors import ControlError
    from control.keys import open_keys
    from ingest.clickhouse import StoreError
    from ingest.migrations import migrate as migrate_tables

    shared = shared_settings()
    try:
        done = migrate_tables(shared.clickhouse, shared.retention, kafka_hours=shared.kafka.retention_hours)
    except StoreError as error:
        errors.print(f"[bold red]ClickHouse could not be migrated:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    if shared.kafka.bootstrap_servers is not None:
        done = [*done, *bring_topics_up_to_date(shared.kafka)]
    for name in done:
        console.print(f"  [green]✓[/] {name}")

    async def control_data() -> None:
        async with open_keys(shared) as keys:  # opening brings the database up to date
            await keys.publish()

    try:
        with settings_errors():
            asyncio.run(control_data())
    except ControlError as error:
        errors.print(f"[bold red]The control database could not be migrated:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    console.print("Tables and control data are up to date." if done else "Everything was up to date.")


def bring_topics_up_to_date(settings: KafkaSettings) -> list[str]:
    """Gives what was done, in words; ends the command where somebody has to decide, or no broker answers."""
    from ingest.log import LogError
    from ingest.topics import check_topics, migrate_topics

    try:
        with settings_errors():
            done = asyncio.run(migrate_topics(settings))
            for wrong in asyncio.run(check_topics(settings)):
                errors.print(f"[yellow]{escape(wrong)}[/]")
    except LogError as error:
        errors.print(f"[bold red]Kafka's topics could not be migrated:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    return done


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
    try:
        with hold(folder), hold(folder / "kafka"):  # the broker of `make kafka` runs apart from `up`
            if not yes:
                what = f"{size / 1e6:,.0f} MB: every call, key and setting kept there"
                typer.confirm(f"Delete {folder} ({what})?", abort=True)
            shutil.rmtree(folder)
    except FolderHeld as error:
        errors.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    console.print("Deleted. The next start is a fresh one.")
