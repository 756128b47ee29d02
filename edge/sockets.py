"""What asyncio's transports cannot be asked: it is asked of the socket below."""

import asyncio
import select
import socket
import struct
from contextlib import suppress

_AT_ONCE = struct.pack("ii", 1, 0)
_LEFT = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def reset(transport: asyncio.Transport) -> None:
    """Close with a reset: what the other side has not taken is forgotten, and it knows at once."""
    below = transport.get_extra_info("socket")  # None once the other side has ended TLS
    if below is not None:
        with suppress(OSError):  # closed already
            below.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the other side has closed, which the event loop does not see while nothing is read."""
    below = transport.get_extra_info("socket")
    if below is None or below.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(below.fileno(), _LEFT)
    return bool(poll.poll(0))
