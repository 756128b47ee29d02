"""What is written within one turn of the event loop: the first goes out at once, the others together at the turn's end.

Sending wakes whoever reads at the other end, and a send right after another finds them awake: on a virtual machine, where
waking another core leaves the machine, that is a quarter of what a call costs among many. A task that was woken by what a
socket had to say runs only after the turn's end: whoever wakes one says so (`expect`), and what such tasks write goes out
behind the last of them, not a turn later.
"""

import asyncio
import logging
from typing import Protocol

log = logging.getLogger("heliograph.edge")

_MOST_BYTES = 256 * 1024
"""More than this goes at once: it would only be kept in memory, and its connection could not say that it is full."""


class Sender(Protocol):
    """A connection: hands bytes to its socket, and drops them once it is closed."""

    def send(self, data: bytes, /) -> object: ...


class Outbox:
    """One per event loop. What one sender posts goes out in the order it was posted in."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._in_turn = False  # something has been posted since the last turn's end
        self._expected = 0  # tasks that have been woken and have not run
        self._waiting: list[tuple[Sender, bytes]] = []
        self._bytes = 0

    def post(self, sender: Sender, data: bytes) -> None:
        if not self._in_turn:
            self._in_turn = True
            self._call_soon(self._end_turn)
            sender.send(data)
            return
        self._waiting.append((sender, data))
        self._bytes += len(data)
        if self._bytes > _MOST_BYTES:
            self.flush()

    def expect(self) -> None:
        """A task that may post has just been woken."""
        self._expected += 1
        self._call_soon(self._has_run)

    def flush(self) -> None:
        """Send what is waiting. To be called before a sender is closed whose last bytes matter."""
        waiting = self._waiting
        if not waiting:
            return
        self._waiting = []
        self._bytes = 0
        for sender, data in waiting:
            try:
                sender.send(data)
            except Exception:  # the others' bytes go out all the same
                log.exception("bytes could not be sent")

    def _has_run(self) -> None:
        self._expected -= 1
        if not self._expected:
            self.flush()

    def _end_turn(self) -> None:
        self._in_turn = False
        self.flush()
