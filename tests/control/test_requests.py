import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from control import models
from control.rows import body_shape
from schemas.ids import new_id
from tests.control.world import DAY_MS, HOUR_MS, NOW_MS, World


async def ids(client: object, path: str) -> list[str]:
    answer = await client.get(path)  # type: ignore[attr-defined]
    assert answer.status_code == 200, answer.text
    return [row["id"] for row in models.RequestPage.model_validate(answer.json()).model_dump()["requests"]]


async def test_a_request_has_the_contracts_shape_to_the_letter(world: World) -> None:
    row = world.request(session_id="s", session_path="/a", session_name="n", trace_id="t", parent_id="p")
    world.store([row])
    key = {"project_id": row["project_id"], "created_at": row["created_at"], "id": row["id"]}
    world.store(
        [{**key, "request": '{"model": "gpt-4o", "n": 12345678901234567890}', "response": "data: {}\n\n"}], "bodies"
    )
    world.store(
        [
            {
                **key,
                "number": 0,
                "provider": "openai",
                "status": 200,
                "started_at": row["created_at"],
                "latency_ms": 811.0,
                "reason": "",
            }
        ],
        "attempts",
    )
    client = await world.client()
    answer = await client.get(f"/v1/requests/{row['id']}")
    shape = models.WholeRequest.model_validate(answer.json()).model_dump()
    assert list(answer.json()) == list(models.WholeRequest.model_fields)
    assert shape["cost"] == {"usd": "0.0002600000", "source": "genai-prices 0.2.3", "prices_as_of": "2026-11-01"}
    assert shape["session"] == {"id": "s", "path": "/a", "name": "n"}
    assert shape["trace"] == {"trace_id": "t", "parent_id": "p"}
    assert shape["key"] == {"id": "k1", "name": "web"}
    assert shape["latency_ms"] == 812
    assert shape["overhead_ms"] == 0.4
    assert shape["request"] == {"model": "gpt-4o", "n": 12345678901234567890}
    assert shape["response"] == "data: {}\n\n"
    assert shape["attempts"][0]["latency_ms"] == 811
    listed = (await client.get("/v1/requests")).json()["requests"][0]
    assert listed == {
        name: value for name, value in answer.json().items() if name not in ("attempts", "request", "response")
    }


async def test_what_is_unknown_is_null_and_never_zero(world: World) -> None:
    world.store([world.unknown()])
    shape = (await (await world.client()).get("/v1/requests")).json()["requests"][0]
    assert shape["status"] is shape["model"] is shape["user_id"] is shape["cost"]["usd"] is None
    assert {value for name, value in shape["usage"].items() if name != "source"} == {None}
    assert shape["key"] == {"id": None, "name": None}


@pytest.mark.parametrize(
    ("kept", "given"),
    [
        pytest.param({"whole": "plain"}, "plain", id="text"),
        pytest.param({"whole": ""}, None, id="none"),
        pytest.param({"whole": "[" * 100_000}, "[" * 100_000, id="a bracket bomb is text"),
        pytest.param({"whole": b"\xff\x00"}, "\ufffd\x00", id="bytes"),
        pytest.param(
            {"whole": "ab", "tail": "yz", "size": 99},
            {"_heliograph": "truncated", "size": 99, "head": "ab", "tail": "yz"},
            id="cut",
        ),
        pytest.param(
            {"whole": "", "left_out": "asked", "size": 9},
            {"_heliograph": "left_out", "size": 9, "reason": "asked"},
            id="left out",
        ),
    ],
)
def test_a_body_that_is_not_whole_says_so(kept: dict[str, object], given: object) -> None:
    whole: dict[str, object] = {"tail": "", "size": 0, "left_out": "", "reference": ""}
    assert body_shape(**{**whole, **kept}) == given  # type: ignore[arg-type]


@pytest.mark.parametrize("sort", ["time", "cost", "latency", "tokens"])
@pytest.mark.parametrize("order", ["desc", "asc"])
async def test_pages_neither_repeat_nor_skip_while_rows_arrive(world: World, sort: str, order: str) -> None:
    # Times, costs and latencies repeat, so that the order within equals counts; some are unknown.
    rows = [
        world.request(
            created_ms=NOW_MS - 60_000 * (1 + i // 3),
            cost_usd=None if i % 5 == 0 else Decimal(i % 4) / 1000,
            input_tokens=None if i % 7 == 0 else i % 3,
            latency_ms=float(i % 4) + 0.1,
        )
        for i in range(23)
    ]
    world.store(rows)
    client = await world.client()
    path = f"/v1/requests?sort={sort}&order={order}&limit=5"
    seen, cursor = [], None
    for turn in range(10):
        page = (await client.get(path + (f"&cursor={cursor}" if cursor else ""))).json()
        seen += [row["id"] for row in page["requests"]]
        cursor = page["next_cursor"]
        if turn == 0:
            world.store(
                [world.request(created_ms=NOW_MS - 500, cost_usd=Decimal(9), latency_ms=999.0, input_tokens=99)]
            )
        if cursor is None:
            break
    before = {str(row["id"]) for row in rows}
    assert len(seen) == len(set(seen))
    assert before <= set(seen)
    assert len(set(seen) - before) <= (1 if order == "asc" else 0)


@pytest.mark.parametrize("sort", ["cost", "latency", "tokens"])
@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("step", [pytest.param(1, id="the best are old"), pytest.param(10, id="most are equal")])
async def test_the_first_by_value_are_the_first_of_the_whole_range(
    world: World, sort: str, order: str, step: int
) -> None:
    # The newest windows hold a short page, not a long one; a third is unknown.
    rows = [
        world.request(
            created_ms=NOW_MS - 60_000 - i * 4 * HOUR_MS,
            cost_usd=None if i % 3 == 0 else Decimal(i * 7 % 30 // step) / 1000,
            input_tokens=None if i % 3 == 0 else i * 7 % 30 // step,
            latency_ms=0.1 + i * 7 % 30 // step,
        )
        for i in range(170)
    ]
    world.store(rows)

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        value = {"cost": row["cost_usd"], "tokens": row["input_tokens"], "latency": row["latency_ms"]}[sort]
        sign = -1 if order == "desc" else 1
        return (value is None, sign * (value or 0), sign * row["created_at"].timestamp())

    wanted = [str(row["id"]) for row in sorted(rows, key=key)]
    client = await world.client()
    for limit in (1, 5, 20, 150):
        assert await ids(client, f"/v1/requests?sort={sort}&order={order}&limit={limit}") == wanted[:limit], limit


@pytest.mark.parametrize("sort", ["cost", "latency", "tokens"])
async def test_the_highest_of_each_hour_lead_to_the_first_by_value(world: World, sort: str) -> None:
    start = NOW_MS // HOUR_MS * HOUR_MS - 40 * HOUR_MS + HOUR_MS // 2
    rows = [
        world.request(
            created_ms=start + i * HOUR_MS // 7,
            model=f"m{i % 3}",
            status=200 if i % 4 else None,
            cost_usd=Decimal(i * 37 % 101) / 1000,
            input_tokens=i * 37 % 101,
            output_tokens=0,
            latency_ms=0.1 + i * 37 % 101,
        )
        for i in range(-20, 250)
    ]
    world.store(rows)
    wanted = sorted(
        (row for row in rows if row["created_at"].timestamp() * 1000 >= start),
        key=lambda row: (row["cost_usd"], row["created_at"]),
        reverse=True,
    )
    client = await world.client()
    path = f"/v1/requests?sort={sort}&start={start}&limit=7"
    for also, those in (
        ("", wanted),
        ("&model=m1", [row for row in wanted if row["model"] == "m1"]),
        ("&status=none&model=m0", [row for row in wanted if row["status"] is None and row["model"] == "m0"]),
    ):
        found: list[str] = []
        cursor = ""
        while len(found) < len(those):
            page = (await client.get(path + also + cursor)).json()
            found += [row["id"] for row in page["requests"]]
            cursor = f"&cursor={page['next_cursor']}"
        assert found == [str(row["id"]) for row in those]


async def test_a_list_by_value_reads_only_hours_that_reach_its_bound(world: World) -> None:
    rows = [world.request(created_ms=NOW_MS - i * HOUR_MS, latency_ms=float(i)) for i in range(3, 60)]
    world.store(rows)
    world.query(f"DELETE FROM requests_by_hour WHERE project_id = '{world.project}' AND highest_latency_ms = 57")
    client = await world.client()
    # The hour that seems to reach nothing is not read.
    wanted = [str(row["id"]) for row in rows[::-1] if row["latency_ms"] != 57]
    assert await ids(client, "/v1/requests?sort=latency&limit=5") == wanted[:5]


async def test_sums_that_outlive_their_requests_hide_none_of_those_left(world: World) -> None:
    rows = [world.request(created_ms=NOW_MS - i * HOUR_MS, latency_ms=float(i)) for i in range(1, 60)]
    world.store(rows)
    world.query(f"DELETE FROM requests WHERE project_id = '{world.project}' AND latency_ms > 30")
    client = await world.client()
    left = [str(row["id"]) for row in rows[29::-1]]
    assert await ids(client, "/v1/requests?sort=latency&limit=5") == left[:5]


async def test_a_cursor_of_another_question_is_refused(world: World) -> None:
    world.store([world.request() for _ in range(3)])
    client = await world.client()
    cursor = (await client.get("/v1/requests?limit=1")).json()["next_cursor"]
    for path in (f"?cursor={cursor}&user_id=u1", f"?cursor={cursor}&sort=cost", "?cursor=AAAA", "?cursor=%ff"):
        answer = await client.get(f"/v1/requests{path}")
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, "cursor"), path


async def test_each_filter_finds_its_own_rows_alone(world: World) -> None:
    wanted = world.request(
        model="m-9", requested_model="m", provider="groq", user_id="u9", session_id="s9", status=429, outcome="error",
        key_id="k9", key_name="batch", name="n9", properties={"tier": "gold"}, cost_usd=Decimal("0.5"), latency_ms=9000.0,
        input_tokens=900, stream=False,
    )  # fmt: skip
    world.store([wanted, *(world.request() for _ in range(3))])
    client = await world.client()
    for asked in (
        "model=m-9", "requested_model=m", "provider=groq", "user_id=u9", "session_id=s9", "status=429", "status=4xx",
        "outcome=error", "key=k9", "key=batch", "name=n9", "property.tier=gold", "property.Tier=gold", "cost_min=0.4",
        "latency_ms_min=8000", "tokens_min=900", "stream=false", f"id={wanted['id']}", "model=m-9&model=other",
        "status=429&status=500", "model=m-9&user_id=u9&property.tier=gold", "property.tier=silver&property.tier=gold",
    ):  # fmt: skip
        assert await ids(client, f"/v1/requests?{asked}") == [str(wanted["id"])], asked
    for asked in (
        "model=m-9&user_id=u1",
        "property.tier=silver",
        "cost_min=1",
        "status=5xx",
        "status=none",
        "cost_max=0",
    ):
        assert await ids(client, f"/v1/requests?{asked}") == [], asked
    assert len(await ids(client, "/v1/requests?cost_max=0.4&latency_ms_max=900&tokens_max=62&stream=true")) == 3


async def test_the_newest_come_first_over_all_windows(world: World) -> None:
    ages = [0, HOUR_MS // 2, 5 * HOUR_MS, 2 * DAY_MS, 9 * DAY_MS, 25 * DAY_MS, 40 * DAY_MS]
    rows = [world.request(created_ms=NOW_MS - age - 1000) for age in ages]
    world.store(rows)
    client = await world.client()
    in_range = [str(row["id"]) for row in rows[:-1]]
    assert await ids(client, "/v1/requests") == in_range
    assert await ids(client, "/v1/requests?order=asc") == in_range[::-1]
    assert await ids(client, f"/v1/requests?start={NOW_MS - 3 * DAY_MS}&end={NOW_MS - HOUR_MS}") == in_range[2:4]


async def test_a_project_never_sees_anothers_rows(world: World) -> None:
    row = world.request(session_id="s")
    world.store([row])
    world.store([{k: row[k] for k in ("project_id", "created_at", "id")} | {"request": "secret"}], "bodies")
    client = await world.client(project="default")
    id_ = str(row["id"])
    assert (await client.get(f"/v1/requests/{id_}")).status_code == 404
    assert (await client.get(f"/v1/request/{id_}")).status_code == 404
    assert (await client.get(f"/v1/requests/{id_}/facts")).status_code == 404
    assert await ids(client, f"/v1/requests?id={id_}") == []
    for filter_ in (
        {"request_id": {"equals": id_}},
        {"request_body": {"contains": "secret"}},
        {"user_id": {"equals": "u1"}},
    ):
        body = {"filter": {"request_response_rmt": filter_}}
        found = (await client.post("/v1/request/query-clickhouse", json=body)).json()["data"]
        assert id_ not in {row["request_id"] for row in found}
    for path in ("/v1/users?user_id=u1", "/v1/sessions?name=", "/v1/metrics?model=gpt-4o-2024-08-06"):
        assert world.project not in (await client.get(path)).text


@pytest.mark.parametrize("made", ["v7", "v4", "v7 by a wrong clock"])
async def test_a_request_is_found_by_any_id(world: World, made: str) -> None:
    id_ = {"v7": uuid.UUID(new_id(NOW_MS - 60_000)), "v4": uuid.uuid4(), "v7 by a wrong clock": uuid.UUID(new_id(1))}[
        made
    ]
    world.store([world.request(id=id_)])
    assert (await (await world.client()).get(f"/v1/requests/{id_}")).json()["id"] == str(id_)


async def test_a_propertys_name_has_no_case_and_all_its_values_count(world: World) -> None:
    rows = [world.request(properties={"env": value}) for value in ("a", "b", "c")]
    world.store(rows)
    client = await world.client()
    found = await ids(client, "/v1/requests?property.Env=a&property.env=b")
    assert set(found) == {str(row["id"]) for row in rows[:2]}
    most = world.app.state.services.bounds.filter_values
    asked = "&".join(f"property.{name}={i}" for name in ("Env", "env") for i in range(most // 2 + 1))
    answer = await client.get(f"/v1/requests?{asked}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


async def test_a_property_said_later_takes_the_stored_ones_place(world: World) -> None:
    changed, left = world.request(), world.request()
    world.store([changed, left])
    writer = await world.client("write", "read")
    id_ = changed["id"]
    for value in ("staging", "dev"):
        answer = await writer.put(f"/v1/request/{id_}/property", json={"key": "Environment", "value": value})
        assert (answer.status_code, answer.json()) == (200, {"data": None, "error": None})
    assert (await writer.get(f"/v1/requests/{id_}")).json()["properties"] == {"environment": "dev"}
    assert await ids(writer, "/v1/requests?property.environment=dev") == [str(id_)]
    assert await ids(writer, "/v1/requests?property.environment=staging") == []
    assert await ids(writer, "/v1/requests?property.environment=production") == [str(left["id"])]
    rows = (await writer.get("/v1/metrics?group_by=property.environment")).json()
    assert {row["property.environment"]: row["requests"] for row in rows["rows"]} == {"dev": 1, "production": 1}
    body = {"filter": {"properties": {"environment": {"equals": "dev"}}}}
    found = (await writer.post("/v1/request/query-clickhouse", json=body)).json()["data"]
    assert [row["request_id"] for row in found] == [str(id_)]


def test_created_at_is_utc_with_milliseconds() -> None:
    from control.scope import iso, read_time

    moment = datetime(2026, 11, 21, 5, 0, 0, 123_000, UTC)
    assert iso(int(moment.timestamp() * 1000)) == "2026-11-21T05:00:00.123Z"
    for text in (
        "2026-11-21T05:00:00.123Z",
        "2026-11-21T06:00:00.123+01:00",
        "2026-11-21T06:00:00.123 01:00",
        "2026-11-21T15:00:00.123 10:00",
        "1795237200123",
    ):
        assert read_time(text, "start") == 1_795_237_200_123, text
