"""What is written within one turn of the event loop, kept until its end and then sent in one go.

Sending wakes whoever reads at the other end, and a send right after another finds them awake: on a virtual machine, where
waking another core leaves the machine, that is a quarter of what a call costs.
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
    """One per event loop and direction. What one sender posts goes out in the order it was posted in."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._waiting: list[tuple[Sender, bytes]] = []
        self._bytes = 0

    def post(self, sender: Sender, data: bytes) -> None:
        waiting = self._waiting
        if not waiting:
            self._call_soon(self.flush)
        waiting.append((sender, data))
        self._bytes += len(data)
        if self._bytes > _MOST_BYTES:
            self.flush()

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
