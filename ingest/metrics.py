"""Everything ingest counts. Labels come from bounded sets."""

from prometheus_client import Counter, Gauge

batches_planned = Counter("heliograph_batches_planned", "Batches whose boundaries were written down.")
batches_confirmed = Counter("heliograph_batches_confirmed", "Batches the planner found in the ledger.")
batches_overdue = Counter("heliograph_batches_overdue", "Batches handed out again because they were not in the ledger.")
events_planned = Counter("heliograph_events_planned", "Offsets given to batches.")
lag_events = Gauge(
    "heliograph_lag_events",
    "Events in the log and not yet committed.",
    ["partition"],
    multiprocess_mode="mostrecent",
)
planner_trouble = Counter(
    "heliograph_planner_trouble", "Turns that the log, the store or the broker cut short.", ["error"]
)
