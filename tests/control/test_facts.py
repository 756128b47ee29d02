import uuid

import pytest

from control import models
from tests.control.world import World

ON_EACH_DATABASE = True


async def test_scores_take_decimals_and_booleans_and_the_newest_counts(world: World) -> None:
    row = world.request()
    world.store([row])
    client = await world.client("write", "read")
    for scores in ({"quality": 0.25, "helpful": False}, {"quality": 0.75, "helpful": True}):
        answer = await client.post(f"/v1/request/{row['id']}/score", json={"scores": scores})
        assert (answer.status_code, answer.json()) == (201, {"data": None, "error": None})
    facts = models.Facts.model_validate((await client.get(f"/v1/requests/{row['id']}/facts")).json())
    assert {name: score.value for name, score in facts.scores.items()} == {"quality": 0.75, "helpful": 1}
    found = (await client.get(f"/v1/request/{row['id']}")).json()["data"]
    assert found["scores"] == {"quality": 0.75, "helpful": 1}
    for value, count in ((0.5, 1), (0.9, 0)):
        body = {"filter": {"request_response_rmt": {"scores": {"quality": {"gt": value}}}}}
        assert (await client.post("/v1/request/count/query", json=body)).json()["data"] == count


async def test_feedback_has_a_rating_and_a_comment(world: World) -> None:
    row = world.request()
    world.store([row])
    client = await world.client("write", "read")
    answer = await client.post(f"/v1/request/{row['id']}/feedback", json={"rating": False, "comment": "wrong"})
    assert answer.status_code == 200
    facts = (await client.get(f"/v1/requests/{row['id']}/facts")).json()
    assert (facts["feedback"]["rating"], facts["feedback"]["comment"], facts["scores"]) == (False, "wrong", {})
    assert (await client.get(f"/v1/request/{row['id']}")).json()["data"]["feedback_rating"] is False


async def test_a_request_that_is_not_there_cannot_be_scored(world: World) -> None:
    client = await world.client("write")
    answer = await client.post(f"/v1/request/{uuid.uuid4()}/score", json={"scores": {"a": 1}})
    assert answer.status_code == 404
    assert answer.json()["data"] is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"scores": {}}',
        b'{"scores": {"a": "good"}}',
        b'{"scores": {"a": null}}',
        b'{"scores": {"a": NaN}}',
        b'{"scores": {"a": 1e999}}',
        b'{"scores": {"": 1}}',
        b'{"scores": {"a": 1}, "more": 1}',
        b'{"scores": []}',
        b'{"scores": {"\\ud800": 1}}',
        b"nonsense",
        b"",
        b'{"scores": {"a": ' + b"9" * 5000 + b"}}",
    ],
)
async def test_a_score_that_is_none_is_refused_in_helicones_shape(world: World, body: bytes) -> None:
    row = world.request()
    world.store([row])
    client = await world.client("write")
    answer = await client.post(
        f"/v1/request/{row['id']}/score", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["data"] is None
    assert answer.json()["error"]
