"""One call as the edge lives it: filled in step by step, then told as an event."""

import time

from edge.capture import Capture
from edge.headers import Said
from edge.upstream.targets import Target
from schemas.event import Attempt, Outcome
from schemas.ids import new_id
from schemas.keys import Key


class Call:
    """`started` and the other moments are `time.perf_counter()` seconds."""

    # What many calls leave as it is stands here, once for all of them.
    said: Said | None = None
    key: Key | None = None
    target: Target | None = None
    api = "other"
    requested_model: str | None = None
    body_user_id: str | None = None
    stream = False
    request: Capture | None = None
    response: Capture | None = None
    answer_type = ""
    takes_words = False
    """The answer is a stream of events that an event of ours can still be added to."""
    status: int | None = None
    outcome: Outcome = "success"
    error_code: str | None = None
    error_message: str | None = None
    first_byte: float | None = None
    upstream_s = 0.0
    """Time spent waiting for the provider: what is left of the whole is the edge's own."""
    waiting_since: float | None = None
    """When the provider was last begun to be waited for; None: it is not waited for."""

    def __init__(self, method: str, path: str) -> None:
        self.started = self.at = time.perf_counter()
        """`at`: when the call last began or ended waiting."""
        self.created_ms = time.time_ns() // 1_000_000
        self.id = new_id(self.created_ms)
        self.method = method
        self.path = path
        """Path without a Heliograph key in it."""
        self.secrets: list[bytes] = []
        self.attempts: list[Attempt] = []

    def waits(self) -> float:
        """The provider is waited for from now on; gives now."""
        self.waiting_since = self.at = time.perf_counter()
        return self.at

    def goes_on(self) -> float:
        """The waiting, if any, is over; gives now."""
        self.at = time.perf_counter()
        if self.waiting_since is not None:
            self.upstream_s += self.at - self.waiting_since
            self.waiting_since = None
        return self.at
