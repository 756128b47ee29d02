"""`heliograph tail`: calls as they become rows."""

import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from cli.environment import console, errors, read_env_file, settings_errors
from schemas.settings import ControlSettings
from schemas.variables import load

if TYPE_CHECKING:
    import httpx

_POLL_S = 0.5
_OVERLAP_S = 30
_REMEMBERED = 10_000
_OUTCOME_STYLE = {"success": "green", "error": "red", "timeout": "red", "cancelled": "yellow", "refused": "magenta"}


def tail(
    lines: int = typer.Option(10, "--lines", "-n", min=0, max=1000, help="How many past calls to show first."),
    user: str = typer.Option("", "--user", help="Only this user's calls."),
    model: str = typer.Option("", "--model", help="Only calls of this model."),
    key: str = typer.Option("", "--key", envvar="HELIOGRAPH_KEY", help="A Heliograph key that may read."),
    follow: bool = typer.Option(True, "--follow/--no-follow", help="Go on until Ctrl-C."),
) -> None:
    """Follow calls live: one line each, a second or so after they end."""
    import httpx

    read_env_file()
    key = key or os.environ.get("HELIOGRAPH_KEY", "")  # the .env file is read after the options are
    with settings_errors():
        control = load(ControlSettings)
    base = os.environ.get("HELIOGRAPH_CONTROL_URL", f"http://127.0.0.1:{control.port}")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    wanted = {k: v for k, v in (("user_id", user), ("model", model)) if v}
    seen: dict[str, None] = {}
    away = False
    console.print(_heading(), soft_wrap=True)
    with httpx.Client(base_url=base, headers=headers, timeout=10) as client:
        since = datetime.now(UTC) - timedelta(days=1)
        limit = lines
        while True:
            try:
                rows = _rows(client, since, limit, wanted)
            except httpx.TransportError as error:
                if not away:
                    errors.print(
                        f"[yellow]{base} does not answer ({type(error).__name__}); is 'heliograph up' running?[/]"
                    )
                if not follow:
                    raise typer.Exit(1) from None
                away = True
                time.sleep(2)
                continue
            away = False
            for row in reversed(rows):
                if row["id"] not in seen:
                    seen[row["id"]] = None
                    console.print(_line(row), soft_wrap=True)
            for old in list(seen)[:-_REMEMBERED]:
                del seen[old]
            if not follow:
                return
            # A call that ends later may have begun earlier, so a while is asked for again.
            since = datetime.now(UTC) - timedelta(seconds=_OVERLAP_S)
            limit = 1000
            time.sleep(_POLL_S)


def _rows(client: "httpx.Client", since: datetime, limit: int, wanted: dict[str, str]) -> list[dict[str, Any]]:
    if limit == 0:
        return []
    answer = client.get("/v1/requests", params={"start": since.isoformat(), "limit": limit, **wanted})
    if answer.status_code >= 400:
        errors.print(f"[red]{answer.json().get('error', {}).get('message', answer.text)}[/]")
        raise typer.Exit(1)
    rows: list[dict[str, Any]] = answer.json()["requests"]
    return rows


def _heading() -> Text:
    return Text(
        f"{'time':<12} {'status':<6} {'model':<34} {'user':<14} {'in':>7} {'out':>6} {'cost':>11} {'took':>8} {'first':>8}",
        style="dim",
    )


def _line(row: dict[str, Any]) -> Text:
    at = datetime.fromisoformat(row["created_at"]).astimezone()
    usage, cost = row["usage"], row["cost"]
    mark = {"reported": "", "counted": "", "estimated": "~", "none": ""}[usage["source"]]
    line = Text(f"{at:%H:%M:%S}.{at.microsecond // 1000:03} ", style="dim")
    status = str(row["status"]) if row["outcome"] in ("success", "error", "refused") else row["outcome"][:6]
    line.append(f" {status:<6}", style=_OUTCOME_STYLE[row["outcome"]])
    line.append(f" {_cut(row['model'] or row['requested_model'] or row['path'], 34):<34}", style="cyan")
    line.append(f" {_cut(row['user_id'] or '–', 14):<14}")
    line.append(f" {_count(usage['input_tokens'], mark):>7} {_count(usage['output_tokens'], mark):>6}")
    line.append(_money(cost["usd"]))
    line.append(f" {_ms(row['latency_ms']):>8} {_ms(row['first_token_ms']):>8}", style="dim")
    if row["properties"]:
        line.append("  " + " ".join(f"{k}={v}" for k, v in row["properties"].items()), style="dim")
    return line


def _money(usd: str | None) -> str:
    return f" {'?' if usd is None else f'${float(usd):.6f}':>11}"


def _count(value: int | None, mark: str) -> str:
    return "?" if value is None else f"{mark}{value}"


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.0f} ms"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
