import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingest import frames
from ingest.log import LogError, LogGap, LogUnavailable, Plan
from ingest.planner import resume
from ingest.spool import dropped_events, open_spool
from ingest.spool_log import SpoolLog, SpoolReader, partition_of
from ingest.spool_plan import read_plan, read_resumed, spool_owner, write_plan, write_resumed
from schemas.batch import Batch
from schemas.settings import SpoolSettings

SETTINGS = SpoolSettings(linger_ms=1)
SMALL_FILES = SpoolSettings(linger_ms=1, segment_bytes=64 * 1024)


def payload(number: int, size: int = 100) -> bytes:
    return f"{number:08d}".encode().ljust(size, b".")


def numbers(records: list[bytes]) -> list[int]:
    return [int(record[:8]) for record in records]


async def fill(root: Path, start: int, count: int, settings: SpoolSettings = SETTINGS, size: int = 100) -> Path:
    """Append `count` events and close; gives the spool's folder."""
    spool = open_spool(root, settings)
    for number in range(start, start + count):
        assert spool.append(payload(number, size))
        if spool.crowded:
            await spool.room()
        if number % 50 == 0:
            await asyncio.sleep(0.002)
    await spool.close()
    return spool.folder


def batch(folder: Path, first: int, last: int) -> Batch:
    where = partition_of(folder)
    return Batch(where.topic, where.number, first, last)


async def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 500)
    records = SpoolReader(tmp_path).read(batch(folder, 100, 299))
    assert [record.offset for record in records] == list(range(100, 300))
    assert numbers([record.payload for record in records]) == list(range(100, 300))


async def test_a_clean_stop_loses_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, SETTINGS)
    for number in range(1000):
        spool.append(payload(number))
    await spool.close()
    assert spool.durable == 1000
    assert len(SpoolReader(tmp_path).read(batch(spool.folder, 0, 999))) == 1000


async def test_offsets_go_on_after_a_restart(tmp_path: Path) -> None:
    await fill(tmp_path, 0, 10)
    folder = await fill(tmp_path, 10, 10)
    records = SpoolReader(tmp_path).read(batch(folder, 0, 19))
    assert numbers([record.payload for record in records]) == list(range(20))


async def test_a_batch_may_span_files(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 400, SMALL_FILES, size=1000)
    assert len(frames.segments(folder)) > 2
    records = SpoolReader(tmp_path).read(batch(folder, 0, 399))
    assert numbers([record.payload for record in records]) == list(range(400))


async def test_a_repeated_batch_is_byte_for_byte_the_same(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 300, SMALL_FILES, size=900)
    reader = SpoolReader(tmp_path)
    first = reader.read(batch(folder, 50, 250))
    reader.read(batch(folder, 0, 299))
    assert reader.read(batch(folder, 50, 250)) == first
    assert SpoolReader(tmp_path).read(batch(folder, 50, 250)) == first


async def test_a_half_written_record_is_cut_off_at_the_next_start(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 10)
    newest = frames.segments(folder)[-1].path
    with newest.open("ab") as file:
        file.write(frames.header(b"x" * 50) + b"only a part")
    await fill(tmp_path, 10, 5)
    records = SpoolReader(tmp_path).read(batch(folder, 0, 14))
    assert numbers([record.payload for record in records]) == list(range(15))


async def test_a_damaged_record_costs_none_of_those_behind_it_at_the_next_start(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 10)
    path = frames.segments(folder)[-1].path
    data = bytearray(path.read_bytes())
    data[4 * 108 + 20] ^= 0x01
    path.write_bytes(data)
    await fill(tmp_path, 10, 5)
    records = SpoolReader(tmp_path).read(batch(folder, 0, 14))
    assert [record.offset for record in records if record.corrupt] == [4]
    assert numbers([r.payload for r in records if not r.corrupt]) == [n for n in range(15) if n != 4]


async def test_damage_at_the_end_is_cut_off_behind_the_last_whole_record_and_its_bytes_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await fill(tmp_path, 0, 10)
    path = frames.segments(folder)[-1].path
    data = bytearray(path.read_bytes())
    data[4 * 108 + 20] ^= 0x01
    for record in (8, 9):
        data[record * 108 + 20] ^= 0x01
    path.write_bytes(bytes(data) + b"half")
    spool = open_spool(tmp_path, SETTINGS)
    await spool.close()
    assert spool.durable == 8
    assert path.read_bytes() == data[: 8 * 108]
    assert [record.__dict__["bytes"] for record in caplog.records if "cut off" in record.message] == [2 * 108 + 4]


async def test_a_file_is_looked_through_at_a_start_without_being_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5_000_000
    await fill(tmp_path, 0, 3, size=size)
    pread, read_bytes = os.pread, list[int]()

    def watched(descriptor: int, count: int, position: int) -> bytes:
        read_bytes.append(len(data := pread(descriptor, count, position)))
        return data

    monkeypatch.setattr("ingest.frames.os.pread", watched)
    spool = open_spool(tmp_path, SETTINGS)
    await spool.close()
    assert spool.durable == 3
    assert max(read_bytes) <= 1024 * 1024
    assert sum(read_bytes) < 3 * size + 1000


async def test_the_end_does_not_count_a_half_written_record(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 10)
    with frames.segments(folder)[-1].path.open("ab") as file:
        file.write(frames.header(b"x" * 50) + b"only a part")
    log = SpoolLog(tmp_path, batch_events=100, batch_bytes=1 << 20)
    (where,) = await log.partitions()
    assert await log.end(where) == 10


async def test_an_offset_that_was_planned_is_never_given_out_again(tmp_path: Path) -> None:
    """After power loss the file may end before what was planned, and the ledger may hold those batches already."""
    folder = await fill(tmp_path, 0, 10)
    write_plan(folder, Plan(committed=0, cuts=(10,)))
    newest = frames.segments(folder)[-1].path
    os.truncate(newest, newest.stat().st_size - 250)  # the last three records
    spool = open_spool(tmp_path, SETTINGS)
    assert spool.durable == 10
    spool.append(payload(10))
    await spool.close()
    records = SpoolReader(tmp_path).read(batch(folder, 0, 10))
    assert [record.offset for record in records] == list(range(11))
    assert [record.offset for record in records if record.corrupt] == [7, 8, 9]


async def test_a_damaged_record_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 10)
    path = frames.segments(folder)[0].path
    data = bytearray(path.read_bytes())
    data[4 * 108 + 20] ^= 0xFF
    path.write_bytes(data)
    records = SpoolReader(tmp_path).read(batch(folder, 0, 9))
    assert [record.offset for record in records if record.corrupt] == [4]
    assert len(records) == 10


@pytest.mark.parametrize("zeros", [8, 4096])
async def test_a_tail_of_zeros_holds_no_events(tmp_path: Path, zeros: int) -> None:
    """What power loss leaves where a file had grown and its data was not yet on the disk."""
    folder = await fill(tmp_path, 0, 1)
    path = frames.segments(folder)[0].path
    path.write_bytes(path.read_bytes() + bytes(zeros))
    assert list(frames.payloads(path.read_bytes())) == [(payload(0), True)]
    log = SpoolLog(tmp_path, batch_events=100, batch_bytes=1 << 20)
    (where,) = await log.partitions()
    assert await log.end(where) == 1
    await fill(tmp_path, 1, 1)
    records = SpoolReader(tmp_path).read(batch(folder, 0, 1))
    assert numbers([record.payload for record in records]) == [0, 1]


async def test_events_not_there_yet_are_to_be_asked_for_again(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 10)
    with pytest.raises(LogUnavailable, match="from 10 on"):
        SpoolReader(tmp_path).read(batch(folder, 5, 12))


async def test_freed_events_are_a_gap_and_not_silence(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 400, SMALL_FILES, size=1000)
    log = SpoolLog(tmp_path, batch_events=100, batch_bytes=1 << 20)
    (where,) = await log.partitions()
    await log.save_plan(where, Plan(committed=300))
    with pytest.raises(LogGap, match="no longer in"):
        SpoolReader(tmp_path).read(batch(folder, 0, 20))
    assert len(SpoolReader(tmp_path).read(batch(folder, 300, 399))) == 100


async def test_only_whole_committed_files_are_freed(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 400, SMALL_FILES, size=1000)
    before = frames.segments(folder)
    log = SpoolLog(tmp_path, batch_events=100, batch_bytes=1 << 20)
    (where,) = await log.partitions()
    await log.save_plan(where, Plan(committed=before[1].first + 1))
    assert frames.segments(folder) == before[1:]
    await log.save_plan(where, Plan(committed=400))
    assert frames.segments(folder) == before[-1:]  # the newest stays: its writer appends to it


async def test_a_batch_is_cut_at_its_bytes_as_well_as_its_events(tmp_path: Path) -> None:
    await fill(tmp_path, 0, 100, size=1000)
    log = SpoolLog(tmp_path, batch_events=50, batch_bytes=10_080)
    (where,) = await log.partitions()
    assert await log.cut(where, start=0, end=100) == 10
    roomy = SpoolLog(tmp_path, batch_events=50, batch_bytes=1 << 30)
    await roomy.partitions()
    assert await roomy.cut(where, start=0, end=100) == 50
    assert await roomy.cut(where, start=80, end=100) == 100


async def test_two_processes_have_two_spools(tmp_path: Path) -> None:
    first, second = open_spool(tmp_path, SETTINGS), open_spool(tmp_path, SETTINGS)
    assert first.folder != second.folder
    assert first.id != second.id
    await first.close()
    third = open_spool(tmp_path, SETTINGS)
    assert third.folder == first.folder
    await second.close()
    await third.close()


async def test_a_spool_has_one_planner(tmp_path: Path) -> None:
    with spool_owner(tmp_path), pytest.raises(Exception, match="another planner"), spool_owner(tmp_path):
        pass
    with spool_owner(tmp_path):
        pass


async def test_a_full_spool_drops_and_counts(tmp_path: Path) -> None:
    limit = 16 * 1024 * 1024
    spool = open_spool(tmp_path, SpoolSettings(linger_ms=1, bytes_max=limit, queue_bytes_max=32 * 1024 * 1024))
    taken = 0
    for number in range(40):
        taken += spool.append(payload(number, 1024 * 1024))
        await asyncio.sleep(0.12)
    assert spool.level == "full"
    assert spool.dropped == 40 - taken > 0
    assert taken * 1024 * 1024 >= limit  # not before it is full
    await asyncio.sleep(1.2)
    assert dropped_events(spool.folder) == spool.dropped
    await spool.close()
    assert spool.durable == taken


async def test_a_nearly_full_spool_asks_for_events_without_bodies(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, SpoolSettings(linger_ms=1, bytes_max=16 * 1024 * 1024))
    for number in range(15):
        spool.append(payload(number, 1024 * 1024))
    await asyncio.sleep(2.5)
    spool.append(b"small")
    await asyncio.sleep(1.2)
    assert spool.level == "no_bodies"
    await spool.close()


async def test_a_crowded_list_waits_for_the_disk_rather_than_dropping(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, SpoolSettings(linger_ms=50, queue_bytes_max=1024 * 1024))
    for number in range(12):
        spool.append(payload(number, 100_000))
    assert spool.crowded
    await asyncio.wait_for(spool.room(), 5)
    assert spool.queue_bytes == 0
    await spool.close()
    assert spool.durable == 12


async def test_a_disk_that_fails_for_a_while_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path, SETTINGS)
    spool.append(payload(0))
    await asyncio.sleep(0.1)
    write, failures = os.write, iter([3, 3])

    def failing(descriptor: int, data: memoryview) -> int:
        if next(failures, None):
            write(descriptor, data[:7])  # a part arrives, then the disk is full
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr("ingest.spool.os.write", failing)
    spool.append(payload(1))
    await asyncio.sleep(1.5)
    spool.append(payload(2))
    await spool.close()
    records = SpoolReader(tmp_path).read(batch(spool.folder, 0, 2))
    assert numbers([record.payload for record in records]) == [0, 1, 2]


def failing_times(
    monkeypatch: pytest.MonkeyPatch, name: str, times: int, error: type[Exception] = OSError
) -> list[int]:
    """Let this call of the writer thread fail so many times; what is left of them is in the list given back."""
    real, left = getattr(os, name), [times]

    def failing(*args: object) -> object:
        if left[0] and threading.current_thread().name == "spool":
            left[0] -= 1
            raise error("Input/output error")
        return real(*args)

    monkeypatch.setattr(f"ingest.spool.os.{name}", failing)
    return left


async def until(seen: Callable[[], bool], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not seen():  # noqa: ASYNC110 - a thread is waited for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_change_of_file_that_the_disk_fails_is_tried_again_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    spool = open_spool(tmp_path, SMALL_FILES)
    left = failing_times(monkeypatch, call, 2)
    for number in range(80):
        assert spool.append(payload(number, 1000))
    await until(lambda: spool.failing)
    await until(lambda: not left[0] and not spool.failing)
    for number in range(80, 100):
        assert spool.append(payload(number, 1000))
    await spool.close()
    assert len(frames.segments(spool.folder)) == 2
    records = SpoolReader(tmp_path).read(batch(spool.folder, 0, 99))
    assert numbers([record.payload for record in records]) == list(range(100))


async def test_no_next_file_to_be_had_goes_on_with_the_old_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path, SMALL_FILES)
    monkeypatch.setattr("ingest.spool._open_segment", _no_more_files)
    for start in (0, 70):
        for number in range(start, start + 70):
            spool.append(payload(number, 1000))
        await asyncio.sleep(0.2)
    monkeypatch.undo()
    assert not spool.failing
    for number in range(140, 210):
        spool.append(payload(number, 1000))
    await spool.close()
    assert [segment.first for segment in frames.segments(spool.folder)] == [0, 210]
    records = SpoolReader(tmp_path).read(batch(spool.folder, 0, 209))
    assert numbers([record.payload for record in records]) == list(range(210))


def _no_more_files(*_: object) -> int:
    raise OSError(24, "Too many open files")


async def test_a_half_written_group_that_cannot_be_cut_back_is_cut_before_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path, SETTINGS)
    spool.append(payload(0))
    await until(lambda: spool.durable == 1)
    failing_times(monkeypatch, "ftruncate", 2)
    write, failures = os.write, iter([3, 3])

    def failing(descriptor: int, data: memoryview) -> int:
        if next(failures, None):
            write(descriptor, data[:7])
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr("ingest.spool.os.write", failing)
    spool.append(payload(1))
    await until(lambda: spool.durable == 2)
    await spool.close()
    records = SpoolReader(tmp_path).read(batch(spool.folder, 0, 1))
    assert numbers([record.payload for record in records]) == [0, 1]


async def test_a_disk_that_begins_to_fail_lets_those_go_who_wait_for_room_and_counts_what_it_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path, SpoolSettings(linger_ms=50, queue_bytes_max=1024 * 1024))
    left = failing_times(monkeypatch, "write", 10**9)
    for number in range(12):
        assert spool.append(payload(number, 100_000))
    assert spool.crowded
    await asyncio.wait_for(spool.room(), 5)
    assert spool.failing
    assert not spool.append(payload(12))
    assert spool.dropped == 1
    left[0] = 0
    await until(lambda: not spool.failing)
    assert spool.append(payload(12))
    await spool.close()
    assert spool.durable == 13
    assert dropped_events(spool.folder) == 1


async def test_what_a_failing_disk_does_not_take_at_the_stop_counts_as_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path, SETTINGS)
    failing_times(monkeypatch, "write", 10**9)
    for number in range(5):
        spool.append(payload(number))
    await spool.close()
    assert (spool.durable, spool.dropped) == (0, 5)
    assert dropped_events(spool.folder) == 5


async def test_no_call_waits_for_a_writer_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path, SpoolSettings(linger_ms=50, queue_bytes_max=1024 * 1024))
    failing_times(monkeypatch, "write", 10**9, ValueError)
    for number in range(12):
        assert spool.append(payload(number, 100_000))
    assert spool.crowded
    await asyncio.wait_for(spool.room(), 5)
    assert spool.failing
    assert not spool.append(payload(12))
    await asyncio.wait_for(spool.close(), 5)
    assert dropped_events(spool.folder) == spool.dropped == 13


def test_kill_9_loses_at_most_the_linger(tmp_path: Path) -> None:
    """A child appends and says how far it is; everything it said a moment before the kill is there."""
    script = (
        "import asyncio, sys, pathlib\n"
        "from ingest.spool import open_spool\n"
        "from schemas.settings import SpoolSettings\n"
        "async def main():\n"
        "    spool = open_spool(pathlib.Path(sys.argv[1]), SpoolSettings())\n"
        "    for number in range(1000000):\n"
        "        spool.append(b'%08d' % number)\n"
        "        if number % 20 == 0:\n"
        "            print(number, spool.durable, flush=True)\n"
        "            await asyncio.sleep(0.001)\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(500)]
    child.kill()
    appended, durable = map(int, (said[-1] + b"").split())
    rest = child.stdout.read().splitlines()
    child.stdout.close()
    child.wait()
    if rest and len(rest[-1].split()) == 2:
        durable = int(rest[-1].split()[1])
    (folder,) = tmp_path.glob("edge-*")
    stored = [
        int(record)
        for segment in frames.segments(folder)
        for record, whole in frames.payloads(segment.path.read_bytes())
        if whole
    ]
    assert stored == list(range(len(stored)))
    assert len(stored) >= durable > 0
    assert appended > 5000


def test_a_plan_that_cannot_be_read_is_not_taken_for_a_fresh_one(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{broken")
    with pytest.raises(Exception, match="cannot be read"):
        read_plan(tmp_path)
    assert read_plan(tmp_path / "elsewhere") == Plan()


async def test_a_pause_written_without_its_time_is_lifted_too(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 1)
    (folder / "plan.json").write_text('{"committed":0,"cuts":[],"paused":"why","shipped":false}')
    log = SpoolLog(tmp_path, batch_events=100, batch_bytes=1 << 20)
    assert await resume(log) == ["why"]
    assert await resume(log) == []
    assert read_plan(folder) == Plan()


def test_processes_that_lift_a_pause_at_once_are_not_in_each_others_way(tmp_path: Path) -> None:
    write_plan(tmp_path, Plan(committed=7, paused="why", paused_ms=5))
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: write_resumed(tmp_path, 5), range(100)):
            assert read_plan(tmp_path) == Plan(committed=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "resume.json"]


async def test_a_resume_that_cannot_be_read_leaves_the_pause_to_the_next(tmp_path: Path) -> None:
    folder = await fill(tmp_path, 0, 1)
    write_plan(folder, Plan(paused="why", paused_ms=5))
    (folder / "resume.json").write_text("{broken")
    assert read_plan(folder).paused == "why"
    with pytest.raises(LogError, match=r"resume\.json cannot be read"):
        read_resumed(folder)
    assert await resume(SpoolLog(tmp_path, batch_events=100, batch_bytes=1 << 20)) == ["why"]
    assert read_plan(folder).paused is None
