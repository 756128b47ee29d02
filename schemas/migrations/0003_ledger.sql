-- The ledger: one row per batch, written last. A batch that stands here is done.

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
ORDER BY (topic, partition, first)
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
