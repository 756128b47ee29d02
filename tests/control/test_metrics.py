from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from control import models
from control.filters import Filters
from control.scope import Range
from control.stretches import WEEK_MS, Asked, choose, parts
from tests.control.world import DAY_MS, HOUR_MS, NOW_MS, World

MONTH = Range(0, 30 * DAY_MS)


def asked(*groups: str, bucket_ms: int | None = None, quantiles: bool | None = None, **filters: Any) -> Asked:
    return Asked(groups, bucket_ms, Filters(**filters), quantiles)


@pytest.mark.parametrize(
    ("question", "range_", "source"),
    [
        (asked(), MONTH, "totals"),
        (asked("model", "status", bucket_ms=HOUR_MS), MONTH, "hour"),
        (asked("model", bucket_ms=300_000), MONTH, "minute"),
        (asked("model", bucket_ms=300_000), Range(0, HOUR_MS), "raw"),
        (asked(exact={"provider": ["openai"]}, statuses=[(400, 499)]), MONTH, "hour"),
        (asked("user", bucket_ms=DAY_MS), MONTH, "users"),
        (asked("user", bucket_ms=HOUR_MS), MONTH, "raw"),
        (asked("user", quantiles=True), MONTH, "raw"),
        (asked("user", "model"), MONTH, "raw"),
        (asked(exact={"user_id": ["u"]}), MONTH, "users"),
        (asked("property.tier"), MONTH, "properties"),
        (asked("property.tier", properties={"tier": ["gold"]}), MONTH, "properties"),
        (asked("property.tier", properties={"other": ["gold"]}), MONTH, "raw"),
        (asked("property.tier", "model"), MONTH, "property_models"),
        (asked("model", properties={"tier": ["gold"]}), MONTH, "property_models"),
        (asked("model", properties={"tier": ["gold"]}, bucket_ms=HOUR_MS), MONTH, "raw"),
        (asked("model", properties={"tier": ["gold"]}), Range(0, 2 * DAY_MS), "raw"),
        (asked("model", properties={"tier": [""]}), MONTH, "raw"),
        (asked("provider", properties={"tier": ["gold"]}), MONTH, "raw"),
        (asked("key"), MONTH, "keys"),
        (asked("model", keys=["k"], bucket_ms=HOUR_MS), MONTH, "keys"),
        (asked("key", bucket_ms=60_000), MONTH, "raw"),
        (asked("key", "status"), MONTH, "raw"),
        (asked("key"), Range(0, DAY_MS), "raw"),
    ],
)
def test_the_source_knows_every_group_and_filter(question: Asked, range_: Range, source: str) -> None:
    assert choose(question, range_) == source


@pytest.mark.parametrize(
    ("start", "end"), [(0, 5), (1, HOUR_MS), (7, 3 * HOUR_MS + 7), (0, 2 * HOUR_MS), (HOUR_MS - 1, HOUR_MS + 1)]
)
def test_the_parts_cover_the_range_exactly(start: int, end: int) -> None:
    found = parts("hour", Range(start, end), now_ms=100 * DAY_MS)
    assert found[0].range.start_ms == start
    assert found[-1].range.end_ms == end
    assert all(one.range.end_ms == other.range.start_ms for one, other in pairwise(found))


def test_whole_weeks_then_whole_days_then_rows_answer_for_users() -> None:
    start, end = DAY_MS + 5, 23 * DAY_MS + 9
    found = parts("users", Range(start, end), now_ms=100 * DAY_MS)
    assert [(part.table.name, part.range.start_ms, part.range.end_ms) for part in found] == [
        ("requests", start, 2 * DAY_MS),
        ("users_by_day", 2 * DAY_MS, 7 * DAY_MS),
        ("users_by_week", 7 * DAY_MS, 21 * DAY_MS),
        ("users_by_day", 21 * DAY_MS, 23 * DAY_MS),
        ("requests", 23 * DAY_MS, end),
    ]
    by_day = parts("users", Range(start, end), now_ms=100 * DAY_MS, bucket_ms=DAY_MS)
    assert [part.table.name for part in by_day] == ["requests", "users_by_day", "requests"]


@pytest.fixture
def rows(world: World) -> list[dict[str, Any]]:
    rows = [
        world.request(
            created_ms=NOW_MS - 1000 - i * 5 * HOUR_MS // 2,
            model=f"m{i % 3}",
            user_id=["", "ann", "ben"][i % 3],
            status=[200, 200, 500, 429][i % 4],
            outcome=["success", "success", "error", "error"][i % 4],
            properties={"tier": ["gold", "tin"][i % 2]} if i % 5 else {},
            latency_ms=100.0 + i,
            key_id=["k1", "k2"][i % 2],
            key_name=["web", "batch"][i % 2],
            output_tokens=None if i % 4 else 14,
            reasoning_tokens=None if i % 3 else i,
            cache_write_tokens=None,
        )
        if i % 6
        else world.unknown(created_ms=NOW_MS - 1000 - i * 5 * HOUR_MS // 2, properties={"tier": "gold"})
        for i in range(240)
    ]
    world.store(rows)
    return rows


def sums(rows: list[dict[str, Any]], *groups: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    return {
        tuple(row[group] for group in groups): (
            row["requests"], row["errors"], row["cost"]["usd"], row["cost"]["unknown_requests"],
            *row["tokens"].values(),
        )
        for row in rows
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "source"),
    [
        ("group_by=model", "hour"),
        ("group_by=status", "hour"),
        ("group_by=time,provider&bucket=1d", "hour"),
        ("group_by=time&bucket=1h", "totals"),
        ("", "totals"),
        ("group_by=time&bucket=15m", "minute"),
        ("group_by=user", "users"),
        ("group_by=time,user&bucket=1d", "users"),
        ("group_by=time&bucket=1d&user_id=ann", "users"),
        ("group_by=property.tier", "properties"),
        ("group_by=time&bucket=1h&property.tier=gold", "properties"),
        ("group_by=time,model&bucket=7d", "hour"),
        ("group_by=time,user&bucket=7d", "users"),
        ("group_by=key", "keys"),
        ("group_by=time,key,model&bucket=1h&provider=openai", "keys"),
        ("group_by=model&key=k1&key=batch", "keys"),
        ("group_by=property.tier,model", "property_models"),
        ("group_by=model&property.tier=gold", "property_models"),
        ("group_by=time&bucket=1d&property.tier=tin&model=m1", "property_models"),
        ("status=5xx&status=none", "hour"),
    ],
)
async def test_every_source_gives_the_same_sums_as_the_rows(
    world: World, rows: list[dict[str, Any]], query: str, source: str
) -> None:
    client = await world.client()
    start, end = NOW_MS - 23 * DAY_MS - 1_234_567, NOW_MS - 7_654_321
    path = f"/v1/metrics?start={start}&end={end}&{query}"
    groups = [g for g in query.partition("group_by=")[2].partition("&")[0].split(",") if g]
    rolled = (await client.get(path)).json()
    models.Metrics.model_validate(rolled)
    assert rolled["source"] == source
    # A filter that nothing fails to pass, and that no rollup knows, makes it raw.
    raw = (await client.get(f"{path}&latency_ms_min=0")).json()
    assert raw["source"] == "raw"
    assert sums(rolled["rows"], *groups) == sums(raw["rows"], *groups)
    assert {row["tokens"]["cache_write_tokens"] for row in rolled["rows"]} == {None}


async def test_sums_are_of_what_is_known_and_say_how_much_is_not(world: World) -> None:
    world.store([world.request(), world.request(cost_usd=None), world.unknown()])
    (row,) = (await (await world.client()).get("/v1/metrics")).json()["rows"]
    assert row["cost"] == {"usd": "0.0002600000", "known_requests": 1, "unknown_requests": 2}
    assert row["tokens"]["input_tokens"] == 96
    assert (row["tokens"]["known_requests"], row["tokens"]["unknown_requests"]) == (2, 1)
    assert (row["requests"], row["errors"]) == (3, 1)


async def test_nothing_known_is_null_and_not_zero(world: World) -> None:
    world.store([world.unknown()])
    (row,) = (await (await world.client()).get("/v1/metrics")).json()["rows"]
    assert row["cost"]["usd"] is row["tokens"]["input_tokens"] is row["first_token_ms"] is None


@pytest.mark.parametrize("path", ["/v1/users", "/v1/sessions"])
async def test_a_token_class_that_no_request_knows_is_null_for_people_from_rollup_and_raw_alike(
    world: World, path: str
) -> None:
    told = [{"cache_write_tokens": None, "reasoning_tokens": None}, {"cache_write_tokens": None}]
    world.store([world.request(created_ms=NOW_MS - DAY_MS - i, session_id="s", **one) for i, one in enumerate(told)])
    client = await world.client()
    of = path.removeprefix("/v1/")
    for sort in ("cost", "tokens", "last_seen"):
        rolled, raw = [
            (await client.get(f"{path}?sort={sort}&start={NOW_MS - days * DAY_MS}")).json()[of] for days in (20, 2)
        ]
        assert rolled == raw
        tokens = rolled[0]["tokens"]
        assert (tokens["input_tokens"], tokens["reasoning_tokens"], tokens["cache_write_tokens"]) == (96, 4, None)


@pytest.mark.parametrize(
    ("group_by", "days"),
    [
        pytest.param("user", 2, id="from the rows"),
        pytest.param("user", 20, id="from the rollup"),
        pytest.param("time,user&bucket=1d", 20, id="by day"),
    ],
)
async def test_users_beyond_the_limit_are_told(world: World, group_by: str, days: int) -> None:
    world.store([world.request(created_ms=NOW_MS - HOUR_MS - i, user_id=f"u{i}") for i in range(3)])
    client = await world.client()
    path = f"/v1/metrics?group_by={group_by}&start={NOW_MS - days * DAY_MS}&limit="
    two, three = [(await client.get(path + limit)).json() for limit in ("2", "3")]
    assert (len(two["rows"]), two["truncated"]) == (2, True)
    assert (len(three["rows"]), three["truncated"]) == (3, False)


async def test_a_token_class_stays_unknown_and_known_over_merges(world: World) -> None:
    for known in (None, 5, None):
        world.store([world.request(created_ms=NOW_MS - 5 * DAY_MS, reasoning_tokens=known, cache_read_tokens=None)])
    for (rollup,) in world.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'AggregatingMergeTree'"
    ):
        world.query(f"OPTIMIZE TABLE {rollup} FINAL")
    client = await world.client()
    for group in ("model", "user", "key", "property.environment"):
        path = f"/v1/metrics?start={NOW_MS - 9 * DAY_MS}&group_by={group}"
        for answer in [(await client.get(path)).json(), (await client.get(f"{path}&latency_ms_min=0")).json()]:
            (tokens,) = [row["tokens"] for row in answer["rows"]]
            assert (tokens["reasoning_tokens"], tokens["cache_read_tokens"]) == (5, None), answer["source"]


async def test_by_tokens_those_of_which_none_are_known_come_last(world: World) -> None:
    for created_ms in (NOW_MS - 1000, NOW_MS - 10 * DAY_MS):
        world.store(
            [
                world.request(created_ms=created_ms, user_id="some", model="some", output_tokens=None),
                world.unknown(created_ms=created_ms, user_id="none", model="none"),
            ]
        )
    client = await world.client()
    for start in (NOW_MS - DAY_MS, NOW_MS - 20 * DAY_MS):
        users = (await client.get(f"/v1/users?sort=tokens&start={start}")).json()["users"]
        assert [user["user_id"] for user in users] == ["some", "none"]
        for group in ("user", "model"):
            rows = (await client.get(f"/v1/metrics?group_by={group}&sort=tokens&start={start}")).json()["rows"]
            assert [row[group] for row in rows] == ["some", "none"]


async def test_quantiles_come_from_rollup_and_raw_alike(world: World) -> None:
    world.store(
        [world.request(created_ms=NOW_MS - 60_000 - i * HOUR_MS // 2, latency_ms=float(i)) for i in range(1, 101)]
    )
    client = await world.client()
    for path in ("/v1/metrics", "/v1/metrics?latency_ms_min=0&quantiles=true"):
        (row,) = (await client.get(path)).json()["rows"]
        assert row["latency_ms"]["p50"] == pytest.approx(50, abs=2), path
        assert row["latency_ms"]["p99"] == pytest.approx(99, abs=2), path


async def test_users_and_sessions_are_ranked_with_what_they_used(world: World) -> None:
    costs = {"ann": "0.3", "ben": "0.5", "": "0.1"}
    for age in (0, 6 * DAY_MS):
        world.store(
            [
                world.request(
                    created_ms=NOW_MS - 1000 - age - i, user_id=user, session_id=f"s-{user}" if user else "",
                    session_name="chat", cost_usd=Decimal(cost),
                )
                for i, (user, cost) in enumerate(costs.items())
            ]
        )  # fmt: skip
    client = await world.client()
    users = models.UserPage.model_validate((await client.get("/v1/users")).json())
    assert [(u.user_id, u.requests, u.cost.usd) for u in users.users] == [
        ("ben", 2, "1.0000000000"), ("ann", 2, "0.6000000000"), (None, 2, "0.2000000000"),
    ]  # fmt: skip
    second = (await client.get("/v1/users?limit=1&offset=1")).json()
    assert ([u["user_id"] for u in second["users"]], second["more"]) == (["ann"], True)
    for query, names in (
        ("", ["s-ann", "s-ben"]),
        ("&sort=cost", ["s-ben", "s-ann"]),
        ("&user_id=ann", ["s-ann"]),
        ("&name=x", []),
    ):
        page = models.SessionPage.model_validate((await client.get(f"/v1/sessions?limit=9{query}")).json())
        assert [s.session_id for s in page.sessions] == names, query
    recent = (await client.get(f"/v1/users?start={NOW_MS - DAY_MS}")).json()["users"]
    assert [u["requests"] for u in recent] == [1, 1, 1]


@pytest.mark.parametrize(
    ("sort", "first"), [("requests", "ann"), ("cost", "ann"), ("tokens", "ann"), ("last_seen", "ben")]
)
async def test_who_comes_first_is_told_by_all_stretches_of_the_range_together(
    world: World, sort: str, first: str
) -> None:
    start = (NOW_MS // WEEK_MS - 3) * WEEK_MS - 60 * HOUR_MS
    stretches = parts("users", Range(start, NOW_MS), now_ms=NOW_MS)
    assert [part.table.name for part in stretches] == ["requests", "users_by_day", "users_by_week"]
    for part, most in zip(stretches, ("cid", "dan", "ben"), strict=True):
        # In each stretch somebody has more than ann, who has most of all three.
        users = [*["ann"] * 2, *[most] * 3]
        world.store(
            [world.request(created_ms=part.range.start_ms + 60_000 + i, user_id=user) for i, user in enumerate(users)]
        )
    client = await world.client()
    users = (await client.get(f"/v1/users?sort={sort}&start={start}")).json()["users"]
    assert users[0]["user_id"] == first
    assert {user["user_id"]: user["requests"] for user in users} == {"ann": 6, "ben": 3, "cid": 3, "dan": 3}


@pytest.fixture
def quiet(world: World) -> Iterator[World]:
    """No part of the sessions' rollup is merged but by the test."""
    world.query("SYSTEM STOP MERGES sessions_by_day")
    yield world
    world.query("SYSTEM START MERGES sessions_by_day")


@pytest.mark.parametrize("query", ["user_id=ann", "user_id=ben", "name=chat", "name=", "name=chat&user_id=ann"])
async def test_sessions_of_a_user_or_name_are_the_same_before_and_after_a_merge_and_as_the_rows(
    quiet: World, query: str
) -> None:
    said = [("ann", "chat"), ("ben", ""), ("", "chat"), ("ann", "summary")]
    for i, (user, name) in enumerate(said):
        quiet.store(
            [quiet.request(created_ms=NOW_MS - 2 * DAY_MS - i * 1000, user_id=user, session_id="s", session_name=name)]
        )
    wanted = dict(pair.split("=") for pair in query.split("&"))
    requests = sum(user == wanted.get("user_id", user) and name == wanted.get("name", name) for user, name in said)
    client = await quiet.client()
    path = f"/v1/sessions?start={NOW_MS - 20 * DAY_MS}&{query}"
    before = (await client.get(path)).json()["sessions"]
    quiet.query("SYSTEM START MERGES sessions_by_day")
    quiet.query("OPTIMIZE TABLE sessions_by_day FINAL")
    after = (await client.get(path)).json()["sessions"]
    assert before == after
    assert [session["requests"] for session in before] == [requests] * bool(requests)
