"""A service for `test_crash_points.py`, as its command runs it, that may end, stop or wait at a named point.

A folder's `passed` tells which points were passed, by which process; `orders.json` what to do at one of them.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiokafka import AIOKafkaProducer

import workers.enrich
from cli.main import app
from ingest.kafka_log import KafkaLog
from ingest.log import Plan
from ingest.shipper import Shipper
from ingest.spool_log import SpoolLog
from schemas.batch import Batch, Partition
from workers.sender import Sender
from workers.store import Row, Store, StoredBatch, Table

_MEET_S = 15.0
_folder: Path | None = None
"""Of this process's orders."""


class Orders(msgspec.Struct):
    point: str
    """`before …` or `after …` what is watched; any, where processes are to meet."""
    act: Literal["kill", "stop", "meet"]
    """End or stop the process, the first that passes; or let each wait there for a second one."""
    topic: str = ""
    """Whose batches are meant; left out: all."""


def _pass(point: str, about: str) -> None:
    assert _folder is not None
    with (_folder / "passed").open("a") as passed:
        passed.write(f"{os.getpid()} {point}\n")
    file = _folder / "orders.json"
    try:
        orders = msgspec.json.decode(file.read_bytes(), type=Orders)
    except FileNotFoundError:
        return
    if not about.startswith(orders.topic):
        return
    if orders.act == "meet":
        _meet(_folder / f"{about} {point}".replace("/", "-"))
    elif point == orders.point:
        try:
            file.rename(_folder / f"{os.getpid()}.done")
        except FileNotFoundError:  # another process was first
            return
        os.kill(os.getpid(), signal.SIGKILL if orders.act == "kill" else signal.SIGSTOP)


def _meet(place: Path) -> None:
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    deadline = time.monotonic() + _MEET_S
    while len(list(place.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)


def _watch(owner: Any, name: str, point_of: Callable[..., tuple[str, str] | None]) -> None:
    """Pass a point before and after each call that is one, as `point_of` says of its arguments."""
    function = getattr(owner, name)

    @wraps(function)
    def called(*args: Any) -> Any:
        if (named := point_of(*args)) is None:
            return function(*args)
        point, about = named
        _pass(f"before {point}", about)
        done = function(*args)
        _pass(f"after {point}", about)
        return done

    @wraps(function)
    async def awaited(*args: Any) -> Any:
        if (named := point_of(*args)) is None:
            return await function(*args)
        point, about = named
        _pass(f"before {point}", about)
        done = await function(*args)
        _pass(f"after {point}", about)
        return done

    setattr(owner, name, awaited if asyncio.iscoroutinefunction(function) else called)


def _watch_shipper() -> None:
    _watch(Shipper, "_send", lambda *_: ("produce", ""))
    _watch(AIOKafkaProducer, "commit_transaction", lambda *_: ("commit", ""))


def _watch_planner() -> None:
    plans: dict[Partition, Plan] = {}

    def saved(_: object, partition: Partition, plan: Plan) -> tuple[str, str] | None:
        before = plans.get(partition, Plan())
        plans[partition] = plan
        if plan.planned > before.planned:
            return "boundary", partition.topic
        return ("commit", partition.topic) if plan.committed > before.committed else None

    def handed(_: object, batch: Batch) -> tuple[str, str]:
        return "hand-out", batch.topic

    _watch(KafkaLog, "save_plan", saved)
    _watch(SpoolLog, "save_plan", saved)
    _watch(Sender, "send", handed)


def _watch_worker() -> None:
    def inserted(_: object, table: Table, rows: list[Row], token: str) -> tuple[str, str] | None:
        return (table.name, token) if rows else None

    def published(work: StoredBatch, *_: object) -> tuple[str, str] | None:
        return ("publish", work.token) if work.requests else None

    _watch(Store, "insert_block", inserted)
    _watch(workers.enrich, "publish", published)


def serve(service: str, folder: Path, environment: dict[str, str]) -> None:
    """Be the service until it ends. For a process of its own."""
    global _folder
    _folder = folder
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    {"ship": _watch_shipper, "plan": _watch_planner, "worker": _watch_worker}[service]()
    app([service, "--tethered"])
