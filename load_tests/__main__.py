"""`python -m load_tests`: us, our peers and nginx over one mock provider, in one run, the order shuffled every round.

Exit code 0 when the run was made, whatever the verdicts; 1 when it could not be.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from load_tests import table
from load_tests.build import BUILD, HERE, BuildError, Programs, programs
from load_tests.candidates import CANDIDATES, Place, Target, mock_provider, stream_problem
from load_tests.measure import PHASES, Window, calmest, client_gone_ms, problem_of, run_window
from load_tests.processes import ChildFailed, two_cores

RESULTS = HERE / "results"
HELIOGRAPH = HERE.parent / ".venv/bin/heliograph"
NOT_HERE = {
    "gomodel": "GoModel is not measured: the Go module proxy this project may use does not offer it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # every way of being ended goes through the same clean-up
    try:
        report = run(options)
    except (BuildError, ChildFailed) as error:
        print(f"load_tests: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load_tests: interrupted; everything it started has been ended", file=sys.stderr)
        return 130
    path = save(report)
    print("\n".join(report["table"]))
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"raw figures: {path}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    parser.add_argument("--rounds", type=int, choices=range(1, 21), metavar="1…20", default=3, help="rounds (3)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="length of a measured window, s (2); at most 0.5 where a p99 is sought",
    )
    parser.add_argument(
        "--tries",
        type=int,
        choices=range(1, 21),
        metavar="1…20",
        default=6,
        help="windows at most, until one is calm (6); of shorter ones as many more",
    )
    parser.add_argument("--only", metavar="NAME,…", help=f"some of {', '.join(CANDIDATES)}; direct is always measured")
    parser.add_argument("--quick", action="store_true", help="one round of half-second windows: does it all work?")
    parser.add_argument("--port-base", type=int, default=21000, help="first of 20 loopback ports (21000)")
    parser.add_argument("--heliograph", type=Path, default=HELIOGRAPH, help="our command, of another checkout say")
    parser.add_argument("--seed", type=int, default=None, help="seed of the shuffled order")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(CANDIDATES)
    if unknown := set(names) - set(CANDIDATES):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not one of {', '.join(CANDIDATES)}")
    options.heliograph = options.heliograph.absolute()
    options.names = [name for name in CANDIDATES if name in names or name == table.DIRECT]
    if options.quick:
        options.rounds, options.seconds, options.tries = 1, 0.5, 1
    if not 0.2 <= options.seconds <= 60:
        parser.error("--seconds: from 0.2 to 60")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start everyone, measure round by round, end everyone. Nothing outlives the call."""
    BUILD.mkdir(exist_ok=True)
    made = programs()
    cores = two_cores()
    os.sched_setaffinity(0, {cores.client})  # what is not pinned elsewhere stays off the proxy's core
    notes: list[str] = list(NOT_HERE.values()) if not options.only else []
    windows: list[Window] = []
    set_aside = 0
    rounds: dict[str, list[table.Figures]] = {}
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        place = Place(folder, cores, options.port_base, options.heliograph)
        stack.enter_context(mock_provider(place, made.mock))
        targets = start(stack, place, options.names, notes)
        streams = {target.name for target in targets if not note_stream_problem(target, notes)}
        rng = random.Random(options.seed)
        for target in targets:
            _say(f"warm-up: {target.name}")
            run_window(made, place, target, PHASES[1], warmup_s=0, seconds=options.seconds * 2)
        for number in range(options.rounds):
            for target in rng.sample(targets, len(targets)):
                _say(f"round {number + 1} of {options.rounds}: {target.name}")
                try:
                    seen, figures, restless = measure(made, place, target, options, with_streams=target.name in streams)
                except ChildFailed as error:
                    notes.append(f"{target.name}: left the run in round {number + 1}: {error}")
                    targets.remove(target)
                    continue
                rounds.setdefault(target.name, []).append(figures)
                windows += seen
                set_aside += restless
        notes += [f"{target.name}: {note}" for target in targets for note in target.notes]
    medians = {name: table.medians(rounds[name]) for name in options.names if name in rounds}
    compared = table.with_comparisons(medians)
    notes += [problem for window in windows if (problem := problem_of(window))]
    notes += table.limited_by_us(medians)
    others = len(table.disturbed_windows(windows))
    disturbed = others > table.DISTURBED_WINDOWS * len(windows)
    if others:
        notes.append(f"in {others} of {len(windows)} windows others or the hypervisor took over 10 % of a core")
    if set_aside:
        stolen = statistics.median(window.stolen_share for window in windows)
        notes.append(
            f"{set_aside} windows were set aside for calmer ones; in those that count the hypervisor took {stolen:.1%} of a "
            f"core (median), at most {max(window.stolen_share for window in windows):.1%}"
        )
    if disturbed:
        notes.append("a verdict with a question mark wants a quieter machine: run it again")
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "options": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "tries": options.tries,
            "candidates": options.names,
        },
        "figures": compared,
        "verdicts": table.verdicts(compared.get(table.OURS, {}), disturbed=disturbed),
        "table": table.render(compared, disturbed=disturbed),
        "notes": notes,
        "rounds": rounds,
        "windows": [asdict(window) for window in windows],
    }


def measure(
    made: Programs, place: Place, target: Target, options: argparse.Namespace, *, with_streams: bool
) -> tuple[list[Window], table.Figures, int]:
    """One candidate's windows of one round, their figures, and how many windows were set aside for calmer ones."""
    found = []
    for phase in PHASES:
        if with_streams or not phase.stream:
            seconds, tries = phase.windows(options.seconds, options.tries)
            window = partial(run_window, made, place, target, phase, warmup_s=seconds / 2, seconds=seconds)
            found.append(calmest(window, tries))
    windows = [window for window, _ in found]
    figures = table.window_figures(windows)
    if target.child:
        figures["rss_mb"] = target.child.rss_mb()
        if with_streams:
            figures["client_gone_ms"] = client_gone_ms(place, target)
    return windows, figures, sum(restless for _, restless in found)


def start(stack: ExitStack, place: Place, names: Sequence[str], notes: list[str]) -> list[Target]:
    """Start every candidate; one that cannot be started is left out, and the notes say why."""
    targets = []
    for name in names:
        _say(f"start: {name}")
        try:
            targets.append(stack.enter_context(CANDIDATES[name](place)))
        except (BuildError, ChildFailed) as error:
            notes.append(f"{name} is not measured: {error}")
    return targets


def note_stream_problem(target: Target, notes: list[str]) -> bool:
    problem = stream_problem(target)
    if problem:
        notes.append(f"{target.name}: streams are not measured: {problem}")
    return problem is not None


def save(report: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return path


def machine() -> dict[str, str | int]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": os.cpu_count() or 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
