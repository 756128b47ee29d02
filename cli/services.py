"""Each service alone in the foreground, as `heliograph up`, a container or a systemd unit runs it."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from cli.environment import console, errors, settings_errors, shared_settings
from infra.local.tethered import tether
from schemas import logs
from schemas.settings import (
    ControlSettings,
    EdgeSettings,
    MetricsSettings,
    PlannerSettings,
    SharedSettings,
    ShipperSettings,
    WorkerSettings,
)
from schemas.variables import load

if TYPE_CHECKING:
    from control.pipeline import LogView
    from ingest.log import Log
    from workers.app import Opened

FENCED_STATUS = 3
"""How `heliograph ship` ends when another shipper has claimed the spool. Whoever restarted it would shut out the other in
turn, which would be restarted too."""

_STOP_S = 10
TETHERED = typer.Option(False, "--tethered", hidden=True, help="End when the parent process ends.")


def _begin(service: str, tethered: bool) -> None:
    if tethered:
        tether()
    shared = shared_settings()
    logs.set_up(service, level=shared.log_level, form=shared.log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def edge(tethered: bool = TETHERED) -> None:
    """Run the proxy: the hot path. Needs Redis only to learn its keys."""
    _begin("edge", tethered)
    with settings_errors():
        settings = load(EdgeSettings)
    from edge.server import serve

    serve(settings)


plan_app = typer.Typer(help="Run the planner, or let a paused one go on.", invoke_without_command=True)


@plan_app.callback()
def plan(context: typer.Context, tethered: bool = TETHERED) -> None:
    """Run the planner: cuts the log into batches and sees each into the ledger."""
    if context.invoked_subcommand is not None:
        return
    _begin("planner", tethered)
    with settings_errors():
        settings = load(PlannerSettings)
    from ingest.log import LogError

    try:
        with settings_errors():  # what Kafka's settings lack shows when it is first spoken to
            asyncio.run(_plan(settings))
    except LogError as error:
        errors.print(f"[bold red]heliograph plan[/] cannot start: {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None


@plan_app.command("resume")
def plan_resume() -> None:
    """Let planning go on after too many dead letters paused it."""
    from ingest.kafka_log import KafkaPauses
    from ingest.log import LogError
    from ingest.planner import resume
    from ingest.spool_log import SpoolLog

    shared = shared_settings()
    on_kafka = shared.kafka.bootstrap_servers is not None
    try:
        with settings_errors():  # what Kafka's settings lack shows when it is first spoken to
            reasons = asyncio.run(
                resume(
                    KafkaPauses(shared.kafka)
                    if on_kafka
                    else SpoolLog(shared.data_dir / "spool", batch_events=1, batch_bytes=1)
                )
            )
    except LogError as error:
        errors.print(f"[bold red]Nothing was resumed:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    for reason in reasons:
        console.print(f"resumed; it was paused because {escape(reason)}", soft_wrap=True)
    if not reasons:
        console.print("nothing was paused")


async def _plan(settings: PlannerSettings) -> None:
    from ingest.ledger import Ledger
    from ingest.planner import Planner
    from workers.sender import Sender

    shared = shared_settings()
    async with _open_log(shared, settings) as opened:
        planner = Planner(opened, Ledger(shared.clickhouse), Sender(shared).send, settings)
        _on_stop(planner.stop)
        logging.getLogger("heliograph.planner").info("planner is ready")
        await planner.run()


@asynccontextmanager
async def _open_log(shared: SharedSettings, settings: PlannerSettings) -> "AsyncIterator[Log]":
    """Kafka where it is named, else the spools of this machine."""
    if shared.kafka.bootstrap_servers is None:
        from ingest.spool_log import SpoolLog
        from ingest.spool_plan import spool_owner

        root = shared.data_dir / "spool"
        with spool_owner(root):
            yield SpoolLog(root, batch_events=settings.batch_events, batch_bytes=settings.batch_bytes)
        return
    from ingest.kafka_log import KafkaLog
    from ingest.spool_plan import planner_slot

    # Known in the group by machine and place on it, so that a planner that restarts has its partitions again at once.
    with planner_slot(shared.data_dir) as slot:
        kafka = KafkaLog(shared.kafka, batch_events=settings.batch_events, instance=f"{socket.gethostname()}-{slot}")
        try:
            yield kafka
        finally:
            await kafka.close()


def ship(tethered: bool = TETHERED) -> None:
    """Run the shipper: brings the events of this machine's spools to Kafka.

    Ends with status 3, and is not to be restarted, when another shipper has claimed a spool.
    """
    _begin("shipper", tethered)
    with settings_errors():
        settings = load(ShipperSettings)
    from ingest.log import LogError
    from ingest.objects import Objects
    from ingest.objects_expiry import Expiry
    from ingest.shipper import Fenced, Shipper, ship_all

    shared = shared_settings()
    if shared.kafka.bootstrap_servers is None:
        errors.print("HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS is not set: the spool itself is the log, nothing to ship.")
        raise typer.Exit(2)
    objects = Objects(shared.objects, shared.data_dir)
    with settings_errors():
        objects.open()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    log = logging.getLogger("heliograph.shipper")
    log.info("shipper is ready")
    try:
        with settings_errors(), Expiry(objects, shared.objects, shared.retention):
            ship_all(
                shared.data_dir / "spool", lambda folder: Shipper(folder, shared.kafka, settings, objects), stopping
            )
    except LogError as error:
        log.error("shipping has ended", extra={"error": str(error)})
        raise typer.Exit(FENCED_STATUS if isinstance(error, Fenced) else 1) from None


def worker(tethered: bool = TETHERED) -> None:
    """Run the Celery workers: batches into rows."""
    _begin("worker", tethered)
    with settings_errors():
        settings = load(WorkerSettings)
    from workers.app import create_app, run

    shared = shared_settings()
    with settings_errors():
        app = create_app(shared, settings, lambda: opened(shared))
    run(app)


def opened(shared: SharedSettings) -> "Opened":
    """The log, whichever it is, to read and to publish in."""
    from workers.app import Opened

    if shared.kafka.bootstrap_servers is None:
        from ingest.spool_log import SpoolReader

        return Opened(SpoolReader(shared.data_dir / "spool"))
    from ingest.kafka_publisher import KafkaPublisher
    from ingest.kafka_reader import KafkaReader
    from ingest.kafka_thread import KafkaThread
    from workers.publish import Publisher

    thread = KafkaThread()
    publisher = Publisher(shared.kafka, KafkaPublisher(shared.kafka, thread))
    return Opened(KafkaReader(shared.kafka, thread), publisher)


def control(tethered: bool = TETHERED) -> None:
    """Run the API that people and dashboards read."""
    _begin("control", tethered)
    from control.database import database_url
    from ingest.objects import Objects

    with settings_errors():
        settings = load(ControlSettings)
        shared = shared_settings()
        database_url(shared)
        if shared.objects.url is not None:
            Objects(shared.objects, shared.data_dir).open()
    import uvicorn

    from control.app import create_app

    uvicorn.run(
        create_app(settings, shared, log_view=_log_view(shared)),
        host=settings.host,
        port=settings.port,
        ws="none",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=_STOP_S,
    )


def _log_view(shared: SharedSettings) -> "LogView":
    root = shared.data_dir / "spool"
    if shared.kafka.bootstrap_servers is None:
        from cli.spool_view import SpoolView

        return SpoolView(root)
    from cli.kafka_view import KafkaView

    return KafkaView(shared.kafka, root)


def metrics(tethered: bool = TETHERED) -> None:
    """Serve the Prometheus page of every process of this machine."""
    _begin("metrics", tethered)
    with settings_errors():
        settings = load(MetricsSettings)
    from cli.metrics_page import serve

    serve(settings)


def _on_stop(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
