"""`kill -9` of each process of a `heliograph up` in turn, under steady load: what was answered against what is stored.

    python -m load_tests.chaos [--rate 100] [--seconds 12] [--only edge,worker] [--seed 1]

For each kill a load of its own: calls at a fixed rate, whose ids the client writes down; the kill comes at a random
moment; the load goes on while everything comes back and for a while after; then all is waited for until every event on
disk is confirmed. Then everything is counted again from the first row on.

Rules: a kill of the edge may lose the events of one group write, `rate × linger_ms` and the call just being ended; every
other kill loses none, and fails no call. Nothing is stored twice: in rows, rollups, bodies, attempts, ledger.
Exit status 1 when a rule is broken.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from load_tests import counts
from load_tests.build import BUILD, HERE, BuildError, Programs, programs
from load_tests.candidates import wait_for_port
from load_tests.processes import ChildFailed, child, two_cores
from load_tests.steady import load
from load_tests.table import aligned
from load_tests.whole import POLL_S, Ports, Whole, free_ports
from schemas.settings import SharedSettings

PROVIDER_DELAY_US = 50_000
BACK_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 150.0
ORPHAN_TIMEOUT_S = 10.0
HELD_DOWN = ("clickhouse", "valkey", "worker", "planner")


@dataclass(frozen=True)
class Kill:
    """One way of ending something. `do` gives the seconds from the kill until all is back."""

    name: str
    do: Callable[[Whole], float]
    takes_edge: bool = False
    """Calls may fail meanwhile."""
    may_lose: bool = False
    """The edge dies by SIGKILL, with what it has in memory."""


@dataclass
class Seen:
    """What one kill left."""

    name: str
    answered: int
    failed: int
    lost: int
    bound: int
    stored: int
    """Rows that came of this load, those of calls whose answer the client did not see included."""
    oldest_lost_ms: float
    """How long before the kill the oldest of the lost was answered."""
    twice: int
    back_s: float
    visible_again_s: float
    settled_s: float
    """From the load's end until every event was confirmed."""
    sums_equal: bool
    broken: list[str] = field(default_factory=list)


def _program(name: str) -> Callable[[Whole], float]:
    def do(whole: Whole) -> float:
        ready, killed = whole.readiness(name), time.monotonic()
        whole.kill(whole.pids(name))
        return _until(ready, killed, f"{name} is back")

    return do


def _main_of(name: str) -> Callable[[Whole], float]:
    """A program's own process alone: those below it must not live on."""

    def do(whole: Whole) -> float:
        main, *below = whole.pids(name)
        orphans = [psutil.Process(pid) for pid in below]
        ready, killed = whole.readiness(name), time.monotonic()
        whole.kill([main])
        back_s = _until(ready, killed, f"{name} is back")
        _, alive = psutil.wait_procs(orphans, timeout=ORPHAN_TIMEOUT_S)
        if alive:
            raise ChildFailed(f"{len(alive)} processes of {name} live on {ORPHAN_TIMEOUT_S:g} s after it: {alive}")
        return back_s

    return do


def _child_of(name: str) -> Callable[[Whole], float]:
    """One of the processes below a program's own; the program starts another."""

    def do(whole: Whole) -> float:
        before = whole.pids(name)
        killed = time.monotonic()
        whole.kill([before[-1]])

        def replaced() -> bool:
            now = whole.pids(name)
            return before[-1] not in now and len(now) >= len(before)

        return _until(replaced, killed, f"the child of {name} is back")

    return do


def _manager(whole: Whole) -> float:
    """The process manager: everything ends in order, `up` as well."""
    killed = time.monotonic()
    whole.kill([whole.supervisor_pid])
    whole.start_again()
    return time.monotonic() - killed


def _up(whole: Whole) -> float:
    """`up` alone: what it started ends with it, in order."""
    killed = time.monotonic()
    whole.kill([whole.up_pid])
    whole.start_again()
    return time.monotonic() - killed


def _all(whole: Whole) -> float:
    killed = time.monotonic()
    whole.kill(whole.all_pids())
    whole.start_again()
    return time.monotonic() - killed


def _outage(seconds: float) -> Callable[[Whole], float]:
    def do(whole: Whole) -> float:
        killed = time.monotonic()
        whole.hold_down(HELD_DOWN)
        time.sleep(max(0.0, seconds - (time.monotonic() - killed)))
        ready = [whole.readiness(name) for name in HELD_DOWN]
        whole.let_up(HELD_DOWN)
        return _until(lambda: all(look() for look in ready), killed, "everything held down is back")

    return do


def _frozen(names: Sequence[str], seconds: float) -> Callable[[Whole], float]:
    """Stopped in mid-work and let go on: connections stay open and nobody answers."""

    def do(whole: Whole) -> float:
        began = time.monotonic()
        processes = [psutil.Process(pid) for name in names for pid in whole.pids(name)]
        try:
            for process in processes:
                process.suspend()
            time.sleep(seconds)
        finally:
            for process in processes:
                process.resume()
        return _until(lambda: all(whole.answers(name) for name in names), began, "what was frozen answers")

    return do


KILLS = {
    kill.name: kill
    for kill in (
        Kill("edge", _program("edge"), takes_edge=True, may_lose=True),
        Kill("planner", _program("planner")),
        Kill("worker", _program("worker")),
        Kill("worker-main", _main_of("worker")),
        Kill("worker-child", _child_of("worker")),
        Kill("clickhouse", _program("clickhouse")),
        Kill("valkey", _program("valkey")),
        Kill("control", _program("control")),
        Kill("metrics", _program("metrics")),
        Kill("supervisor", _manager, takes_edge=True),
        Kill("up", _up, takes_edge=True),
        Kill("all", _all, takes_edge=True, may_lose=True),
        Kill("outage-20s", _outage(20)),
        Kill("frozen-10s", _frozen(("clickhouse", "valkey"), 10)),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    BUILD.mkdir(exist_ok=True)
    seen: list[Seen] = []
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=BUILD))
    kept = True
    try:
        run(options, folder, seen)
        kept = options.keep or any(one.broken for one in seen)
    except (BuildError, ChildFailed, OSError) as error:
        print(f"load_tests.chaos: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load_tests.chaos: interrupted; everything it started has been ended", file=sys.stderr)
        return 130
    finally:
        if seen:
            print("\n".join(report(seen, rate=options.rate)))
            save(options, seen)
        if kept:
            print(f"data and logs are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if any(one.broken for one in seen) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=100, help="calls/s (100)")
    parser.add_argument("--seconds", type=float, default=12, help="least length of a kill's load, s (12)")
    parser.add_argument("--only", metavar="NAME,…", help=f"some of {', '.join(KILLS)}")
    parser.add_argument("--rounds", type=int, default=1, help="how often each (1)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments of the kills (random, and printed)")
    parser.add_argument("--keep", action="store_true", help="keep data and logs (kept anyway when a rule is broken)")
    options = parser.parse_args(arguments)
    options.names = options.only.split(",") if options.only else list(KILLS)
    if unknown := set(options.names) - set(KILLS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not one of {', '.join(KILLS)}")
    if not 4 <= options.seconds <= 600 or not 1 <= options.rate <= 5000:
        parser.error("--seconds: from 4 to 600; --rate: from 1 to 5000")
    options.seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1000)
    return options


def run(options: argparse.Namespace, folder: Path, seen: list[Seen]) -> None:
    made, cores, dice = programs(), two_cores(), random.Random(options.seed)
    provider_port, *ports = free_ports(4)
    with ExitStack() as stack:
        command: list[str | Path] = [made.mock, "--port", str(provider_port), "--delay-us", str(PROVIDER_DELAY_US)]
        wait_for_port(provider_port, stack.enter_context(child(command, core=cores.client, log=folder / "mock.log")))
        _say(f"seed {options.seed}; heliograph up starts")
        whole = stack.enter_context(Whole(folder, Ports(*ports), {"openai": provider_port}))
        for number in range(options.rounds):
            for name in options.names:
                moment_s = dice.uniform(1.5, 3.5)
                place = folder / f"load-{number}-{name}"
                seen.append(one := _one(whole, made, KILLS[name], place, options, cores.client, moment_s))
                _say(f"{name}: back after {one.back_s:.1f} s; {'; '.join(one.broken) or 'ok'}")
                if any("not settled" in broken for broken in one.broken):
                    raise ChildFailed(f"after {name} the pipeline does not settle; the rest is not tried")


def _one(
    whole: Whole, made: Programs, kill: Kill, folder: Path, options: argparse.Namespace, core: int, moment_s: float
) -> Seen:
    """One kill under a load of its own."""
    before = counts.read_stored(whole.sql, whole.data)
    with load(made, folder, whole.ports.edge, core=core, rate=options.rate) as calls:
        began = time.monotonic()
        time.sleep(moment_s)
        began_s = time.time()
        back_s = kill.do(whole)
        killed_s = whole.killed_s if kill.may_lose else began_s
        time.sleep(max(options.seconds - (time.monotonic() - began), options.seconds / 3))
        outcome = calls.end()
    ended = time.monotonic()
    _settle(whole)
    settled_s = time.monotonic() - ended
    stored = counts.read_stored(whole.sql, whole.data)
    linger_ms = SharedSettings.model_fields["spool"].default.linger_ms
    bound = counts.lost_at_most(options.rate, linger_ms, outcome.answered, killed_s=killed_s) if kill.may_lose else 0
    lost, twice = counts.lost(outcome.answered, stored), counts.twice(stored)
    unequal = counts.problems(stored)
    broken = list(unequal)
    if len(lost) > bound:
        broken.append(f"{len(lost)} answered calls have no row, {bound} at most may")
    if outcome.failed and not kill.takes_edge:
        broken.append(f"{outcome.failed} calls failed: {outcome.figures['statuses']} {outcome.figures['errors']}")
    new = stored.rows.keys() - before.rows.keys()
    if len(new) > outcome.due:
        broken.append(f"{len(new)} rows of {outcome.due} calls")
    return Seen(
        name=kill.name,
        answered=len(outcome.answered),
        failed=outcome.failed,
        lost=len(lost),
        bound=bound,
        stored=len(new),
        oldest_lost_ms=counts.oldest_lost_ms(outcome.answered, lost, killed_s=killed_s),
        twice=len(twice),
        back_s=back_s,
        visible_again_s=counts.visible_again_s(outcome.answered, stored, killed_s=killed_s),
        settled_s=settled_s,
        sums_equal=not unequal,
        broken=broken,
    )


def _settle(whole: Whole) -> None:
    """Wait until every event on disk is confirmed; that it is not shows in the counts."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while time.monotonic() < deadline:
        if counts.settled(counts.read_spools(whole.data)):
            return
        time.sleep(0.1)


def _until(look: Callable[[], bool], since: float, what: str) -> float:
    while not _holds(look):
        if time.monotonic() - since > BACK_TIMEOUT_S:
            raise ChildFailed(f"{what}: not after {BACK_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
    return time.monotonic() - since


def _holds(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except psutil.NoSuchProcess:  # died between two looks
        return False


def report(seen: Sequence[Seen], *, rate: float) -> list[str]:
    """The table, and under it the rules as they were applied."""
    header = ["killed", "answered", "failed", "rows", "lost", "at most", "oldest, ms", "twice", "sums equal", "back, s"]
    lines = [[*header, "visible again, s", "settled, s", ""]]
    for one in seen:
        oldest, sums = f"{one.oldest_lost_ms:.0f}" if one.lost else "-", "yes" if one.sums_equal else "no"
        lost = [str(one.lost), str(one.bound), oldest, str(one.twice)]
        calls = [one.name, f"{one.answered:,}", f"{one.failed:,}", f"{one.stored:,}"]
        times = [f"{seconds:.1f}" for seconds in (one.back_s, one.visible_again_s, one.settled_s)]
        lines.append([*calls, *lost, sums, *times, "BROKEN" if one.broken else "ok"])
    linger_ms = SharedSettings.model_fields["spool"].default.linger_ms
    return [
        "",
        *aligned(lines),
        "",
        f"lost at most: {rate:g} calls/s × {linger_ms:g} ms, or what was answered in the last {linger_ms:g} ms before the "
        "kill where that is more, and the call just being ended; where the edge dies by SIGKILL, else none.",
        "oldest: how long before the kill the oldest lost call was answered.",
        "rows: of this load, with those of calls whose answer the client did not live to see whole.",
        "sums equal: rows = bodies = attempts = ledger = spool offsets = each rollup's requests, tokens and cost, "
        "over everything since the first call.",
        f"visible again: from the kill until the last row that came more than {counts.LATE_S:g} s after its answer.",
        *(f"BROKEN {one.name}: {problem}" for one in seen for problem in one.broken),
    ]


def save(options: argparse.Namespace, seen: Sequence[Seen]) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"chaos-{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime())}.json"
    figures: Mapping[str, object] = {
        "seed": options.seed,
        "rate": options.rate,
        "seconds": options.seconds,
        "kills": [asdict(one) for one in seen],
    }
    path.write_text(json.dumps(figures, indent=1))
    print(f"raw figures: {path}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
