"""What every command needs first: the .env file, checked settings, and the embedded servers where none are named."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from dotenv import load_dotenv
from rich.console import Console

from cli import log_choice
from infra.local.errors import LocalError
from schemas.settings import SettingsError, SharedSettings
from schemas.variables import load

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


@contextmanager
def settings_errors() -> Iterator[None]:
    """Say what is wrong with a setting and end with status 2."""
    try:
        yield
    except SettingsError as error:
        errors.print("[bold red]A setting is not right[/]")
        for line in str(error).splitlines():
            errors.print(f"  {line}", markup=False)
        raise typer.Exit(2) from None


def data_dir() -> Path:
    return Path(os.environ.get("HELIOGRAPH_DATA_DIR", ".heliograph"))


def read_env_file() -> None:
    """Take the .env file beside the data folder; what is set already stays."""
    load_dotenv(data_dir().absolute().parent / ".env", override=False)


def shared_settings() -> SharedSettings:
    """Settings with the addresses of this machine's own servers, and of the data folder's Kafka, where no others are given.

    They are put into the environment, so that processes started from here have them too.
    """
    read_env_file()
    with settings_errors():
        given = load(SharedSettings)
        folder = given.data_dir.absolute()
        os.environ["HELIOGRAPH_DATA_DIR"] = str(folder)
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(folder / "metrics"))
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).mkdir(parents=True, exist_ok=True)
        try:
            log_choice.fill_in(folder)
        except LocalError as error:
            raise SettingsError(str(error)) from error
        if given.redis.url is None:
            from infra.local import valkey

            server = valkey.find(folder) or valkey.prepare(folder)
            os.environ["HELIOGRAPH_REDIS__URL"] = server.url
        if given.clickhouse.host is None:
            from infra.local import clickhouse

            store = clickhouse.find(folder) or clickhouse.prepare(folder)
            os.environ["HELIOGRAPH_CLICKHOUSE__HOST"] = store.host
            os.environ["HELIOGRAPH_CLICKHOUSE__PORT"] = str(store.port)
            os.environ["HELIOGRAPH_CLICKHOUSE__USER"] = store.user
            os.environ["HELIOGRAPH_CLICKHOUSE__PASSWORD"] = store.password
        if given.database_url is None:
            os.environ["HELIOGRAPH_DATABASE_URL"] = f"sqlite+aiosqlite:///{folder / 'control.db'}"
        return load(SharedSettings)


def embedded() -> set[str]:
    """Which servers are this machine's own to run: those that the settings give no address for. Ask before
    `shared_settings` fills them in."""
    with settings_errors():
        given = load(SharedSettings)
    return {
        name
        for name, missing in (("valkey", given.redis.url is None), ("clickhouse", given.clickhouse.host is None))
        if missing
    }
