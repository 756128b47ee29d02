import pytest

from schemas.settings import SharedSettings
from tests.control.world import World, opened

ON_EACH_DATABASE = True


async def test_no_key_is_401_where_one_is_needed(world: World) -> None:
    answer = await world.bare().get("/v1/requests")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Authorization", "Helicone-Auth", "Heliograph-Auth"])
async def test_a_key_may_come_in_any_of_its_headers(world: World, header: str) -> None:
    made = await world.keys.create(name="k", project=world.project, permissions=["read"])
    answer = await world.bare(headers={header: f"Bearer {made.text}"}).get("/v1/me")
    assert answer.json() == {"project_id": world.project, "key_id": made.info.id, "permissions": ["read"]}


@pytest.mark.parametrize("value", ["Bearer sk-helio-nobody", "Basic abc", "Bearer", "Bearer ", "sk-helio-x"])
async def test_a_key_that_is_not_one_is_401_even_where_none_is_needed(shared: SharedSettings, value: str) -> None:
    async with opened(shared, auth="local") as world:
        answer = await world.bare(headers={"Authorization": value}).get("/v1/requests")
    assert answer.status_code == 401


async def test_an_expired_key_says_so(world: World) -> None:
    made = await world.keys.create(name="k", project=world.project, permissions=["read"], expires_in_ms=-1)
    answer = await world.bare(headers={"Authorization": f"Bearer {made.text}"}).get("/v1/requests")
    assert (answer.status_code, answer.json()["error"]["message"]) == (401, "this key is expired")


@pytest.mark.parametrize(
    ("permission", "method", "path"),
    [
        ("proxy", "GET", "/v1/requests"),
        ("write", "GET", "/v1/metrics"),
        ("proxy", "POST", "/v1/request/query-clickhouse"),
        ("read", "POST", "/v1/request/01000000-0000-4000-a000-000000000009/score"),
        ("write", "GET", "/v1/keys"),
        ("read", "POST", "/v1/keys"),
    ],
)
async def test_a_missing_permission_is_403_and_named(world: World, permission: str, method: str, path: str) -> None:
    client = await world.client(permission)
    body = {"name": "x", "scores": {"a": 1}} if method == "POST" else None
    json = {k: v for k, v in (body or {}).items() if (k == "scores") == path.endswith("score")}
    answer = await client.request(method, path, json=json if method == "POST" else None)
    assert answer.status_code == 403
    assert "permission" in answer.text


async def test_reading_is_enough_for_a_query_that_is_a_post(world: World) -> None:
    client = await world.client("read")
    assert (await client.post("/v1/request/query-clickhouse", json={"filter": "all"})).status_code == 201


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("127.0.0.1", "localhost:8585"),
        ("127.0.0.1", "127.0.0.1:8585"),
        ("::1", "[::1]:8585"),
        ("::ffff:127.0.0.1", "localhost"),
    ],
)
async def test_a_caller_on_this_machine_may_read_without_a_key(shared: SharedSettings, peer: str, host: str) -> None:
    async with opened(shared, auth="local") as world:
        client = world.bare(peer=peer, host=host)
        assert (await client.get("/v1/requests?limit=1")).status_code == 200
        assert (await client.get("/v1/me")).json()["project_id"] == "default"
        assert (await client.get("/v1/keys")).status_code == 403
        score = await client.post("/v1/request/01000000-0000-4000-a000-000000000009/score", json={"scores": {"a": 1}})
        assert score.status_code == 403


@pytest.mark.parametrize(
    ("peer", "host", "headers"),
    [
        pytest.param("10.0.0.5", "localhost:8585", {}, id="from another machine"),
        pytest.param("127.0.0.1", "evil.example:8585", {}, id="a name rebound to this machine"),
        pytest.param("127.0.0.1", "localhost.evil.example", {}, id="a name that begins like ours"),
        pytest.param("127.0.0.1", "127.0.0.1.evil.example", {}, id="a name that begins like our address"),
        pytest.param("127.0.0.1", "localhost", {"X-Forwarded-For": "10.0.0.5"}, id="through a proxy here"),
        pytest.param("127.0.0.1", "localhost", {"Forwarded": "for=10.0.0.5"}, id="through a standard proxy here"),
        pytest.param("127.0.0.1", "localhost", {"Via": "1.1 proxy"}, id="through a proxy that says only that"),
        pytest.param("127.0.0.1", "localhost", {"Sec-Fetch-Site": "cross-site"}, id="a page from elsewhere"),
        pytest.param("127.0.0.1", "localhost", {"Sec-Fetch-Site": "same-site"}, id="a page from another port"),
        pytest.param("127.0.0.1", "localhost", {"Origin": "https://evil.example"}, id="a script from elsewhere"),
        pytest.param("127.0.0.1", "localhost", {"Origin": "null"}, id="a script from a file"),
    ],
)
async def test_nobody_else_may(shared: SharedSettings, peer: str, host: str, headers: dict[str, str]) -> None:
    async with opened(shared, auth="local") as world:
        answer = await world.bare(peer=peer, host=host, headers=headers).get("/v1/requests")
    assert answer.status_code == 401
    assert not any(name.startswith("access-control-") for name in answer.headers)


async def test_another_site_gets_no_leave_to_read(shared: SharedSettings) -> None:
    async with opened(shared, auth="local") as world:
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
        answer = await world.bare(headers=headers).options("/v1/requests")
    assert answer.status_code == 405
    assert not any(name.startswith("access-control-") for name in answer.headers)
