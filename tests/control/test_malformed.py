import pytest

from schemas.settings import ControlBounds, SharedSettings
from tests.control.world import World, opened

INJECTIONS = [
    "' OR 1=1 --", "\\' OR 1=1 --", "'; DROP TABLE requests; --", "{project:String}", "%(project)s", "\\", "\\N",
    "a' UNION ALL SELECT * FROM bodies --", "') OR project_id != ('", "\u0000", "\u2028", "%", "_",
]  # fmt: skip


@pytest.mark.parametrize("text", INJECTIONS)
async def test_no_text_becomes_sql(world: World, text: str) -> None:
    world.store([world.request()])
    client = await world.client()
    for name in ("model", "user_id", "session_id", "name", "key", "property.a", "provider"):
        answer = await client.get("/v1/requests", params={name: text})
        assert (answer.status_code, answer.json().get("requests")) == (200, []), (name, answer.text)
        rows = (await client.get("/v1/metrics", params={name: text, "group_by": "model"})).json()["rows"]
        assert rows == [], name
    for path, name in (("/v1/users", "user_id"), ("/v1/sessions", "name"), ("/v1/sessions", "user_id")):
        answer = await client.get(path, params={name: text})
        assert answer.status_code == 200
        assert answer.json()[path.rpartition("/")[2]] == []
    for operator in ("equals", "contains"):
        for field in ("model", "user_id", "request_body"):
            body = {"filter": {"request_response_rmt": {field: {operator: text}}}}
            answer = await client.post("/v1/request/query-clickhouse", json=body)
            assert (answer.status_code, answer.json()["data"]) == (201, []), (field, operator, answer.text)
        body = {"filter": {"properties": {text: {operator: text}}}}
        assert (await client.post("/v1/request/query-clickhouse", json=body)).json()["data"] == []
    for operator in ("like", "ilike"):
        body = {"filter": {"request_response_rmt": {"model": {operator: text}}}}
        assert (await client.post("/v1/request/query-clickhouse", json=body)).status_code == 201
    answer = await client.get("/v1/metrics", params={"group_by": f"property.a{text}"})
    assert answer.status_code in (200, 400)
    assert (await client.get("/v1/requests")).json()["requests"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/requests?limit=0", "limit"),
        ("/v1/requests?limit=100000", "limit"),
        ("/v1/requests?limit=ten", "limit"),
        ("/v1/requests?modell=x", "modell"),
        ("/v1/requests?start=yesterday", "start"),
        ("/v1/requests?start=9999999999999999", "start"),
        ("/v1/requests?start=2026-11-21T00:00:00Z&end=2026-11-20T00:00:00Z", "start"),
        ("/v1/requests?status=600x", "status"),
        ("/v1/requests?outcome=fine", "outcome"),
        ("/v1/requests?stream=perhaps", "stream"),
        ("/v1/requests?cost_min=cheap", "cost_min"),
        ("/v1/requests?cost_min=-1", "cost_min"),
        ("/v1/requests?cost_min=NaN", "cost_min"),
        ("/v1/requests?tokens_min=1.5", "tokens_min"),
        ("/v1/requests?id=x", "id"),
        ("/v1/requests?sort=colour", "sort"),
        ("/v1/requests?order=up", "order"),
        ("/v1/requests?property.=x", "property."),
        ("/v1/requests?model=" + "x" * 5000, "model"),
        ("/v1/requests?" + "&".join(["model=x"] * 101), "model"),
        ("/v1/requests/not-a-uuid", "id"),
        ("/v1/requests/{01000000-0000-4000-a000-000000000009}", "id"),
        ("/v1/metrics?group_by=colour", "group_by"),
        ("/v1/metrics?group_by=model,model", "group_by"),
        ("/v1/metrics?group_by=model,status,provider,user", "group_by"),
        ("/v1/metrics?group_by=time&bucket=1x", "bucket"),
        ("/v1/metrics?group_by=time&bucket=0m", "bucket"),
        ("/v1/metrics?group_by=time&bucket=1m", "bucket"),
        ("/v1/metrics?group_by=model&bucket=1h", "bucket"),
        ("/v1/metrics?quantiles=perhaps", "quantiles"),
        ("/v1/users?sort=name", "sort"),
        ("/v1/users?offset=-1", "offset"),
        ("/v1/users?colour=red", "colour"),
    ],
)
async def test_a_value_that_may_not_be_is_named_with_what_would_be_right(world: World, path: str, field: str) -> None:
    answer = await (await world.client()).get(path)
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("bad_request", field)
    assert error["message"]
    assert error["expected"]
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b'{"name": 5}', b'{"name": "x", "more": 1}', b'{"name": ""}']
)
async def test_a_body_that_may_not_be_is_refused_in_our_shape(world: World, body: bytes) -> None:
    client = await world.client("admin")
    answer = await client.post("/v1/keys", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"]["code"] == "bad_request"


async def test_a_huge_body_is_refused_before_it_is_read(shared: SharedSettings) -> None:
    async with opened(shared, bounds=ControlBounds(body_bytes=8192)) as world:
        client = await world.client("write", "read")
        answer = await client.post("/v1/request/query-clickhouse", content=b" " * 9000)
        assert (answer.status_code, answer.json()["data"]) == (413, None)

        async def drops() -> "object":
            for _ in range(100):
                yield b" " * 1000

        answer = await client.post("/v1/request/query-clickhouse", content=drops())  # type: ignore[arg-type]
        assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v2/nothing", 404, "not_found"), ("DELETE", "/v1/requests", 405, "method_not_allowed")],
)
async def test_what_is_not_there_is_said_in_our_shape(
    world: World, method: str, path: str, status: int, code: str
) -> None:
    answer = await world.bare().request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_query_that_reads_too_much_is_422_and_one_that_takes_too_long_504(shared: SharedSettings) -> None:
    async with opened(shared, bounds=ControlBounds(query_read_rows=1000)) as world:
        world.store([world.request() for _ in range(3000)])
        answer = await (await world.client()).get("/v1/requests?sort=cost")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "query_too_large")
    async with opened(shared, timeout_s=0.001) as world:
        world.store([world.request() for _ in range(200)])
        client = await world.client()
        codes = {(await client.get("/v1/requests?sort=cost")).json().get("error", {}).get("code") for _ in range(20)}
        assert codes <= {None, "query_timeout", "busy"}
