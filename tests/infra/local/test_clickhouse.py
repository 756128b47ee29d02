"""Against the real engine: it stands in for a ClickHouse server, so what we lean on is checked here by name."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import Error, ServerException

from infra.local import clickhouse
from infra.local.clickhouse import ClickHouseServer
from infra.local.clickhouse_config import Limits
from infra.local.errors import CannotStart, NotReady
from ingest.migrations import migrate
from schemas.settings import RetentionSettings
from tests.infra.local.conftest import RunningClickHouse
from tests.servers import REPOSITORY, clickhouse_child, settings_of

ACCESS_DENIED = 497
TOO_MANY_SESSIONS = 700
READONLY = 164
SETTING_CONSTRAINT = 452
MEMORY_LIMIT = 241


@contextmanager
def connected(server: ClickHouseServer, user: str | None = None, password: str | None = None) -> Iterator[Client]:
    client = Client(
        server.host,
        server.port,
        user=server.user if user is None else user,
        password=server.password if password is None else password,
        compression="lz4",
    )
    try:
        yield client
    finally:
        client.disconnect()


@contextmanager
def read_only(server: ClickHouseServer) -> Iterator[Client]:
    with connected(server, server.read_only_user, server.read_only_password) as client:
        yield client


@pytest.fixture
def client(store: RunningClickHouse) -> Iterator[Client]:
    with connected(store.server) as client:
        client.execute("CREATE DATABASE IF NOT EXISTS heliograph")
        client.execute("USE heliograph")
        yield client


def refusal(client: Client, query: str, settings: dict[str, Any] | None = None) -> int:
    """The code with which the server refuses."""
    with pytest.raises(ServerException) as refused:
        client.execute(query, settings=settings)
    assert refused.value.code is not None
    return int(refused.value.code)


def over_http(server: ClickHouseServer, query: str, user: str, password: str) -> str:
    request = urllib.request.Request(
        f"http://{server.host}:{server.http_port}/",
        data=query.encode(),
        headers={"X-ClickHouse-User": user, "X-ClickHouse-Key": password},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


# Who may do what


def test_default_user_can_run_nothing_over_the_network(store: RunningClickHouse) -> None:
    for query in ("SELECT 1", "SHOW TABLES", "SYSTEM STOP LISTEN TCP", "KILL QUERY WHERE 1", "SHOW GRANTS"):
        with connected(store.server, "default", "") as client:
            assert refusal(client, query) == TOO_MANY_SESSIONS
        assert f"Code: {TOO_MANY_SESSIONS}" in over_http(store.server, query, "default", "")


def test_a_wrong_password_is_refused(store: RunningClickHouse) -> None:
    with connected(store.server, password="wrong") as client, pytest.raises(ServerException, match="516"):
        client.execute("SELECT 1")


def test_services_work_in_their_database_alone(client: Client) -> None:
    client.execute("CREATE TABLE IF NOT EXISTS a (x Int32) ENGINE = MergeTree ORDER BY x")
    client.execute("ALTER TABLE a ADD COLUMN IF NOT EXISTS y Int32")
    client.execute("DROP TABLE a")
    assert refusal(client, "CREATE DATABASE other") == ACCESS_DENIED
    assert refusal(client, "SYSTEM STOP LISTEN TCP") == ACCESS_DENIED


def test_no_user_can_read_files_or_reach_other_servers(client: Client, store: RunningClickHouse) -> None:
    with read_only(store.server) as reader:
        for who in (client, reader):
            assert refusal(who, "SELECT * FROM file('/etc/passwd', 'LineAsString')") in (ACCESS_DENIED, READONLY)
            assert refusal(who, "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')") in (ACCESS_DENIED, READONLY)
            assert refusal(who, "SELECT * FROM remote('127.0.0.1', 'system.one')") in (ACCESS_DENIED, READONLY)


def test_read_only_user_reads_and_changes_nothing(client: Client, store: RunningClickHouse) -> None:
    client.execute("CREATE OR REPLACE TABLE a (x Int32) ENGINE = MergeTree ORDER BY x")
    client.execute("INSERT INTO a VALUES", [(1,)])
    with read_only(store.server) as reader:
        assert reader.execute("SELECT x FROM heliograph.a") == [(1,)]
        for query in (
            "INSERT INTO heliograph.a SELECT 2",
            "DROP TABLE heliograph.a",
            "ALTER TABLE heliograph.a DELETE WHERE 1",
            "CREATE TABLE heliograph.b (x Int32) ENGINE = Memory",
            "SET readonly = 0",
        ):
            assert refusal(reader, query) in (READONLY, ACCESS_DENIED)
        assert refusal(reader, "SELECT * FROM system.processes") == ACCESS_DENIED
    client.execute("DROP TABLE a")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("max_execution_time", 0, id="no time limit"),
        pytest.param("max_execution_time", 3600, id="an hour"),
        pytest.param("max_result_rows", 0, id="any number of rows"),
        pytest.param("result_overflow_mode", "break", id="rows cut off in silence"),
        pytest.param("max_memory_usage", 0, id="all the memory"),
        pytest.param("max_concurrent_queries_for_user", 1000, id="a thousand queries"),
        pytest.param("max_threads", 64, id="64 threads"),
    ],
)
def test_read_only_user_cannot_lift_its_limits(store: RunningClickHouse, setting: str, value: int | str) -> None:
    with read_only(store.server) as reader:
        assert refusal(reader, "SELECT 1", {setting: value}) == SETTING_CONSTRAINT
        literal = f"'{value}'" if isinstance(value, str) else value
        assert refusal(reader, f"SELECT 1 SETTINGS {setting} = {literal}") == SETTING_CONSTRAINT


def test_read_only_user_is_stopped_at_its_rows(store: RunningClickHouse) -> None:
    with read_only(store.server) as reader, pytest.raises(ServerException, match="Limit for result exceeded"):
        reader.execute("SELECT number FROM numbers(200000)")


# What nobody else on this machine can see


def test_no_password_stands_in_the_process_list_or_environment(store: RunningClickHouse) -> None:
    shown = " ".join(clickhouse.command(store.server)).encode()
    if sys.platform == "linux":
        shown += Path(f"/proc/{store.child.pid}/cmdline").read_bytes()
        shown += Path(f"/proc/{store.child.pid}/environ").read_bytes()
    assert store.server.password.encode() not in shown
    assert store.server.read_only_password.encode() not in shown


def test_no_file_of_the_server_can_be_read_by_others(client: Client, store: RunningClickHouse) -> None:
    client.execute("CREATE OR REPLACE TABLE a (x Int32) ENGINE = MergeTree ORDER BY x")
    client.execute("INSERT INTO a VALUES", [(1,)])
    open_ones = [
        path
        for path in [store.server.data_dir, *store.server.data_dir.rglob("*")]
        if not path.is_symlink() and path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert open_ones == []
    client.execute("DROP TABLE a")


def test_passwords_are_not_printed_with_the_server(store: RunningClickHouse) -> None:
    assert store.server.password not in repr(store.server)
    assert store.server.read_only_password not in repr(store.server)


def test_what_people_sent_never_stands_in_the_log(client: Client, store: RunningClickHouse) -> None:
    secret = "sent-by-a-person"
    client.execute(f"SELECT '{secret}'")
    refusal(client, f"SELECT * FROM nowhere WHERE body = '{secret}'")
    refusal(client, f"SELECT throwIf(1, '{secret}')")
    refusal(client, f"SELEC '{secret}'")
    refusal(client, f"SELECT toInt32('{secret}')")
    over_http(store.server, f"SELEC '{secret}'", store.server.user, store.server.password)
    over_http(store.server, f"SELECT throwIf(1, '{secret}')", store.server.user, store.server.password)
    logs = [path for path in (store.server.data_dir / "logs").iterdir() if path.name.startswith("clickhouse-server")]
    text = "".join(path.read_text() for path in logs)
    assert secret not in text
    assert "Listening for native protocol" in text


def test_no_system_log_table_grows_on_disk(client: Client) -> None:
    assert client.execute("SELECT name FROM system.tables WHERE database = 'system' AND engine LIKE '%MergeTree'") == []


# What services lean on


def test_answers_come_compressed_with_lz4_in_utc_and_inserts_are_synchronous(client: Client) -> None:
    ((zone, insert, row_count),) = client.execute(
        "SELECT timezone(), getSetting('async_insert'), count() FROM numbers(1000000)"
    )
    assert zone in ("UTC", "Etc/UTC")
    assert insert is False or insert == 0
    assert row_count == 1_000_000
    rows = client.execute("SELECT repeat('x', 1000) FROM numbers(1000)")
    assert len(rows) == 1000


def test_the_memory_cap_leaves_a_query_more_than_one_core(client: Client, store: RunningClickHouse) -> None:
    question = "EXPLAIN PIPELINE SELECT sum(number) FROM numbers_mt(100000000)"
    with read_only(store.server) as other:
        for asking in (client, other):
            steps = asking.execute(question, settings={"max_threads": 2})
            assert any("× 2" in step for (step,) in steps), steps


def test_every_migration_runs_and_runs_once(store: RunningClickHouse) -> None:
    settings = settings_of(store.server).model_copy(update={"database": "heliograph"})
    with connected(store.server) as client:
        client.execute("DROP DATABASE IF EXISTS heliograph")
    assert migrate(settings, RetentionSettings()) != []
    assert migrate(settings, RetentionSettings()) == []


def test_a_repeated_insert_counts_once_in_the_table_and_in_its_view(client: Client) -> None:
    with counted_table(client):
        for token, times in (("t:0:0:9", 3), ("t:0:10:19", 2)):
            for _ in range(times):
                insert(client, range(10), token)
        assert counts(client) == (20, 20)


def test_a_repeated_insert_counts_once_over_a_kill_in_its_middle(store: RunningClickHouse, client: Client) -> None:
    batches = [(range(start, start + 5000), f"t:0:{start}:{start + 4999}") for start in range(0, 100_000, 5000)]
    with counted_table(client):
        acknowledged = 0
        for kill_after_s in (0.03, 0.08, 0.15):
            timer = threading.Timer(kill_after_s, store.child.kill)
            timer.start()
            try:
                while True:
                    rows, token = batches[acknowledged]
                    with connected(store.server) as other:
                        insert(other, rows, token)
                    acknowledged = (acknowledged + 1) % len(batches)
            except (Error, OSError, EOFError):
                pass  # the kill
            timer.join()
            store.child.start()
        for rows, token in batches:
            with connected(store.server) as other:
                insert(other, rows, token)
        assert counts(client) == (100_000, 100_000)
        assert client.execute("SELECT uniqExact(x) FROM heliograph.base") == [(100_000,)]


def test_a_query_beyond_the_memory_cap_fails_and_the_server_stays(store: RunningClickHouse, client: Client) -> None:
    hungry = "SELECT groupArray(number) FROM numbers(1000000000) GROUP BY number % 2 FORMAT Null"
    assert refusal(client, hungry) == MEMORY_LIMIT
    assert client.execute("SELECT 1") == [(1,)]
    assert store.child.process is not None
    assert store.child.process.poll() is None


@contextmanager
def counted_table(client: Client) -> Iterator[None]:
    window = "SETTINGS non_replicated_deduplication_window = 10000"
    client.execute("DROP TABLE IF EXISTS heliograph.base_to_sums, heliograph.base, heliograph.sums")
    client.execute(f"CREATE TABLE heliograph.base (x UInt64) ENGINE = MergeTree ORDER BY x {window}")
    client.execute(
        "CREATE TABLE heliograph.sums (k UInt8, n SimpleAggregateFunction(sum, UInt64)) "
        f"ENGINE = AggregatingMergeTree ORDER BY k {window}"
    )
    client.execute(
        "CREATE MATERIALIZED VIEW heliograph.base_to_sums TO heliograph.sums AS "
        "SELECT toUInt8(x % 7) AS k, count() AS n FROM heliograph.base GROUP BY k"
    )
    yield
    client.execute("DROP TABLE heliograph.base_to_sums, heliograph.base, heliograph.sums")


def insert(client: Client, rows: range, token: str) -> None:
    client.execute(
        "INSERT INTO heliograph.base VALUES",
        [list(rows)],
        columnar=True,
        settings={"insert_deduplication_token": token, "deduplicate_blocks_in_dependent_materialized_views": 1},
    )


def counts(client: Client) -> tuple[int, int]:
    ((base, sums),) = client.execute(
        "SELECT (SELECT count() FROM heliograph.base), (SELECT sum(n) FROM heliograph.sums)"
    )
    return base, sums


# Starting, ending, and who is told what


def test_address_and_passwords_stay_over_restarts(store: RunningClickHouse) -> None:
    assert clickhouse.prepare(store.server.data_dir) == store.server
    assert clickhouse.find(store.server.data_dir) == store.server


def test_nothing_is_found_where_nothing_was_prepared(tmp_path: Path) -> None:
    assert clickhouse.find(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_limits_reach_the_child_unchanged(tmp_path: Path) -> None:
    limits = Limits(memory_mib=777, fsync=False, read_only_rows=5)
    command = clickhouse.command(clickhouse.prepare(tmp_path, limits=limits))
    assert command[command.index("--memory-mib") + 1] == "777"
    assert command[command.index("--fsync") + 1] == "0"
    assert command[command.index("--read-only-rows") + 1] == "5"


def test_a_name_that_is_not_a_plain_word_cannot_be_a_database(tmp_path: Path) -> None:
    with pytest.raises(CannotStart):
        clickhouse.prepare(tmp_path, database="a.b; DROP")


def test_ready_means_this_very_server_not_an_open_port(store: RunningClickHouse) -> None:
    with pytest.raises(NotReady, match="another ClickHouse answers"):
        clickhouse.wait_ready(replace(store.server, password="of another folder"), 5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NotReady, match="did not answer within"):
        clickhouse.wait_ready(replace(store.server, port=silent.getsockname()[1]), 0.1)


def test_waiting_ends_with_a_child_that_failed(store: RunningClickHouse, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(NotReady, match="has ended while starting"):
        clickhouse.wait_ready(clickhouse.prepare(tmp_path), 30, alive=lambda: False)
    assert time.monotonic() - began < 5


def test_a_second_server_in_the_same_folder_is_told_who_is_there(store: RunningClickHouse) -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from infra.local import clickhouse as c; c._PREDECESSOR_S = 0; c.main()",
         "--data", str(store.server.data_dir)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert told.returncode != 0
    assert f"in use by pid {store.child.pid}" in told.stderr


def test_a_taken_port_is_named_by_the_child(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        child = subprocess.run(
            clickhouse.command(clickhouse.prepare(tmp_path, port)),
            cwd=REPOSITORY, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    assert child.returncode == 1
    assert f"port {port} (ClickHouse) is taken by" in child.stderr
    assert f"pid {os.getpid()}" in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_promptly_and_what_was_acknowledged_stays(
    store: RunningClickHouse, client: Client, number: signal.Signals
) -> None:
    client.execute("CREATE OR REPLACE TABLE a (x Int32) ENGINE = MergeTree ORDER BY x")
    client.execute("INSERT INTO a VALUES", [(1,)])
    assert store.child.process is not None
    store.child.process.send_signal(number)
    store.child.process.wait(5)
    store.child.start()
    with connected(store.server) as again:
        assert again.execute("SELECT * FROM heliograph.a") == [(1,)]
        again.execute("DROP TABLE heliograph.a")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells only there at once")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    server = clickhouse.prepare(tmp_path)
    parent = """
import subprocess, sys, time
from pathlib import Path
from infra.local import clickhouse
server = clickhouse.prepare(Path(sys.argv[1]))
child = subprocess.Popen(clickhouse.command(server))
clickhouse.wait_ready(server, 30, alive=lambda: child.poll() is None)
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        int(process.stdout.readline())
        process.kill()
    # Its lock goes with it, so a successor can start at once.
    child = clickhouse_child(server)
    child.start()
    child.stop()
