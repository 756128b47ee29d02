"""A moment to measure from, for what must not be done too late after it."""

import time


class Moment:
    """Now, on two clocks: one of them stands still while a machine sleeps, the other may be set."""

    def __init__(self) -> None:
        self._at = (time.monotonic(), time.time())

    def longer_ago_than(self, seconds: float) -> bool:
        return max(time.monotonic() - self._at[0], time.time() - self._at[1]) >= seconds
