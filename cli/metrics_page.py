"""One Prometheus page for every process of this machine: each writes its numbers to files, this process adds them up."""

import os
import signal
import threading
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from schemas.settings import MetricsSettings

_FORGET_EVERY_S = 10.0


def serve(settings: MetricsSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    registry = CollectorRegistry()
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    server, thread = start_http_server(settings.port, addr=settings.host, registry=registry)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    while not stopping.wait(_FORGET_EVERY_S):
        forget_the_dead(folder)
    server.shutdown()
    thread.join()


def forget_the_dead(folder: Path) -> None:
    """Drop the gauges of processes that are gone; their counters stay, since what they counted happened."""
    pids = {int(part) for path in folder.glob("gauge_live*.db") if (part := path.stem.rpartition("_")[2]).isdigit()}
    for pid in pids:
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
