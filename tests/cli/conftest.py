"""An environment of a test's own, in which no command starts or looks for a server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder with nothing beside it, and servers' addresses where nobody answers. Gives the folder.

    What a command or a .env file puts into the environment goes with the test.
    """
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("HELIOGRAPH_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "data"
    monkeypatch.setenv("HELIOGRAPH_DATA_DIR", str(folder))
    monkeypatch.setenv("HELIOGRAPH_REDIS__URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("HELIOGRAPH_CLICKHOUSE__HOST", "127.0.0.1")
    monkeypatch.setenv("HELIOGRAPH_CLICKHOUSE__PORT", "1")
    yield folder
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
