"""`python -m load_tests.times`: a newcomer's first minutes, with a clock. Clones this repository's HEAD into an empty
folder, types `make run`, makes one call with the official SDK, waits for its row; with `--test`, `make test` as well.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import openai

from infra.local.ports import pick_free
from load_tests import build

_ROOT = Path(__file__).resolve().parents[1]
_RUN_LIMIT_S = 900
_TEST_LIMIT_S = 2400


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load_tests.times", description=__doc__)
    parser.add_argument("--test", action="store_true", help="run `make test` in the clone as well")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        clone = Path(folder) / "heliograph"
        subprocess.run(["git", "clone", "--quiet", str(_ROOT), str(clone)], check=True)
        lines = _run(clone)
        if asked.test:
            lines += _test(clone)
    table = "\n".join(["| what | time |", "|---|---|", *(f"| {what} | {took} |" for what, took in lines)])
    print(table)
    if asked.readme:
        readme = _ROOT / "README.md"
        text = re.sub(
            r"<!-- times:begin -->.*<!-- times:end -->",
            f"<!-- times:begin -->\n{table}\n<!-- times:end -->",
            readme.read_text(),
            flags=re.DOTALL,
        )
        readme.write_text(text)
    return 0


def _run(clone: Path) -> list[tuple[str, str]]:
    ports = {name: str(pick_free()) for name in ("EDGE_PORT", "CONTROL_PORT", "METRICS_PORT")}
    mock = pick_free()
    environment = {**_clean(), **ports, "EDGE_PROVIDERS__OPENAI__BASE_URL": f"http://127.0.0.1:{mock}/v1"}
    provider = subprocess.Popen([str(build.programs().mock), "--port", str(mock)], stdout=subprocess.DEVNULL)
    began = time.monotonic()
    running = subprocess.Popen(
        ["make", "run"], cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert running.stdout is not None
        started = set_up = 0.0
        for line in running.stdout:
            print(line, end="", file=sys.stderr)
            if "valkey" in line and not set_up:
                set_up = time.monotonic() - began
            if "Heliograph is up" in line:
                started = time.monotonic() - began
            if "Ctrl-C stops" in line:
                break
            if time.monotonic() - began > _RUN_LIMIT_S:
                raise TimeoutError("make run took too long")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{ports['EDGE_PORT']}/v1", api_key="sk-newcomer")
        answer = client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}]
        )
        answered = time.monotonic()
        row = f"http://127.0.0.1:{ports['CONTROL_PORT']}/v1/requests/{answer.headers['helicone-id']}"
        visible = _wait(row) - answered
        client.close()
    finally:
        os.killpg(running.pid, signal.SIGINT)
        running.wait(60)
        provider.terminate()
        provider.wait()
    return [
        ("`make run` in a fresh clone, until everything is ready", f"{started:.0f} s"),
        ("of it: making the environment, downloads included", f"{set_up:.0f} s"),
        ("the first SDK call's answer, until its row can be queried", f"{visible:.1f} s"),
    ]


def _test(clone: Path) -> list[tuple[str, str]]:
    began = time.monotonic()
    done = subprocess.run(
        ["make", "test"], cwd=clone, env=_clean(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=_TEST_LIMIT_S, check=False,
    )  # fmt: skip
    took = time.monotonic() - began
    closing = done.stdout.strip().splitlines()[-1]
    print(closing, file=sys.stderr)
    if done.returncode:
        raise SystemExit(f"make test failed:\n{done.stdout[-5000:]}")
    return [(f"`make test` there ({closing.split(' in ')[0].strip('= ')})", f"{took / 60:.0f} min")]


def _clean() -> dict[str, str]:
    """The environment of somebody who has set nothing."""
    ours = (
        "EDGE_",
        "HELIOGRAPH_",
        "PLANNER_",
        "WORKER_",
        "CONTROL_",
        "METRICS_",
        "SHIPPER_",
        "PROMETHEUS_",
        "VIRTUAL_ENV",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _wait(url: str) -> float:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return time.monotonic()
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"{url} never came")


if __name__ == "__main__":
    sys.exit(main())
