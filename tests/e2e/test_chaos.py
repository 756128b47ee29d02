"""kill -9 of each process under load: what was answered is stored, once. `make chaos` and
`make random-kills` are the long versions."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from infra.local.ports import pick_free
from load_tests import counts
from tests.e2e.house import Answer, House, Replay, up
from tests.servers import REPOSITORY, require_kafka

RATE = 50
LINGER_MS = 10
KILLED = ("edge", "worker", "plan", "clickhouse", "valkey")
BETWEEN_S = 2.5
HEADERS = {
    "Authorization": "Bearer sk-test-chaos",
    "Helicone-User-Id": "ada",
    "Helicone-Session-Id": "session-1",
    "Helicone-Property-Environment": "test",
}
CALL = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
ANSWER = Answer(
    200,
    {"content-type": "application/json"},
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}',
    stream=False,
)


@pytest.fixture(scope="module")
def provider_port() -> int:
    return pick_free()


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory, provider_port: int) -> Iterator[House]:
    # Its own, since others' tests must not meet a dead edge.
    with up(tmp_path_factory.mktemp("chaos"), provider_port, providers=["openai"]) as running:
        yield running


class Caller:
    """Calls at a fixed rate, whatever becomes of each."""

    def __init__(self, url: str) -> None:
        self._url = url + "/v1/chat/completions"
        self._under_way: set[asyncio.Task[None]] = set()
        self.answered: dict[str, float] = {}
        """When each id was answered, Unix time."""
        self.failed: list[float] = []
        """When each call failed."""

    async def run(self, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=200)) as client:
            due = time.monotonic()
            while not stop.is_set():
                task = asyncio.create_task(self._call(client))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                due += 1 / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*self._under_way)

    async def _call(self, client: httpx.AsyncClient) -> None:
        try:
            answer = await client.post(self._url, json=CALL, headers=HEADERS)
        except httpx.TransportError:
            self.failed.append(time.time())
            return
        if answer.status_code == 200:
            self.answered[answer.headers["helicone-id"]] = time.time()
        else:
            self.failed.append(time.time())


async def test_killing_each_process_under_load_loses_no_answered_call_and_stores_none_twice(
    chaos: House, provider_port: int
) -> None:
    provider = Replay()
    provider.next = ANSWER
    await provider.start(provider_port)
    caller, stop = Caller(chaos.edge), asyncio.Event()
    calling = asyncio.create_task(caller.run(stop))
    edge_killed_s = edge_back_s = 0.0
    for name in KILLED:
        await asyncio.sleep(BETWEEN_S)
        killed_s = await asyncio.to_thread(chaos.kill, name)
        if name == "edge":
            edge_killed_s = killed_s
            await asyncio.to_thread(chaos.wait_for, lambda: _is_ready(chaos), timeout_s=20, what="the edge")
            edge_back_s = time.time()
    await asyncio.sleep(BETWEEN_S)
    stop.set()
    await calling
    await provider.stop()

    settled = await asyncio.to_thread(_settled, chaos)
    stored = await asyncio.to_thread(counts.read_stored, chaos.sql, chaos.data)

    assert settled, counts.problems(stored)
    assert counts.problems(stored) == []
    assert counts.twice(stored) == set()
    bound = counts.lost_at_most(RATE, LINGER_MS, caller.answered, killed_s=edge_killed_s)
    assert len(counts.lost(caller.answered, stored)) <= bound
    # Only while the edge itself was away may a call have failed.
    assert [at for at in caller.failed if not edge_killed_s <= at <= edge_back_s + 0.5] == []
    assert len(caller.answered) > RATE * BETWEEN_S * len(KILLED) / 2


def _is_ready(house: House) -> bool:
    try:
        return httpx.get(house.edge + "/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _settled(house: House) -> bool:
    deadline = time.monotonic() + 40
    while not counts.settled(counts.read_spools(house.data)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_killed_edge_is_started_again_and_up_says_how_it_ended(chaos: House) -> None:
    main = chaos.pids()["edge"][0]

    os.kill(main, signal.SIGKILL)

    chaos.wait_for(lambda: _is_ready(chaos) and chaos.pids()["edge"][0] != main, timeout_s=20, what="another edge")
    assert "edge ended (terminated by SIGKILL)" in chaos.output


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_kills_at_random_moments_with_kafka_lose_nothing_and_store_nothing_twice() -> None:
    require_kafka()
    asked = ["--kafka", "--seeds", "1", "--rate", "100", "--seconds", "30"]
    command = [sys.executable, "-m", "load_tests.random_kills", *asked]

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr
    assert " ok" in done.stdout
