"""Steady load for ten minutes with the memory of every process watched, then readers that never read.

    python -m load_tests.soak [--minutes 10] [--rate 100] [--streams 8]

A line a minute: memory of each program's process tree at its highest within the minute. Rules: the edge's RSS ≤ 150 MB;
flat, which is: a straight line through its samples after the warm-up (the first fifth) rises by no more than 2 MB or
three times the samples' standard deviation around it, whichever is more; and a reader that never reads costs ≤ 16 MB.
Every call must be answered. Exit status 1 when a rule is broken.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from load_tests.build import BUILD, HERE, BuildError, programs
from load_tests.candidates import wait_for_port
from load_tests.memory import Memory, Trend, memory_of, trend
from load_tests.processes import ChildFailed, child, two_cores
from load_tests.silent_readers import Cost, cost_of_silence
from load_tests.steady import Outcome, load
from load_tests.table import aligned
from load_tests.whole import PROGRAMS, Ports, Whole, free_ports

SAMPLE_S = 2.0
WARM_UP_SHARE = 0.2
EDGE_RSS_MB_MAX = 150.0
READER_MB_MAX = 16.0
ENDLESS = "groq"


@dataclass
class Soak:
    times_s: list[float] = field(default_factory=list)
    samples: dict[str, list[Memory]] = field(default_factory=dict)
    plain: Outcome | None = None
    streams: Outcome | None = None
    silence: Cost | None = None

    def trend(self, program: str) -> Trend | None:
        """After the warm-up; None: too few samples."""
        start = int(len(self.times_s) * WARM_UP_SHARE)
        if len(self.times_s) - start < 3:
            return None
        return trend(self.times_s[start:], [memory.rss_mb for memory in self.samples[program][start:]])

    def highest(self, program: str) -> Memory:
        return Memory(*(max(values) for values in zip(*self.samples[program], strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    BUILD.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=BUILD))
    soak = Soak()
    try:
        run(options, folder, soak)
    except (BuildError, ChildFailed, OSError) as error:
        print(f"load_tests.soak: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load_tests.soak: interrupted; everything it started has been ended", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(report(soak)))
    save(options, soak)
    return 1 if broken(soak) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long (10)")
    parser.add_argument("--rate", type=float, default=100, help="plain calls/s (100)")
    parser.add_argument("--streams", type=int, default=8, help="streams that are always open (8)")
    options = parser.parse_args(arguments)
    if not 0.2 <= options.minutes <= 50:
        parser.error("--minutes: from 0.2 to 50")
    return options


def run(options: argparse.Namespace, folder: Path, soak: Soak) -> None:
    made, cores = programs(), two_cores()
    provider_port, endless_port, *ports = free_ports(5)
    with ExitStack() as stack:
        # Streams of four seconds, a chunk every 20 ms.
        command: list[str | Path] = [made.mock, "--port", str(provider_port), "--delay-us", "20000"]
        command += ["--chunks", "200", "--interval-us", "20000"]
        wait_for_port(provider_port, stack.enter_context(child(command, core=cores.client, log=folder / "mock.log")))
        _say("heliograph up starts")
        whole = stack.enter_context(Whole(folder, Ports(*ports), {"openai": provider_port, ENDLESS: endless_port}))
        with ExitStack() as loads:
            edge = whole.ports.edge
            plain = loads.enter_context(load(made, folder / "plain", edge, core=cores.client, rate=options.rate))
            streams = loads.enter_context(
                load(made, folder / "streams", edge, core=cores.client, connections=options.streams, stream=True)
            )
            _watch(whole, soak, seconds=options.minutes * 60)
            soak.plain, soak.streams = plain.end(), streams.end()
        soak.silence = cost_of_silence(
            edge, f"/{ENDLESS}/openai/v1/chat/completions", endless_port, lambda: memory_of(whole.pids("edge")).rss_mb
        )


def _watch(whole: Whole, soak: Soak, *, seconds: float) -> None:
    soak.samples = {name: [] for name in PROGRAMS}
    trees = {name: whole.pids(name) for name in PROGRAMS}
    began, minute = time.monotonic(), 0
    while (at := time.monotonic() - began) < seconds:
        soak.times_s.append(at)
        for name, pids in trees.items():
            soak.samples[name].append(memory_of(pids))
        if at // 60 > minute:
            minute = int(at // 60)
            _say(f"minute {minute}: edge {soak.samples['edge'][-1].rss_mb:.1f} MB")
            if trees != (now := {name: whole.pids(name) for name in PROGRAMS}):
                _say("note: a process was replaced")
                trees = now
        time.sleep(SAMPLE_S)
    if [pid for pid, *_ in trees.values()] != [whole.pids(name)[0] for name in PROGRAMS]:
        raise ChildFailed("a program has died and was started again: see its log")


def broken(soak: Soak) -> list[str]:
    found = []
    highest, line = soak.highest("edge").rss_mb, soak.trend("edge")
    if highest > EDGE_RSS_MB_MAX:
        found.append(f"the edge took {highest:.0f} MB, {EDGE_RSS_MB_MAX:.0f} at most may be")
    if line is None:
        found.append("too short to see a trend")
    elif not line.flat:
        found.append(f"the edge grew by {line.grown_mb:.1f} MB ({line.mb_per_hour:.0f} MB an hour)")
    if soak.silence is None or soak.silence.mb_each > READER_MB_MAX or not soak.silence.closed:
        found.append(f"readers that never read: {soak.silence}")
    for name, outcome in {"plain": soak.plain, "streams": soak.streams}.items():
        if outcome is None or outcome.failed:
            told = outcome and (outcome.failed, outcome.figures["statuses"], outcome.figures["errors"])
            found.append(f"{name} calls failed: {told}")
    return found


def report(soak: Soak) -> list[str]:
    """A line a minute, the trend of each program, the rules."""
    header = ["minute", "edge RSS", "edge PSS", *(name for name in PROGRAMS if name != "edge"), ""]
    lines = [header]
    minutes = range(int(soak.times_s[-1] // 60) + 1)
    for minute in minutes:
        places = [i for i, at in enumerate(soak.times_s) if at // 60 == minute]
        edge = [soak.samples["edge"][i] for i in places]
        cells = [max(memory.rss_mb for memory in edge), max(memory.pss_mb for memory in edge)]
        cells += [max(soak.samples[name][i].rss_mb for i in places) for name in PROGRAMS if name != "edge"]
        lines.append([str(minute + 1), *(f"{cell:.1f}" for cell in cells), ""])
    trends = {name: soak.trend(name) for name in PROGRAMS}
    slopes = [f"{line.mb_per_hour:+.0f}" if (line := trends[name]) else "-" for name in PROGRAMS if name != "edge"]
    edge_line = trends["edge"]
    lines.append(["MB an hour", f"{edge_line.mb_per_hour:+.0f}" if edge_line else "-", "", *slopes, ""])
    told = ["", "RSS of each program's process tree, MB, the highest of the minute:", *aligned(lines), ""]
    highest = soak.highest("edge")
    told.append(f"edge: RSS {highest.rss_mb:.1f} MB at most (≤ {EDGE_RSS_MB_MAX:.0f}), PSS {highest.pss_mb:.1f}")
    if edge_line:
        told.append(
            f"edge after the warm-up: {edge_line.grown_mb:+.2f} MB by a straight line, samples ± {edge_line.noise_mb:.2f} "
            f"around it: {'flat' if edge_line.flat else 'GROWS'}"
        )
    if soak.silence:
        told.append(
            f"a reader that never reads: {soak.silence.mb_each:.2f} MB (≤ {READER_MB_MAX:.0f}), of {soak.silence.readers}; "
            f"the provider was held up after {soak.silence.sent_mb:.1f} MB each"
        )
    for name, outcome in {"plain calls": soak.plain, "streams": soak.streams}.items():
        if outcome:
            told.append(f"{name}: {outcome.figures['ok_total']:,} answered, {outcome.failed} failed")
    told += [
        "RSS counts a page that two processes of a tree share in both; PSS shares it out among all who map it.",
        *(f"BROKEN: {problem}" for problem in broken(soak)),
    ]
    return told


def save(options: argparse.Namespace, soak: Soak) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"soak-{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime())}.json"
    figures: Mapping[str, object] = {
        "minutes": options.minutes,
        "rate": options.rate,
        "streams": options.streams,
        "times_s": soak.times_s,
        "samples": soak.samples,
        "silence": soak.silence,
        "broken": broken(soak),
    }
    path.write_text(json.dumps(figures, indent=1))
    print(f"raw figures: {path}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
