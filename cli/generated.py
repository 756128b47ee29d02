"""Files made from the code: docs/settings.md, the published schemas of the event and of the enriched request."""

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec
import typer

from cli.environment import console, errors
from schemas.enriched import EnrichedRequest
from schemas.event import Event
from schemas.settings import ALL
from schemas.variables import OF_COMMANDS, Setting, prefix_of, settings_list

_ROOT = Path(__file__).resolve().parents[1]


def generated(
    check: bool = typer.Option(False, "--check", help="Change nothing; fail when a file is not up to date."),
) -> None:
    """Make the generated files anew."""
    stale = []
    for path, text in files().items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.relative_to(_ROOT))
        if not check:
            path.write_text(text)
            console.print(f"written {path.relative_to(_ROOT)}")
    if check and stale:
        errors.print(f"not up to date: {', '.join(map(str, stale))}; run: make format")
        raise typer.Exit(1)


def files() -> dict[Path, str]:
    return {
        _ROOT / "docs" / "settings.md": settings_page(),
        _ROOT / "schemas" / "event.v1.schema.json": event_schema(),
        _ROOT / "schemas" / "requests.enriched.v1.schema.json": enriched_schema(),
    }


def event_schema() -> str:
    """The event as JSON Schema. On the wire it is msgpack; bodies, written here as base64, are raw bytes there."""
    return _schema("Heliograph event v1", Event)


def enriched_schema() -> str:
    return _schema("Heliograph enriched request v1", EnrichedRequest)


def _schema(title: str, type_: type) -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **msgspec.json.schema(type_),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


_INTRO = """# Settings

Made from `schemas/settings.py` by `make format`; not to be edited by hand.

Every setting is an environment variable. A `.env` file beside the data folder is read too; what the environment says
wins. Words in angle brackets stand for a name of yours. A variable with one of the prefixes below that names no setting
stops start-up with the nearest right name.
"""


def settings_page() -> str:
    parts = [_INTRO]
    for group in ALL:
        prefix = prefix_of(group)
        parts.append(_section(f"`{prefix}…`", (group.__doc__ or "").strip(), settings_list(group, prefix)))
    parts.append(_section("Of commands", "What a command of a person reads for itself; no service does.", OF_COMMANDS))
    return "".join(parts)


def _section(title: str, about: str, settings: Iterable[Setting]) -> str:
    lines = [f"\n## {title}\n\n{about}\n\n| variable | default | meaning |\n|---|---|---|\n"]
    for setting in settings:
        default = f"`{setting.default}`" if setting.default else ""
        lines.append(f"| `{setting.variable}` | {default} | {setting.meaning} |\n")
    return "".join(lines)
