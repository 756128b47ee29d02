-- Requests as they were, written once and never changed. Bodies and attempts apart; what comes later in rows of its own.
-- Ordered by time itself: ClickHouse compares UUIDs by their second half, so ordering by id within an hour is no order at
-- all (dearer to store, and the newest rows cannot be read from the end). Small granules and blocks: a page of a rare user
-- or property is a row here and there, which then costs half the CPU, for 4 % more bytes (load_tests/queries.py measures).
-- In a minmax index an unknown value would count as endless and keep every granule, so it is left to read as 0 there.
-- {{engine NAME}} becomes NAME or ReplicatedNAME; {{dedup}} the setting that keeps the tokens of past inserts.

CREATE TABLE IF NOT EXISTS requests (
    project_id       LowCardinality(String),
    created_at       DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    id               UUID CODEC(ZSTD(1)),
    key_id           LowCardinality(String),
    key_name         LowCardinality(String),
    provider         LowCardinality(String),
    api              LowCardinality(String),
    method           LowCardinality(String),
    path             LowCardinality(String),
    requested_model  LowCardinality(String),
    model            LowCardinality(String),
    stream           Bool,
    status           Nullable(Int16),
    outcome          Enum8('success' = 1, 'error' = 2, 'cancelled' = 3, 'refused' = 4, 'timeout' = 5),
    error_code       LowCardinality(String),
    error_message    String CODEC(ZSTD(1)),
    stop_reason      LowCardinality(String),
    name             LowCardinality(String),
    user_id          String CODEC(ZSTD(1)),
    session_id       String CODEC(ZSTD(1)),
    session_path     String CODEC(ZSTD(1)),
    session_name     LowCardinality(String),
    trace_id         String CODEC(ZSTD(1)),
    span_id          String CODEC(ZSTD(1)),
    parent_id        String CODEC(ZSTD(1)),
    properties       Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    features         Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    usage_source     Enum8('none' = 0, 'reported' = 1, 'counted' = 2, 'estimated' = 3),
    input_tokens        Nullable(UInt32) CODEC(ZSTD(1)),
    output_tokens       Nullable(UInt32) CODEC(ZSTD(1)),
    cache_read_tokens   Nullable(UInt32) CODEC(ZSTD(1)),
    cache_write_tokens  Nullable(UInt32) CODEC(ZSTD(1)),
    reasoning_tokens    Nullable(UInt32) CODEC(ZSTD(1)),
    input_audio_tokens  Nullable(UInt32) CODEC(ZSTD(1)),
    output_audio_tokens Nullable(UInt32) CODEC(ZSTD(1)),
    cost_usd         Nullable(Decimal(18, 10)) CODEC(ZSTD(1)),
    cost_source      LowCardinality(String),
    prices_as_of     LowCardinality(String),
    latency_ms       Float32 CODEC(ZSTD(1)),
    first_token_ms   Nullable(Float32) CODEC(ZSTD(1)),
    overhead_ms      Nullable(Float32) CODEC(ZSTD(1)),
    cache_status     Enum8('off' = 0, 'miss' = 1, 'hit' = 2, 'shadow' = 3),
    request_bytes    UInt32 CODEC(ZSTD(1)),
    response_bytes   UInt64 CODEC(ZSTD(1)),
    inserted_at      DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1)),
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_user user_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_session session_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_property mapValues(properties) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_model model TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_requested_model requested_model TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_key_id key_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_key_name key_name TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_name name TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_cost assumeNotNull(cost_usd) TYPE minmax GRANULARITY 1,
    INDEX by_latency latency_ms TYPE minmax GRANULARITY 1,
    INDEX by_tokens assumeNotNull(toUInt64(input_tokens) + output_tokens) TYPE minmax GRANULARITY 1
)
ENGINE = {{engine MergeTree}}
PARTITION BY toMonday(created_at)
ORDER BY (project_id, created_at, id)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, index_granularity = 2048, min_compress_block_size = 8192;

CREATE TABLE IF NOT EXISTS bodies (
    project_id    LowCardinality(String),
    created_at    DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    id            UUID,
    request       String CODEC(ZSTD(3)),
    request_tail  String CODEC(ZSTD(3)),
    request_left_out  LowCardinality(String),
    request_type  LowCardinality(String),
    request_reference String CODEC(ZSTD(1)),
    response      String CODEC(ZSTD(3)),
    response_tail String CODEC(ZSTD(3)),
    response_left_out LowCardinality(String),
    response_type LowCardinality(String),
    response_reference String CODEC(ZSTD(1)),
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {{engine MergeTree}}
PARTITION BY toMonday(created_at)
ORDER BY (project_id, created_at, id)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, index_granularity = 512;

CREATE TABLE IF NOT EXISTS attempts (
    project_id  LowCardinality(String),
    created_at  DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    id          UUID,
    number      UInt8,
    provider    LowCardinality(String),
    status      Nullable(Int16),
    started_at  DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    latency_ms  Float32 CODEC(ZSTD(1)),
    reason      LowCardinality(String),
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {{engine MergeTree}}
PARTITION BY toMonday(created_at)
ORDER BY (project_id, created_at, id, number)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1;
