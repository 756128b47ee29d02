"""The commands a person types beside a running house."""

import asyncio
import re
import time

import httpx
import pytest

from tests.e2e.house import Answer, House, Replay

_CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
_ANSWER = Answer(
    200,
    {"content-type": "application/json"},
    b'{"model": "gpt-4o-mini-2024-07-18", "choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 5}}',
    stream=False,
)


async def call(house: House, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(f"{house.edge}/v1/chat/completions", json=_CHAT, headers=headers)


async def test_a_key_is_made_used_and_revoked(house: House, replay: Replay) -> None:
    replay.next = _ANSWER
    made = await asyncio.to_thread(house.run, "keys", "create", "--name", "cli-test", "--expires", "30d")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("sk-helio-")
    listed = await asyncio.to_thread(house.run, "keys", "list")
    assert "cli-test" in listed.stdout
    assert key not in listed.stdout
    deadline = time.monotonic() + 2
    while (answer := await call(house, **{"Helicone-Auth": f"Bearer {key}"})).status_code != 200:
        assert time.monotonic() < deadline, answer.text
    row = await asyncio.to_thread(house.row, answer.headers["helicone-id"])
    assert row["key"]["name"] == "cli-test"
    revoked = await asyncio.to_thread(house.run, "keys", "revoke", "cli-test")
    assert revoked.returncode == 0, revoked.stderr
    deadline = time.monotonic() + 1
    while (answer := await call(house, **{"Helicone-Auth": f"Bearer {key}"})).status_code != 401:
        assert time.monotonic() < deadline
    assert "revoked" in answer.json()["error"]["message"]
    assert house.files_with(key) == []  # nor any file, row or log line
    assert not house.sql(f"SELECT 1 FROM bodies WHERE position(concat(request, response), '{key}') > 0")


async def test_another_projects_calls_are_not_seen(house: House, replay: Replay) -> None:
    replay.next = _ANSWER
    assert (await asyncio.to_thread(house.run, "projects", "create", "acme")).returncode == 0
    made = await asyncio.to_thread(house.run, "keys", "create", "--name", "acme-key", "--project", "acme")
    key = made.stdout.strip()
    deadline = time.monotonic() + 2
    while (answer := await call(house, **{"Helicone-Auth": f"Bearer {key}"})).status_code != 200:
        assert time.monotonic() < deadline
    id_ = answer.headers["helicone-id"]
    authorized = {"Authorization": f"Bearer {key}"}

    def seen() -> bool:
        return httpx.get(f"{house.control}/v1/requests/{id_}", headers=authorized).status_code == 200

    await asyncio.to_thread(house.wait_for, seen, timeout_s=15, what="the row of acme")
    theirs = await asyncio.to_thread(httpx.get, f"{house.control}/v1/requests/{id_}")
    assert theirs.status_code == 404  # the default project's reader


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("keys", "create", "--name", "x", "--expires", "soon"), "30d"),
        (("keys", "create", "--name", "x", "--permissions", "fly"), "fly"),
        (("keys", "create", "--name", "x", "--project", "nobody"), "nobody"),
        (("keys", "revoke", "nobody"), "nobody"),
        (("projects", "create", "Not A Name"), "Not A Name"),
    ],
)
async def test_a_mistake_is_told_in_one_line(house: House, words: tuple[str, ...], told: str) -> None:
    done = await asyncio.to_thread(house.run, *words)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


async def test_tail_shows_a_call_with_its_counts_and_cost(house: House, replay: Replay) -> None:
    replay.next = _ANSWER
    answer = await call(house, **{"Helicone-User-Id": "tail-user", "Helicone-Property-Team": "blue"})
    await asyncio.to_thread(house.row, answer.headers["helicone-id"])
    shown = await asyncio.to_thread(house.run, "tail", "--no-follow", "--user", "tail-user")
    lines = [line for line in shown.stdout.splitlines() if "tail-user" in line]
    assert lines, shown.stdout + shown.stderr
    line = lines[0]
    for part in ("200", "gpt-4o-mini-2024-07-18", " 12 ", " 5 ", "$0.000005", "team=blue"):
        assert part in line, (part, line)


async def test_doctor_finds_everything_well(house: House) -> None:
    found = await asyncio.to_thread(house.run, "doctor")
    assert "All is well." in found.stdout, found.stdout + found.stderr


async def test_the_demo_fills_the_house(house: House) -> None:
    before = house.sql("SELECT count() FROM requests WHERE properties['demo'] = 'true'")[0][0]
    done = await asyncio.to_thread(house.run, "demo", "--minutes", "0.1", "--rate", "10")
    assert done.returncode == 0, done.stderr
    sent = int(re.search(r"Sent ([\d,]+) calls", done.stdout)[1].replace(",", ""))  # type: ignore[index]

    def rows() -> bool:
        return bool(
            house.sql("SELECT count() FROM requests WHERE properties['demo'] = 'true'")[0][0] >= before + sent - 3
        )

    await asyncio.to_thread(house.wait_for, rows, timeout_s=20, what="the demo's rows")
    providers = house.sql("SELECT DISTINCT provider FROM requests WHERE properties['demo'] = 'true'")
    assert {provider for (provider,) in providers} == {"openai", "anthropic"}


async def test_replay_with_no_dead_letters_says_so(house: House) -> None:
    done = await asyncio.to_thread(house.run, "replay")
    assert done.returncode == 0, done.stderr
    assert re.search(r"read +│? *0", done.stdout)


async def test_helicones_own_query_answers(house: House, replay: Replay) -> None:
    replay.next = _ANSWER
    answer = await call(house, **{"Helicone-User-Id": "helicone-user", "Helicone-Property-Team": "blue"})
    await asyncio.to_thread(house.row, answer.headers["helicone-id"])
    filter_ = {
        "left": {"request_response_rmt": {"user_id": {"equals": "helicone-user"}}},
        "operator": "and",
        "right": {"request_response_rmt": {"properties": {"team": {"equals": "blue"}}}},
    }
    query = {"filter": filter_, "limit": 10, "sort": {"created_at": "desc"}}
    got = await asyncio.to_thread(httpx.post, f"{house.control}/v1/request/query-clickhouse", json=query)
    body = got.json()
    assert body["error"] is None
    (row,) = body["data"]
    assert (row["request_id"], row["prompt_tokens"], row["completion_tokens"]) == (answer.headers["helicone-id"], 12, 5)
