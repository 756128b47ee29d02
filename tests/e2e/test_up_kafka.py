"""`make kafka` and `heliograph up --kafka`: Kafka tried on one machine, by a folder that had its spool before."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from infra.local.ports import pick_free
from ingest.log import Plan
from ingest.spool_plan import read_plan
from tests.e2e.house import Answer, House, Replay, up
from tests.servers import REPOSITORY, require_kafka

CALL = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = Answer(
    200,
    {"content-type": "application/json"},
    b'{"model": "gpt-4o-mini-2024-07-18", "choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 5}}',
    stream=False,
)
BROKER_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a house and of its broker."""
    return tmp_path_factory.mktemp("up-kafka")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a broker as `make kafka` starts it, in the house's own data folder."""
    require_kafka()
    port = pick_free()
    command = [
        sys.executable,
        "-m",
        "infra.local.kafka_foreground",
        "--data",
        str(folder / "data"),
        "--port",
        str(port),
    ]
    log = folder / "kafka.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + BROKER_S
        while f"heliograph up --kafka 127.0.0.1:{port}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        process.wait(BROKER_S)
    assert process.returncode == 0
    assert "Kafka is stopped" in log.read_text()
    assert below
    assert not [child for child in below if child.is_running()]


def refused(environment: Mapping[str, str], *words: str) -> str:
    """What `heliograph up` says where it must not start."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "up", *words], env=dict(environment), cwd=REPOSITORY, capture_output=True,
        text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


async def called(house: House, count: int) -> list[str]:
    async with httpx.AsyncClient(timeout=10) as client:
        answers = [await client.post(f"{house.edge}/v1/chat/completions", json=CALL) for _ in range(count)]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.headers["helicone-id"] for answer in answers]


def rows(house: House) -> list[str]:
    return sorted(str(id_) for (id_,) in house.sql("SELECT id FROM requests"))


def lag(house: House) -> int:
    return int(house.get("/v1/pipeline")["lag_events"])


def plan(house: House) -> Plan:
    return read_plan(house.data / "spool" / "edge-0")


async def test_a_folder_goes_from_its_spool_to_kafka_and_every_call_counts_once(
    folder: Path, address: str, replay: Replay
) -> None:
    port, replay.next = replay.port, ANSWER

    with up(folder, port, providers=["openai"]) as house:
        made = await called(house, 3)
        await asyncio.to_thread(house.wait_for, lambda: plan(house).committed == 3, timeout_s=20, what="rows")
        for pid in house.pids()["worker"]:
            psutil.Process(pid).suspend()
        made += await called(house, 3)
        # Written down and handed out, and nobody stores them.
        await asyncio.to_thread(house.wait_for, lambda: plan(house).planned == 6, timeout_s=20, what="their plan")
        house.stop_at_once()
    assert "3 events" in (told := refused(house.environment, "--kafka", address))
    assert "not stored yet" in told

    # What was handed out is stored; what comes now is not cut into batches before the stop.
    with up(folder, port, providers=["openai"], PLANNER_LINGER_MS="60000") as house:
        await asyncio.to_thread(house.wait_for, lambda: plan(house).committed == 6, timeout_s=60, what="the rest")
        made += await called(house, 3)
    assert plan(house) == Plan(committed=6)

    with up(folder, port, providers=["openai"], kafka=address) as house:
        made += await called(house, 3)
        await asyncio.to_thread(house.wait_for, lambda: len(rows(house)) >= 12, timeout_s=30, what="rows out of Kafka")
        await asyncio.to_thread(house.wait_for, lambda: lag(house) == 0, timeout_s=10, what="the last commit")
        # Other terminals know of it.
        replayed = await asyncio.to_thread(house.run, "replay", "kafka", "--all")
        doctor = await asyncio.to_thread(house.run, "doctor")
        resumed = await asyncio.to_thread(house.run, "plan", "resume")
        assert rows(house) == sorted(made)
        for name in ("requests_by_hour", "requests_by_minute"):
            assert house.sql(f"SELECT sum(requests) FROM {name}") == [(12,)]
        house.stop()
    assert re.search(r"read\D+6\b", replayed.stdout), replayed.stdout + replayed.stderr
    assert re.search(r"stored now\D+0\b", replayed.stdout)
    assert f"{address} answers" in doctor.stdout
    assert "All is well." in doctor.stdout
    assert "nothing was paused" in resumed.stdout
    stopped = [
        name for name in re.findall(r"stopped (\w+)", house.output) if name in ("edge", "ship", "planner", "worker")
    ]
    assert stopped == ["edge", "ship", "planner", "worker"]
    assert plan(house) == Plan(committed=12, shipped=True)


def test_without_a_broker_it_says_how_to_start_one_and_starts_nothing(tmp_path: Path) -> None:
    address, data = f"127.0.0.1:{pick_free()}", tmp_path / "data"
    told = refused({**os.environ, "HELIOGRAPH_DATA_DIR": str(data)}, "--kafka", address)
    assert f"no Kafka can be reached at {address}" in told
    assert "make kafka" in told
    assert not (data / "run").exists()
