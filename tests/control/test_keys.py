import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from control.database import Database
from control.errors import BadRequest, Conflict, DatabaseDown, NotFound
from control.keys import Keys, open_keys, parse_expiry
from schemas.keys import SNAPSHOT_CHANNEL, SNAPSHOT_KEY, KeySnapshot, hash_key
from schemas.settings import RedisSettings, SharedSettings
from tests.control.world import World

ON_EACH_DATABASE = True


async def snapshot_in(redis: "Redis") -> KeySnapshot:
    stored = await redis.get(SNAPSHOT_KEY)
    assert isinstance(stored, bytes)
    return msgspec.json.decode(stored, type=KeySnapshot)


@pytest.fixture
def offline(shared: SharedSettings) -> SharedSettings:
    return shared.model_copy(update={"redis": RedisSettings()})


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("3600s", 3600), ("90m", 5400), ("2w", 1_209_600)]
)
def test_an_expiry_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_expiry(text) == seconds * 1000


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "0s", "1.5h", "30 d", "١d", "999999999w", "30days"])
def test_any_other_expiry_is_refused_and_named(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_expiry(text)
    assert refused.value.field == "expires"


async def test_only_the_hash_of_a_key_is_stored(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        made = await keys.create(name="web", permissions=["read", "proxy"])
        assert made.info.last4 == made.text[-4:]
        assert made.info.permissions == ["proxy", "read"]
        assert (await keys.find(made.text)) == made.info
        async with keys.database.reading() as connection:
            stored = str((await connection.execute(text("SELECT * FROM keys"))).all())
    assert made.text not in stored
    assert hash_key(made.text) in stored


async def test_the_default_project_always_exists(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        assert [project.id for project in await keys.list_projects()] == ["default"]


async def test_sqlite_writes_ahead_so_that_readers_do_not_wait(tmp_path: Path) -> None:
    async with open_keys(SharedSettings(data_dir=tmp_path)):
        mode = sqlite3.connect(tmp_path / "control.db").execute("PRAGMA journal_mode").fetchone()
    assert mode == ("wal",)


async def test_migrations_may_run_several_at_once(offline: SharedSettings) -> None:
    databases = [Database(offline, timeout_s=5) for _ in range(4)]
    await asyncio.gather(*(database.migrate() for database in databases))
    for database in databases:
        await database.close()


async def test_a_key_is_revoked_by_id_or_by_name(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        one, other = await keys.create(name="one"), await keys.create(name="other")
        assert (await keys.revoke(one.info.id)).info.revoked_ms is not None
        assert (await keys.revoke("other")).info.id == other.info.id
        assert {info.revoked_ms is not None for info in await keys.list_keys()} == {True}


async def test_an_ambiguous_name_revokes_nothing_and_says_which_ids_there_are(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        made = [await keys.create(name="twin") for _ in range(2)]
        with pytest.raises(Conflict) as refused:
            await keys.revoke("twin")
        assert all(key.info.id in refused.value.message for key in made)
        assert all(info.revoked_ms is None for info in await keys.list_keys())
        await keys.revoke(made[0].info.id)
        assert (await keys.revoke("twin")).info.id == made[1].info.id


async def test_a_key_that_is_not_there_cannot_be_revoked(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        with pytest.raises(NotFound):
            await keys.revoke("nobody")


async def test_another_projects_key_cannot_be_revoked(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        await keys.create_project("other")
        made = await keys.create(name="web", project="other")
        for name in (made.info.id, "web"):
            with pytest.raises(NotFound):
                await keys.revoke(name, "default")


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "-a", "x" * 64, "é"])
async def test_a_projects_name_is_fit_for_a_path(name: str, offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        with pytest.raises(BadRequest):
            await keys.create_project(name)


async def test_a_second_project_of_one_name_is_refused(offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        await keys.create_project("one")
        with pytest.raises(Conflict):
            await keys.create_project("one")


@pytest.mark.parametrize("permissions", [[], ["root"], ["read", ""]])
async def test_permissions_come_from_the_fixed_set(permissions: list[str], offline: SharedSettings) -> None:
    async with open_keys(offline) as keys:
        with pytest.raises(BadRequest):
            await keys.create(name="web", permissions=permissions)


async def test_every_change_is_published_and_announced(shared: SharedSettings, valkey: str) -> None:
    redis = Redis.from_url(valkey)
    await redis.flushall()
    async with open_keys(shared) as keys, redis.pubsub() as channel:
        await channel.subscribe(SNAPSHOT_CHANNEL)
        made = await keys.create(name="web", expires_in_ms=60_000)
        assert made.published
        first = await snapshot_in(redis)
        key = first.keys[hash_key(made.text)]
        assert (key.id, key.revoked, key.expires_ms) == (made.info.id, False, made.info.expires_ms)
        assert (await keys.revoke("web")).published
        second = await snapshot_in(redis)
        assert second.version > first.version
        assert second.keys[hash_key(made.text)].revoked
        heard = []
        for _ in range(10):
            # None stands for the subscription's own message.
            if (message := await channel.get_message(ignore_subscribe_messages=True, timeout=1)) is not None:
                heard.append(int(message["data"]))
            if len(heard) == 2:
                break
        assert heard == [first.version, second.version]
    await redis.aclose()


async def test_an_older_snapshot_never_overwrites_a_newer_one(shared: SharedSettings, valkey: str) -> None:
    redis = Redis.from_url(valkey)
    await redis.flushall()
    newer = KeySnapshot(version=2**52, keys={})
    await redis.set(SNAPSHOT_KEY, msgspec.json.encode(newer))
    async with open_keys(shared) as keys:
        await keys.publish()
        assert await snapshot_in(redis) == newer
    await redis.aclose()


async def test_redis_that_lost_the_keys_gets_them_again(shared: SharedSettings, valkey: str) -> None:
    redis = Redis.from_url(valkey)
    await redis.flushall()
    async with open_keys(shared) as keys:
        made = await keys.create(name="web")
        assert not await keys.reconcile()
        await redis.flushall()
        assert await keys.reconcile()
        assert hash_key(made.text) in (await snapshot_in(redis)).keys
    await redis.aclose()


async def test_a_database_begun_afresh_wins_over_what_redis_holds(shared: SharedSettings, valkey: str) -> None:
    redis = Redis.from_url(valkey)
    await redis.set(SNAPSHOT_KEY, msgspec.json.encode(KeySnapshot(version=2**51, keys={})))
    async with open_keys(shared) as keys:
        made = await keys.create(name="web")
        assert await keys.reconcile()
        stored = await snapshot_in(redis)
        assert stored.version > 2**51
        assert hash_key(made.text) in stored.keys
    await redis.flushall()
    await redis.aclose()


async def test_a_key_is_made_while_redis_is_down_and_says_so(offline: SharedSettings) -> None:
    nobody = Redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2)
    async with open_keys(offline) as opened_keys:
        keys = Keys(opened_keys.database, nobody, redis_timeout_s=0.5)
        assert not (await keys.create(name="web")).published
        assert len(await keys.list_keys()) == 1
    await nobody.aclose()


async def test_a_key_that_was_made_is_told_though_the_database_goes_away_before_it_is_published(
    shared: SharedSettings, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> KeySnapshot:
        raise DatabaseDown("the database is away")

    async with open_keys(shared) as keys:
        monkeypatch.setattr(keys, "snapshot", away)
        made = await keys.create(name="web")
        assert not made.published
        assert (await keys.find(made.text)) == made.info


async def test_an_admin_manages_the_keys_of_its_own_project_alone(world: World) -> None:
    admin = await world.client("admin")
    made = await admin.post("/v1/keys", json={"name": "web", "expires": "30d"})
    assert made.status_code == 201
    assert made.json()["info"]["project_id"] == world.project
    await world.keys.create_project("elsewhere")
    foreign = await world.keys.create(name="foreign", project="elsewhere")
    listed = (await admin.get("/v1/keys")).json()["keys"]
    assert {key["name"] for key in listed} == {"test", "web"}
    assert "key" not in listed[0]
    assert (await admin.delete(f"/v1/keys/{foreign.info.id}")).status_code == 404
    revoked = await admin.delete("/v1/keys/web")
    assert revoked.json()["info"]["state"] == "revoked"
    answer = await world.bare(headers={"Helicone-Auth": f"Bearer {made.json()['key']}"}).get("/v1/requests")
    assert answer.status_code == 401
    assert "revoked" in answer.json()["error"]["message"]


async def test_a_key_revokes_itself_neither_by_id_nor_by_name(world: World) -> None:
    made = await world.keys.create(name="mine", project=world.project, permissions=("admin",))
    admin = world.bare(headers={"Authorization": f"Bearer {made.text}"})
    for said in (made.info.id, "mine"):
        answer = await admin.delete(f"/v1/keys/{said}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    listed = (await admin.get("/v1/keys")).json()["keys"]
    assert [key["state"] for key in listed] == ["active"]
    other = await world.client("admin")
    assert (await other.delete("/v1/keys/mine")).status_code == 200
