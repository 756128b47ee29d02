"""Coarse deadlines for what a client may dawdle over: checked twice a second, so that setting one costs next to nothing.

A timer of the loop's for each step of each call would cost a microsecond or two every time, and nearly all are cancelled.
"""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType

_TICK_S = 0.5

log = logging.getLogger("heliograph.edge")


class Deadline:
    """A step under way. Leaving its `with` block ends it."""

    __slots__ = ("_late", "_owner", "at")

    def __init__(self, owner: "Deadlines", at: float, late: Callable[[], None]) -> None:
        self._owner = owner
        self._late = late
        self.at = at

    def extend(self, seconds: float) -> None:
        """Start the step's time afresh."""
        self.at = self._owner.now + seconds

    def __enter__(self) -> "Deadline":
        self._owner.open.add(self)
        return self

    def __exit__(self, *exc: "type[BaseException] | BaseException | TracebackType | None") -> None:
        self._owner.open.discard(self)

    def expire(self) -> None:
        self._owner.open.discard(self)
        self._late()


class Deadlines:
    def __init__(self) -> None:
        self.open: set[Deadline] = set()
        self.now = 0.0
        self.loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.now = self.loop.time()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def within(self, seconds: float, late: Callable[[], None]) -> Deadline:
        """Call `late` once when the step takes longer than `seconds` (up to half a second more)."""
        return Deadline(self, self.now + seconds, late)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.now = self.loop.time()
            for deadline in [d for d in self.open if d.at < self.now]:
                deadline.expire()
