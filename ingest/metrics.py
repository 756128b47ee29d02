"""Everything ingest counts. Labels come from bounded sets."""

from prometheus_client import Counter, Gauge

planners = Gauge("heliograph_planners", "Planners that run.", multiprocess_mode="livesum")
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
lag_seconds = Gauge(
    "heliograph_lag_seconds",
    "How long the planner has known of the oldest event that is not in the ledger, s; 0: all are.",
    ["partition"],
    multiprocess_mode="mostrecent",
)
planner_trouble = Counter(
    "heliograph_planner_trouble", "Turns that the log, the store or the broker cut short.", ["error"]
)

shipped_events = Counter("heliograph_shipped_events", "Events committed to Kafka.")
shipped_bytes = Counter("heliograph_shipped_bytes", "Their bytes, before compression.")
shipped_transactions = Counter("heliograph_shipped_transactions", "Kafka transactions committed with events.")
shipped_large_bodies = Counter("heliograph_shipped_large_bodies", "Large bodies put into the object store.")
objects_expired = Counter("heliograph_objects_expired", "Moved bodies deleted because they had been kept long enough.")
object_expiry_failures = Counter(
    "heliograph_object_expiry_failures", "Turns in which old bodies could not be deleted from the object store."
)
shipper_retries = Counter(
    "heliograph_shipper_retries", "Times the shipper had to begin anew because Kafka or the object store failed."
)
ship_lag_events = Gauge(
    "heliograph_ship_lag_events", "Events in the spool and not in Kafka yet.", ["spool"], multiprocess_mode="mostrecent"
)
ship_lag_seconds = Gauge(
    "heliograph_ship_lag_seconds",
    "Age of the oldest event that is not in Kafka yet, s; 0: all are.",
    ["spool"],
    multiprocess_mode="mostrecent",
)
ship_spool_bytes = Gauge(
    "heliograph_ship_spool_bytes",
    "Size of a spool on disk, bytes, as its shipper sees it.",
    ["spool"],
    multiprocess_mode="mostrecent",
)
log_gap_offsets = Gauge(
    "heliograph_log_gap_offsets",
    "Offsets that Kafka deleted before they were planned; not 0: planning of the partition has stopped.",
    ["partition"],
    multiprocess_mode="mostrecent",
)
