-- The ledger: one row per batch, written last. A batch that stands here is done. One that is repeated over the end of a
-- month may stand here twice, since tokens are a partition's own: whoever reads it takes the first.

CREATE TABLE IF NOT EXISTS batches (
    topic          LowCardinality(String),
    partition      UInt32,
    first          UInt64,
    last           UInt64,
    events         UInt32,
    rows           UInt32,
    dead_lettered  UInt32,
    oldest_event_at DateTime64(3, 'UTC'),
    newest_event_at DateTime64(3, 'UTC'),
    inserted_at    DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {{engine MergeTree}}
PARTITION BY toStartOfMonth(inserted_at)
ORDER BY (topic, partition, first)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1;

-- Sums over all batches there ever were, kept for good. Inserted under a batch's token before its row in the ledger: of a
-- server that dies in between, the batch comes again. A view of `batches` could lack one for ever, since nobody looks again
-- at a batch that stands there.
CREATE TABLE IF NOT EXISTS batches_by_partition (
    topic          LowCardinality(String),
    partition      UInt32,
    batches        UInt64,
    offsets        UInt64,
    events         UInt64,
    rows           UInt64,
    dead_lettered  UInt64,
    last           SimpleAggregateFunction(max, UInt64),
    newest_event_at SimpleAggregateFunction(max, DateTime64(3, 'UTC'))
)
ENGINE = {{engine SummingMergeTree}}
ORDER BY (topic, partition)
SETTINGS {{dedup}};

-- Events that could not be turned into rows, each alone, with what is needed to try again.
CREATE TABLE IF NOT EXISTS dead_letters (
    topic        LowCardinality(String),
    partition    UInt32,
    offset       UInt64,
    error        LowCardinality(String),
    message      String CODEC(ZSTD(1)),
    payload      String CODEC(ZSTD(3)),
    died_at      DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {{engine MergeTree}}
PARTITION BY toMonday(died_at)
ORDER BY (topic, partition, offset)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1;
