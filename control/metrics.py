"""Everything control counts. Labels come from bounded sets: route templates, status codes, names of queries."""

from prometheus_client import Counter, Gauge, Histogram

requests = Counter("heliograph_control_requests", "Calls to the control API.", ["route", "status"])
query_seconds = Histogram(
    "heliograph_control_query_seconds",
    "ClickHouse queries of the control API, waiting for a thread included, s.",
    ["query"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10),
)
query_failures = Counter(
    "heliograph_control_query_failures", "Queries that did not end in rows, by the error's code.", ["query", "error"]
)
queries_waiting = Gauge(
    "heliograph_control_queries_waiting", "Queries that wait for a thread.", multiprocess_mode="livesum"
)
object_failures = Counter(
    "heliograph_control_object_failures", "Moved bodies that the object store did not give in time."
)
snapshots_published = Counter("heliograph_control_snapshots_published", "Key snapshots written to Redis.")
snapshot_failures = Counter(
    "heliograph_control_snapshot_failures", "Turns in which keys could not be compared or published.", ["part"]
)
