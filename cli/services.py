"""Each service alone in the foreground, as `heliograph up`, a container or a systemd unit runs it."""

import asyncio
import logging
import signal
from collections.abc import Callable

import typer

from cli.environment import console, settings_errors, shared_settings
from infra.local.tethered import tether
from schemas import logs
from schemas.settings import ControlSettings, EdgeSettings, MetricsSettings, PlannerSettings, WorkerSettings, load

TETHERED = typer.Option(False, "--tethered", hidden=True, help="End when the parent process ends.")


def _begin(service: str, tethered: bool) -> None:
    if tethered:
        tether()
    shared = shared_settings()
    logs.set_up(service, level=shared.log_level, form=shared.log_format)


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
    asyncio.run(_plan(settings))


@plan_app.command("resume")
def plan_resume() -> None:
    """Let planning go on after too many dead letters paused it."""
    from ingest.planner import resume
    from ingest.spool_log import SpoolLog

    shared = shared_settings()
    reasons = asyncio.run(resume(SpoolLog(shared.data_dir / "spool", batch_events=1, batch_bytes=1)))
    for reason in reasons:
        console.print(f"resumed; it was paused because {reason}")
    if not reasons:
        console.print("nothing was paused")


async def _plan(settings: PlannerSettings) -> None:
    from ingest.ledger import Ledger
    from ingest.planner import Planner
    from ingest.spool_log import SpoolLog
    from ingest.spool_plan import spool_owner
    from workers.sender import Sender

    shared = shared_settings()
    spool = SpoolLog(shared.data_dir / "spool", batch_events=settings.batch_events, batch_bytes=settings.batch_bytes)
    with spool_owner(shared.data_dir / "spool"):
        planner = Planner(spool, Ledger(shared.clickhouse), Sender(shared).send, settings)
        _on_stop(planner.stop)
        logging.getLogger("heliograph.planner").info("planner is ready")
        await planner.run()


def worker(tethered: bool = TETHERED) -> None:
    """Run the Celery workers: batches into rows."""
    _begin("worker", tethered)
    with settings_errors():
        settings = load(WorkerSettings)
    from ingest.spool_log import SpoolReader
    from workers.app import create_app, run

    shared = shared_settings()
    with settings_errors():
        app = create_app(shared, settings, lambda: SpoolReader(shared.data_dir / "spool"))
    run(app)


def control(tethered: bool = TETHERED) -> None:
    """Run the API that people and dashboards read."""
    _begin("control", tethered)
    with settings_errors():
        settings = load(ControlSettings)
    asyncio.run(_control(settings))


async def _control(settings: ControlSettings) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    from cli.spool_view import SpoolView
    from control.app import create_app

    shared = shared_settings()
    server = Server(
        create_app(settings, shared, log_view=SpoolView(shared.data_dir / "spool")),
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    )
    _on_stop(server.stop)
    await server.serve()


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
