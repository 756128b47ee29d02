"""Waiting for a server that was started to answer."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from infra.local.errors import NotReady

Answer = TypeVar("Answer")


def until_ready(
    name: str,
    problem: Callable[[], str | None],
    *,
    timeout_s: float,
    alive: Callable[[], bool],
    log: Path,
    poll_s: float,
) -> None:
    """Ask again and again until there is no problem.

    Args:
        problem: in a few words why the server is not ready; None once it is.
        alive: whether the child still runs.
        log: where the server says more.

    Raises:
        NotReady: it has ended, or time is over.
    """
    deadline = time.monotonic() + timeout_s
    while (said := problem()) is not None:
        if not alive():
            raise NotReady(f"{name} has ended while starting; see {log}")
        if time.monotonic() >= deadline:
            raise NotReady(f"{name} did not answer within {timeout_s:g} s ({said}); see {log}")
        time.sleep(poll_s)


def ask(question: Coroutine[Any, Any, Answer], *, within_s: float) -> Answer:
    """What an asynchronous client answers. In a thread: the caller's may run a loop of its own."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, asyncio.wait_for(question, within_s)).result()
