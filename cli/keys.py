"""`heliograph keys …` and `heliograph projects …`: work with or without a running control server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from cli.environment import console, errors, settings_errors, shared_settings

if TYPE_CHECKING:  # each command loads what it needs when it runs: `heliograph edge` must not wait for SQLAlchemy
    from control.keys import Keys

keys_app = typer.Typer(help="Make, list and revoke Heliograph keys.", no_args_is_help=True)
projects_app = typer.Typer(help="Make and list projects.", no_args_is_help=True)

T = TypeVar("T")
_WIDTH_MAX = 1000
_PROJECT = typer.Option("default", "--project", help="The project whose calls these are.")


@keys_app.command("create")
def create(
    name: str = typer.Option(..., "--name", help="What the key is for; shown in lists and in the rows of its calls."),
    project: str = _PROJECT,
    permissions: str = typer.Option("proxy,read", "--permissions", help="Of proxy, read, write, admin; comma between."),
    expires: str = typer.Option("", "--expires", help="Time until it ends: 30d, 12h, 3600s. Left out: never."),
) -> None:
    """Make a key and print it, this once."""
    from control.keys import parse_expiry

    wanted = [word.strip() for word in permissions.split(",") if word.strip()]

    async def make(keys: "Keys") -> None:
        ends = parse_expiry(expires) if expires else None
        new = await keys.create(name=name, project=project, permissions=wanted, expires_in_ms=ends)
        # The key alone goes to standard output, so that a script can take it.
        errors.print(f"Key {escape(new.info.name)!r} of project {new.info.project_id}; it is not shown again:")
        print(new.text)
        if not new.published:
            errors.print("[yellow]Redis was not reached: edges learn of the key when it is back.[/]")

    _run(make)


@keys_app.command("list")
def list_keys(project: str = typer.Option("", "--project", help="Only this project's.")) -> None:
    """Every key there is, revoked ones too; never its text."""
    table = Table("name", "key", "project", "permissions", "state", "made", "ends", "id", box=None, header_style="dim")

    async def fill(keys: "Keys") -> None:
        now_ms = int(time.time() * 1000)
        for key in await keys.list_keys(project or None):
            state = key.state(now_ms)
            style = {"active": "green", "expired": "yellow"}.get(state, "red")
            table.add_row(
                escape(key.name), f"…{key.last4}", key.project_id, ",".join(key.permissions), f"[{style}]{state}[/]",
                _date(key.created_ms), _date(key.expires_ms) if key.expires_ms else "never", key.id,
            )  # fmt: skip

    _run(fill)
    if not table.row_count:
        console.print("There are no keys yet; make one with: heliograph keys create --name NAME")
        return
    # As wide as it is, since ids are copied: a narrow terminal breaks the lines, and a pipe need not.
    whole = Measurement.get(console, console.options.update(max_width=_WIDTH_MAX), table).maximum
    Console(width=whole).print(table)


@keys_app.command("revoke")
def revoke(
    id_or_name: str = typer.Argument(..., help="The key's id or name."),
    project: str = typer.Option("", "--project", help="Look among this project's keys only."),
) -> None:
    """Revoke a key, for good. Every edge refuses it within a second."""

    async def end(keys: "Keys") -> None:
        revoked = await keys.revoke(id_or_name, project or None)
        console.print(
            f"Revoked {escape(revoked.info.name)!r} (…{revoked.info.last4}) of project {revoked.info.project_id}."
        )
        if not revoked.published:
            errors.print("[yellow]Redis was not reached: edges still let the key pass until it is back.[/]")

    _run(end)


@projects_app.command("create")
def create_project(name: str = typer.Argument(..., help="a-z, 0-9, - and _; it never changes.")) -> None:
    """Make a project: a tenant whose calls nobody else sees."""

    async def make(keys: "Keys") -> None:
        made = await keys.create_project(name)
        console.print(f"Project {made.id}. A key for it: heliograph keys create --project {made.id} --name NAME")

    _run(make)


@projects_app.command("list")
def list_projects() -> None:
    """Every project."""

    async def show(keys: "Keys") -> None:
        for project in await keys.list_projects():
            console.print(f"{project.id:<30} [dim]made {_date(project.created_ms)}[/]")

    _run(show)


def _run(work: Callable[["Keys"], Awaitable[T]]) -> T:
    from control.errors import ControlError
    from control.keys import open_keys

    async def opened() -> T:
        async with open_keys(shared) as keys:
            return await work(keys)

    shared = shared_settings()
    try:
        with settings_errors():
            return asyncio.run(opened())
    except ControlError as error:
        errors.print(f"[red]{escape(str(error))}[/]")
        raise typer.Exit(1) from None


def _date(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
