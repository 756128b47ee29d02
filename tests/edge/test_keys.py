"""Keys on the hot path: answered from memory, followed through Redis, never a 401 for an outage."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
import redis

from infra.local import valkey
from schemas.keys import SNAPSHOT_CHANNEL, SNAPSHOT_KEY, Key, KeySnapshot, hash_key
from tests.edge.conftest import Edge, Provider, http, start_edge, stop_edge
from tests.servers import Child, running, valkey_child

_ANSWER = http(b'{"model": "m"}')
_GOOD = "sk-helio-good"


class House:
    """An edge that requires keys, and a Valkey that can be taken away from it."""

    def __init__(self, folder: Path, provider_port: int) -> None:
        server = valkey.prepare(folder / "valkey")
        self.redis: Child = valkey_child(server)
        self.url = server.url
        self.folder = folder
        self.version = 0
        self._provider_port = provider_port
        self.keys = {
            hash_key(_GOOD): Key("k1", "good", "acme", ["proxy", "read"]),
            hash_key("sk-helio-old"): Key("k2", "old", "acme", ["proxy"], expires_ms=1),
            hash_key("sk-helio-reader"): Key("k3", "reader", "acme", ["read"]),
        }

    def publish(self) -> None:
        self.version += 1
        client = redis.Redis.from_url(self.url)
        client.set(SNAPSHOT_KEY, msgspec.json.encode(KeySnapshot(self.version, self.keys)))
        client.publish(SNAPSHOT_CHANNEL, str(self.version))
        client.close()

    def start(self) -> None:
        self.edge, self.process = start_edge(self.folder / "edge", self._provider_port, self.url, EDGE_AUTH="required")


@pytest.fixture
def house(tmp_path: Path, provider_port: int) -> Iterator[House]:
    house = House(tmp_path, provider_port)
    with running(house.redis):
        house.publish()
        house.start()
        yield house
        stop_edge(house.process)


async def call(edge: Edge, key: str | None, *, path: str = "/v1/chat/completions") -> httpx.Response:
    headers = {"Helicone-Auth": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(edge.url + path, json={}, headers=headers)


async def test_each_key_is_answered_by_what_it_is(house: House, provider: Provider) -> None:
    provider.answers(_ANSWER, keep=True)
    edge = house.edge
    assert (await call(edge, _GOOD)).status_code == 200
    event = edge.event()
    assert (event.project_id, event.key_id, event.key_name) == ("acme", "k1", "good")
    for key, status, code, said in (
        (None, 401, "invalid_key", "needs a Heliograph key"),
        ("sk-helio-nobody", 401, "invalid_key", "not known"),
        ("sk-helio-old", 401, "invalid_key", "expired"),
        ("sk-helio-reader", 403, "forbidden", "no permission"),
    ):
        answer = await call(edge, key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert said in answer.json()["error"]["message"]
    # Whose key it is is known of the last two: their projects see the refusals.
    assert [(e.project_id, e.key_name, e.status, e.error_code, e.provider) for e in edge.events(2)] == [
        ("acme", "old", 401, "invalid_key", "openai"),
        ("acme", "reader", 403, "forbidden", "openai"),
    ]
    # In the path, cut before forwarding; in a provider's header, never forwarded.
    assert (await call(edge, None, path=f"/{_GOOD}/v1/chat/completions")).status_code == 200
    assert provider.requests[-1].startswith(b"POST /v1/chat/completions ")
    async with httpx.AsyncClient() as client:
        await client.post(f"{edge.url}/v1/x", json={}, headers={"Authorization": f"Bearer {_GOOD}"})
        for ours in (_GOOD, _GOOD.replace("-", "%2D")):
            await client.post(f"{edge.url}/v1/x?a=task-helio-1&key={ours}&b=%20", json={})
            assert provider.requests[-1].startswith(b"POST /v1/x?a=task-helio-1&b=%20 ")
    assert not any(_GOOD.encode() in request for request in provider.requests)
    assert {(e.key_id, e.status) for e in edge.events(4)} == {("k1", 200)}
    assert _GOOD.encode() not in b"".join(p.read_bytes() for p in edge.log.parent.rglob("*.seg"))


async def test_a_key_of_helicones_is_unknown_and_never_recorded_or_sent(house: House, provider: Provider) -> None:
    provider.answers(_ANSWER, keep=True)
    theirs = "sk-helicone-abcdefg-hijklmn"
    answer = await call(house.edge, None, path=f"/{theirs}/v1/chat/completions")
    assert (answer.status_code, theirs in answer.text) == (401, False)
    again = await call(house.edge, _GOOD, path=f"/{theirs}/v1/chat/completions")
    assert again.status_code == 200, again.text
    assert house.edge.event().path == "/v1/chat/completions"
    assert not any(theirs.encode() in request for request in provider.requests)
    files = [path.read_bytes() for path in house.folder.rglob("*") if path.is_file()]
    assert not any(theirs.encode() in content for content in files)


async def test_a_revocation_is_in_force_within_a_second(house: House, provider: Provider) -> None:
    provider.answers(_ANSWER, keep=True)
    assert (await call(house.edge, _GOOD)).status_code == 200
    house.keys[hash_key(_GOOD)] = Key("k1", "good", "acme", ["proxy"], revoked=True)
    house.publish()
    deadline = time.monotonic() + 1
    while (answer := await call(house.edge, _GOOD)).status_code != 401:
        assert time.monotonic() < deadline
    assert "revoked" in answer.json()["error"]["message"]


async def test_a_snapshot_that_cannot_be_read_does_not_end_the_following(house: House, provider: Provider) -> None:
    provider.answers(_ANSWER, keep=True)
    client = redis.Redis.from_url(house.url)
    client.set(SNAPSHOT_KEY, b'{"version": 99, "keys": [1]}')
    client.publish(SNAPSHOT_CHANNEL, "99")
    client.close()
    await asyncio.sleep(0.3)
    house.keys[hash_key("sk-helio-new")] = Key("k9", "new", "acme", ["proxy", "a word of a later version"])
    house.keys[hash_key(_GOOD)] = Key("k1", "good", "acme", ["proxy"], revoked=True)
    house.publish()
    deadline = time.monotonic() + 1
    while (await call(house.edge, _GOOD)).status_code != 401:
        assert time.monotonic() < deadline
    assert (await call(house.edge, "sk-helio-new")).status_code == 200
    assert "a key snapshot cannot be read" in house.edge.log.read_text()


async def test_without_redis_keys_stay_as_last_known_even_over_a_restart(house: House, provider: Provider) -> None:
    provider.answers(_ANSWER, keep=True)
    assert (await call(house.edge, _GOOD)).status_code == 200
    house.redis.kill()
    began = time.monotonic()
    assert (await call(house.edge, _GOOD)).status_code == 200
    assert (await call(house.edge, "sk-helio-nobody")).status_code == 401
    assert time.monotonic() - began < 1  # nothing waits for Redis
    os.kill(house.process.pid, signal.SIGKILL)
    house.process.wait()
    house.start()
    assert (await call(house.edge, _GOOD)).status_code == 200
    # And a change made while it was away counts at its return.
    house.redis.start()
    house.keys[hash_key("sk-helio-new")] = Key("k4", "new", "acme", ["proxy"])
    house.publish()
    deadline = time.monotonic() + 5
    while (await call(house.edge, "sk-helio-new")).status_code != 200:
        assert time.monotonic() < deadline
