import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.local import kafka, kafka_jars
from infra.local.errors import CannotStart, NotReady
from infra.local.kafka import KafkaServer
from tests.servers import REPOSITORY, RunningKafka


@pytest.fixture
def server(broker: RunningKafka) -> KafkaServer:
    """Of the session's broker."""
    command = broker.child.process.args if broker.child.process is not None else []
    assert isinstance(command, list)
    return kafka.prepare(Path(command[command.index("--data") + 1]))


def test_it_answers_after_kill_9_with_its_address_and_its_cluster(broker: RunningKafka, server: KafkaServer) -> None:
    broker.child.kill()
    broker.child.start()
    assert kafka.prepare(server.data_dir) == server
    kafka.wait_ready(server, 5)


def test_what_was_prepared_is_found_by_who_did_not_start_it(server: KafkaServer, tmp_path: Path) -> None:
    assert kafka.find(server.data_dir) == server
    assert kafka.find(tmp_path) is None


def test_ready_means_this_very_broker_not_an_open_port(server: KafkaServer) -> None:
    with pytest.raises(NotReady, match="another Kafka answers"):
        kafka.wait_ready(replace(server, cluster_id="another"), 5)
    with pytest.raises(NotReady):
        kafka.wait_ready(replace(server, password="of another folder"), 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NotReady, match="did not answer within"):
        kafka.wait_ready(replace(server, port=silent.getsockname()[1]), 0.1)


def test_no_password_stands_in_the_process_list(broker: RunningKafka, server: KafkaServer) -> None:
    shown = repr(server).encode()
    if sys.platform == "linux":
        shown += Path(f"/proc/{broker.child.pid}/cmdline").read_bytes()
        shown += Path(f"/proc/{broker.child.pid}/environ").read_bytes()
    assert server.password.encode() not in shown


def test_no_file_of_the_broker_can_be_read_by_others(server: KafkaServer) -> None:
    files = [server.data_dir / "kafka", *(server.data_dir / "kafka").rglob("*")]
    assert [path for path in files if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_second_broker_in_the_same_folder_is_told_who_is_there(broker: RunningKafka, server: KafkaServer) -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from infra.local import kafka as k; k._PREDECESSOR_S = 0; k.main()",
         "--data", str(server.data_dir)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert told.returncode != 0
    assert f"in use by pid {broker.child.pid}" in told.stderr


@pytest.mark.parametrize(("missing", "package"), [("java", "openjdk-17-jre-headless"), ("mvn", "maven")])
def test_what_is_missing_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, package: str
) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else found(name))
    ask = kafka_jars.java if missing == "java" else lambda: kafka_jars.jars(tmp_path / "nothing yet")
    with pytest.raises(CannotStart, match=f"apt-get install {package}"):
        ask()


def test_jars_that_are_there_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch, server: KafkaServer) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert list(kafka_jars.jars().glob("kafka_2.13-*.jar"))
