"""Everything the workers count. Labels come from bounded sets: outcomes, reasons, tables, steps.

Several processes share one page: `PROMETHEUS_MULTIPROC_DIR` is set by whoever starts them.
"""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

processes = Gauge("heliograph_worker_processes", "Processes that take batches.", multiprocess_mode="livesum")
batches = Counter(
    "heliograph_worker_batches",
    "Batches by what became of them: stored, repeated (in the ledger already), unavailable (the log or the store was "
    "away), refused (the store said no), gap (the log has lost it), timeout, failed.",
    ["outcome"],
)
events = Counter("heliograph_worker_events", "Events stored as rows and confirmed.")
batch_events = Histogram(
    "heliograph_worker_batch_events",
    "Events of a stored batch.",
    buckets=(0, 1, 10, 50, 100, 250, 500, 1000, 2000, 5000, 10_000, 100_000),
)
dead_letters = Counter("heliograph_worker_dead_letters", "Events that could not become rows.", ["reason"])
wide_batches = Counter(
    "heliograph_worker_wide_batches", "Batches whose events are spread over so many weeks that parts may grow scarce."
)
step_seconds = Histogram(
    "heliograph_worker_step_seconds",
    "One step of a batch: look (in the ledger), read, for each part of it bodies (large ones) and compute, insert, "
    "publish (where Kafka is the log), confirm.",
    ["step"],
    buckets=_SECONDS,
)
insert_seconds = Histogram(
    "heliograph_worker_insert_seconds", "One insert, sent and acknowledged.", ["table"], buckets=_SECONDS
)
rows = Counter("heliograph_worker_rows", "Rows sent in inserts that were acknowledged, repeats included.", ["table"])
published = Counter(
    "heliograph_worker_published",
    "Messages published in Kafka and acknowledged, repeats included: enriched, dead.",
    ["topic"],
)
freshness_seconds = Histogram(
    "heliograph_worker_freshness_seconds",
    "From an answer's last byte to its row being there for every query.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800, 3600, 86400),
)
