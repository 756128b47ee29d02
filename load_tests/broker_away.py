"""Kafka away for five minutes under load: does a call notice, does everything arrive, was the lag told truly?

    python -m load_tests.broker_away [--minutes 5] [--rate 100]

Half a minute with the broker, the minutes without (killed with -9), half a minute after its return; then all is waited for
and counted. While it is away the metrics page is read every five seconds: the age of the oldest event not yet in Kafka
must be the time since the kill.

Rules: no call fails; p50 without the broker is at most 1.25 times, p99 at most twice what it was with it; the lag is
told to 3 s; answered = rows = ledger = rollups. Exit status 1 when one is broken.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from infra.local import kafka
from load_tests import counts
from load_tests.build import BUILD, BuildError, programs
from load_tests.candidates import wait_for_port
from load_tests.processes import ChildFailed, child, two_cores
from load_tests.random_kills import PROVIDER_DELAY_US, settle
from load_tests.steady import Outcome, load
from load_tests.table import aligned
from load_tests.whole import Ports, Whole, free_ports
from tests.servers import Child, kafka_child, kafka_environment, kafka_settings_of, running

BESIDE_S = 30.0
LOOK_EVERY_S = 5.0
LAG = "heliograph_ship_lag_seconds"
LAG_OFF_S_MAX = 3.0
P50_MAX, P99_MAX = 1.25, 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.broker_away",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=5, help="how long the broker is away (5)")
    parser.add_argument("--rate", type=float, default=100, help="calls/s (100)")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    BUILD.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="away-", dir=BUILD))
    try:
        broken = run(options, folder)
    except (BuildError, ChildFailed, OSError) as error:
        print(f"load_tests.broker_away: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load_tests.broker_away: interrupted; everything it started has been ended", file=sys.stderr)
        return 130
    for problem in broken:
        print(f"BROKEN: {problem}")
    if broken:
        print(f"data and logs are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if broken else 0


def run(options: argparse.Namespace, folder: Path) -> list[str]:
    made, cores = programs(), two_cores()
    provider_port, *ports = free_ports(4)
    with ExitStack() as stack:
        command: list[str | Path] = [made.mock, "--port", str(provider_port), "--delay-us", str(PROVIDER_DELAY_US)]
        wait_for_port(provider_port, stack.enter_context(child(command, core=cores.client, log=folder / "mock.log")))
        server = kafka.prepare(folder / "broker")
        broker = stack.enter_context(running(kafka_child(server)))
        settings = kafka_environment(kafka_settings_of(server))
        whole = stack.enter_context(Whole(folder, Ports(*ports), {"openai": provider_port}, **settings))

        def calls(name: str, seconds: float) -> Outcome:
            with load(made, folder / name, whole.ports.edge, core=cores.client, rate=options.rate) as running_load:
                time.sleep(seconds)
                return running_load.end()

        before = calls("before", BESIDE_S)
        with load(made, folder / "away", whole.ports.edge, core=cores.client, rate=options.rate) as running_load:
            lags = _away(broker, whole, options.minutes * 60)
            away = running_load.end()
        broker.start()
        back_at = time.monotonic()
        after = calls("after", BESIDE_S)
        answered = {**before.answered, **away.answered, **after.answered}
        settle(whole, len(answered))
        settled_s = time.monotonic() - back_at
        stored = counts.read_stored(whole.sql, whole.data)
    return _tell({"before": before, "away": away, "after": after}, lags, stored, settled_s)


def _away(broker: Child, whole: Whole, seconds: float) -> list[tuple[float, float]]:
    """Time since the kill, and the lag the page tells then."""
    broker.kill()
    killed = time.monotonic()
    told: list[tuple[float, float]] = []
    while (gone := time.monotonic() - killed) < seconds:
        time.sleep(min(LOOK_EVERY_S, seconds - gone))
        told.append((time.monotonic() - killed, _lag_s(whole.ports.metrics)))
    return told


def _lag_s(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        page = answer.read().decode()
    lags = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == LAG
    ]
    return max(lags, default=0.0)


def _tell(
    loads: dict[str, Outcome], lags: list[tuple[float, float]], stored: counts.Stored, settled_s: float
) -> list[str]:
    lines = [["", "calls", "failed", "p50, ms", "p99, ms"]]
    broken = counts.problems_on_kafka(stored)
    for name, outcome in loads.items():
        latency = outcome.figures["latency_us"]
        p50, p99 = latency["p50"] / 1000, latency["p99"] / 1000
        lines.append([name, f"{len(outcome.answered):,}", f"{outcome.failed:,}", f"{p50:.1f}", f"{p99:.1f}"])
        if outcome.failed:
            broken.append(f"{name}: {outcome.failed} calls failed")
    first, then = (loads[name].figures["latency_us"] for name in ("before", "away"))
    for quantile, most in (("p50", P50_MAX), ("p99", P99_MAX)):
        if then[quantile] > most * first[quantile]:
            broken.append(f"{quantile} without the broker is {then[quantile] / first[quantile]:.2f} times that with it")
    off = max((abs(lag - gone) for gone, lag in lags), default=float("inf"))
    if off > LAG_OFF_S_MAX:
        broken.append(f"the lag was told {off:.1f} s wrong")
    lost = {id_ for outcome in loads.values() for id_ in counts.lost(outcome.answered, stored)}
    if lost:
        broken.append(f"{len(lost)} answered calls have no row")
    print("\n".join(aligned(lines)))
    print(f"lag told by {LAG}: {lags[-1][1]:.1f} s after {lags[-1][0]:.1f} s, never more than {off:.1f} s off")
    rows, twice = len(stored.rows), len(counts.twice(stored))
    print(f"all stored {settled_s:.0f} s after the broker's return: {rows:,} rows, {len(lost)} lost, {twice} twice")
    return broken


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
