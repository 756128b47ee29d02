"""Which addresses a name that a caller chose may lead to."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest

from edge.upstream import addresses
from edge.upstream.addresses import Addresses, is_public
from edge.upstream.protocol import Origin, TargetNotAllowed, UpstreamUnreachable
from tests.edge.upstream.calls import fetch, get, names, origin_of
from tests.edge.upstream.conftest import MakePool, MakeUpstream
from tests.edge.upstream.wire_server import WireServer, answering

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = [
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2606:4700::1111",
    "2a00:1450:4001::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_special_address_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_global_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


async def refused(upstream: object, origin: Origin) -> TargetNotAllowed:
    with pytest.raises(TargetNotAllowed) as caught:
        await fetch(upstream, get(origin))  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "::1", "127.1", "0x7f000001", "2130706433", "0", "::ffff:7f00:1"]
)
async def test_loopback_is_refused_however_it_is_spelled(make_upstream: MakeUpstream, host: str) -> None:
    async with WireServer(answering()) as server:
        error = await refused(make_upstream(), origin_of(server, host=host, private=False))
        assert (error.code, error.status, error.sent) == ("target_not_allowed", 403, False)
        assert server.connections == 0


async def test_operator_may_name_a_private_host(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        assert await fetch(make_upstream(), get(origin_of(server, host="localhost", private=True))) == b"ok"


async def test_operator_may_open_a_private_network(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        upstream = make_upstream(allowed_networks=[ip_network("127.0.0.0/30")])
        assert await fetch(upstream, get(origin_of(server, private=False))) == b"ok"
        await refused(upstream, origin_of(server, host="127.0.0.9", private=False))


def test_opened_network_counts_for_mapped_addresses_too() -> None:
    book = Addresses(allowed_networks=[ip_network("10.1.0.0/16")])
    origin = Origin("http", "any.test", 80)
    assert book.allows(origin, ip_address("::ffff:10.1.2.3"))
    assert not book.allows(origin, ip_address("::ffff:10.2.2.3"))


async def test_name_at_private_addresses_only_is_refused(make_upstream: MakeUpstream) -> None:
    async with WireServer(answering()) as server:
        upstream = make_upstream(lookup=names("127.0.0.1", "::1"))
        await refused(upstream, origin_of(server, host="evil.test", private=False))
        assert server.connections == 0


async def test_private_addresses_of_a_mixed_name_are_left_out() -> None:
    book = Addresses(lookup=names("10.0.0.1", "8.8.8.8", "::ffff:127.0.0.1", "2606:4700::1111"))
    assert await book.of(Origin("http", "mixed.test", 80)) == ["8.8.8.8", "2606:4700::1111"]
    assert len(await book.of(Origin("http", "mixed.test", 80, private_allowed=True))) == 4


async def test_checked_address_is_the_one_connected_to(make_pool: MakePool) -> None:
    # The name server gives an allowed address once, and a private one ever after.
    asked = 0

    async def rebinding(host: str, port: int) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return ["127.0.0.1"] if asked == 1 else ["127.0.0.2"]

    async with WireServer(answering(), host="127.0.0.1") as server:
        pool = make_pool(lookup=rebinding, allowed_networks=[ip_network("127.0.0.1/32")])
        origin = origin_of(server, host="rebinding.test", private=False)
        assert await fetch(pool, get(origin)) == b"ok"
        assert asked == 1


async def test_stock_client_notices_an_address_that_changed(make_upstream: MakeUpstream) -> None:
    # Stock httpx resolves again: our look-up finds a public address, the system's resolver the loopback.
    async with WireServer(answering()) as server:
        upstream = make_upstream(lookup=names("8.8.8.8"))
        if "Stock" not in repr(upstream):
            pytest.skip("the pool connects to the address that was checked")
        await refused(upstream, origin_of(server, host="localhost", private=False))
        assert [peer.requests for peer in server.peers] in ([], [[]])


async def test_families_take_turns() -> None:
    book = Addresses(lookup=names("2606:4700::1", "2606:4700::2", "2606:4700::1", "8.8.8.8"))
    assert await book.of(Origin("http", "h.test", 80)) == ["2606:4700::1", "8.8.8.8", "2606:4700::2"]


async def test_one_look_up_serves_all_who_ask_and_is_kept_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def lookup(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        await asyncio.sleep(0)
        return ["8.8.8.8"]

    book = Addresses(lookup=lookup)
    origin = Origin("http", "h.test", 80)
    await asyncio.gather(*[book.of(origin) for _ in range(5)])
    await book.of(origin)
    assert asked == ["h.test"]
    monkeypatch.setattr(addresses, "KEEP_S", 0.0)
    book = Addresses(lookup=lookup)
    await book.of(origin)
    await asyncio.sleep(0.005)
    await book.of(origin)
    assert asked == ["h.test"] * 3


async def test_look_up_outlives_the_caller_that_began_it() -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        await go_on.wait()
        return ["8.8.8.8"]

    go_on = asyncio.Event()
    book = Addresses(lookup=lookup)
    first, second = (asyncio.create_task(book.of(Origin("http", "h.test", 80))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await second == ["8.8.8.8"]
    assert first.cancelled()


async def test_failed_look_up_is_not_kept() -> None:
    answers = [[], ["8.8.8.8"]]

    async def lookup(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    book = Addresses(lookup=lookup)
    origin = Origin("http", "h.test", 80)
    with pytest.raises(UpstreamUnreachable):
        await book.of(origin)
    assert await book.of(origin) == ["8.8.8.8"]


async def test_known_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "NAMES_MAX", 3)
    book = Addresses(lookup=names("8.8.8.8"))
    for number in range(10):
        await book.of(Origin("http", f"{number}.test", 80))
    assert list(book._known) == ["7.test", "8.test", "9.test"]
    assert not book._running
