-- What is said of a request after it was stored: rows of their own, joined on read, the newest wins.

CREATE TABLE IF NOT EXISTS scores (
    project_id  LowCardinality(String),
    request_id  UUID,
    name        LowCardinality(String),
    value       Float64,
    comment     String CODEC(ZSTD(1)),
    source      LowCardinality(String),
    created_at  DateTime64(3, 'UTC')
)
ENGINE = {{engine MergeTree}}
PARTITION BY toMonday(created_at)
ORDER BY (project_id, request_id, name, created_at)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS property_updates (
    project_id  LowCardinality(String),
    request_id  UUID,
    name        LowCardinality(String),
    value       String CODEC(ZSTD(1)),
    created_at  DateTime64(3, 'UTC')
)
ENGINE = {{engine MergeTree}}
PARTITION BY toMonday(created_at)
ORDER BY (project_id, request_id, name, created_at)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1;
