"""From an answer's end to a row: how soon, how fast, how small; our budgets beside.

    python -m load_tests.pipeline [--kafka [--partitions 1]] [--seconds 60] [--rate 100]

Freshness on a whole `heliograph up` (load_tests/freshness.py), then one worker process alone (load_tests/enrichment.py),
then bytes on disk (load_tests/storage.py). With --kafka the log is a Kafka of the run's own: freshness, one shipper alone
(load_tests/shipping.py), one worker process alone. Exit status 1 when a budget is missed or a row.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ingest.migrations import migrate
from ingest.topics import migrate_topics
from load_tests import enrichment, storage
from load_tests.build import BUILD, HERE, BuildError, programs
from load_tests.candidates import wait_for_port
from load_tests.freshness import Freshness, measure_freshness
from load_tests.processes import ChildFailed, child, two_cores
from load_tests.shipping import measure_shipping
from load_tests.storage import Storage, measure_storage
from load_tests.table import Budget, aligned, at_least, at_most
from load_tests.whole import Ports, Whole, free_ports
from schemas.settings import RetentionSettings
from tests.servers import kafka_environment, running_clickhouse, running_kafka

PROVIDER_DELAY_US = 20_000


class Figure(NamedTuple):
    label: str
    value: float | None
    digits: int
    budget: Budget | None = None

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return ""
        if self.value is None:
            return "n/a"
        return "ok" if self.budget.holds(self.value) else "miss"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    BUILD.mkdir(exist_ok=True)
    try:
        table = _on_kafka(options) if options.kafka else _on_spool(options)
    except (BuildError, ChildFailed, OSError) as error:
        print(f"load_tests.pipeline: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load_tests.pipeline: interrupted; everything it started has been ended", file=sys.stderr)
        return 130
    print("\n".join(render(table)))
    save({"log": "kafka" if options.kafka else "spool", "table": table})
    return 1 if any(figure.verdict in ("miss", "n/a") for figure in table) else 0


def _on_spool(options: argparse.Namespace) -> list[Figure]:
    _say(f"freshness: {options.rate:g} calls/s for {options.seconds:g} s")
    fresh = freshness(options)
    _say("enrichment: one worker process")
    enriched = enrichment_alone(events=options.events)
    _say("storage")
    stored = measure_storage(events=options.events)
    print("\n".join([*storage.report(stored), ""]))
    enrichment.report(enriched)
    return [*freshness_figures(fresh), *enrichment_figures(enriched), *storage_figures(stored)]


def _on_kafka(options: argparse.Namespace) -> list[Figure]:
    _say(f"freshness on Kafka: {options.rate:g} calls/s for {options.seconds:g} s")
    with TemporaryDirectory(prefix="heliograph-load-") as folder, running_kafka(Path(folder) / "kafka") as broker:
        partitions = {"partitions": options.partitions}
        fresh = freshness(options, **kafka_environment(broker.settings.model_copy(update=partitions)))
    _say("shipping: one shipper")
    shipped = measure_shipping(events=options.events)
    _say("enrichment from Kafka, publishing: one worker process")
    with TemporaryDirectory(prefix="heliograph-load-") as folder, running_kafka(Path(folder) / "kafka") as broker:
        asyncio.run(migrate_topics(broker.settings))
        where = asyncio.run(enrichment.fill_kafka(broker.settings, options.events))
        with running_clickhouse(Path(folder) / "ch") as settings:
            migrate(settings, RetentionSettings())
            services = enrichment.of_kafka(settings, broker.settings)
            enriched = enrichment.measure(services, where, events=options.events, batch=2000)
    enrichment.report(enriched)
    return [
        *freshness_figures(fresh),
        Figure("shipper, events/s on one core", shipped.events / shipped.cpu_s, 0, at_least(20_000)),
        Figure("  by the clock, the broker on the same machine", shipped.events / shipped.clock_s, 0),
        *enrichment_figures(enriched),
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kafka", action="store_true", help="the log is a Kafka of the run's own")
    parser.add_argument(
        "--partitions", type=int, default=1, help="of the Kafka (1, as `up --kafka` makes for one broker)"
    )
    parser.add_argument("--seconds", type=float, default=60, help="of calls whose rows are watched, s (60)")
    parser.add_argument("--rate", type=float, default=100, help="calls/s (100)")
    parser.add_argument("--events", type=int, default=40_000, help="for enrichment and storage (40,000)")
    options = parser.parse_args(arguments)
    if not 1 <= options.seconds <= 3600 or not 1 <= options.rate <= 2000 or not 5000 <= options.events <= 10_000_000:
        parser.error("--seconds: from 1 to 3600; --rate: from 1 to 2000; --events: from 5000 to 10,000,000")
    if not 1 <= options.partitions <= 64:
        parser.error("--partitions: from 1 to 64")
    return options


def freshness(options: argparse.Namespace, **settings: str) -> Freshness:
    """On a whole of our own, started for it and stopped after."""
    made, cores = programs(), two_cores()
    provider_port, *ports = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="pipeline-", dir=BUILD))
    command: list[str | Path] = [made.mock, "--port", str(provider_port), "--delay-us", str(PROVIDER_DELAY_US)]
    try:
        with child(command, core=cores.client, log=folder / "mock.log") as mock:
            wait_for_port(provider_port, mock)
            with Whole(folder, Ports(*ports), {"openai": provider_port}, **settings) as whole:
                # The first seconds of a house are not what is asked for: prices are looked up, connections made.
                measure_freshness(whole.edge_url, whole.control_url, rate=options.rate, seconds=3)
                return measure_freshness(whole.edge_url, whole.control_url, rate=options.rate, seconds=options.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def enrichment_alone(*, events: int) -> enrichment.Figures:
    with TemporaryDirectory(prefix="heliograph-load-") as folder, running_clickhouse(Path(folder) / "ch") as settings:
        migrate(settings, RetentionSettings())
        root = Path(folder) / "spool"
        where = asyncio.run(enrichment.fill_spool(root, events))
        return enrichment.measure(enrichment.of_spool(settings, root), where, events=events, batch=2000)


def freshness_figures(fresh: Freshness) -> list[Figure]:
    return [
        Figure("answer's end → row in GET /v1/requests, p50, s", fresh.p50_s, 2, at_most(0.7)),
        Figure("  p99, s", fresh.p99_s, 2, at_most(1.5)),
        Figure("  slowest, s", fresh.max_s, 2),
        Figure(f"  of {fresh.answered:,} answered calls, without a row", fresh.missing, 0, at_most(0)),
    ]


def enrichment_figures(enriched: enrichment.Figures) -> list[Figure]:
    return [
        Figure("enrichment, events/s per worker core", enriched.events / enriched.cpu_s, 0, at_least(5000)),
        Figure("  by the clock, ClickHouse on the same machine", enriched.events / enriched.clock_s, 0),
    ]


def storage_figures(stored: Storage) -> list[Figure]:
    return [
        Figure("stored without bodies, bytes a request", stored.without_bodies, 1, at_most(120)),
        Figure("  with bodies of about 1.5 KB", stored.with_bodies, 1),
    ]


def render(table: Sequence[Figure]) -> list[str]:
    lines = [["", "seen", "budget", ""]]
    for figure in table:
        value = "-" if figure.value is None else f"{figure.value:,.{figure.digits}f}"
        budget = f"{figure.budget.sign} {figure.budget.limit:,g}" if figure.budget else ""
        lines.append([figure.label, value, budget, figure.verdict])
    return aligned(lines)


def save(found: Mapping[str, object]) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"pipeline-{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(found, indent=1, default=asdict))
    print(f"raw figures: {path}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
