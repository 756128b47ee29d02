"""`heliograph replay`: dead letters, or ranges of Kafka, into the tables. Each event counts once, however often it runs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from cli.environment import console, errors, settings_errors, shared_settings
from schemas import logs
from schemas.settings import SharedSettings, WorkerSettings
from schemas.variables import load

if TYPE_CHECKING:
    from rich.progress import Progress

    from ingest.log import RangeReader
    from workers.replay import Reconciliation, Replayer

replay_app = typer.Typer(help="Try dead letters again, or bring back rows from Kafka.", invoke_without_command=True)

_TIME = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
_DIED_FROM = typer.Option(None, "--from", formats=_TIME, help="Only letters that died at or after this time (UTC).")
_DIED_TO = typer.Option(None, "--to", formats=_TIME, help="Only letters that died before it (UTC).")
_SINCE = typer.Option(None, formats=_TIME, help="What came into Kafka at or after this time (UTC).")
_UNTIL = typer.Option(None, formats=_TIME, help="What came in before it (UTC).")


@replay_app.callback()
def replay(
    context: typer.Context,
    died_from: datetime | None = _DIED_FROM,
    died_to: datetime | None = _DIED_TO,
    topic: str = typer.Option("", help="Only letters of this topic (as a batch names it)."),
    reason: str = typer.Option("", help="Only letters that died of this."),
) -> None:
    """Try dead letters again. Each counts once, however often this is run."""
    if context.invoked_subcommand is not None:
        if given := _given(context):
            errors.print(
                f"{', '.join(given)} before '{context.invoked_subcommand}' would choose among dead letters, which it does "
                "not read. Its own options stand behind it.",
                soft_wrap=True,
            )
            raise typer.Exit(2)
        return
    _refuse_backwards("--from", died_from, "--to", died_to)
    from workers.letters import Selection, count_dead_letters

    shared = _begin()
    chosen = Selection(
        topic=topic or None,
        reason=reason or None,
        died_from_ms=_epoch_ms(died_from),
        died_until_ms=_epoch_ms(died_to),
    )
    with _told(), _progress() as progress:
        total = count_dead_letters(shared.clickhouse, chosen)
        with _replayer(shared, progress, total) as (replayer, _):
            counts = replayer.letters(chosen)
    _show(counts, "dead letters")


@replay_app.command("kafka")
def replay_kafka(
    since: datetime | None = _SINCE,
    until: datetime | None = _UNTIL,
    partition: int | None = typer.Option(None, min=0, help="Only this partition."),
    first: int | None = typer.Option(None, "--from", min=0, help="With --partition: the first offset."),
    last: int | None = typer.Option(None, "--to", min=0, help="With --partition: the last offset."),
    everything: bool = typer.Option(False, "--all", help="All that Kafka holds."),
) -> None:
    """Bring back what Kafka holds and ClickHouse has no row of; what has its row is left alone."""
    by_time, by_offset = (since, until) != (None, None), (first, last) != (None, None)
    if sum([by_time, by_offset or (partition is not None and not by_time), everything]) != 1:
        errors.print("Say what to bring back: --since/--until, or --partition with --from/--to, or --all.")
        raise typer.Exit(2)
    if by_offset and partition is None:
        errors.print("--from and --to are offsets of one partition: say which, with --partition.")
        raise typer.Exit(2)
    _refuse_backwards("--since", since, "--until", until)
    shared = _begin()
    if shared.kafka.bootstrap_servers is None:
        errors.print(
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS is not set: without Kafka the spool is the log, and it keeps no event "
            "once it is stored."
        )
        raise typer.Exit(2)
    from ingest.kafka_ranges import ranges_by_offset, ranges_by_time

    with _told():
        if partition is not None and not by_time:
            ranges = asyncio.run(ranges_by_offset(shared.kafka, partition, first=first, last=last))
        else:
            since_ms, until_ms = _epoch_ms(since), _epoch_ms(until)
            ranges = asyncio.run(
                ranges_by_time(shared.kafka, since_ms=since_ms, until_ms=until_ms, partition=partition)
            )
        for one in ranges:
            console.print(f"  {one.topic} partition {one.partition}: offsets {one.first} to {one.last}")
        total = sum(one.next_offset - one.first for one in ranges)
        with _progress() as progress, _replayer(shared, progress, total) as (replayer, reader):
            counts = replayer.ranges(ranges, reader)
    _show(counts, "events")


def _given(context: typer.Context) -> list[str]:
    """The options that were written out, by name."""
    named = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [
        option
        for name, option in named.items()
        if name is not None and (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    ]


def _refuse_backwards(first: str, begin: datetime | None, second: str, end: datetime | None) -> None:
    if begin is not None and end is not None and begin >= end:
        errors.print(
            f"{first} {begin.isoformat()} is not before {second} {end.isoformat()}: nothing is between them.",
            soft_wrap=True,
        )
        raise typer.Exit(2)


def _begin() -> SharedSettings:
    shared = shared_settings()
    logs.set_up("replay", level=shared.log_level, form=shared.log_format)
    return shared


@contextmanager
def _replayer(shared: SharedSettings, progress: "Progress", total: int) -> "Iterator[tuple[Replayer, RangeReader]]":
    from cli.services import opened
    from ingest.objects import Objects
    from workers.app import price_book
    from workers.replay import Replayer

    settings = load(WorkerSettings)
    task = progress.add_task("replay", total=total)
    log = opened(shared)
    replayer = Replayer(
        shared.clickhouse,
        prices=price_book(settings),
        keep_days=shared.retention.requests_days,
        objects=Objects(shared.objects, shared.data_dir),
        publisher=log.publisher,
        events_max=settings.replay_events,
        patience_s=settings.replay_patience_s,
        progress=lambda _, done: progress.update(task, completed=done),
    )
    try:
        yield replayer, log.reader
    finally:
        replayer.close()
        log.reader.close()


def _progress() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("replaying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def _told() -> Iterator[None]:
    """Say what is wrong and end: with status 2 where something else must be asked for, with 1 where it broke off."""
    from ingest.clickhouse import StoreError
    from ingest.kafka_ranges import NothingThere
    from ingest.log import LogError

    try:
        with settings_errors():
            yield
    except NothingThere as error:
        errors.print(f"[bold red]Nothing was replayed:[/] {escape(str(error))}")
        raise typer.Exit(2) from None
    except (StoreError, LogError) as error:
        errors.print(
            f"[bold red]Replay broke off:[/] {escape(str(error))}\nWhat was stored stays; run it again for the rest."
        )
        raise typer.Exit(1) from None


def _show(counts: "Reconciliation", what: str) -> None:
    from rich.table import Table

    table = Table("", what, title="Replay", title_justify="left")
    table.columns[1].justify = "right"
    for name, count in (
        ("read", counts.read),
        ("stored before", counts.stored_before),
        ("stored now", counts.stored_now),
        ("dead again", counts.dead_again),
        *((f"  {why}", count) for why, count in sorted(counts.reasons.items())),
    ):
        table.add_row(name, f"{count:,}")
    console.print(table)


def _epoch_ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.replace(tzinfo=UTC).timestamp() * 1000)
