-- Sums and quantile states of each hour, whatever model, provider, status or outcome: a month by the hour merges 720 states
-- here, and 40,000 in `requests_by_hour`, which took nine tenths of that question's time. What was counted before is taken
-- from there; an hour that is here already is not taken again.

CREATE TABLE IF NOT EXISTS totals_by_hour (
    project_id   LowCardinality(String),
    hour         DateTime('UTC') CODEC(Delta, ZSTD(1)),
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
    latency_ms          AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Float32) CODEC(ZSTD(1)),
    first_token_ms      AggregateFunction(quantilesTDigest(0.5, 0.9, 0.95, 0.99), Nullable(Float32)) CODEC(ZSTD(1))
)
ENGINE = {{engine AggregatingMergeTree}}
PARTITION BY toStartOfMonth(hour)
ORDER BY (project_id, hour)
SETTINGS {{dedup}}, ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 21600;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_to_totals TO totals_by_hour AS
SELECT
    project_id,
    toStartOfHour(created_at) AS hour,
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
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.latency_ms) AS latency_ms,
    quantilesTDigestState(0.5, 0.9, 0.95, 0.99)(requests.first_token_ms) AS first_token_ms
FROM requests
GROUP BY project_id, hour;

INSERT INTO totals_by_hour
SELECT
    project_id,
    hour,
    sum(h.requests),
    sumIf(h.requests, outcome != 'success'),
    sum(h.input_tokens),
    sum(h.output_tokens),
    sum(h.cache_read_tokens),
    sum(h.cache_write_tokens),
    sum(h.reasoning_tokens),
    sum(h.known_usage),
    sum(h.reported_usage),
    sum(h.cost_usd),
    sum(h.known_cost),
    quantilesTDigestMergeState(0.5, 0.9, 0.95, 0.99)(h.latency_ms),
    quantilesTDigestMergeState(0.5, 0.9, 0.95, 0.99)(h.first_token_ms)
FROM requests_by_hour AS h
WHERE (project_id, hour) NOT IN (SELECT project_id, hour FROM totals_by_hour)
GROUP BY project_id, hour;
