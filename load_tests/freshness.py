"""How long after an answer has ended its row is seen in a query, on a whole `heliograph up`.

    python -m load_tests.freshness --edge http://127.0.0.1:8787 --control http://127.0.0.1:8585 [--rate 100] [--seconds 60]

The provider behind that edge must be the mock (`EDGE_PROVIDERS__OPENAI__BASE_URL`). Calls come at a fixed rate; the
newest rows are asked for again and again, page after page back to the first that is known, and a row counts as seen
when the answer that holds it has arrived.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from load_tests.build import BUILD, programs
from load_tests.candidates import CALL, PROVIDER_KEY
from load_tests.processes import ChildFailed, child, two_cores

POLL_S = 0.05
PAGE_ROWS = 200
PAGES_MAX = 50
CONNECTIONS = 64
PATIENCE_S = 15
"""How long rows may still come after the last answer; what has not come by then is missing."""


@dataclass(frozen=True)
class Freshness:
    """Delays in s from an answer's last byte to the row in a query, over the calls that were answered with 2xx."""

    answered: int
    seen: int
    missing: int
    p50_s: float | None
    p99_s: float | None
    max_s: float | None


def measure_freshness(
    edge_url: str,
    control_url: str,
    *,
    rate: float = 100,
    seconds: float = 60,
    headers: Mapping[str, str] | None = None,
    read_key: str | None = None,
) -> Freshness:
    """Call the edge `rate` times a second and watch control for the rows.

    Args:
        edge_url: of an edge on 127.0.0.1 whose provider is the mock.
        headers: of every call besides the provider key; a `Helicone-Auth` where the edge requires a key.
        read_key: Heliograph key with the permission `read`, where control requires one.

    Raises:
        ChildFailed: the load generator ended early. OSError: control did not answer.
    """
    port = urlsplit(edge_url).port
    assert urlsplit(edge_url).hostname in ("127.0.0.1", "localhost"), "the load generator calls loopback only"
    assert port is not None
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fresh-", dir=BUILD) as name:
        folder = Path(name)
        sent = {"Authorization": f"Bearer {PROVIDER_KEY}", **(headers or {})}
        (folder / "headers").write_text("".join(f"{header}: {value}\n" for header, value in sent.items()))
        (folder / "body").write_text(json.dumps(CALL, separators=(",", ":")))
        command: list[str | Path] = [programs().load, "--port", str(port), "--path", "/v1/chat/completions"]
        command += ["--headers", folder / "headers", "--body", folder / "body", "--connections", str(CONNECTIONS)]
        command += ["--rate", str(rate), "--seconds", str(seconds), "--ids", folder / "ids", "--ids-with-time"]
        seen: dict[str, float] = {}
        start_ms = time.time_ns() // 1_000_000
        with child(command, core=two_cores().client, log=folder / "load.log") as load:
            deadline = time.monotonic() + seconds + PATIENCE_S
            while not load.has_ended() and time.monotonic() < deadline:
                look(seen, control_url, read_key, start_ms)
                time.sleep(POLL_S)
            answers = read_answers((folder / "ids").read_text())
            if not answers:
                raise ChildFailed(f"no call was answered with a helicone-id: {load.log_tail()}")
            deadline = time.monotonic() + PATIENCE_S
            while answers.keys() - seen.keys() and time.monotonic() < deadline:
                look(seen, control_url, read_key, start_ms, whole=True)
                time.sleep(POLL_S)
    return summarised(answers, seen)


def look(seen: dict[str, float], control_url: str, read_key: str | None, start_ms: int, *, whole: bool = False) -> None:
    """Note every row that has come since the last look; with `whole`, back to the first call, however old the news."""
    # Batches land in order, so behind a page that brings nothing new there is nothing new.
    asked = f"limit={PAGE_ROWS}&start={start_ms}"
    for _ in range(PAGES_MAX):
        ids, cursor = page(control_url, asked, read_key)
        fresh = [id_ for id_ in ids if id_ not in seen]
        note_rows(seen, fresh, time.time())
        if cursor is None or not (fresh or whole):
            return
        asked = f"limit={PAGE_ROWS}&cursor={cursor}"


def page(control_url: str, asked: str, read_key: str | None) -> tuple[list[str], str | None]:
    """The ids of one page of requests, newest first, and the cursor of the next."""
    request = urllib.request.Request(f"{control_url}/v1/requests?{asked}")
    if read_key:
        request.add_header("Authorization", f"Bearer {read_key}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return read_page(json.loads(answer.read()))


def read_page(body: Any) -> tuple[list[str], str | None]:
    return [row["id"] for row in body["requests"]], body["next_cursor"]


def note_rows(seen: dict[str, float], ids: Iterable[str], at: float) -> None:
    """Remember when each id was first seen, as Unix time in s."""
    for id_ in ids:
        seen.setdefault(id_, at)


def read_answers(text: str) -> dict[str, float]:
    """The load generator's file of `id<tab>Unix time in ms` as id and time in s."""
    lines = (line.split("\t") for line in text.splitlines())
    return {id_: int(finished_ms) / 1000 for id_, finished_ms in lines}


def summarised(answers: Mapping[str, float], seen: Mapping[str, float]) -> Freshness:
    """Put answers and sightings together; a row that never came counts as missing, not as fresh."""
    delays = sorted(max(0.0, seen[id_] - finished) for id_, finished in answers.items() if id_ in seen)
    return Freshness(
        answered=len(answers),
        seen=len(delays),
        missing=len(answers) - len(delays),
        p50_s=_quantile(delays, 0.5),
        p99_s=_quantile(delays, 0.99),
        max_s=delays[-1] if delays else None,
    )


def _quantile(ordered: list[float], q: float) -> float | None:
    return ordered[round((len(ordered) - 1) * q)] if ordered else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load_tests.freshness", description=__doc__)
    parser.add_argument("--edge", default="http://127.0.0.1:8787")
    parser.add_argument("--control", default="http://127.0.0.1:8585")
    parser.add_argument("--rate", type=float, default=100, help="calls/s (100)")
    parser.add_argument("--seconds", type=float, default=60, help="how long, s (60)")
    parser.add_argument("--key", help="Heliograph key for calls and queries; left out: the default project")
    options = parser.parse_args()
    headers = {"Helicone-Auth": f"Bearer {options.key}"} if options.key else {}
    try:
        found = measure_freshness(
            options.edge,
            options.control,
            rate=options.rate,
            seconds=options.seconds,
            headers=headers,
            read_key=options.key,
        )
    except (ChildFailed, OSError) as error:
        print(f"load_tests.freshness: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(found)))
    return 0 if not found.missing else 1


if __name__ == "__main__":
    sys.exit(main())
