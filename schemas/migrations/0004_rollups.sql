-- Sums and quantile states by minute, hour and day, without users: with them a row of the minute is a request again (0005
-- has users by day). A month of hours is 60,000 states of each quantile, 200 ms to merge; of days it is a twentieth.
-- Each rollup has a window of tokens of its own, or a repeated batch would count twice. The sum of a token class is of the
-- requests that know it, and NULL where none does; `known_…` count requests. The highest of each hour tell a list by value
-- where to look (control/by_value.py). What is older than six hours is merged whatever its size: as one part a month's
-- rollup answers twice as fast as in ten (load_tests/queries.py says what the merging takes).

CREATE TABLE IF NOT EXISTS requests_by_minute (
    project_id   LowCardinality(String),
    minute       DateTime('UTC') CODEC(Delta, ZSTD(1)),
    model        LowCardinality(String),
    provider     LowCardinality(String),
    status       Int16,
    outcome      Enum8('success' = 1, 'error' = 2, 'cancelled' = 3, 'refused' = 4, 'timeout' = 5),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    latency_ms          AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Float32) CODEC(ZSTD(1)),
    first_token_ms      AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Nullable(Float32)) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(minute)
ORDER BY (project_id, minute, model, provider, status, outcome)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_minute TO requests_by_minute AS
SELECT
    project_id,
    toStartOfMinute(created_at) AS minute,
    model,
    provider,
    ifNull(requests.status, 0) AS status,
    outcome,
    count() AS requests,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost,
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.latency_ms) AS latency_ms,
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.first_token_ms) AS first_token_ms
FROM requests
GROUP BY project_id, minute, model, provider, status, outcome;

CREATE TABLE IF NOT EXISTS requests_by_hour (
    project_id   LowCardinality(String),
    hour         DateTime('UTC') CODEC(Delta, ZSTD(1)),
    model        LowCardinality(String),
    provider     LowCardinality(String),
    status       Int16,
    outcome      Enum8('success' = 1, 'error' = 2, 'cancelled' = 3, 'refused' = 4, 'timeout' = 5),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    latency_ms          AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Float32) CODEC(ZSTD(1)),
    first_token_ms      AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Nullable(Float32)) CODEC(ZSTD(1)),
    highest_cost_usd    SimpleAggregateFunction(max, Nullable(Decimal(18, 10))) CODEC(ZSTD(1)),
    highest_latency_ms  SimpleAggregateFunction(max, Float32) CODEC(ZSTD(1)),
    highest_tokens      SimpleAggregateFunction(max, Nullable(UInt64)) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(hour)
ORDER BY (project_id, hour, model, provider, status, outcome)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_hour TO requests_by_hour AS
SELECT
    project_id,
    toStartOfHour(created_at) AS hour,
    model,
    provider,
    ifNull(requests.status, 0) AS status,
    outcome,
    count() AS requests,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost,
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.latency_ms) AS latency_ms,
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.first_token_ms) AS first_token_ms,
    max(requests.cost_usd) AS highest_cost_usd,
    max(requests.latency_ms) AS highest_latency_ms,
    max(toUInt64(requests.input_tokens) + requests.output_tokens) AS highest_tokens
FROM requests
GROUP BY project_id, hour, model, provider, status, outcome;

CREATE TABLE IF NOT EXISTS requests_by_day (
    project_id   LowCardinality(String),
    day          DateTime('UTC') CODEC(Delta, ZSTD(1)),
    model        LowCardinality(String),
    provider     LowCardinality(String),
    status       Int16,
    outcome      Enum8('success' = 1, 'error' = 2, 'cancelled' = 3, 'refused' = 4, 'timeout' = 5),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    latency_ms          AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Float32) CODEC(ZSTD(1)),
    first_token_ms      AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Nullable(Float32)) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(day)
ORDER BY (project_id, day, model, provider, status, outcome)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_day TO requests_by_day AS
SELECT
    project_id,
    toStartOfDay(created_at) AS day,
    model,
    provider,
    ifNull(requests.status, 0) AS status,
    outcome,
    count() AS requests,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost,
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.latency_ms) AS latency_ms,
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.first_token_ms) AS first_token_ms
FROM requests
GROUP BY project_id, day, model, provider, status, outcome;
