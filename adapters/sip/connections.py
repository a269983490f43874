"""Stream connections, theirs and ours, and the table that finds them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Protocol, cast

from adapters.sip.errors import PeerError
from adapters.sip.stream import PONG, KeepAlive, StreamFramer
from adapters.sip.transaction import Flow


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What peers may ask of us. Times in seconds, sizes in bytes.

    Attributes:
        connect_s: how long a connection of ours may take to come up.
        silent_s: how long a connection may bring no message at all.
        idle_s: how long one that brought some may be silent; longer than the longest registration.
        total: connections at once.
        unsent: a peer that reads nothing while so much waits is cut off.
    """

    connect_s: float = 5.0
    silent_s: float = 32.0
    idle_s: float = 7500.0
    total: int = 10_000
    unsent: int = 1 << 20


class Receiver(Protocol):
    """Who takes what connections bring."""

    counters: Counter[str]

    def on_message(self, data: bytes, flow: Flow) -> None: ...
    def on_fault(self, exc: PeerError, flow: Flow) -> None: ...


class Connections:
    """Every open connection, by number and by peer.

    Args:
        owner: gets what they bring.
        limits: see there.
    """

    def __init__(self, owner: Receiver, limits: ConnectionLimits) -> None:
        self.owner = owner
        self.limits = limits
        self.closed = False
        self._by_number: dict[int, Connection] = {}
        self._by_peer: dict[tuple[str, int], Connection] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, number: int) -> Connection | None:
        """The usable connection of that number."""
        connection = self._by_number.get(number)
        return connection if connection is not None and connection.usable else None

    def towards(self, address: str, port: int) -> Connection | None:
        """A usable connection to that peer."""
        connection = self._by_peer.get((address, port))
        return connection if connection is not None and connection.usable else None

    def add(self, connection: Connection) -> int:
        """Take in a connection; 0: there are too many."""
        if len(self._by_number) >= self.limits.total or self.closed:
            self.owner.counters["sip_connections_refused_total"] += 1
            return 0
        number = self._next
        self._next += 1
        self._by_number[number] = connection
        self._by_peer.setdefault(connection.peer, connection)
        return number

    def drop(self, connection: Connection) -> None:
        """A connection has ended."""
        self._by_number.pop(connection.number, None)
        if self._by_peer.get(connection.peer) is connection:
            del self._by_peer[connection.peer]

    def close(self) -> None:
        """Close all, and take no more."""
        self.closed = True
        for connection in list(self._by_number.values()):
            connection.close()


class Connection(asyncio.Protocol):
    """One TCP connection, ours or theirs."""

    def __init__(self, table: Connections, index: int) -> None:
        self._table = table
        self._owner = table.owner
        self._index = index
        self._framer = StreamFramer()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.TimerHandle | None = None
        self._heard_at = self._loop.time()
        self._introduced = False  # it brought a message; before, neither pings nor single bytes keep it open
        self._flow = Flow("tcp", index, "", 0)
        self.peer = ("", 0)
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # uvloop's transports do not derive from it
        self._transport = stream
        peer = stream.get_extra_info("peername")
        if peer is None:
            stream.abort()
            return
        self.peer = (str(peer[0]), int(peer[1]))
        self.number = self._table.add(self)
        if self.number == 0:
            stream.abort()
            return
        self._flow = Flow("tcp", self._index, *self.peer, self.number)
        self._idle = self._loop.call_later(self._table.limits.silent_s, self._on_idle)

    def data_received(self, data: bytes) -> None:
        try:
            items = self._framer.feed(data)
        except PeerError as exc:
            self._fail(exc)
            return
        self._introduced = self._introduced or any(item is not KeepAlive.PING for item in items)
        if items and self._introduced:
            self._heard_at = self._loop.time()
        for item in items:
            if isinstance(item, KeepAlive):
                self.write(PONG)
            else:
                self._owner.on_message(item, self._flow)
        if self._framer.fault is not None:
            self._fail(self._framer.fault)

    def _fail(self, exc: PeerError) -> None:
        self._owner.counters["sip_streams_broken_total"] += 1
        self._owner.on_fault(exc, self._flow)
        self.close()

    def _on_idle(self) -> None:
        limits = self._table.limits
        left = self._heard_at + (limits.idle_s if self._introduced else limits.silent_s) - self._loop.time()
        if left <= 0:
            self._owner.counters["sip_connections_idle_total"] += 1
            self.close()
        else:
            self._idle = self._loop.call_later(left, self._on_idle)

    @property
    def usable(self) -> bool:
        """Whether what is written may still arrive."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send, unless the peer has stopped reading."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > self._table.limits.unsent:
            self._owner.counters["sip_connections_stuck_total"] += 1
            transport.abort()
            return
        transport.write(data)

    def close(self) -> None:
        """Close once everything is written."""
        if self._transport is not None:
            self._transport.close()
        self._table.drop(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._idle is not None:
            self._idle.cancel()
        self._table.drop(self)
