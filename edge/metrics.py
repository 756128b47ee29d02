"""Everything the edge counts. Labels come from bounded sets: the catalogue, our codes, outcomes."""

from bisect import bisect_left

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
refused = Counter(
    "heliograph_refused", "Calls that ended with an error code of the edge's own, client_gone among them.", ["code"]
)
in_flight = Gauge("heliograph_calls_in_flight", "Calls under way.", multiprocess_mode="livesum")
events_dropped = Counter("heliograph_events_dropped", "Events lost because the spool was full or its disk failed.")
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


class _Tally:
    """One provider's counts since the last `publish`, in plain numbers: on the hot path a counter that other processes
    read costs 1.2 µs a step, and a call takes five."""

    __slots__ = ("first_token_ms", "label", "latency_ms", "outcomes", "overhead_ms")

    def __init__(self, label: str) -> None:
        self.label = label
        self.outcomes: dict[str, int] = {}
        self.latency_ms: list[float] = []
        self.overhead_ms: list[float] = []
        self.first_token_ms: list[float] = []


_tallies: dict[str, _Tally] = {}
_TALLIES_MAX = 1000


def count_call(event: Event) -> None:
    """Count a finished call; `publish` makes it visible."""
    tally = _tallies.get(event.provider)
    if tally is None:
        # Hosts an operator allows are many and not ours to bound: they share a label.
        label = event.provider if event.provider in catalogue() else "other"
        tally = _Tally(label)
        if len(_tallies) < _TALLIES_MAX:
            _tallies[event.provider] = tally
    outcomes = tally.outcomes
    outcomes[event.outcome] = outcomes.get(event.outcome, 0) + 1
    tally.latency_ms.append(event.latency_ms)
    if event.overhead_ms is not None:
        tally.overhead_ms.append(event.overhead_ms)
    if event.first_token_ms is not None:
        tally.first_token_ms.append(event.first_token_ms)
    if event.error_code is not None:
        refused.labels(event.error_code).inc()


def publish() -> None:
    """Add what was counted to the page. Called once a second."""
    for tally in _tallies.values():
        for outcome, count in tally.outcomes.items():
            calls.labels(tally.label, outcome).inc(count)
        _observe(call_seconds.labels(tally.label), tally.latency_ms)
        _observe(overhead_seconds, tally.overhead_ms)
        _observe(first_token_seconds.labels(tally.label), tally.first_token_ms)
        tally.outcomes.clear()


def _observe(histogram: Histogram, values_ms: list[float]) -> None:
    if not values_ms:
        return
    # The client has no way to add many at once; its parts do. A test holds them to what `observe` would have counted.
    bounds: list[float] = histogram._upper_bounds
    buckets = histogram._buckets
    counts = [0] * len(bounds)
    for value in values_ms:
        counts[bisect_left(bounds, value / 1000)] += 1
    for bucket, count in zip(buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(sum(values_ms) / 1000)
    values_ms.clear()
