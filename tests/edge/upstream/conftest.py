import asyncio
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop

from edge.upstream.pool import Pool
from edge.upstream.stock import StockUpstream
from schemas.settings import UpstreamSettings

MakePool = Callable[..., Pool]
MakeUpstream = Callable[..., Pool | StockUpstream]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test here runs on both event loops: the edge runs on uvloop, a laptop without it on asyncio."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def _make(kind: type[Pool] | type[StockUpstream], opened: list[Any]) -> Callable[..., Any]:
    def make(*, lookup: Any = None, allowed_networks: Any = (), **settings: Any) -> Any:
        upstream = kind(UpstreamSettings(**settings), lookup=lookup, allowed_networks=allowed_networks)
        opened.append(upstream)
        return upstream

    return make


async def _close(opened: list[Any]) -> None:
    for upstream in opened:
        await upstream.close()
        if isinstance(upstream, Pool):
            assert (upstream.open, upstream.idle, upstream.waiting) == (0, 0, 0), f"left over: {upstream!r}"


@pytest.fixture(params=[Pool, StockUpstream], ids=["pool", "httpx"])
async def make_upstream(request: pytest.FixtureRequest) -> AsyncIterator[MakeUpstream]:
    """Opens the pool or stock httpx: what a test says of one must be true of the other."""
    reason = request.node.get_closest_marker("pool_only")
    if reason is not None and request.param is StockUpstream:
        pytest.skip(f"stock httpx: {reason.args[0]}")
    opened: list[Any] = []
    yield _make(request.param, opened)
    await _close(opened)


@pytest.fixture
async def make_pool() -> AsyncIterator[MakePool]:
    opened: list[Any] = []
    yield _make(Pool, opened)
    await _close(opened)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pool_only(reason): stock httpx cannot do this, and why")


class Certificates(NamedTuple):
    authority: Path
    server: ssl.SSLContext
    """Serves a certificate for the name provider.test only."""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    authority, key, leaf = folder / "ca.pem", folder / "key.pem", folder / "leaf.pem"
    names = folder / "names"
    # Python 3.13 verifies strictly: key usages and identifiers must be there.
    names.write_text(
        "subjectAltName=DNS:provider.test\nbasicConstraints=critical,CA:FALSE\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    self_signed = ["-x509", *curve, "-subj", "/CN=test authority", "-keyout", f"{folder}/ca.key"]
    self_signed += ["-addext", "keyUsage=critical,keyCertSign"]
    request = [*curve, "-subj", "/CN=provider.test", "-keyout", f"{key}", "-out", f"{folder}/leaf.csr"]
    signed = ["-in", f"{folder}/leaf.csr", "-CA", f"{authority}", "-CAkey", f"{folder}/ca.key", "-CAcreateserial"]
    commands = [
        ["req", *self_signed, "-out", f"{authority}"],
        ["req", *request],
        ["x509", "-req", *signed, "-days", "2", "-extfile", f"{names}", "-out", f"{leaf}"],
    ]
    try:
        for command in commands:
            subprocess.run(["openssl", *command], check=True, capture_output=True)
    except FileNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("openssl is not installed")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(leaf, key)
    server.set_alpn_protocols(["h2", "http/1.1"])
    return Certificates(authority, server)
