"""Notices a worker that has gone deaf: alive, idle, and no longer taking what waits in its queue.

Celery over Redis can lose its ear when the connection breaks while a task is being acknowledged ("Couldn't ack" in the
log): nothing is raised, nothing is received any more. Ending is the cure: whoever runs the worker starts it again, and
the planner hands out again what was lost on the way.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from celery.worker import state
from redis import Redis
from redis.exceptions import RedisError

log = logging.getLogger("heliograph.worker")

_LOOK_S = 1.0
_DEAF_S = 5.0
_END_S = 10.0
_ANSWER_S = 2.0


def watch(broker_url: str, queue: str) -> None:
    """Look for as long as this process lives. For the worker's main process, once it is ready."""
    redis = Redis.from_url(broker_url, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S)
    threading.Thread(
        target=_watch, args=(lambda: int(redis.llen(queue)), lambda: len(state.reserved_requests), _end),
        name="hearing", daemon=True,
    ).start()  # fmt: skip


def _watch(waiting: Callable[[], int], at_hand: Callable[[], int], end: Callable[[], None]) -> None:
    silent_since: float | None = None
    while True:
        time.sleep(_LOOK_S)
        try:
            deaf = waiting() > 0 and at_hand() == 0
        except (RedisError, OSError):
            deaf = False  # nobody can hear what is not there
        now = time.monotonic()
        silent_since = (silent_since or now) if deaf else None
        if silent_since is not None and now - silent_since >= _DEAF_S:
            end()
            return


def _end() -> None:
    log.error("the worker no longer hears its queue and ends, to be started again")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_S)
    os._exit(1)
