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


@pytest.mark.parametrize("kept", [b"no snapshot", b'{"version": 1, "keys": {"\xff": {}}}', b""])
async def test_a_kept_snapshot_that_cannot_be_read_stops_no_start(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "keys.json").write_bytes(kept)
    snapshots = KeySnapshots("redis://127.0.0.1:1", tmp_path / "keys.json", poll_s=5)
    await snapshots.start()
    assert snapshots.keys is None
    await snapshots.close()
