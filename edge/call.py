"""One call as the edge lives it: filled in step by step, then told as an event."""

import time

from edge.capture import Capture
from edge.headers import Said
from edge.upstream.targets import Target
from schemas.event import Attempt, Outcome
from schemas.keys import Key


class Call:
    """`started` and the other moments are `time.perf_counter()` seconds."""

    __slots__ = (
        "_waiting_since",
        "answer_type",
        "api",
        "at",
        "attempts",
        "body_user_id",
        "created_ms",
        "error_code",
        "error_message",
        "first_byte",
        "id",
        "key",
        "method",
        "outcome",
        "path",
        "request",
        "requested_model",
        "response",
        "said",
        "secrets",
        "started",
        "status",
        "stream",
        "target",
        "upstream_s",
    )

    def __init__(self, id_: str, method: str, path: str) -> None:
        self.started = time.perf_counter()
        self.created_ms = time.time_ns() // 1_000_000
        self.id = id_
        self.method = method
        self.path = path
        """Path without a Heliograph key in it."""
        self.said: Said | None = None
        self.secrets: list[bytes] = []
        self.key: Key | None = None
        self.target: Target | None = None
        self.api = "other"
        self.requested_model: str | None = None
        self.body_user_id: str | None = None
        self.stream = False
        self.request: Capture | None = None
        self.response: Capture | None = None
        self.answer_type = ""
        self.status: int | None = None
        self.outcome: Outcome = "success"
        self.error_code: str | None = None
        self.error_message: str | None = None
        self.first_byte: float | None = None
        self.upstream_s = 0.0
        """Time spent waiting for the provider: what is left of the whole is the edge's own."""
        self.at = self.started
        """When the call last began or ended waiting."""
        self._waiting_since: float | None = None
        self.attempts: list[Attempt] = []

    def waits(self) -> float:
        """The provider is waited for from now on; gives now."""
        self._waiting_since = self.at = time.perf_counter()
        return self.at

    def goes_on(self) -> float:
        """The waiting, if any, is over; gives now."""
        self.at = time.perf_counter()
        if self._waiting_since is not None:
            self.upstream_s += self.at - self._waiting_since
            self._waiting_since = None
        return self.at
