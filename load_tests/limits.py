"""What client and mock can do without any proxy, with wrk as a witness: `python -m load_tests.limits [--seconds 2]`.

A candidate's figures mean something only as long as these are well above them.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from load_tests.build import BUILD, BuildError, Programs, programs
from load_tests.candidates import CALL, STREAM_CALL, wait_for_port
from load_tests.processes import Child, ChildFailed, assert_free, child, two_cores

FAST_INTERVAL_US = 1000
STREAMS = 128


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m load_tests.limits", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a window, s (2)")
    parser.add_argument("--port", type=int, default=21000, help="loopback port of the mock (21000)")
    options = parser.parse_args(arguments)
    BUILD.mkdir(exist_ok=True)
    try:
        made = programs()
        assert_free(options.port)
        with tempfile.TemporaryDirectory(prefix="limits-", dir=BUILD) as folder:
            measure(made, Path(folder), options.port, options.seconds)
    except (BuildError, ChildFailed) as error:
        print(f"load_tests.limits: {error}", file=sys.stderr)
        return 1
    return 0


def measure(made: Programs, folder: Path, port: int, seconds: float) -> None:
    cores = two_cores()
    (folder / "call").write_text(json.dumps(CALL, separators=(",", ":")))
    (folder / "stream").write_text(json.dumps(STREAM_CALL, separators=(",", ":")))
    mock_command: list[str | Path] = [made.mock, "--port", str(port), "--interval-us", str(FAST_INTERVAL_US)]
    with child(mock_command, core=cores.client, log=folder / "mock.log") as mock:
        wait_for_port(port, mock)
        for where, core in (("same core", cores.client), ("other core", cores.proxy)):
            figures, mock_us = loaded(made, folder, port, seconds, core, mock, "call", 64)
            print(f"calls, 64 at a time, {where}: load {figures['rps']:>9,.0f}/s", end="")
            print(f"   wrk {wrk(folder, port, seconds, core):>9}/s   mock {mock_us:.1f} µs CPU a call")
        figures, _ = loaded(made, folder, port, seconds, cores.client, mock, "stream", STREAMS)
        chunks, offered = figures["chunks_per_s"], STREAMS * 1_000_000 // FAST_INTERVAL_US
        print(f"streams, {STREAMS} at a time, same core: {chunks:,.0f} chunks/s of {offered:,} offered")


def loaded(
    made: Programs, folder: Path, port: int, seconds: float, core: int, mock: Child, body: str, connections: int
) -> tuple[dict[str, Any], float]:
    """The load generator's figures, and what the mock spent on a call, µs."""
    command: list[str | Path] = [made.load, "--port", str(port), "--path", "/v1/chat/completions"]
    command += ["--body", folder / body, "--connections", str(connections), "--seconds", str(seconds)]
    cpu_before = mock.cpu_s()
    with child(command, core=core, log=folder / "load.log", pipe=True) as load:
        assert load.process.stdout is not None
        figures: dict[str, Any] = json.loads(load.process.stdout.readlines()[-1])
    return figures, (mock.cpu_s() - cpu_before) / max(1, figures["ok_total"]) * 1e6


def wrk(folder: Path, port: int, seconds: float, core: int) -> str:
    command = shutil.which("wrk")
    if command is None:
        return "not installed"
    (folder / "post.lua").write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.body = io.open("{folder / "call"}"):read("*a")\n'
    )
    options = ["-t1", "-c64", f"-d{max(1, round(seconds))}s", "-s", str(folder / "post.lua")]
    done = subprocess.run(
        ["taskset", "-c", str(core), command, *options, f"http://127.0.0.1:{port}/v1/chat/completions"],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    )
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    return f"{float(found[1]):,.0f}" if found else "unreadable"


if __name__ == "__main__":
    sys.exit(main())
