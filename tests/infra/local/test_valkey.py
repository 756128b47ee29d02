import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError
from redis.retry import Retry

from infra.local import child as children
from infra.local import valkey
from infra.local.errors import NotReady
from infra.local.valkey import ValkeyServer
from tests.infra.local.conftest import RunningValkey
from tests.servers import REPOSITORY, running, valkey_child


@contextmanager
def connected(server: ValkeyServer) -> Iterator["Redis"]:
    with Redis.from_url(server.url, decode_responses=True) as client:
        yield client


def test_nobody_gets_in_without_the_password(redis: RunningValkey) -> None:
    with Redis(port=redis.server.port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(AuthenticationError):
        client.ping()


def test_no_password_stands_in_the_process_list_or_environment(redis: RunningValkey) -> None:
    shown = " ".join(valkey.command(redis.server)).encode() + repr(redis.server).encode()
    if sys.platform == "linux":
        shown += Path(f"/proc/{redis.child.pid}/cmdline").read_bytes()
        shown += Path(f"/proc/{redis.child.pid}/environ").read_bytes()
    assert redis.server.password.encode() not in shown


def test_no_file_of_the_server_can_be_read_by_others(redis: RunningValkey) -> None:
    with connected(redis.server) as client:
        client.set("a", "1")
    files = [redis.server.data_dir, *redis.server.data_dir.rglob("*")]
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_what_its_file_has_taken_survives_a_kill(redis: RunningValkey) -> None:
    with connected(redis.server) as client:
        for number in range(1000):
            client.set(f"survives:{number}", number)
        deadline = time.monotonic() + 5  # while a disk is slow to sync, it writes up to two seconds late
        while client.info("persistence")["aof_buffer_length"] and time.monotonic() < deadline:
            time.sleep(0.01)
    redis.child.kill()
    redis.child.start()
    with connected(redis.server) as client:
        assert len(client.keys("survives:*")) == 1000


def test_sigterm_ends_it_in_good_order(redis: RunningValkey) -> None:
    with connected(redis.server) as client:
        client.set("b", "2")
    assert redis.child.process is not None
    redis.child.process.send_signal(signal.SIGTERM)
    assert redis.child.process.wait(5) == 0
    redis.child.start()
    with connected(redis.server) as client:
        assert client.get("b") == "2"


def test_a_full_store_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    server = valkey.prepare(tmp_path, memory_mib=4)
    with running(valkey_child(server)), connected(server) as client:
        client.set("kept", "1")
        for number in range(200):
            try:
                client.set(f"big:{number}", "x" * 100_000)
            except OutOfMemoryError:
                break
        else:
            pytest.fail("took 20 MB into 4 MiB")
        assert client.get("kept") == "1"


def test_address_and_password_stay_over_restarts(redis: RunningValkey) -> None:
    assert valkey.prepare(redis.server.data_dir) == redis.server
    assert valkey.find(redis.server.data_dir) == redis.server


def test_ready_means_this_very_server_not_an_open_port(redis: RunningValkey) -> None:
    with pytest.raises(NotReady, match="another server answers"):
        valkey.wait_ready(replace(redis.server, password="of another folder"), 5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NotReady, match="did not answer within"):
        valkey.wait_ready(replace(redis.server, port=silent.getsockname()[1]), 0.1)


def test_a_second_server_in_the_same_folder_is_told_who_is_there(redis: RunningValkey) -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from infra.local import valkey as v; v._PREDECESSOR_S = 0; v.main()",
         "--data", str(redis.server.data_dir)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert told.returncode != 0
    assert f"in use by pid {redis.child.pid}" in told.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells only there")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    server = valkey.prepare(tmp_path)
    parent = """
import subprocess, sys, time
from pathlib import Path
from infra.local import valkey
server = valkey.prepare(Path(sys.argv[1]))
child = subprocess.Popen(valkey.command(server))
valkey.wait_ready(server, 30, alive=lambda: child.poll() is None)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    with running(valkey_child(server)):
        pass  # its port and its lock went with it


def test_a_log_that_has_grown_too_big_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("x" * 11)
    children.rotate(log, bytes_max=10)
    assert not log.exists()
    assert (tmp_path / "x.log.1").stat().st_size == 11
    children.rotate(log, bytes_max=10)
