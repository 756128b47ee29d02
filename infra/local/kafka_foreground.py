"""`make kafka`: the broker of `infra.local.kafka` in the foreground, and what to type next once it answers."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from infra.local import kafka, kafka_jars, ports
from infra.local.errors import LocalError
from infra.local.lock import hold

PORT = 9092

_FOLDER = ".heliograph"
_READY_S = 60.0
_WATCH_S = 0.5
_END_S = 30.0


def main() -> None:
    """Run the broker until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.kafka_foreground", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("HELIOGRAPH_DATA_DIR", _FOLDER)), help="data folder"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"where clients connect ({PORT})")
    parser.add_argument("--memory-mib", type=int, default=kafka.MEMORY_MIB, help="heap of the broker")
    asked = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    kafka_jars.java()
    kafka_jars.jars()
    with hold(asked.data / "kafka"):  # let go before the broker takes it: nobody's configuration is changed meanwhile
        server = kafka.prepare(asked.data, asked.port, memory_mib=asked.memory_mib)
        ports.require_free(server.port, purpose="Kafka")
    process = subprocess.Popen(kafka.command(server), stdin=subprocess.DEVNULL)  # noqa: S603 - our own module
    try:
        kafka.wait_ready(server, _READY_S, alive=lambda: process.poll() is None and not stopping.is_set())
        _welcome(server)
        while process.poll() is None and not stopping.wait(_WATCH_S):
            pass
    except LocalError:
        if not stopping.is_set():
            raise
    finally:
        # A terminal's Ctrl-C has reached it already; being told twice changes nothing.
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not stopping.is_set():
        sys.exit(f"Kafka has ended; see {server.data_dir / 'logs' / 'kafka-server.log'}")
    print("Kafka is stopped; its data stays.", flush=True)


def _welcome(server: kafka.KafkaServer) -> None:
    elsewhere = server.data_dir != Path(_FOLDER).absolute()
    setting = f"HELIOGRAPH_DATA_DIR={server.data_dir} " if elsewhere else ""
    print(
        f"Kafka is up at {server.bootstrap_servers}, its data in {server.data_dir / 'kafka'}. Ctrl-C stops it.\n\n"
        f"In another terminal:\n\n  {setting}.venv/bin/heliograph up --kafka {server.bootstrap_servers}\n",
        flush=True,
    )


if __name__ == "__main__":
    try:
        main()
    except LocalError as error:
        sys.exit(f"{error}")
