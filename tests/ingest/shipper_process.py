"""A real shipper for `test_shipper.py`, to be killed; it may also kill itself at a named point.

python -m tests.ingest.shipper_process <setup.json>
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from ingest import shipper
from ingest.objects import Objects
from ingest.shipper import Shipper, ship_all
from schemas.settings import KafkaSettings, ObjectSettings, ShipperSettings


class Setup(msgspec.Struct):
    kafka: dict[str, Any]
    root: str
    shipper: dict[str, Any]
    die_at: str | None = None
    """`before_…` or `after_…` one of produce, offsets, commit, note, free: there the process kills itself once."""
    died: str = ""
    """File that says it has: while it exists nothing dies again."""


def die(setup: Setup) -> None:
    died = Path(setup.died)
    if not died.exists():
        died.write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)


def around(setup: Setup, point: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, dying before or after it where that is what is asked for."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if setup.die_at == f"before_{point}":
            die(setup)
        done = function(*args, **kwargs)
        if setup.die_at == f"after_{point}":
            die(setup)
        return done

    async def wrapped_async(*args: Any, **kwargs: Any) -> Any:
        if setup.die_at == f"before_{point}":
            die(setup)
        done = await function(*args, **kwargs)
        if setup.die_at == f"after_{point}":
            die(setup)
        return done

    return wrapped_async if asyncio.iscoroutinefunction(function) else wrapped


def main() -> None:
    setup = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Setup)
    for point, method in (
        ("produce", "send_batch"),
        ("offsets", "send_offsets_to_transaction"),
        ("commit", "commit_transaction"),
    ):
        setattr(AIOKafkaProducer, method, around(setup, point, getattr(AIOKafkaProducer, method)))
    shipper.write_plan = around(setup, "note", shipper.write_plan)  # type: ignore[attr-defined]
    shipper.free = around(setup, "free", shipper.free)  # type: ignore[attr-defined]
    kafka = KafkaSettings.model_validate(setup.kafka)
    settings = ShipperSettings(**setup.shipper)
    root = Path(setup.root)
    objects = Objects(ObjectSettings(), root.parent)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    ship_all(root, lambda folder: Shipper(folder, kafka, settings, objects), stopping)


if __name__ == "__main__":
    main()
