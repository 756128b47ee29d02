"""Large bodies live in the object store, and one request shows them all the same."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from ingest.objects import Objects, large_bodies, without_bodies
from schemas.event import Body, Event
from schemas.settings import ControlBounds, ObjectSettings, SharedSettings
from tests.control.world import World, opened

LARGE = '{"model": "gpt-4o", "n": 12345678901234567890, "text": "' + "é" * 200_000 + '"}'
BOUNDS = ControlBounds(object_bytes=600_000, object_timeout_s=0.5, objects_at_once=2)


@pytest_asyncio.fixture
async def world(shared: SharedSettings) -> AsyncIterator[World]:
    async with opened(shared, bounds=BOUNDS) as world:
        yield world


async def moved(world: World, head: bytes, *, tail: bytes = b"", project: str | None = None) -> tuple[str, str]:
    """A stored request whose answer the shipper has moved: its id, and the body's name."""
    row = world.request(response_bytes=len(head) + len(tail))
    body = Body(size=len(head) + len(tail), head=head, tail=tail)
    event = Event(
        id=str(row["id"]), created_ms=int(row["created_at"].timestamp() * 1000), project_id=project or world.project,
        provider="openai", api="openai.chat", method="POST", path="/", outcome="success", latency_ms=1, response=body,
    )  # fmt: skip
    bodies = large_bodies(event, more_than=1000)
    for name, data in bodies.items():
        await objects_of(world).put(name, data)
    left = without_bodies(event, list(bodies)).response
    assert left is not None
    assert left.reference is not None
    world.store([row])
    keys = {"project_id": row["project_id"], "created_at": row["created_at"], "id": row["id"]}
    stays = {"request": '{"a": 1}', "response": left.head.decode(), "response_tail": left.tail.decode()}
    world.store([{**keys, **stays, "response_reference": left.reference}], "bodies")
    return str(row["id"]), left.reference


def objects_of(world: World) -> Objects:
    return Objects(world.shared.objects, world.shared.data_dir)


async def response_of(world: World, id_: str) -> Any:
    answer = await (await world.client()).get(f"/v1/requests/{id_}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["request"] == {"a": 1}
    return answer.json()["response"]


async def test_a_moved_body_is_shown_as_if_it_had_never_been(world: World) -> None:
    id_, _ = await moved(world, LARGE.encode())
    answer = await (await world.client()).get(f"/v1/requests/{id_}")
    assert answer.json()["response"]["n"] == 12345678901234567890
    assert LARGE in answer.text
    helicone = (await (await world.client()).get(f"/v1/request/{id_}")).json()["data"]
    assert helicone["response_body"] == answer.json()["response"]


async def test_a_moved_body_that_is_not_whole_keeps_its_tail(world: World) -> None:
    id_, _ = await moved(world, b"h" * 2000, tail=b"t" * 10)
    assert await response_of(world, id_) == {
        "_heliograph": "truncated", "size": 2010, "head": "h" * 2000, "tail": "t" * 10,
    }  # fmt: skip


async def test_a_moved_body_that_is_no_text_is_shown_as_one_that_was_not_moved(world: World) -> None:
    id_, _ = await moved(world, b"\xff\x00" * 1000)
    assert await response_of(world, id_) == "\ufffd\x00" * 1000


async def test_a_body_that_is_gone_says_so_and_is_not_empty(world: World) -> None:
    id_, reference = await moved(world, b"x" * 2000)
    (world.shared.data_dir / "objects" / reference).unlink()
    assert await response_of(world, id_) == {"_heliograph": "gone", "size": 2000, "reference": reference}


async def test_a_body_larger_than_an_answer_may_hold_names_its_place(world: World) -> None:
    id_, reference = await moved(world, b"x" * 600_001)
    assert await response_of(world, id_) == {
        "_heliograph": "stored_elsewhere", "size": 600_001, "reference": reference, "problem": "too_large",
    }  # fmt: skip


async def test_a_body_of_another_project_is_never_read(world: World) -> None:
    id_, reference = await moved(world, b"x" * 2000, project="somebody-elses")
    assert await response_of(world, id_) == {"_heliograph": "gone", "size": 2000, "reference": reference}


async def test_a_store_that_is_away_is_waited_for_no_longer_than_the_bound(shared: SharedSettings) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    host, port = silent.getsockname()
    options = {"aws_region": "x", "aws_access_key_id": "x", "aws_secret_access_key": "x", "allow_http": "true"}
    objects = ObjectSettings(url="s3://bucket", options={**options, "aws_endpoint": f"http://{host}:{port}"})
    async with opened(shared, bounds=BOUNDS) as world:
        id_, reference = await moved(world, b"x" * 2000)
    async with opened(shared.model_copy(update={"objects": objects}), bounds=BOUNDS) as other:
        client = await other.client(project=world.project)
        async with asyncio.timeout(5):
            answer = await client.get(f"/v1/requests/{id_}")
    assert answer.json()["response"] == {
        "_heliograph": "stored_elsewhere", "size": 2000, "reference": reference, "problem": "unavailable",
    }  # fmt: skip
    silent.close()


async def test_a_list_names_the_place_of_moved_bodies_without_reading_them(world: World) -> None:
    id_, reference = await moved(world, b"x" * 2000)
    found = await (await world.client()).post("/v1/request/query-clickhouse", json={"filter": "all"})
    (row,) = found.json()["data"]
    assert row["request_id"] == id_
    assert row["response_body"] == {"_heliograph": "stored_elsewhere", "size": 2000, "reference": reference}
