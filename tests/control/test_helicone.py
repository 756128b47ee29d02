import json
from decimal import Decimal
from typing import Any

import pytest

from control import models
from tests.control.world import DAY_MS, NOW_MS, World

ROW = {
    "response_id", "response_created_at", "response_status", "response_model", "request_id", "request_created_at",
    "request_body", "request_path", "request_user_id", "request_properties", "request_model", "model_override",
    "helicone_user", "provider", "delay_ms", "time_to_first_token", "total_tokens", "prompt_tokens",
    "completion_tokens", "reasoning_tokens", "prompt_cache_write_tokens", "prompt_cache_read_tokens",
    "prompt_audio_tokens", "completion_audio_tokens", "cost", "costUSD", "prompt_id", "prompt_version",
    "feedback_created_at", "feedback_id", "feedback_rating", "signed_body_url", "llmSchema", "country_code",
    "asset_ids", "asset_urls", "scores", "properties", "assets", "target_url", "model", "cache_reference_id",
    "cache_enabled", "updated_at", "request_referrer", "ai_gateway_body_mapping", "storage_location", "response_body",
}  # fmt: skip


def leaf(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"request_response_rmt": {field: {operator: value}}}


async def query(client: Any, filter_: Any = "all", **body: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/request/query-clickhouse", json={"filter": filter_, **body})
    assert answer.status_code == 201, answer.text
    assert answer.json()["error"] is None
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


async def test_a_row_has_helicones_fields_and_habits(world: World) -> None:
    row = world.request(session_id="s", session_path="/a", session_name="n", cache_write_tokens=2)
    world.store([row])
    world.store(
        [{k: row[k] for k in ("project_id", "created_at", "id")} | {"request": '{"a":1}', "response": "x"}], "bodies"
    )
    (found,) = await query(await world.client())
    models.HeliconeRow.model_validate(found)
    assert set(found) == ROW
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == (38, 10, 48)
    assert found["request_properties"] == {
        "environment": "production", "Helicone-Session-Id": "s", "Helicone-Session-Path": "/a", "Helicone-Session-Name": "n",
    }  # fmt: skip
    assert (found["cost"], found["costUSD"], found["provider"]) == (0.00026, 0.00026, "OPENAI")
    assert (found["request_body"], found["response_body"]) == ({"a": 1}, "x")
    (one,) = [(await (await world.client()).get(f"/v1/request/{row['id']}")).json()["data"]]
    assert one == found


@pytest.mark.parametrize(("outcome", "status"), [("cancelled", -3), ("timeout", -2), ("error", None)])
async def test_what_never_answered_has_helicones_status(world: World, outcome: str, status: int | None) -> None:
    world.store([world.unknown(outcome=outcome)])
    (row,) = await query(await world.client())
    assert row["response_status"] == status
    assert row["cost"] is row["total_tokens"] is None


@pytest.mark.parametrize(
    "condition",
    [
        leaf("model", "equals", "m-9"), leaf("model", "like", "m-%"), leaf("model", "ilike", "M-%"),
        leaf("model", "contains", "M-"), leaf("model", "not-contains", "gpt"),
        leaf("model", "not-equals", "gpt-4o-2024-08-06"),
        leaf("provider", "equals", "groq"), leaf("provider", "equals", "GROQ"), leaf("status", "gte", 400),
        leaf("status", "equals", "429"), leaf("latency", "gt", 8000),
        leaf("cost", "gte", 0.5), leaf("prompt_tokens", "gt", 800),
        leaf("completion_tokens", "gte", 200), leaf("total_tokens", "gt", 1000), leaf("user_id", "contains", "U9"),
        leaf("cached", "equals", True), leaf("time_to_first_token", "gt", 8000),
        leaf("request_created_at", "lt", NOW_MS - 7200_000),
        leaf("properties", "x", 0) | {"request_response_rmt": {"properties": {"Tier": {"equals": "gold"}}}},
        {"request_response_rmt": {"properties": {"Helicone-Session-Id": {"equals": "s9"}}}},
        {"request_response_rmt": {"model": {"equals": "m-9"}, "user_id": {"equals": "u9"}}},
        {"left": leaf("model", "equals", "m-9"), "operator": "and", "right": "all"},
        {"left": leaf("model", "equals", "m-9"), "operator": "or", "right": leaf("model", "equals", "nobody")},
    ],
)  # fmt: skip
async def test_each_field_and_operator_finds_its_own_rows_alone(world: World, condition: Any) -> None:
    wanted = world.request(
        created_ms=NOW_MS - DAY_MS, model="m-9", provider="groq", status=429, outcome="error", latency_ms=9000.0,
        first_token_ms=8500.0, cost_usd=Decimal("0.5"), input_tokens=900, output_tokens=300, user_id="u9",
        session_id="s9", properties={"tier": "gold"}, cache_status="hit",
    )  # fmt: skip
    world.store([wanted, *(world.request() for _ in range(2))])
    client = await world.client()
    assert [row["request_id"] for row in await query(client, condition)] == [str(wanted["id"])]
    counted = await client.post("/v1/request/count/query", json={"filter": condition})
    assert (counted.status_code, counted.json()) == (201, {"data": 1, "error": None})


@pytest.mark.parametrize(
    "condition",
    [leaf("threat", "equals", True), leaf("threat", "equals", False), leaf("country_code", "equals", "DE"),
     leaf("target_url", "contains", "x"), leaf("prompt_id", "like", "%"), leaf("is_passthrough_billing", "equals", "true")],
)  # fmt: skip
async def test_a_field_of_helicones_of_which_nothing_is_known_fits_no_row(world: World, condition: Any) -> None:
    world.store([world.request()])
    assert await query(await world.client(), condition) == []


async def test_bodies_are_searched_and_bounded(world: World) -> None:
    rows = [world.request(created_ms=NOW_MS - 1000 * (i + 1)) for i in range(3)]
    world.store(rows)
    world.store(
        [
            {k: row[k] for k in ("project_id", "created_at", "id")} | {"request": f"needle {i}" + "x" * 9_000_000}
            for i, row in enumerate(rows)
        ],
        "bodies",
    )
    client = await world.client()
    (found,) = await query(client, leaf("request_body", "contains", "NEEDLE 1"))
    assert found["request_id"] == str(rows[1]["id"])
    everything = await query(client)
    assert [isinstance(row["request_body"], str) for row in everything] == [True, False, False]
    assert everything[2]["request_body"]["_heliograph"] == "left_out"


@pytest.mark.parametrize("field", ["request", "response"])
async def test_of_a_body_what_is_kept_is_searched_and_nothing_is_said_of_the_rest(world: World, field: str) -> None:
    kept = {
        "whole": {field: "a needle"},
        "head": {field: "a needle", f"{field}_tail": "hay"},
        "tail": {field: "hay", f"{field}_tail": "a needle"},
        "neither": {field: "hay", f"{field}_tail": "hay"},
        "hay": {field: "hay"},
        "none": {},
        "left out": {f"{field}_left_out": "asked"},
        "moved": {field: "hay", f"{field}_reference": "default/2026-11-21/x"},
    }
    rows = {name: world.request() for name in (*kept, "expired")}
    world.store(list(rows.values()))
    empty = dict.fromkeys([field, f"{field}_tail", f"{field}_left_out", f"{field}_reference"], "")
    world.store(
        [
            {k: rows[name][k] for k in ("project_id", "created_at", "id")} | empty | columns
            for name, columns in kept.items()
        ],
        "bodies",
    )
    client = await world.client()
    names = {str(row["id"]): name for name, row in rows.items()}

    async def found(operator: str, value: str) -> set[str]:
        return {names[row["request_id"]] for row in await query(client, leaf(f"{field}_body", operator, value))}

    assert await found("contains", "Needle") == {"whole", "head", "tail"}
    assert await found("not-contains", "Needle") == {"neither", "hay", "none"}
    assert await found("like", "%needle") == {"whole", "head", "tail"}
    assert await found("like", "") == {"none"}
    assert await found("equals", "hay") == {"hay"}
    assert await found("not-equals", "hay") == {"whole", "head", "tail", "neither", "none"}


async def test_the_trees_own_times_take_the_defaults_place(world: World) -> None:
    old = world.request(created_ms=NOW_MS - 60 * DAY_MS)
    world.store([old])
    client = await world.client()
    assert await query(client) == []
    assert len(await query(client, leaf("request_created_at", "gte", "2020-01-01T00:00:00Z"))) == 1


async def test_sorts_and_offsets_walk_through_all_rows(world: World) -> None:
    world.store([world.request(latency_ms=float(i)) for i in range(5)])
    client = await world.client()
    for direction, order in (("asc", [0, 1, 2, 3, 4]), ("desc", [4, 3, 2, 1, 0])):
        found = []
        for offset in (0, 2, 4):
            found += await query(client, sort={"latency": direction}, limit=2, offset=offset)
        assert [row["delay_ms"] for row in found] == order
    for sort in ({"created_at": "desc"}, {"cost": "asc"}, {"properties": {"environment": "asc"}}, {"random": True}):
        assert len(await query(client, sort=sort)) == 5


def nested(depth: int) -> Any:
    tree: Any = "all"
    for _ in range(depth):
        tree = {"left": tree, "operator": "and", "right": "all"}
    return tree


@pytest.mark.parametrize(
    "body",
    [
        {"filter": leaf("country", "equals", "x")},
        {"filter": leaf("colour", "equals", "x")},
        {"filter": leaf("model", "vector-contains", "x")},
        {"filter": leaf("model", "gt", "x")},
        {"filter": leaf("model", "equals", 5)},
        {"filter": leaf("status", "equals", "many")},
        {"filter": leaf("status", "equals", True)},
        {"filter": leaf("cost", "gt", 1e300)},
        {"filter": leaf("cached", "equals", "maybe")},
        {"filter": leaf("request_id", "equals", "x")},
        {"filter": leaf("request_created_at", "gt", "yesterday")},
        {"filter": leaf("model", "equals", "\ud800")},
        {"filter": leaf("model", "equals", "x" * 5000)},
        {"filter": {"users": {"id": {"equals": 1}}}},
        {"filter": {"request_response_rmt": []}},
        {"filter": {"request_response_rmt": {"model": {}}}},
        {"filter": {"left": "all", "operator": "xor", "right": "all"}},
        {"filter": {"left": "all", "operator": "and"}},
        {"filter": "some"},
        {"filter": 5},
        {"filter": nested(60)},
        {"filter": {"left": nested(39), "operator": "and", "right": "all", "extra": 1}},
        {"limit": 1001},
        {"limit": -1},
        {"offset": -1},
        {"offset": 10**9},
        {"limit": "ten"},
        {"sort": {"colour": "asc"}},
        {"sort": {"created_at": "sideways"}},
        {"sort": {"created_at": "asc", "cost": "asc"}},
        {"unknown": 1},
    ],
)
async def test_what_cannot_be_mapped_is_refused_in_helicones_shape(world: World, body: dict[str, Any]) -> None:
    client = await world.client()
    answer = await client.post("/v1/request/query-clickhouse", content=json.dumps(body).encode())
    assert answer.status_code == 400, answer.text
    assert answer.json()["data"] is None
    assert answer.json()["error"]


async def test_a_tree_has_bounds_in_nodes_and_in_depth_before_it_is_read(world: World) -> None:
    client = await world.client()
    wide = {"request_response_rmt": {"properties": {f"p{i}": {"equals": "x"} for i in range(300)}}}
    assert (await client.post("/v1/request/query-clickhouse", json={"filter": wide})).status_code == 400
    bomb = b'{"filter": ' + b'{"left":' * 20_000 + b"}"
    assert (await client.post("/v1/request/query-clickhouse", content=bomb)).status_code == 400
