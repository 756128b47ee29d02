"""`heliograph up`: every part on this machine, started in order, watched, stopped in order."""

import math
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import typer
from rich.markup import escape

from cli import log_choice
from cli.data import bring_topics_up_to_date
from cli.environment import console, data_dir, embedded, errors, read_env_file, settings_errors, shared_settings
from cli.services import FENCED_STATUS
from infra.local import clickhouse, kafka, ports, valkey
from infra.local.errors import LocalError, NotReady
from infra.local.lock import hold
from infra.local.processes import Processes, Program, StartFailed, State, wait_predecessor
from schemas.settings import ControlSettings, EdgeSettings, MetricsSettings, SharedSettings, ShipperSettings
from schemas.variables import load

_READY_TIMEOUT_S = 90.0
_WATCH_S = 0.5
_AT_ONCE_WITHIN_S = 10.0
_PREDECESSOR_S = 2.0
_PREDECESSOR_ENDS_S = 45.0
_CLOSE_S = 5
_KAFKA = typer.Option(
    "",
    "--kafka",
    metavar="ADDRESS",
    help="The log is the Kafka at this address (127.0.0.1:9092 is that of `make kafka`), now and at every later start; "
    f"'{log_choice.NONE}' goes back to the spool.",
)


def up(kafka_address: str = _KAFKA) -> None:
    """Start everything on this machine and stay in the foreground until Ctrl-C."""
    started = time.monotonic()
    read_env_file()
    # A laptop is not a cluster: without a word to the contrary its own user needs no key.
    os.environ.setdefault("EDGE_AUTH", "optional")
    os.environ.setdefault("CONTROL_AUTH", "local")
    stop = _Stop()
    try:
        with hold(data_dir(), wait_s=_PREDECESSOR_S):
            wait_predecessor(data_dir(), timeout_s=_PREDECESSOR_ENDS_S)
            ports.forget_taken(data_dir(), but=kafka.PORTS)
            with settings_errors():
                log_choice.choose(data_dir().absolute(), kafka_address)
            servers = embedded()
            shared = shared_settings()
            with settings_errors():
                edge, control, metrics = load(EdgeSettings), load(ControlSettings), load(MetricsSettings)
                shipper = load(ShipperSettings)
            ports.require_free_each(EDGE_PORT=edge.port, CONTROL_PORT=control.port, METRICS_PORT=metrics.port)
            if shared.kafka.bootstrap_servers is not None:
                for done in bring_topics_up_to_date(shared.kafka):
                    console.print(f"  [dim]{done}[/]")
            _run(shared, edge, control, metrics, shipper, servers, stop, started)
    except LocalError as error:
        errors.print(f"[bold red]heliograph up[/] cannot start: {escape(str(error))}")
        raise typer.Exit(1) from None


def _run(
    shared: SharedSettings, edge: EdgeSettings, control: ControlSettings, metrics: MetricsSettings,
    shipper: ShipperSettings, servers: set[str], stop: "_Stop", started: float,
) -> None:  # fmt: skip
    folder = shared.data_dir
    demo_port = ports.internal(folder, "demo")
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        # The demo's provider, which only listens while `heliograph demo` runs.
        "EDGE_PROVIDERS__DEMO_OPENAI__BASE_URL": f"http://127.0.0.1:{demo_port}/v1",
        "EDGE_PROVIDERS__DEMO_OPENAI__STANDS_FOR": "openai",
        "EDGE_PROVIDERS__DEMO_ANTHROPIC__BASE_URL": f"http://127.0.0.1:{demo_port}/v1",
        "EDGE_PROVIDERS__DEMO_ANTHROPIC__STANDS_FOR": "anthropic",
    }
    for left in Path(environment["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):  # of processes that are all gone
        left.unlink(missing_ok=True)
    programs = _programs(shared, edge, control, metrics, shipper, servers)
    with Processes(programs, folder=folder, environment=environment) as processes:
        try:
            with console.status("starting") as status:
                for program in programs:
                    if stop.asked:
                        break
                    status.update(f"starting {program.name}")
                    began = time.monotonic()
                    processes.start(program, timeout_s=_READY_TIMEOUT_S)
                    console.print(f"  [green]✓[/] {program.name:<11} {time.monotonic() - began:4.1f} s")
                    if program.name == "clickhouse":
                        _migrate(shared)
        except StartFailed as error:
            processes.kill()
            errors.print(f"[bold red]heliograph up[/] did not start: {escape(str(error))}")
            errors.print(f"The logs are in {folder / 'logs'}; 'heliograph doctor' checks each part.")
            raise typer.Exit(1) from None
        if not stop.asked:
            _welcome(edge, control, metrics, shared, time.monotonic() - started)
            _watch(processes, stop)
        if processes.manager_ended:
            errors.print("[bold red]The process manager is gone[/]; what it ran is ending. Start again when this ends.")
            processes.wait_orphans()
            raise typer.Exit(1)
        _stop(processes, stop)


def _programs(
    shared: SharedSettings, edge: EdgeSettings, control: ControlSettings, metrics: MetricsSettings,
    shipper: ShipperSettings, servers: set[str],
) -> list[Program]:  # fmt: skip
    """In order of start: what others need comes first; the edge last, so that it never speaks for an unready house."""
    heliograph = [sys.executable, "-m", "cli"]
    folder = shared.data_dir
    local: list[Program] = []
    if "valkey" in servers:
        redis = valkey.prepare(folder)
        local.append(
            Program("valkey", _module("valkey", folder), lambda: _is_ready(lambda: valkey.wait_ready(redis, 0)))
        )
    if "clickhouse" in servers:
        store = clickhouse.prepare(folder)
        local.append(
            Program(
                "clickhouse", _module("clickhouse", folder), lambda: _is_ready(lambda: clickhouse.wait_ready(store, 0))
            )
        )
    control_url = f"http://127.0.0.1:{control.port}/healthz"
    shipping: list[Program] = []
    if shared.kafka.bootstrap_servers is not None:
        # Its stop ships what the edge, stopped before it, has left; a transaction under way may take a whole call's time.
        stop_wait_s = math.ceil(shipper.drain_s + shared.kafka.call_timeout_s) + _CLOSE_S
        command = [*heliograph, "ship", "--tethered"]
        shipping.append(Program("ship", command, _said(shared, "ship", "shipper is ready"), stop_wait_s, FENCED_STATUS))
    return [
        *local,
        Program("worker", [*heliograph, "worker", "--tethered"], _said(shared, "worker", " ready."), 60),
        Program("planner", [*heliograph, "plan", "--tethered"], _said(shared, "planner", "planner is ready")),
        Program(
            "metrics", [*heliograph, "metrics", "--tethered"], _answers(f"http://127.0.0.1:{metrics.port}/metrics")
        ),
        Program("control", [*heliograph, "control", "--tethered"], _answers(control_url)),
        *shipping,
        Program("edge", [*heliograph, "edge", "--tethered"], _answers(f"http://127.0.0.1:{edge.port}/readyz"), 40),
    ]


def _module(name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", f"infra.local.{name}", "--data", str(folder)]


def _is_ready(wait: Callable[[], None]) -> bool:
    try:
        wait()
    except NotReady:
        return False
    return True


def _answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    return ready


def _said(shared: SharedSettings, name: str, words: str) -> Callable[[], bool]:
    """Ready when its log says so, counted from now on."""
    log = shared.data_dir / "logs" / f"{name}.log"
    before = log.stat().st_size if log.exists() else 0

    def ready() -> bool:
        if not log.exists():
            return False
        with log.open("rb") as file:
            file.seek(before if log.stat().st_size >= before else 0)
            return words.encode() in file.read()

    return ready


def _migrate(shared: SharedSettings) -> None:
    from ingest.migrations import migrate

    for name in migrate(shared.clickhouse, shared.retention, kafka_hours=shared.kafka.retention_hours):
        console.print(f"    [dim]table migration {name}[/]")


def _welcome(
    edge: EdgeSettings, control: ControlSettings, metrics: MetricsSettings, shared: SharedSettings, seconds: float
) -> None:
    folder = shared.data_dir
    base = f"http://127.0.0.1:{edge.port}"
    api = f"http://127.0.0.1:{control.port}"
    rows = [
        ("proxy", f"{base}/v1", "your base_url"),
        ("API", f"{api}/v1/requests", ""),
        ("", f"{api}/openapi.json", "all of it, described"),
        ("metrics", f"http://127.0.0.1:{metrics.port}/metrics", "Prometheus"),
        *([("log", f"Kafka at {shared.kafka.bootstrap_servers}", "")] if shared.kafka.bootstrap_servers else []),
        ("data", str(folder), ""),
        ("logs", str(folder / "logs"), ""),
    ]
    console.print(f"\n[bold green]Heliograph is up[/] [dim]({seconds:.1f} s)[/]\n")
    for name, where, what in rows:
        console.print(f"  {name:<9} {where}" + (f"  [dim]{what}[/]" if what else ""), soft_wrap=True)
    console.print("\nTry it, with your own provider key in OPENAI_API_KEY:\n")
    console.print(
        f"  curl {base}/v1/chat/completions -H \"Authorization: Bearer $OPENAI_API_KEY\" "
        "-H 'Content-Type: application/json' "
        "-d '{\"model\": \"gpt-4o-mini\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n",
        style="cyan", markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print(
        f"  python -c \"from openai import OpenAI; print(OpenAI(base_url='{base}/v1').chat.completions.create("
        "model='gpt-4o-mini', messages=[{'role': 'user', 'content': 'Hello'}]).choices[0].message.content)\"\n",
        style="cyan", markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print("No provider key? In another terminal: [cyan]make demo[/]", soft_wrap=True)
    console.print("Calls as they come: [cyan].venv/bin/heliograph tail[/]", soft_wrap=True)
    console.print(
        "[dim]Ctrl-C stops everything in order; a second one within ten seconds, at once.[/]\n", soft_wrap=True
    )


def _watch(processes: Processes, stop: "_Stop") -> None:
    """Say what dies and what comes back, until asked to stop or until the process manager is gone."""
    known = {state.name: state._replace(final=False) for state in processes.states()}
    down: set[str] = set()
    while not stop.wait(_WATCH_S):
        try:
            states = processes.states()
        except OSError:
            return
        for state in states:
            _report(known[state.name], state, down, processes.log(state.name))
            known[state.name] = state


def _report(before: State, now: State, down: set[str], log: Path) -> None:
    at = time.strftime("%H:%M:%S")
    if now.final and not before.final:
        down.add(now.name)
        errors.print(
            f"[bold red]{at} {now.name} ended for good ({now.exit})[/]; the rest goes on without it. The end of "
            f"{escape(str(log))} says why.",
            soft_wrap=True,
        )
    elif not now.running and now.name not in down:
        down.add(now.name)
        errors.print(f"[yellow]{at} {now.name} ended ({now.exit or 'no status'}); it is being restarted[/]")
    elif now.running and (now.name in down or now.pid != before.pid):
        if now.name not in down:
            errors.print(f"[yellow]{at} {now.name} ended ({now.exit or 'no status'})[/]")
        down.discard(now.name)
        errors.print(f"[green]{at} {now.name} runs again[/] [dim](pid {now.pid})[/]")


def _stop(processes: Processes, stop: "_Stop") -> None:
    console.print(
        "\nStopping, last started first. Calls under way may finish; Ctrl-C again stops at once.", soft_wrap=True
    )
    stop.at_once = processes.kill
    processes.stop(lambda name: console.print(f"  [dim]stopped[/] {name}"))
    console.print("Everything is stopped; nothing is lost.")


class _Stop:
    """Ctrl-C and SIGTERM: the first asks, a second one soon after does not."""

    def __init__(self) -> None:
        self.asked = False
        self.at_once: Callable[[], None] | None = None
        self._asked_at = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def _signalled(self, *_: object) -> None:
        now = time.monotonic()
        if self.asked and now - self._asked_at < _AT_ONCE_WITHIN_S and self.at_once is not None:
            errors.print("\n[yellow]Stopping at once.[/] Events not yet stored wait for the next start.")
            self.at_once()
            os._exit(130)
        self.asked, self._asked_at = True, now

    def wait(self, seconds: float) -> bool:
        """Sleep up to `seconds`; whether a stop was asked for."""
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return self.asked
