"""`kill -9` at random moments under steady load, seed by seed, on either log: what was answered against what is stored.

    python -m load_tests.random_kills [--kafka] [--seeds 1-20] [--rate 300] [--seconds 120]

Each seed has a house of its own, made anew, and with --kafka a broker of its own. While calls come in at a fixed rate
the dice choose who is killed and when; the process manager (or we, for the broker) brings it back. Then all is waited
for and counted.

Rules: no call fails, since the edge is never killed; no answered call is lost; nothing is stored twice: rows, bodies,
attempts, ledger and every rollup's sums are equal. Exit status 1 when a rule is broken; `--seeds N` runs one again.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from infra.local import kafka
from load_tests import counts
from load_tests.build import BUILD, HERE, BuildError, Programs, programs
from load_tests.candidates import wait_for_port
from load_tests.processes import ChildFailed, child, two_cores
from load_tests.steady import load
from load_tests.table import aligned
from load_tests.whole import UNREACHABLE, Ports, Whole, free_ports
from tests.servers import Child, kafka_child, kafka_environment, kafka_settings_of, running

PROVIDER_DELAY_US = 50_000
BROKER = "broker"
SPOOL_VICTIMS = ("planner", "worker", "clickhouse", "valkey")
KAFKA_VICTIMS = (*SPOOL_VICTIMS, "ship", BROKER)
BETWEEN_KILLS_S = (2.0, 8.0)
BEFORE_FIRST_S = 2.0
SETTLE_TIMEOUT_S = 180.0
QUIET_S = 3.0


@dataclass
class Seen:
    """What one seed left."""

    seed: int
    kills: dict[str, int]
    answered: int = 0
    failed: int = 0
    lost: int = 0
    rows: int = 0
    confirmed: int = 0
    """Rows by the ledger."""
    twice: int = 0
    settled_s: float = 0.0
    """From the load's end until every answered call had its row and nothing changed any more."""
    broken: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    BUILD.mkdir(exist_ok=True)
    seen: list[Seen] = []
    try:
        for seed in options.seeds:
            seen.append(one := _seed(options, seed))
            _say(f"seed {seed}: {one.answered:,} answered, {sum(one.kills.values())} kills: {_verdict(one)}")
    except (BuildError, ChildFailed, OSError) as error:
        print(f"load_tests.random_kills: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load_tests.random_kills: interrupted; everything it started has been ended", file=sys.stderr)
        return 130
    finally:
        if seen:
            print("\n".join(report(seen, options)))
            save(options, seen)
    return 1 if any(one.broken for one in seen) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.random_kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kafka", action="store_true", help="the log is a Kafka of the run's own (else the spool)")
    parser.add_argument("--seeds", default="", help="one (7) or from-to (1-20); default 1-20 with --kafka, else 1-5")
    parser.add_argument("--rate", type=float, default=300, help="calls/s (300)")
    parser.add_argument("--seconds", type=float, default=120, help="length of a seed's load, s (120)")
    options = parser.parse_args(arguments)
    first, _, last = (options.seeds or ("1-20" if options.kafka else "1-5")).partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        parser.error(f"--seeds {options.seeds}: a number, or two with a hyphen between")
    options.seeds = range(int(first), int(last or first) + 1)
    if not 10 <= options.seconds <= 3600 or not 1 <= options.rate <= 5000:
        parser.error("--seconds: from 10 to 3600; --rate: from 1 to 5000")
    return options


def _seed(options: argparse.Namespace, seed: int) -> Seen:
    """One seed in a house of its own; its data is kept when a rule is broken."""
    folder = Path(tempfile.mkdtemp(prefix=f"kills-{seed}-", dir=BUILD))
    made, cores = programs(), two_cores()
    provider_port, *ports = free_ports(4)
    with ExitStack() as stack:
        command: list[str | Path] = [made.mock, "--port", str(provider_port), "--delay-us", str(PROVIDER_DELAY_US)]
        wait_for_port(provider_port, stack.enter_context(child(command, core=cores.client, log=folder / "mock.log")))
        settings: dict[str, str] = {}
        broker: Child | None = None
        if options.kafka:
            server = kafka.prepare(folder / "broker")
            broker = stack.enter_context(running(kafka_child(server)))
            settings = kafka_environment(kafka_settings_of(server))
        whole = stack.enter_context(Whole(folder, Ports(*ports), {"openai": provider_port}, **settings))
        one = _under_load(whole, broker, made, folder, options, seed, cores.client)
    if one.broken:
        _say(f"seed {seed}: data and logs are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return one


def _under_load(
    whole: Whole, broker: Child | None, made: Programs, folder: Path, options: argparse.Namespace, seed: int, core: int
) -> Seen:
    dice = random.Random(seed)
    victims = SPOOL_VICTIMS if broker is None else KAFKA_VICTIMS
    kills: Counter[str] = Counter()
    with load(made, folder / "load", whole.ports.edge, core=core, rate=options.rate) as calls:
        until = time.monotonic() + options.seconds
        time.sleep(BEFORE_FIRST_S)
        while (left := until - time.monotonic()) > 0:
            victim = dice.choice(victims)
            if victim == BROKER:
                assert broker is not None
                broker.kill()
                kills[victim] += 1
                time.sleep(dice.uniform(0, 2))
                broker.start()
            elif pids := whole.pids(victim):
                whole.kill(pids)
                kills[victim] += 1
            time.sleep(min(left, dice.uniform(*BETWEEN_KILLS_S)))
        calls.assert_alive()
        outcome = calls.end()
    ended = time.monotonic()
    settle(whole, len(outcome.answered))
    settled_s = time.monotonic() - ended
    stored = counts.read_stored(whole.sql, whole.data)
    lost = counts.lost(outcome.answered, stored)
    broken = counts.problems(stored) if broker is None else counts.problems_on_kafka(stored)
    if lost:
        broken.append(f"{len(lost)} answered calls have no row")
    if outcome.failed:
        broken.append(f"{outcome.failed} calls failed: {outcome.figures['statuses']} {outcome.figures['errors']}")
    return Seen(
        seed=seed,
        kills=dict(kills),
        answered=len(outcome.answered),
        failed=outcome.failed,
        lost=len(lost),
        rows=len(stored.rows),
        confirmed=sum(batch.rows for batch in stored.ledger),
        twice=len(counts.twice(stored)),
        settled_s=settled_s,
        broken=broken,
    )


def settle(whole: Whole, answered: int) -> None:
    """Wait until the ledger's rows are the table's, as many as were answered at least, and nothing changes any more.

    By the store alone: whatever an API would say of the pipeline is not asked.
    """
    deadline, last, since = time.monotonic() + SETTLE_TIMEOUT_S, (-1, -1), time.monotonic()
    while time.monotonic() < deadline:
        try:
            ((rows,),) = whole.sql("SELECT count() FROM requests")
            ((confirmed,),) = whole.sql("SELECT sum(rows) FROM batches")
        except UNREACHABLE:
            rows = confirmed = -1
        if (rows, confirmed) != last:
            last, since = (rows, confirmed), time.monotonic()
        elif rows == confirmed and rows >= answered and time.monotonic() - since > QUIET_S:
            return
        time.sleep(0.2)


def report(seen: Sequence[Seen], options: argparse.Namespace) -> list[str]:
    victims = KAFKA_VICTIMS if options.kafka else SPOOL_VICTIMS
    header = ["seed", *victims, "answered", "failed", "rows", "ledger", "lost", "twice", "settled, s", ""]
    lines = [header]
    for one in seen:
        told = [one.answered, one.failed, one.rows, one.confirmed, one.lost, one.twice]
        killed = [str(one.kills.get(victim, 0)) for victim in victims]
        lines.append([str(one.seed), *killed, *(f"{n:,}" for n in told), f"{one.settled_s:.1f}", _verdict(one)])
    return [
        "",
        *aligned(lines),
        "",
        f"log: {'Kafka' if options.kafka else 'spool'}; {options.rate:g} calls/s for {options.seconds:g} s a seed; "
        "under each name how often it was killed with -9.",
        "ok: answered = rows = ledger = bodies = attempts = each rollup's requests, tokens and cost; no call failed.",
        *(f"BROKEN seed {one.seed}: {problem}" for one in seen for problem in one.broken),
    ]


def save(options: argparse.Namespace, seen: Sequence[Seen]) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    log = "kafka" if options.kafka else "spool"
    path = results / f"random-kills-{log}-{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime())}.json"
    figures = {"rate": options.rate, "seconds": options.seconds, "seeds": [asdict(one) for one in seen]}
    path.write_text(json.dumps(figures, indent=1))
    print(f"raw figures: {path}")


def _verdict(one: Seen) -> str:
    return "BROKEN" if one.broken else "ok"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
