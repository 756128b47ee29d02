"""Our own HTTP/1.1 connection pool: the hot path's way to the providers.

Per origin the connection that rested last is used first, so that those not needed grow old and go. When every
connection a call may have is taken, it waits in a line: first come, first served, among those that can be served.
Deciding is synchronous and in this file; awaiting is opening a connection, waiting in line, and nothing else.
"""

import asyncio
import ssl
from collections.abc import Iterable
from functools import cache
from ipaddress import ip_address
from itertools import count
from pathlib import Path

import certifi

from edge.outbox import Outbox
from edge.upstream import wire
from edge.upstream.addresses import Addresses, Lookup, Network
from edge.upstream.answer import PoolAnswer
from edge.upstream.connection import NEVER, Connection, Host, Limits
from edge.upstream.protocol import (
    Origin,
    PoolFull,
    TargetNotAllowed,
    UpstreamBroken,
    UpstreamError,
    UpstreamRequest,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from schemas.settings import UpstreamSettings

SWEEP_EVERY_S = 0.02
"""The least time between two sweeps, so the most by which a timeout is late. A sweep takes 0.04 µs a connection."""


class Pool:
    """Implements `protocol.Upstream`. To be made inside a running event loop, and closed.

    `connects` and `reuses` count calls by how they came by their connection; `open`, `idle` and `waiting` are now.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        allowed_networks: Iterable[Network] = (),
        lookup: Lookup | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.limits = Limits(
            first_byte_s=settings.first_byte_timeout_s,
            idle_s=settings.idle_timeout_s,
            total_s=settings.total_timeout_s,
            head_bytes=settings.head_bytes,
            buffer_bytes=settings.buffer_bytes,
        )
        self.sweep_at = NEVER
        self.connects = 0
        self.reuses = 0
        self.open = 0  # connections, those being opened included
        self.waiting = 0
        self._settings = settings
        self._keep_alive_s = settings.keep_alive_s
        self._addresses = Addresses(allowed_networks=allowed_networks, lookup=lookup)
        self._tls = tls_context(settings.ca_file)
        self._hosts: dict[Origin, Host] = {}
        self._lines: dict[Origin, Host] = {}  # the hosts somebody waits for
        self._connections: set[Connection] = set()
        self._arrivals = count()
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.outbox = outbox or Outbox(self._loop)
        self._now = self._loop.time
        self._is_closed = False

    @property
    def idle(self) -> int:
        return sum(len(host.idle) for host in self._hosts.values())

    def __repr__(self) -> str:
        idle = self.idle
        return f"<Pool {self.open - idle} active, {idle} idle, {self.waiting} waiting, {len(self._hosts)} hosts>"

    async def send(self, request: UpstreamRequest) -> PoolAnswer:
        encoded = wire.encode(request)
        now = self._now()
        total_s = self.limits.total_s
        if request.total_timeout_s is not None and request.total_timeout_s < total_s:
            total_s = request.total_timeout_s
        ends = now + total_s
        host = self._hosts.get(request.origin)
        connection = self._rested(host, now) if host is not None else None
        if connection is None:
            connection = await self._obtain(request.origin, ends)
            now = self._now()
        future = connection.call(request, encoded, now, ends)
        try:
            return await future
        except asyncio.CancelledError:
            connection.drop(future)
            raise

    async def close(self) -> None:
        self._is_closed = True
        self._addresses.close()
        for host in list(self._lines.values()):
            for ticket in list(host.waiting):
                self._leave_line(host, ticket)
                if not ticket.done():
                    ticket.set_exception(PoolFull("the pool is closed"))
        for connection in list(self._connections):
            connection.fail(UpstreamBroken(f"{connection.host.name}: the pool is closed", sent=True))
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.sleep(0)  # the transports close in the loop's next round

    # What connections tell us.

    def released(self, connection: Connection) -> None:
        connection.host.idle[connection] = None
        now = self._now()
        deadline = now + self._keep_alive_s
        connection.rest(now, deadline)
        if deadline < self.sweep_at:
            self.watch(deadline)
        if self._lines:
            self._serve_line()

    def closed(self, connection: Connection) -> None:
        if connection in self._connections:
            self._drop(connection)
            self._serve_line()

    def watch(self, deadline: float) -> None:
        if self._is_closed:
            return
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.sweep_at = deadline
        self._sweeper = self._loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        """Look at every connection's deadline, then sleep until the next one that can pass."""
        now = self._now()
        self._sweeper = None
        self.sweep_at = NEVER
        soonest = NEVER
        for connection in list(self._connections):
            if connection.deadline <= now:
                connection.expire(now)
            elif connection.deadline < soonest:
                soonest = connection.deadline
        if soonest < self.sweep_at:
            self.watch(max(soonest, now + SWEEP_EVERY_S))

    # Who gets a connection.

    def _rested(self, host: Host, now: float) -> Connection | None:
        """The connection that rested last and is still good; what is found closed on the way is dropped."""
        while host.idle:
            connection, _ = host.idle.popitem()
            if connection.usable(now):
                self.reuses += 1
                return connection
            connection.close()
        return None

    async def _obtain(self, origin: Origin, ends: float) -> Connection:
        """A connection by waiting in line, by opening one, or both."""
        while not self._is_closed:
            host = self._hosts.get(origin)
            if host is None:
                host = self._hosts[origin] = Host(origin)
            if not host.waiting and self._has_room(host):
                self._take_place(host)
            else:
                given = await self._wait_in_line(host, ends)
                if given is not None:
                    if given.is_closed:  # by its server, between then and now
                        continue
                    self.reuses += 1
                    return given
            return await self._open(host, ends)
        raise PoolFull("the pool is closed")

    def _has_room(self, host: Host) -> bool:
        """May one more connection to this host be opened, at the cost of another host's resting one if need be?"""
        if host.open >= self._settings.connections_per_host:
            return False
        return self.open < self._settings.connections or any(other.idle for other in self._hosts.values())

    def _take_place(self, host: Host) -> None:
        host.open += 1
        self.open += 1
        if self.open > self._settings.connections:
            resting = (next(iter(other.idle)) for other in self._hosts.values() if other.idle)
            oldest = min(resting, key=lambda connection: connection.deadline)
            self._drop(oldest)  # out of the books first: its place is taken, nobody is to be served with it
            oldest.close()

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connection.host.idle.pop(connection, None)
        self._leave_place(connection.host)

    def _leave_place(self, host: Host) -> None:
        host.open -= 1
        self.open -= 1
        self._forget_if_unused(host)

    def _forget_if_unused(self, host: Host) -> None:
        if not host.open and not host.waiting:
            self._hosts.pop(host.origin, None)

    async def _wait_in_line(self, host: Host, ends: float) -> Connection | None:
        """A connection to use, or None: a place has been taken for us, to open one.

        Raises:
            PoolFull: the line is full, or nobody made room in time.
        """
        if self.waiting >= self._settings.waiting:
            self._forget_if_unused(host)
            raise PoolFull(f"{host.name}: every connection is taken and {self.waiting} calls wait")
        ticket: asyncio.Future[Connection | None] = self._loop.create_future()
        host.waiting[ticket] = next(self._arrivals)
        self._lines[host.origin] = host
        self.waiting += 1
        until = min(self._now() + self._settings.connect_timeout_s, ends)
        try:
            async with asyncio.timeout_at(until):
                return await ticket
        except BaseException as error:
            if ticket in host.waiting:
                self._leave_line(host, ticket)
            elif not ticket.cancelled() and ticket.exception() is None:
                # Served and given up in the same moment: whoever is next gets it.
                given = ticket.result()
                if given is None:
                    self._leave_place(host)
                    self._serve_line()
                elif not given.is_closed:
                    self.released(given)
            if isinstance(error, TimeoutError):
                raise PoolFull(f"{host.name}: no connection was free in time") from None
            raise

    def _leave_line(self, host: Host, ticket: "asyncio.Future[Connection | None]") -> None:
        del host.waiting[ticket]
        self.waiting -= 1
        if not host.waiting:
            del self._lines[host.origin]
            self._forget_if_unused(host)

    def _serve_line(self) -> None:
        """Give what is free to those who have waited longest, until nothing is free or nobody can use it."""
        while self._lines:
            servable = [host for host in self._lines.values() if host.idle or self._has_room(host)]
            if not servable:
                return
            host = min(servable, key=lambda host: next(iter(host.waiting.values())))
            ticket = next(iter(host.waiting))
            given: Connection | None = None
            if not ticket.done():
                if host.idle:
                    given, _ = host.idle.popitem()
                else:
                    self._take_place(host)
                ticket.set_result(given)
            self._leave_line(host, ticket)

    # Opening one.

    async def _open(self, host: Host, ends: float) -> Connection:
        """Open a connection in the place that has been taken for it."""
        try:
            connection = await self._dial(host, ends)
        except BaseException:
            self._leave_place(host)
            self._serve_line()
            raise
        self._connections.add(connection)
        self.connects += 1
        return connection

    async def _dial(self, host: Host, ends: float) -> Connection:
        """Try the origin's addresses one after the other, each with its share of the time that is left."""
        origin = host.origin
        until = min(self._now() + self._settings.connect_timeout_s, ends)
        try:
            async with asyncio.timeout_at(until):
                addresses = await self._addresses.of(origin)
        except TimeoutError:
            raise UpstreamTimeout(f"{host.name}: no address in time", phase="connect") from None
        failure: OSError = OSError("no address")
        for tried, address in enumerate(addresses):
            connection = Connection(self, host)
            now = self._now()
            try:
                async with asyncio.timeout_at(now + (until - now) / (len(addresses) - tried)):
                    await self._loop.create_connection(
                        lambda connection=connection: connection,
                        address,
                        origin.port,
                        ssl=self._tls if origin.scheme == "https" else None,
                        server_hostname=origin.host.rstrip(".") if origin.scheme == "https" else None,
                    )
            except OSError as error:  # TimeoutError and ssl.SSLError are among them
                connection.close()
                failure = error
                continue
            except BaseException:
                connection.close()
                raise
            peer = connection.peer()
            if self._is_closed or connection.is_closed or peer is None:
                connection.close()
                failure = ConnectionResetError("closed at once")
                continue
            # Once more at the socket itself: nothing between the list and here may lead elsewhere.
            if not self._addresses.allows(origin, ip_address(peer)):
                connection.close()
                raise TargetNotAllowed(f"{origin.host} is at a private address")
            return connection
        raise _unreachable(host, failure)


@cache
def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Trusts certifi's certificates and those of `ca_file`, checks host names, speaks HTTP/1.1 only."""
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _unreachable(host: Host, failure: OSError) -> UpstreamError:
    error: UpstreamError
    if isinstance(failure, TimeoutError):
        error = UpstreamTimeout(f"{host.name}: no connection in time", phase="connect")
    elif isinstance(failure, ssl.SSLCertVerificationError):
        error = UpstreamUnreachable(f"{host.name}: its certificate is not trusted: {failure.verify_message}")
    elif isinstance(failure, ssl.SSLError):
        error = UpstreamUnreachable(f"{host.name}: TLS failed: {failure.reason}")
    else:
        error = UpstreamUnreachable(f"{host.name}: no connection: {failure.strerror or type(failure).__name__}")
    error.__cause__ = failure
    return error
