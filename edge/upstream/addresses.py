"""Which addresses a host name may stand for, and which of them we connect to.

A name that a caller chose must never lead into our own network. So the name is resolved here, its
addresses are filtered, and the pool connects to an address from this list, not to the name: what was checked is what
is connected to, however fast a hostile name server changes its mind.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import chain, zip_longest

from edge.upstream.protocol import Origin, TargetNotAllowed, UpstreamUnreachable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

KEEP_S = 5.0
"""How long a look-up is believed. Short, since we do not see the record's own time to live."""

NAMES_MAX = 1024
ADDRESSES_MAX = 8
"""Addresses of one name that are tried at most."""

# Own lists rather than ipaddress.is_global, whose answer changed between patch versions of Python. Everything here is
# special-purpose by IANA's registry, except the last: Azure's host agent, which answers inside every Azure machine.
_IPV4_REFUSED = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",
    )
]
# In IPv6 only global unicast is public at all; of that, not Teredo and its neighbours, documentation and 6to4.
_IPV6_GLOBAL = IPv6Network("2000::/3")
_IPV6_REFUSED = [IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
# Prefixes whose last 32 bits are the IPv4 address that is really reached.
_IPV4_INSIDE = [IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")]


def is_public(address: Address) -> bool:
    """May a host that anyone can name be at this address?"""
    address = reached(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _IPV4_REFUSED)
    return address in _IPV6_GLOBAL and not any(address in network for network in _IPV6_REFUSED)


def reached(address: Address) -> Address:
    """The IPv4 address behind an IPv4-mapped or NAT64 one; any other address as it is."""
    if isinstance(address, IPv6Address) and any(address in network for network in _IPV4_INSIDE):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


class Addresses:
    """Host names to addresses we may connect to. Look-ups are shared while they run and kept `KEEP_S`."""

    def __init__(self, *, allowed_networks: Iterable[Network] = (), lookup: Lookup | None = None) -> None:
        self._allowed_networks = tuple(allowed_networks)
        self._lookup = lookup or _getaddrinfo
        self._running: dict[str, asyncio.Task[list[Address]]] = {}
        self._known: dict[str, tuple[float, list[Address]]] = {}

    def allows(self, origin: Origin, address: Address) -> bool:
        if origin.private_allowed or is_public(address):
            return True
        real = reached(address)
        return any(address in network or real in network for network in self._allowed_networks)

    async def of(self, origin: Origin) -> list[str]:
        """The addresses to try, in order, IPv6 and IPv4 in turn.

        Raises:
            UpstreamUnreachable: the name has no address.
            TargetNotAllowed: it has some, and none we may connect to.
        """
        found = await self._resolve(origin.host, origin.port)
        allowed = [str(address) for address in found if self.allows(origin, address)]
        if not allowed:
            raise TargetNotAllowed(f"{origin.host} is at a private address")
        return allowed[:ADDRESSES_MAX]

    def close(self) -> None:
        for task in self._running.values():
            task.cancel()

    async def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            return [ip_address(host)]
        except ValueError:
            pass
        now = asyncio.get_running_loop().time()
        known = self._known.get(host)
        if known and known[0] > now:
            return known[1]
        task = self._running.get(host)
        if task is None:
            task = asyncio.create_task(self._look_up(host, port))
            self._running[host] = task
            task.add_done_callback(lambda done: self._finished(host, done))
        # A caller that gives up must not take the look-up away from the others.
        return await asyncio.shield(task)

    async def _look_up(self, host: str, port: int) -> list[Address]:
        try:
            texts = await self._lookup(host, port)
            # A link-local address carries its interface: fe80::1%eth0.
            found = [ip_address(text.partition("%")[0]) for text in dict.fromkeys(texts)]
        except (OSError, UnicodeError, ValueError) as error:
            raise UpstreamUnreachable(f"{host} cannot be resolved: {_reason(error)}") from error
        if not found:
            raise UpstreamUnreachable(f"{host} has no address")
        return _in_turn(found)

    def _finished(self, host: str, task: asyncio.Task[list[Address]]) -> None:
        del self._running[host]
        if task.cancelled() or task.exception() is not None:
            return
        while len(self._known) >= NAMES_MAX:
            del self._known[next(iter(self._known))]
        self._known.pop(host, None)
        self._known[host] = (task.get_loop().time() + KEEP_S, task.result())


async def _getaddrinfo(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(sockaddr[0]) for *_, sockaddr in answers]


def _in_turn(found: list[Address]) -> list[Address]:
    """The resolver's order, families alternating: one broken family costs one attempt, not all of them."""
    first = found[0].version
    same = [address for address in found if address.version == first]
    other = [address for address in found if address.version != first]
    return [address for address in chain.from_iterable(zip_longest(same, other)) if address is not None]


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
