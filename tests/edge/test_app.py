"""What the edge tells of its health."""

import asyncio
from pathlib import Path

import pytest

from edge.app import _ready
from edge.policies.snapshots import KeySnapshots
from ingest.spool import open_spool
from schemas.settings import EdgeSettings, SpoolSettings


async def test_an_edge_whose_spool_does_not_write_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EdgeSettings(auth="optional")
    snapshots = KeySnapshots("redis://127.0.0.1:1", tmp_path / "keys.json", poll_s=5)
    spool = open_spool(tmp_path, SpoolSettings(linger_ms=1))
    assert _ready(spool, snapshots, settings)[0] == 200

    def failing(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ingest.spool.os.write", failing)
    spool.append(b"event")
    await asyncio.sleep(0.2)
    status, told = _ready(spool, snapshots, settings)
    assert status == 503
    assert b"the spool does not write" in told
    monkeypatch.undo()
    await asyncio.sleep(1)
    assert _ready(spool, snapshots, settings)[0] == 200
    await spool.close()
