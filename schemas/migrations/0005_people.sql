-- Sums of what is named freely: users by day and week, sessions by day, properties by hour and (with models) by day, keys
-- by hour. A week begins where seven days counted from 1970 do, on a Thursday, as every bucket of `7d` does.
-- Ranking five million rows by a 64-bit hash costs a third of ranking them by the name, and the order makes the few that
-- are shown a look-up (small granules, small blocks: a third of the CPU); names are compared too, so two of one hash
-- are still two.

CREATE TABLE IF NOT EXISTS users_by_day (
    project_id   LowCardinality(String),
    user_hash    UInt64,
    day          DateTime('UTC') CODEC(Delta, ZSTD(1)),
    user_id      String CODEC(ZSTD(1)),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    errors              SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    first_seen          SimpleAggregateFunction(min, DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    last_seen           SimpleAggregateFunction(max, DateTime64(3, 'UTC')) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY intDiv(toUnixTimestamp(day), 604800) -- the weeks of users_by_week: the days before its first one are read alone
ORDER BY (project_id, user_hash, day, user_id)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600, index_granularity = 128, min_compress_block_size = 2048;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_users_by_day TO users_by_day AS
SELECT
    project_id,
    cityHash64(requests.user_id) AS user_hash,
    toStartOfDay(created_at) AS day,
    user_id,
    count() AS requests,
    countIf(outcome != 'success') AS errors,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost,
    min(created_at) AS first_seen,
    max(created_at) AS last_seen
FROM requests
GROUP BY project_id, user_hash, day, user_id;

CREATE TABLE IF NOT EXISTS users_by_week (
    project_id   LowCardinality(String),
    user_hash    UInt64,
    week         DateTime('UTC') CODEC(Delta, ZSTD(1)),
    user_id      String CODEC(ZSTD(1)),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    errors              SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    first_seen          SimpleAggregateFunction(min, DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    last_seen           SimpleAggregateFunction(max, DateTime64(3, 'UTC')) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(week)
ORDER BY (project_id, user_hash, week, user_id)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600, index_granularity = 128, min_compress_block_size = 2048;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_users_by_week TO users_by_week AS
SELECT
    project_id,
    cityHash64(requests.user_id) AS user_hash,
    toDateTime(intDiv(toUnixTimestamp(created_at), 604800) * 604800, 'UTC') AS week,
    user_id,
    count() AS requests,
    countIf(outcome != 'success') AS errors,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost,
    min(created_at) AS first_seen,
    max(created_at) AS last_seen
FROM requests
GROUP BY project_id, user_hash, week, user_id;

CREATE TABLE IF NOT EXISTS sessions_by_day (
    project_id   LowCardinality(String),
    session_hash UInt64,
    day          DateTime('UTC') CODEC(Delta, ZSTD(1)),
    session_id   String CODEC(ZSTD(1)),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    errors              SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    first_seen          SimpleAggregateFunction(min, DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    last_seen           SimpleAggregateFunction(max, DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    session_name        SimpleAggregateFunction(max, String) CODEC(ZSTD(1)),
    user_id             SimpleAggregateFunction(max, String) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toMonday(day)
ORDER BY (project_id, session_hash, day, session_id)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600, index_granularity = 128, min_compress_block_size = 2048;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_sessions_by_day TO sessions_by_day AS
SELECT
    project_id,
    cityHash64(requests.session_id) AS session_hash,
    toStartOfDay(created_at) AS day,
    session_id,
    count() AS requests,
    countIf(outcome != 'success') AS errors,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost,
    min(created_at) AS first_seen,
    max(created_at) AS last_seen,
    max(toString(requests.session_name)) AS session_name,
    max(requests.user_id) AS user_id
FROM requests
WHERE session_id != ''
GROUP BY project_id, session_hash, day, session_id;

CREATE TABLE IF NOT EXISTS properties_by_hour (
    project_id   LowCardinality(String),
    name         LowCardinality(String),
    hour         DateTime('UTC') CODEC(Delta, ZSTD(1)),
    value        String CODEC(ZSTD(1)),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    errors              SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(hour)
ORDER BY (project_id, name, hour, value)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_properties TO properties_by_hour AS
SELECT
    project_id,
    property.1 AS name,
    toStartOfHour(created_at) AS hour,
    property.2 AS value,
    count() AS requests,
    countIf(outcome != 'success') AS errors,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost
FROM requests
ARRAY JOIN properties AS property
GROUP BY project_id, name, hour, value;

CREATE TABLE IF NOT EXISTS property_models_by_day (
    project_id   LowCardinality(String),
    name         LowCardinality(String),
    day          DateTime('UTC') CODEC(Delta, ZSTD(1)),
    value        String CODEC(ZSTD(1)),
    model        LowCardinality(String),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    errors              SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(day)
ORDER BY (project_id, name, day, value, model)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_property_models TO property_models_by_day AS
SELECT
    project_id,
    property.1 AS name,
    toStartOfDay(created_at) AS day,
    property.2 AS value,
    model,
    count() AS requests,
    countIf(outcome != 'success') AS errors,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost
FROM requests
ARRAY JOIN properties AS property
GROUP BY project_id, name, day, value, model;

CREATE TABLE IF NOT EXISTS keys_by_hour (
    project_id   LowCardinality(String),
    hour         DateTime('UTC') CODEC(Delta, ZSTD(1)),
    key_id       LowCardinality(String),
    key_name     LowCardinality(String),
    model        LowCardinality(String),
    provider     LowCardinality(String),
    requests            SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    errors              SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    input_tokens        SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    output_tokens       SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_read_tokens   SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    cache_write_tokens  SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    reasoning_tokens    SimpleAggregateFunction(sum, Nullable(UInt64)) CODEC(ZSTD(1)),
    known_usage         SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    reported_usage      SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    cost_usd            SimpleAggregateFunction(sum, Decimal(38, 10)) CODEC(ZSTD(1)),
    known_cost          SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(hour)
ORDER BY (project_id, hour, key_id, key_name, model, provider)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_keys TO keys_by_hour AS
SELECT
    project_id,
    toStartOfHour(created_at) AS hour,
    key_id,
    key_name,
    model,
    provider,
    count() AS requests,
    countIf(outcome != 'success') AS errors,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.cache_read_tokens) AS cache_read_tokens,
    sum(requests.cache_write_tokens) AS cache_write_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    countIf(usage_source != 'none') AS known_usage,
    countIf(usage_source = 'reported') AS reported_usage,
    sum(toDecimal128(ifNull(requests.cost_usd, 0), 10)) AS cost_usd,
    countIf(isNotNull(requests.cost_usd)) AS known_cost
FROM requests
GROUP BY project_id, hour, key_id, key_name, model, provider;
