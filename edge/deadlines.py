"""Coarse deadlines for what a client may dawdle over: one number a connection, looked at twice a second.

A timer of the loop's for each step of each call would cost a microsecond or two every time, and nearly all are cancelled.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

log = logging.getLogger("heliograph.edge")

NEVER = float("inf")
_TICK_S = 0.5


class Bounded(Protocol):
    deadline: float
    """By `Deadlines.now`, seconds."""
    paused: bool

    def look(self) -> None:
        """Told at every look while paused."""

    def late(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """`now` is the loop's time as of the last look, so a deadline set from it passes up to half a second late."""

    def __init__(self, bounded: Iterable[Bounded]) -> None:
        self.now = 0.0
        self._bounded = bounded
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.now = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TICK_S)
            self.now = loop.time()
            for one in [one for one in self._bounded if one.paused or one.deadline < self.now]:
                try:
                    if one.paused:
                        one.look()
                    if one.deadline < self.now:
                        one.late()
                except Exception:  # of one client: the others' deadlines hold
                    log.exception("a client's deadline could not be kept")
