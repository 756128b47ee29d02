"""Moved bodies: what a name may be, how much is read of an object, and how long it is kept."""

import asyncio
import os
import threading
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from ingest import metrics
from ingest.log import Record
from ingest.objects import Objects, ObjectsUnavailable, ObjectTooLarge, belongs_to
from ingest.objects_expiry import Expiry, expire
from schemas.event import Body, Event, pack
from schemas.settings import ObjectSettings, RetentionSettings

MIB = 1024 * 1024
NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
KEPT = RetentionSettings(bodies_days=30, dead_letter_days=10)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(ObjectSettings(), tmp_path)


async def put(objects: Objects, day: date, *, project: str = "p", count: int = 1) -> list[str]:
    names = [f"bodies/{project}/{day}/{number}/request-1" for number in range(count)]
    for name in names:
        await objects.put(name, b"x")
    return names


def standing(objects: Objects, names: list[str]) -> int:
    return sum(objects.get(name) is not None for name in names)


async def test_a_day_beyond_the_retention_is_deleted_and_the_next_is_kept(objects: Objects) -> None:
    last_kept = (NOW - timedelta(days=30)).date()
    kept = await put(objects, last_kept) + await put(objects, NOW.date(), project="q")
    old = await put(objects, last_kept - timedelta(days=1), count=3) + await put(objects, date(2020, 1, 1), project="q")
    assert expire(objects, KEPT, now=NOW, at_once=100) == 4
    assert (standing(objects, kept), standing(objects, old)) == (2, 0)
    assert expire(objects, KEPT, now=NOW, at_once=100) == 0


async def test_a_turn_deletes_no_more_than_it_may_and_the_next_goes_on(objects: Objects) -> None:
    names = await put(objects, date(2026, 1, 1), count=25) + await put(objects, date(2026, 1, 2), count=5)
    turns = [expire(objects, KEPT, now=NOW, at_once=10) for _ in range(4)]
    assert turns == [10, 10, 10, 0]
    assert standing(objects, names) == 0


async def test_no_empty_folders_are_left(objects: Objects, tmp_path: Path) -> None:
    await put(objects, date(2026, 1, 1), count=200)
    expire(objects, KEPT, now=NOW, at_once=1000)
    assert [path for path in (tmp_path / "objects").rglob("*")] == []


async def test_what_could_not_be_shipped_is_kept_as_long_as_a_dead_letter(objects: Objects, tmp_path: Path) -> None:
    for name, days in (("old", 11), ("new", 9)):
        await objects.put(f"unshippable/s/{name}", b"x")
        at = (NOW - timedelta(days=days)).timestamp()
        os.utime(tmp_path / "objects" / "unshippable" / "s" / name, (at, at))
    assert expire(objects, KEPT, now=NOW, at_once=100) == 1
    assert objects.get("unshippable/s/new") == b"x"


async def test_a_folder_of_another_form_is_left_alone(objects: Objects) -> None:
    await objects.put("bodies/p/not-a-day/1/request-1", b"x")
    await objects.put("elsewhere/2020-01-01/1", b"x")
    assert expire(objects, KEPT, now=NOW, at_once=100) == 0


async def test_shippers_that_delete_at_once_do_no_harm(objects: Objects) -> None:
    names = await put(objects, date(2026, 1, 1), count=300)
    threads = [
        threading.Thread(target=expire, args=(objects, KEPT), kwargs={"now": NOW, "at_once": 1000}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert standing(objects, names) == 0


async def test_a_shipper_deletes_now_and_then_while_it_runs(objects: Objects) -> None:
    names = await put(objects, date(2020, 1, 1))
    before = metrics.objects_expired._value.get()
    with Expiry(objects, ObjectSettings(expire_every_s=0.05), KEPT):
        ended = threading.Event()
        for _ in range(200):
            if not standing(objects, names):
                break
            ended.wait(0.02)
    assert standing(objects, names) == 0
    assert metrics.objects_expired._value.get() == before + 1


def test_a_store_that_is_away_is_counted_and_left_to_the_next_turn(objects: Objects, tmp_path: Path) -> None:
    before = metrics.object_expiry_failures._value.get()
    objects.open()
    (tmp_path / "objects").rmdir()
    (tmp_path / "objects").write_text("a file where a folder must be")
    Expiry(objects, ObjectSettings(), KEPT).turn()
    assert metrics.object_expiry_failures._value.get() == before + 1


async def test_more_than_may_be_read_is_not_read(objects: Objects) -> None:
    await objects.put("bodies/p/d/1/request-1", b"x" * 11)
    assert await objects.read("bodies/p/d/1/request-1", bytes_max=11) == b"x" * 11
    with pytest.raises(ObjectTooLarge):
        await objects.read("bodies/p/d/1/request-1", bytes_max=10)


@pytest.mark.parametrize("name", ["bodies/p/d/1/nothing", "../../etc/passwd", "bodies//x"])
async def test_what_is_not_there_is_none(objects: Objects, name: str) -> None:
    assert await objects.read(name, bytes_max=10) is None
    assert objects.get(name) is None


async def test_a_store_that_cannot_be_reached_is_not_an_object_that_is_gone(tmp_path: Path) -> None:
    options = {"aws_region": "x", "aws_access_key_id": "x", "aws_secret_access_key": "x", "allow_http": "true"}
    url = ObjectSettings(url="s3://bucket", options={**options, "aws_endpoint": "http://127.0.0.1:1"}, timeout_s=0.5)
    with pytest.raises(ObjectsUnavailable):
        await Objects(url, tmp_path).read("bodies/p/d/1/request-1", bytes_max=10)


@pytest.mark.parametrize(
    ("name", "project", "is_its"),
    [
        ("bodies/p/2026-01-01/i/request-1", "p", True),
        ("bodies/pq/2026-01-01/i/request-1", "p", False),
        ("bodies/p%2Fq/2026-01-01/i/request-1", "p/q", True),
        ("unshippable/s/1", "p", False),
    ],
)
def test_a_body_is_its_projects_by_its_name(name: str, project: str, is_its: bool) -> None:
    assert belongs_to(name, project) == is_its


# What workers read back.


def moved(offset: int, *names: str, size: int = 300_000, tail: bytes = b"") -> Record:
    """An event whose large bodies are objects of these names."""
    bodies = [Body(size=size + len(tail), tail=tail, reference=name) for name in names]
    request, response = (*bodies, None, None)[:2]
    event = Event(
        id=str(offset), created_ms=1, project_id="p", provider="openai", api="other", method="POST", path="/",
        outcome="success", latency_ms=1.0, request=request, response=response,
    )  # fmt: skip
    return Record(offset, pack(event))


def test_bodies_are_read_several_at_a_time_and_no_more_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(ObjectSettings(read_at_once=8), tmp_path)
    running: set[str] = set()
    most = [0]

    def slow(name: str) -> bytes | None:
        running.add(name)
        most[0] = max(most[0], len(running))
        time.sleep(0.005)
        running.discard(name)
        return None if name == "gone" else name.encode()

    monkeypatch.setattr(objects, "get", slow)
    records = [*(moved(n, f"{n}/request", f"{n}/response") for n in range(50)), moved(50, "gone"), Record(51, b"none")]
    names = [f"{n}/{side}" for n in range(50) for side in ("request", "response")]
    assert objects.bodies_of(records) == {name: name.encode() for name in names}
    assert 4 < most[0] <= 8


def test_a_body_that_cannot_be_read_is_told_without_reading_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(ObjectSettings(read_at_once=2), tmp_path)
    asked: list[str] = []

    def away(name: str) -> bytes | None:
        asked.append(name)
        time.sleep(0.01)
        raise ObjectsUnavailable("away")

    monkeypatch.setattr(objects, "get", away)
    with pytest.raises(ObjectsUnavailable):
        objects.bodies_of([moved(n, f"{n}") for n in range(100)])
    time.sleep(0.05)
    assert len(asked) < 10


async def test_a_store_that_answers_late_is_asked_for_several_at_a_time(tmp_path: Path) -> None:
    """The client waits without holding up the other threads."""
    open_now, most = [0], [0]

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        open_now[0] += 1
        most[0] = max(most[0], open_now[0])
        await asyncio.sleep(0.05)
        open_now[0] -= 1
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(late, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = {"aws_region": "x", "aws_access_key_id": "x", "aws_secret_access_key": "x", "allow_http": "true"}
    settings = ObjectSettings(
        url="s3://bucket", options={**options, "aws_endpoint": f"http://127.0.0.1:{port}"}, read_at_once=8
    )
    objects = Objects(settings, tmp_path)
    async with server:
        assert await asyncio.to_thread(objects.bodies_of, [moved(n, f"{n}") for n in range(24)]) == {}
    assert most[0] == 8


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([0, 0, 0], [3], id="no large body"),
        pytest.param([MIB, MIB, MIB], [1, 1, 1], id="each as much as may be held"),
        pytest.param([MIB // 2] * 5, [2, 2, 1], id="two at a time"),
        pytest.param([MIB // 2, 0, MIB // 2, 0, 1], [4, 1], id="those without are no burden"),
        pytest.param([1, 9 * MIB, 1], [1, 1, 1], id="one is more than may be held"),
    ],
)
def test_a_part_has_no_more_bodies_than_may_be_held(tmp_path: Path, sizes: list[int], parts: list[int]) -> None:
    objects = Objects(ObjectSettings(read_bytes=MIB), tmp_path)
    records = [
        moved(n, f"{n}", size=size, tail=b"the tail travels with its event") if size else moved(n)
        for n, size in enumerate(sizes)
    ]
    found = list(objects.parts(records))
    assert [len(part) for part in found] == parts
    assert [record for part in found for record in part] == records
