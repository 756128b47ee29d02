import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.local import ports
from infra.local.errors import CannotStart, PortTaken


@contextmanager
def listening(port: int = 0) -> Iterator[int]:
    with socket.create_server((ports.LOOPBACK, port)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_named_with_the_process_that_has_it() -> None:
    with listening() as port, pytest.raises(PortTaken, match=rf"port {port} \(edge\) is taken by .*pid {os.getpid()}"):
        ports.require_free(port, purpose="edge")


def test_two_settings_cannot_have_one_port() -> None:
    port = ports.pick_free()
    with pytest.raises(CannotStart, match=f"EDGE_PORT and CONTROL_PORT are both {port}"):
        ports.require_free_each(EDGE_PORT=port, METRICS_PORT=ports.pick_free(), CONTROL_PORT=port)


def test_the_arguments_of_the_process_that_has_it_are_not_shown() -> None:
    listen = (
        "import socket,time; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=1); time.sleep(60)"
    )
    command = [sys.executable, "-c", listen, "--password", "hunter2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with pytest.raises(PortTaken, match=f"pid {process.pid}") as told:
                ports.require_free(port)
        finally:
            process.kill()
    assert "hunter2" not in str(told.value)


def test_a_free_port_passes() -> None:
    ports.require_free(ports.pick_free())


def test_fading_connections_do_not_keep_a_port_from_its_owner() -> None:
    with listening() as port:
        client = socket.create_connection((ports.LOOPBACK, port))
        server = socket.create_connection((ports.LOOPBACK, port))
        server.close()
        client.close()
    assert ports.is_free(port)


def test_a_port_this_user_may_not_use_is_said_to_be_that() -> None:
    with pytest.raises(CannotStart, match="cannot listen on"):
        ports.is_free(22050, host="192.0.2.1")  # not an address of this machine


def test_an_internal_port_stays_over_restarts(tmp_path: Path) -> None:
    first = ports.internal(tmp_path, "store")
    assert ports.internal(tmp_path, "store") == first
    assert ports.remembered(tmp_path) == {"store": first}


def test_two_internal_ports_differ(tmp_path: Path) -> None:
    assert len({ports.internal(tmp_path, str(name)) for name in range(20)}) == 20


def test_a_given_port_takes_the_place_of_the_remembered_one(tmp_path: Path) -> None:
    ports.internal(tmp_path, "store")
    assert ports.internal(tmp_path, "store", 22051) == 22051
    assert ports.internal(tmp_path, "store") == 22051


def test_a_remembered_port_that_a_stranger_took_is_forgotten(tmp_path: Path) -> None:
    other = ports.internal(tmp_path, "other")
    with listening() as port:
        ports.internal(tmp_path, "store", port)
        assert ports.forget_taken(tmp_path) == ["store"]
        assert ports.internal(tmp_path, "store") != port
    assert ports.internal(tmp_path, "other") == other


def test_a_port_whose_server_runs_on_its_own_is_not_forgotten(tmp_path: Path) -> None:
    with listening() as port:
        ports.internal(tmp_path, "kafka", port)
        assert ports.forget_taken(tmp_path, but=["kafka"]) == []
        assert ports.remembered(tmp_path) == {"kafka": port}


def test_no_free_port_is_an_error_not_a_loop() -> None:
    with listening() as port, pytest.raises(CannotStart, match="no free port"):
        ports.pick_free(within=range(port, port + 1))
