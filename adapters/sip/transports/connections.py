"""Stream connections, theirs and ours, and the table that finds them and bounds them."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from adapters.sip.errors import PeerError
from adapters.sip.protection.guard import source_of
from adapters.sip.transactions.transaction import Flow
from adapters.sip.transports.certificates import names_match
from adapters.sip.transports.stream import PING, PONG, KeepAlive, StreamFramer

_FLOWS_KEPT = 1024  # per connection, to tell what is lost with it
_ALIASES_KEPT = 8
_KEEP_IDLE_S, _KEEP_INTERVAL_S, _KEEP_COUNT = 60, 15, 4  # the kernel finds peers that vanished within two minutes


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What peers may ask of us. Times in seconds, sizes in bytes.

    Attributes:
        connect_s: how long a connection of ours may take to come up.
        handshake_s: how long a TLS handshake may take.
        message_s: how long a message may take to arrive once it has begun.
        silent_s: how long a connection may bring no message at all.
        idle_s: how long one that brought some may be silent; longer than the longest registration.
        total: connections at once.
        per_address: connections at once from one address (IPv6: /64 network) that is no trunk's.
        unsent: a peer that reads nothing while so much waits is cut off.
        unread: unfinished messages of all connections together.
        stalled: connections that may hold unsent bytes at once.
    """

    connect_s: float = 5.0
    handshake_s: float = 10.0
    message_s: float = 20.0
    silent_s: float = 32.0
    idle_s: float = 7500.0
    total: int = 10_000
    per_address: int = 100
    unsent: int = 1 << 20
    unread: int = 64 << 20
    stalled: int = 256


@dataclass(frozen=True, slots=True)
class KeepAliveTimes:
    """Keep-alive over streams (RFC 5626 4.4.1), in seconds.

    Attributes:
        first, last: a connection of ours is pinged after a random time between these.
        pong: a peer that has answered pings before must answer within this.
    """

    first: float = 95.0
    last: float = 120.0
    pong: float = 10.0


class Receiver(Protocol):
    """Who takes what connections bring."""

    counters: Counter[str]

    def on_message(self, data: bytes, flow: Flow) -> None: ...
    def on_fault(self, exc: PeerError, flow: Flow) -> None: ...
    def on_connection_lost(self, number: int, flows: list[Flow]) -> None: ...


class Link(Protocol):
    """An open connection: a stream or a WebSocket.

    Attributes:
        transport: as in flows.
        peer: address and port.
        number: in flows; 0 before the table has taken it in.
    """

    transport: str
    peer: tuple[str, int]
    number: int

    @property
    def usable(self) -> bool: ...
    @property
    def keys(self) -> list[tuple[str, str, int, str]]: ...
    def certified(self, name: str) -> bool: ...
    def vouch(self, silence_s: float | None) -> None: ...
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Connections:
    """Every open connection, by number and by peer.

    Args:
        owner: gets what they bring.
        limits: see there.
        keep_alive: see there.
        unlimited: whether an address may have any number of connections: a trunk's.
    """

    def __init__(
        self,
        owner: Receiver,
        limits: ConnectionLimits,
        keep_alive: KeepAliveTimes,
        unlimited: Callable[[str], bool],
    ) -> None:
        self.owner = owner
        self.limits = limits
        self.keep_alive = keep_alive
        self.closed = False
        self.unread = 0
        self.stalled = 0
        self._unlimited = unlimited
        self._links: dict[int, Link] = {}
        self._by_peer: dict[tuple[str, str, int, str], Link] = {}
        self._sources: Counter[str] = Counter()
        self._admitted = 0  # before and after their handshake
        self._flows: dict[int, dict[Flow, None]] = {}
        self._aliases: dict[int, list[tuple[str, str, int, str]]] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._links)

    def get(self, number: int) -> Link | None:
        """The usable connection of that number."""
        link = self._links.get(number)
        return link if link is not None and link.usable else None

    def towards(self, transport: str, address: str, port: int, domain: str) -> Link | None:
        """A usable connection to that peer.

        Args:
            transport: as in flows.
            address: IP address.
            port: the one to connect to.
            domain: what the certificate must be for; "" without TLS.
        """
        link = self._by_peer.get((transport, address, port, domain))
        return link if link is not None and link.usable else None

    def admit(self, address: str) -> bool:
        """Count a new connection of a peer; False: it has too many, or all have."""
        source = source_of(address)  # one machine has a whole IPv6 network of addresses to come from
        count = self._sources.get(source, 0) + 1
        full = self.closed or max(self._admitted, len(self._links)) >= self.limits.total
        if full or (count > self.limits.per_address and not self._unlimited(address)):
            self.owner.counters["sip_connections_refused_total"] += 1
            return False
        self._sources[source] = count
        self._admitted += 1
        return True

    def release(self, address: str) -> None:
        """The opposite of `admit`: the connection has ended, or a password vouched for it."""
        source = source_of(address)
        self._admitted -= 1
        self._sources[source] -= 1
        if self._sources[source] <= 0:
            del self._sources[source]

    def add(self, link: Link) -> int:
        """Take in a connection; 0: there are too many."""
        if len(self._links) >= self.limits.total or self.closed:
            self.owner.counters["sip_connections_refused_total"] += 1
            return 0
        number = self._next
        self._next += 1
        self._links[number] = link
        for key in link.keys:
            self._by_peer.setdefault(key, link)
        return number

    def alias(self, link: Link, port: int, domain: str) -> None:
        """Use a connection of theirs for requests to the port that they listen at (RFC 5923 8)."""
        key = (link.transport, link.peer[0], port, domain)
        kept = self._aliases.setdefault(link.number, [])
        if key in kept:
            return
        if len(kept) >= _ALIASES_KEPT:
            oldest = kept.pop(0)
            if self._by_peer.get(oldest) is link:
                del self._by_peer[oldest]
        kept.append(key)
        self._by_peer[key] = link

    def used(self, link: Link, flow: Flow) -> None:
        """Note that a message for `flow` went over `link`."""
        flows = self._flows.setdefault(link.number, {})
        if flow not in flows and len(flows) < _FLOWS_KEPT:
            flows[flow] = None

    def drop(self, link: Link) -> None:
        """A connection has ended; safe to repeat."""
        if self._links.pop(link.number, None) is None:
            return
        for key in (*link.keys, *self._aliases.pop(link.number, ())):
            if self._by_peer.get(key) is link:
                del self._by_peer[key]
        flows = self._flows.pop(link.number, {})
        if not self.closed:
            self.owner.on_connection_lost(link.number, list(flows))

    def close(self) -> None:
        """Close all, and take no more."""
        self.closed = True
        for link in list(self._links.values()):
            link.close()


class Connection(asyncio.Protocol):
    """One TCP or TLS connection, theirs or ours.

    Args:
        table: where it is kept.
        transport: "tcp" or "tls".
        index: number of the listener, for flows.
        admitted: the address that `Connections.admit` counted; None: a connection of ours.
        domain: whom a TLS connection of ours must reach (RFC 5922 4); "": not verified.
    """

    def __init__(
        self, table: Connections, transport: str, index: int, *, admitted: str | None = None, domain: str = ""
    ) -> None:
        self.transport = transport
        self.peer = ("", 0)
        self.number = 0
        self.wrong_name = False
        self._table = table
        self._owner = table.owner
        self._index = index
        self._admitted = admitted
        self._domain = domain
        self._framer = StreamFramer()
        self._held = 0  # bytes of an unfinished message
        self._stream: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.TimerHandle | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._ping: asyncio.TimerHandle | None = None
        self._pongs = False  # the peer answers pings
        self._pinged_at = 0.0
        self._stalled = False
        self._idle_s = table.limits.idle_s
        self._heard_at = self._loop.time()
        self._introduced = False  # it brought a message; before, neither pings nor single bytes keep it open
        self._flow = Flow(transport, index, "", 0)

    @property
    def keys(self) -> list[tuple[str, str, int, str]]:
        return [(self.transport, *self.peer, self._domain)]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # uvloop's transports do not derive from it
        peer = stream.get_extra_info("peername")
        if peer is None:
            stream.abort()
            return
        self.peer = (str(peer[0]), int(peer[1]))
        if self._domain and not names_match(stream.get_extra_info("peercert"), self._domain):
            self.wrong_name = True
            self._owner.counters["sip_tls_wrong_name_total"] += 1
            stream.abort()
            return
        self._stream = stream
        self.number = self._table.add(self)
        if self.number == 0:
            stream.abort()
            return
        _find_vanished_peers(stream.get_extra_info("socket"))
        self._flow = Flow(self.transport, self._index, *self.peer, self.number)
        if self._admitted is None:
            self._introduced = True
            self._schedule_ping()
        self._idle = self._loop.call_later(self._table.limits.silent_s, self._on_idle)

    def certified(self, name: str) -> bool:
        """Whether the peer has shown a certificate for `name` that was verified."""
        certificate = None if self._stream is None else self._stream.get_extra_info("peercert")
        return bool(certificate) and names_match(certificate, name)

    def vouch(self, silence_s: float | None) -> None:
        """A registration came by here: it no longer counts for its address.

        Args:
            silence_s: it has promised pings (RFC 5626 4.4.1): silence for longer ends it; None: no promise.
        """
        if self._admitted is not None:
            self._table.release(self._admitted)
            self._admitted = None
        if silence_s is not None and silence_s != self._idle_s and self._idle is not None:
            self._idle_s = silence_s
            self._idle.cancel()
            self._idle = self._loop.call_later(silence_s, self._on_idle)

    def data_received(self, data: bytes) -> None:
        if data == PONG and self._pinged_at > self._heard_at:
            self._pongs = True
            self._heard_at = self._loop.time()
            return
        try:
            items = self._framer.feed(data)
        except PeerError as exc:
            self._fail(exc)
            return
        if items:
            self._introduced = self._introduced or any(not isinstance(item, KeepAlive) for item in items)
            if self._introduced:
                self._heard_at = self._loop.time()
            for item in items:
                if isinstance(item, KeepAlive):
                    self.write(PONG)
                else:
                    self._owner.on_message(item, self._flow)
        if self._framer.fault is not None:
            self._fail(self._framer.fault)
        elif self._framer.held or self._held:
            self._hold(self._framer.held, renewed=bool(items))

    def _hold(self, held: int, *, renewed: bool) -> None:
        """An unfinished message waits: not for ever, and not too many of them."""
        table = self._table
        table.unread += held - self._held
        self._held = held
        if self._slow is not None and (renewed or not held):
            self._slow.cancel()
            self._slow = None
        if not held:
            return
        if table.unread > table.limits.unread:
            self._cut("sip_connections_over_memory_total")
        elif self._slow is None:
            self._slow = self._loop.call_later(table.limits.message_s, self._cut, "sip_connections_slow_total")

    def _cut(self, why: str) -> None:
        self._owner.counters[why] += 1
        if self._stream is not None:
            self._stream.abort()
        self._end()

    def _fail(self, exc: PeerError) -> None:
        self._owner.counters["sip_streams_broken_total"] += 1
        self._owner.on_fault(exc, self._flow)
        self.close()

    def _on_idle(self) -> None:
        limits = self._table.limits
        left = self._heard_at + (self._idle_s if self._introduced else limits.silent_s) - self._loop.time()
        if left <= 0:
            self._owner.counters["sip_connections_idle_total"] += 1
            self.close()
        else:
            self._idle = self._loop.call_later(left, self._on_idle)

    # --- keep-alive -----------------------------------------------------------------------

    def _schedule_ping(self) -> None:
        times = self._table.keep_alive
        delay = random.uniform(times.first, times.last)  # noqa: S311 - spreads load, protects nothing
        self._ping = self._loop.call_later(delay, self._on_ping_due)

    def _on_ping_due(self) -> None:
        if not self.usable:
            return
        self._pinged_at = self._loop.time()
        self.write(PING)
        if self._pongs:
            self._ping = self._loop.call_later(self._table.keep_alive.pong, self._on_pong_due)
        else:
            self._schedule_ping()  # RFC 3261 does not ask for pongs: only who has sent one is expected to

    def _on_pong_due(self) -> None:
        if self._heard_at >= self._pinged_at:
            self._schedule_ping()
        else:
            self._cut("sip_connections_unanswered_total")

    # --- out ------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether what is written may still arrive."""
        return self._stream is not None and not self._stream.is_closing()

    def write(self, data: bytes) -> None:
        """Send, unless the peer has stopped reading."""
        stream = self._stream
        if stream is None or stream.is_closing():
            return
        if stream.get_write_buffer_size() > self._table.limits.unsent:
            self._cut("sip_connections_stuck_total")
            return
        stream.write(data)

    def pause_writing(self) -> None:
        self._stalled = True
        self._table.stalled += 1
        if self._table.stalled > self._table.limits.stalled:
            self._cut("sip_connections_stuck_total")

    def resume_writing(self) -> None:
        if self._stalled:
            self._stalled = False
            self._table.stalled -= 1

    def close(self) -> None:
        """Close once everything is written."""
        if self._stream is not None:
            self._stream.close()
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._end()
        self.resume_writing()

    def _end(self) -> None:
        for timer in (self._idle, self._slow, self._ping):
            if timer is not None:
                timer.cancel()
        self._table.unread -= self._held
        self._held = 0
        if self._admitted is not None:
            self._table.release(self._admitted)
            self._admitted = None
        self._table.drop(self)


def _find_vanished_peers(sock: socket.socket | None) -> None:
    """Let the kernel probe a silent peer: a machine that was switched off sends no FIN."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEP_COUNT)
    except OSError:
        return  # it has just ended
