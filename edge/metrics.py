"""Everything the edge counts. Labels come from bounded sets: the catalogue, our codes, outcomes."""

from prometheus_client import Counter, Gauge, Histogram

from schemas.event import Event
from schemas.providers import catalogue

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OVERHEAD_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1)

calls = Counter("heliograph_calls", "Finished calls.", ["provider", "outcome"])
call_seconds = Histogram(
    "heliograph_call_seconds", "Arrival of a call to its last byte.", ["provider"], buckets=_SECONDS
)
overhead_seconds = Histogram(
    "heliograph_overhead_seconds", "The edge's own part of a call's time.", buckets=_OVERHEAD_SECONDS
)
first_token_seconds = Histogram(
    "heliograph_first_token_seconds", "Arrival of a call to the first byte of a streamed answer.", ["provider"],
    buckets=_SECONDS,
)  # fmt: skip
refused = Counter("heliograph_refused", "Calls the edge itself refused or failed, by error code.", ["code"])
in_flight = Gauge("heliograph_calls_in_flight", "Calls under way.", multiprocess_mode="livesum")
events_dropped = Counter("heliograph_events_dropped", "Events lost because the spool was full.")
spool_bytes = Gauge("heliograph_spool_bytes", "Spool on disk, bytes.", multiprocess_mode="livesum")
spool_queue_bytes = Gauge(
    "heliograph_spool_queue_bytes", "Events waiting for the disk, bytes.", multiprocess_mode="livesum"
)
spool_events = Gauge("heliograph_spool_events", "Events ever written to the spools.", multiprocess_mode="livesum")
upstream_connections = Gauge(
    "heliograph_upstream_connections", "Connections to providers.", ["state"], multiprocess_mode="livesum"
)
upstream_waiting = Gauge(
    "heliograph_upstream_waiting", "Calls waiting for a connection to a provider.", multiprocess_mode="livesum"
)


class _Children:
    """One provider's counters, looked up once: a look-up by label costs more than the count."""

    __slots__ = ("first_token", "outcomes", "seconds")

    def __init__(self, provider: str) -> None:
        self.outcomes = {
            outcome: calls.labels(provider, outcome)
            for outcome in ("success", "error", "cancelled", "refused", "timeout")
        }
        self.seconds = call_seconds.labels(provider)
        self.first_token = first_token_seconds.labels(provider)


_children: dict[str, _Children] = {}


def count_call(event: Event) -> None:
    children = _children.get(event.provider)
    if children is None:
        # Hosts an operator allows are many and not ours to bound: they share a label.
        label = event.provider if event.provider in catalogue() else "other"
        children = _Children(label)
        if len(_children) < 1000:
            _children[event.provider] = children
    children.outcomes[event.outcome].inc()
    children.seconds.observe(event.latency_ms / 1000)
    if event.overhead_ms is not None:
        overhead_seconds.observe(event.overhead_ms / 1000)
    if event.first_token_ms is not None:
        children.first_token.observe(event.first_token_ms / 1000)
    if event.error_code is not None:
        refused.labels(event.error_code).inc()
