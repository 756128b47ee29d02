-- The highest of each hour tell a list by value where to look (control/by_value.py). Hours counted before this get theirs from
-- the requests: rows that add nothing to any sum. Done again, it changes nothing.

ALTER TABLE requests_by_hour
    ADD COLUMN IF NOT EXISTS highest_cost_usd   SimpleAggregateFunction(max, Nullable(Decimal(18, 10))) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS highest_latency_ms SimpleAggregateFunction(max, Nullable(Float32)) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS highest_tokens     SimpleAggregateFunction(max, Nullable(UInt64)) CODEC(ZSTD(1));

ALTER TABLE requests_to_hour MODIFY QUERY
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

INSERT INTO requests_by_hour
    (project_id, hour, model, provider, status, outcome, highest_cost_usd, highest_latency_ms, highest_tokens)
SELECT
    project_id,
    toStartOfHour(created_at) AS hour,
    model,
    provider,
    ifNull(requests.status, 0) AS status,
    outcome,
    max(cost_usd),
    max(latency_ms),
    max(toUInt64(input_tokens) + output_tokens)
FROM requests
GROUP BY project_id, hour, model, provider, status, outcome
SETTINGS max_partitions_per_insert_block = 0;

-- What is older than six hours is merged whatever its size: as one part a month's rollup answers up to twice as fast as in ten
-- (load_tests/queries.py says what the merging takes).

ALTER TABLE requests_by_minute MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE requests_by_hour MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE requests_by_day MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE users_by_day MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE users_by_week MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE sessions_by_day MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE properties_by_hour MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE property_models_by_day MODIFY SETTING min_age_to_force_merge_seconds = 21600;
ALTER TABLE keys_by_hour MODIFY SETTING min_age_to_force_merge_seconds = 21600;
