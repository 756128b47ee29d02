"""A data folder changes its log only where no event could be counted twice or left behind."""

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cli.log_choice import NONE, Cluster, choose, fill_in, remembered
from infra.local import kafka as local_kafka
from infra.local.errors import CannotStart
from infra.local.ports import pick_free
from infra.local.secrets import write_private
from ingest.kafka_log import KafkaLog
from ingest.log import Plan
from ingest.spool_plan import write_plan
from schemas.settings import KafkaSettings
from tests.ingest.kafka_tools import fill, payload, ship
from tests.servers import kafka_environment

PREFIX = "HELIOGRAPH_KAFKA__"
BOOTSTRAP = f"{PREFIX}BOOTSTRAP_SERVERS"


def forget() -> None:
    for name in [name for name in os.environ if name.startswith("HELIOGRAPH_")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def bare() -> Iterator[None]:
    """Nothing of ours in the environment before a test nor after it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("HELIOGRAPH_")}
    forget()
    yield
    forget()
    os.environ.update(before)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool" / "edge-0"
    folder.mkdir(parents=True)
    (folder / "id").write_text("0123456789abcdef")
    return folder


@pytest.fixture
def address(kafka: KafkaSettings) -> str:
    """Of the real broker, how to sign in and the test's own topics in the environment; only the address is not."""
    found = kafka_environment(kafka)
    address = found.pop(BOOTSTRAP)
    os.environ.update(found)
    return address


def test_a_spool_whose_batches_are_not_all_stored_does_not_become_kafkas(tmp_path: Path, spool: Path) -> None:
    write_plan(spool, Plan(committed=3, cuts=(5, 8)))
    with pytest.raises(CannotStart, match=r'5 events .* count a second time.*without --kafka.*"outstanding": 0'):
        choose(tmp_path, "127.0.0.1:1")
    assert remembered(tmp_path) is None


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(committed=8), id="all stored"),
        pytest.param(Plan(committed=3, cuts=(8,), shipped=True), id="a shipper's transaction at hand"),
    ],
)
def test_a_spool_that_only_its_shipper_goes_on_with_becomes_kafkas(
    tmp_path: Path, spool: Path, address: str, plan: Plan
) -> None:
    write_plan(spool, plan)
    choose(tmp_path, address)
    assert os.environ[BOOTSTRAP] == address


def test_where_nobody_answers_the_way_to_a_broker_is_told_and_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="make kafka"):
        choose(tmp_path, f"127.0.0.1:{pick_free()}")
    assert remembered(tmp_path) is None


def test_what_was_chosen_holds_for_every_command_and_every_later_start(
    tmp_path: Path, address: str, kafka: KafkaSettings
) -> None:
    for name in ("PARTITIONS", "REPLICATION_FACTOR"):
        del os.environ[PREFIX + name]
    choose(tmp_path, address)
    chosen = dict(os.environ)
    # One broker: a partition, a copy.
    assert (chosen[f"{PREFIX}PARTITIONS"], chosen[f"{PREFIX}REPLICATION_FACTOR"]) == ("1", "1")
    for again in (partial(fill_in, tmp_path), partial(choose, tmp_path, "")):
        forget()
        os.environ.update({k: v for k, v in kafka_environment(kafka).items() if "SASL" in k or "SECURITY" in k})
        again()
        assert os.environ[BOOTSTRAP] == address
        assert os.environ[f"{PREFIX}REPLICATION_FACTOR"] == "1"


def test_what_is_set_by_hand_stays(tmp_path: Path, address: str) -> None:
    os.environ[f"{PREFIX}PARTITIONS"] = "7"
    choose(tmp_path, address)
    assert os.environ[f"{PREFIX}PARTITIONS"] == "7"
    os.environ[BOOTSTRAP] = "elsewhere:9092"
    fill_in(tmp_path)
    assert os.environ[BOOTSTRAP] == "elsewhere:9092"


def test_a_folder_that_never_had_a_kafka_stays_on_its_spool(tmp_path: Path) -> None:
    choose(tmp_path, "")
    choose(tmp_path, NONE)
    fill_in(tmp_path)
    assert BOOTSTRAP not in os.environ


def test_a_folder_takes_no_other_cluster(tmp_path: Path, address: str) -> None:
    choose(tmp_path, address)
    kept = remembered(tmp_path)
    assert kept is not None
    for in_use in ("true", "false"):
        other = f'{{"bootstrap_servers": "{address}", "id": "another", "brokers": 1, "in_use": {in_use}}}'
        write_private(tmp_path / "kafka.json", other)
        with pytest.raises(CannotStart, match=f"cluster another .* is {kept.id}"):
            choose(tmp_path, address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_broker_of_the_same_folder_is_signed_in_to_with_its_password(tmp_path: Path, host: str) -> None:
    server = local_kafka.prepare(tmp_path)
    kept = f'{{"bootstrap_servers": "{host}:{server.port}", "id": "{server.cluster_id}", "brokers": 1}}'
    write_private(tmp_path / "kafka.json", kept)
    fill_in(tmp_path)
    assert os.environ[f"{PREFIX}SECURITY_PROTOCOL"] == "SASL_PLAINTEXT"
    assert os.environ[f"{PREFIX}SASL__PASSWORD"] == server.password


async def committed(kafka: KafkaSettings) -> None:
    """As a planner leaves it when every batch is in the ledger."""
    log = KafkaLog(kafka, batch_events=1000, instance="a")
    try:
        while not (ours := await log.partitions()):  # noqa: ASYNC110 - the group is being dealt
            await asyncio.sleep(0.05)
        for partition in ours:
            await log.load_plan(partition)
            await log.save_plan(partition, Plan(committed=await log.end(partition)))
    finally:
        await log.close()


def test_back_to_the_spool_only_once_everything_in_kafka_is_stored(
    tmp_path: Path, address: str, kafka: KafkaSettings
) -> None:
    spool = asyncio.run(fill(tmp_path / "spool", [payload(number) for number in range(20)]))
    choose(tmp_path, address)
    ship(spool, kafka)
    del os.environ[BOOTSTRAP]
    with pytest.raises(CannotStart, match="not stored yet"):
        choose(tmp_path, NONE)
    assert BOOTSTRAP not in os.environ
    asyncio.run(committed(kafka))
    choose(tmp_path, NONE)
    fill_in(tmp_path)
    assert BOOTSTRAP not in os.environ
    # What it knows of the cluster stays, for the day it goes there again.
    assert isinstance(kept := remembered(tmp_path), Cluster)
    assert not kept.in_use


def test_back_to_the_spool_not_in_the_middle_of_a_transaction(tmp_path: Path, spool: Path, address: str) -> None:
    choose(tmp_path, address)
    del os.environ[BOOTSTRAP]
    write_plan(spool, Plan(committed=3, cuts=(8,), shipped=True))
    with pytest.raises(CannotStart, match="in the middle of a transaction"):
        choose(tmp_path, NONE)


def test_back_to_the_spool_with_the_cluster_away_says_what_can_be_done(tmp_path: Path) -> None:
    gone = f'{{"bootstrap_servers": "127.0.0.1:{pick_free()}", "id": "gone", "brokers": 1}}'
    write_private(tmp_path / "kafka.json", gone)
    with pytest.raises(CannotStart, match=r"make kafka\), or delete .*kafka.json"):
        choose(tmp_path, NONE)


def test_an_address_in_the_settings_is_not_overruled_in_silence(tmp_path: Path) -> None:
    os.environ[BOOTSTRAP] = "127.0.0.1:9092"
    with pytest.raises(CannotStart, match=f"{BOOTSTRAP} is set"):
        choose(tmp_path, NONE)
