import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from infra.local import valkey as local_valkey
from schemas.batch import ENRICH_TASK, Batch
from schemas.settings import RedisSettings, SharedSettings
from tests.servers import Child, running, valkey_child
from workers import sender as sender_module
from workers.app import QUEUE
from workers.sender import BrokerUnavailable, Sender

BATCH = Batch("spool/abc", 0, 100, 2099)


def shared(url: str) -> SharedSettings:
    return SharedSettings(redis=RedisSettings.model_validate({"url": url}))


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[tuple[str, Child]]:
    server = local_valkey.prepare(tmp_path)
    with running(valkey_child(server)) as child:
        yield server.url, child


def test_a_message_is_a_reference_and_nothing_else(own_valkey: tuple[str, Child]) -> None:
    url, _ = own_valkey
    sender = Sender(shared(url))
    sender.send(BATCH)
    client = redis.Redis.from_url(url)

    (raw,) = client.lrange(QUEUE, 0, -1)
    client.close()
    sender.close()

    message = json.loads(raw)
    assert message["headers"]["task"] == ENRICH_TASK
    assert message["content-type"] == "application/json"
    assert len(raw) < 1500


def test_redis_away_is_told_within_seconds_and_its_return_is_noticed(own_valkey: tuple[str, Child]) -> None:
    url, child = own_valkey
    sender = Sender(shared(url))
    sender.send(BATCH)
    child.kill()

    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            sender.send(BATCH)
        assert time.monotonic() - began < 6

    child.start()
    sender.send(BATCH)
    sender.close()


def test_redis_that_accepts_and_never_answers_is_told_within_seconds(own_valkey: tuple[str, Child]) -> None:
    url, child = own_valkey
    sender = Sender(shared(url))
    sender.send(BATCH)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            sender.send(BATCH)
        assert time.monotonic() - began < 10
    finally:
        os.kill(child.pid, signal.SIGCONT)
    sender.send(BATCH)
    sender.close()


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sender = Sender(shared(f"redis://127.0.0.1:{port}/0"))

    with pytest.raises(BrokerUnavailable):
        sender.send(BATCH)


def test_a_wrong_password_is_told_without_it(own_valkey: tuple[str, Child]) -> None:
    url, _ = own_valkey
    sender = Sender(shared(url.replace(":", ":wrong-secret", 2).replace("redis:wrong-secret", "redis:")))

    with pytest.raises(BrokerUnavailable) as told:
        sender.send(BATCH)
    assert "wrong-secret" not in str(told.value)


def test_a_queue_that_nobody_empties_refuses_more(
    own_valkey: tuple[str, Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = own_valkey
    monkeypatch.setattr(sender_module, "QUEUED_MAX", 3)
    sender = Sender(shared(url))
    for _ in range(3):
        sender.send(BATCH)

    with pytest.raises(BrokerUnavailable, match="are workers running"):
        sender.send(BATCH)
    sender.close()
