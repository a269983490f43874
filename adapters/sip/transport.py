"""UDP and TCP for the endpoint (asyncio): they carry, they do not decide.

Listening sockets come ready bound from whoever starts the process. One timer
serves all deadlines of the stack. What one peer sends never disturbs the rest:
it is refused, dropped or counted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import cast

from adapters.sip.endpoint import Effect, Endpoint, Event
from adapters.sip.errors import PeerError
from adapters.sip.stream import PONG, KeepAlive, StreamFramer
from adapters.sip.transaction import Flow, Send

log = logging.getLogger("murima.sip")

CONNECT_TIMEOUT_S = 5.0
SILENT_LIMIT_S = 32.0  # a connection that brought no message yet
IDLE_LIMIT_S = 7500.0  # longer than the longest registration
MAX_CONNECTIONS = 10_000
MAX_UNSENT = 1 << 20  # bytes; a peer that reads nothing for so long is cut off
LOOKUP_LIFETIME_S = 60.0
_REMEMBERED_HOSTS = 4096
_FAULT_LOG_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class _Listener:
    transport: str
    host: str
    port: int
    loopback: bool
    wildcard: bool
    version: int


class SipTransport:
    """Joins one endpoint to its sockets. Implements the endpoint's `Network`.

    Attributes:
        counters: what was dropped, by reason.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._owner: Callable[[Event], None] = _nobody
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time
        self._endpoint: Endpoint | None = None
        self._listeners: list[_Listener] = []
        self._udp: dict[int, asyncio.DatagramTransport] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: dict[int, _Connection] = {}
        self._by_peer: dict[tuple[str, int], _Connection] = {}
        self._connecting: dict[tuple[str, int], list[tuple[Flow, bytes]]] = {}
        self._literal: dict[str, bool] = {}
        self._looked_up: dict[str, tuple[str, float]] = {}
        self._looking_up: dict[str, list[tuple[Flow, bytes]]] = {}
        self._local_addresses: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_connection = 1
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # kept here: what uvloop returns for a time in the past has no when()
        self._closed = False
        self._fault_logged_at = -_FAULT_LOG_INTERVAL_S

    async def start(
        self,
        endpoint: Endpoint,
        owner: Callable[[Event], None],
        udp: Sequence[socket.socket],
        tcp: Sequence[socket.socket],
    ) -> None:
        """Serve an endpoint.

        Args:
            endpoint: made with this transport as its network.
            owner: gets the endpoint's events, at once and in order.
            udp: bound sockets; they belong to us from now on.
            tcp: bound or listening sockets; likewise.
        """
        self._endpoint = endpoint
        self._owner = owner
        for sock in udp:
            index = self._add_listener("udp", sock)
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            transport, _ = await self._loop.create_datagram_endpoint(partial(_Datagrams, self, index), sock=sock)
            self._udp[index] = transport
        for sock in tcp:
            index = self._add_listener("tcp", sock)
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self._servers.append(await self._loop.create_server(partial(_Connection, self, index), sock=sock))

    async def close(self) -> None:
        """Stop listening and close everything."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._connections.values()):
            connection.close()
        for transport in self._udp.values():
            transport.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports close their sockets

    @property
    def connections(self) -> int:
        """How many TCP connections are open."""
        return len(self._connections)

    # --- Network --------------------------------------------------------------------------

    def local(self, flow: Flow) -> tuple[str, int]:
        listener = self._listeners[flow.local]
        if not listener.wildcard:
            return listener.host, listener.port
        return self._address_towards(flow.host, listener.version), listener.port

    def route(self, transport: str, host: str, port: int) -> Flow | None:
        """The best listener of that transport: same address family, loopback for loopback."""
        try:
            address = ip_address(host)
            version, loopback = address.version, address.is_loopback
        except ValueError:
            version, loopback = 4, False
        found = [
            (listener.version == version, listener.wildcard or listener.loopback == loopback, -index)
            for index, listener in enumerate(self._listeners)
            if listener.transport == transport
        ]
        return Flow(transport, -max(found)[2], host, port) if found else None

    def _address_towards(self, host: str, version: int) -> str:
        """Our address on the way to `host`; asks the kernel's routing table, sends nothing."""
        known = self._local_addresses.get(host)
        if known is None:
            found = self._looked_up.get(host)
            target = found[0] if found is not None else host if self._is_literal(host) else "192.0.2.1"
            family = socket.AF_INET6 if ":" in target or version == 6 else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect((target, 9))
                    known = str(probe.getsockname()[0])
                except OSError:
                    known = "::1" if family == socket.AF_INET6 else "127.0.0.1"
            if len(self._local_addresses) >= _REMEMBERED_HOSTS:
                self._local_addresses.clear()
            self._local_addresses[host] = known
        return known

    # --- effects --------------------------------------------------------------------------

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the endpoint wants, and set the timer to its next deadline."""
        for effect in effects:
            if isinstance(effect, Send):
                self.send(effect.flow, effect.data)
            else:
                self._owner(effect)
        self._arm()

    def send(self, flow: Flow, data: bytes) -> None:
        """Put bytes on the wire; failures come back to the endpoint."""
        connection = self._connections.get(flow.connection)
        if connection is not None and connection.usable:  # whatever name its owner gave in Contact
            connection.write(data)
            return
        if self._is_literal(flow.host):
            self._deliver(flow, flow.host, data)
            return
        known = self._looked_up.get(flow.host)
        if known is None or known[1] < self._loop.time():
            self._look_up(flow, data)
        else:
            self._deliver(flow, known[0], data)

    def _deliver(self, flow: Flow, address: str, data: bytes) -> None:
        """Send to the IP address that the host of `flow` is, or was found to have."""
        if flow.transport == "udp":
            transport = self._udp.get(flow.local)
            if transport is not None and not transport.is_closing():
                try:
                    transport.sendto(data, (address, flow.port))
                except ValueError:  # uvloop, for an address of the other family or with a strange zone
                    self._unsendable(flow)
            return
        connection = self._by_peer.get((address, flow.port))
        if connection is not None and connection.usable:
            connection.write(data)
        else:
            self._connect(flow, address, data)

    def _unsendable(self, flow: Flow) -> None:
        self.counters["sip_unsendable_total"] += 1
        self._loop.call_soon(self._unreachable, flow)  # once the command that wanted it has returned

    def _arm(self) -> None:
        endpoint = self._endpoint
        if endpoint is None or self._closed:
            return
        at = endpoint.deadline()
        timer = self._timer
        if at is None or (timer is not None and self._timer_at <= at + 0.001):
            return  # an early timer costs less than moving it with each message
        if timer is not None:
            timer.cancel()
        self._timer = self._loop.call_at(at, self._on_timer)
        self._timer_at = at

    def _on_timer(self) -> None:
        self._timer = None
        if self._endpoint is not None:
            self._guarded(self._endpoint.on_time, self._loop.time())

    # --- in -------------------------------------------------------------------------------

    def on_message(self, data: bytes, flow: Flow) -> None:
        """One datagram or framed message."""
        if self._endpoint is not None and not self._closed:
            self._guarded(self._endpoint.on_message, data, flow, self._loop.time())

    def on_fault(self, exc: PeerError, flow: Flow) -> None:
        """A stream that cannot be followed any further."""
        if self._endpoint is not None:
            self._guarded(self._endpoint.on_fault, exc, flow)

    def _guarded(self, step: Callable[..., list[Effect]], *args: object) -> None:
        """A fault of ours in one message must not end the service for the others."""
        try:
            self.carry_out(step(*args))
        except Exception:
            self.counters["sip_faults_total"] += 1
            now = self._loop.time()
            if now - self._fault_logged_at >= _FAULT_LOG_INTERVAL_S:
                self._fault_logged_at = now
                log.exception("sip.fault")
            self._arm()

    # --- names ----------------------------------------------------------------------------

    def _is_literal(self, host: str) -> bool:
        known = self._literal.get(host)
        if known is None:
            try:
                ip_address(host.partition("%")[0])
                known = True
            except ValueError:
                known = False
            if len(self._literal) >= _REMEMBERED_HOSTS:
                self._literal.clear()
            self._literal[host] = known
        return known

    def _look_up(self, flow: Flow, data: bytes) -> None:
        waiting = self._looking_up.get(flow.host)
        if waiting is not None:
            if len(waiting) < 100:
                waiting.append((flow, data))
            return
        self._looking_up[flow.host] = [(flow, data)]
        self._spawn(self._resolve(flow.host, self._listeners[flow.local].version))

    async def _resolve(self, host: str, version: int) -> None:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        try:
            found = await self._loop.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
            address = str(found[0][4][0])
        except (OSError, ValueError):  # ValueError: what can be no name, such as one with an empty label
            self.counters["sip_lookups_failed_total"] += 1
            for flow in {flow for flow, _ in self._looking_up.pop(host)}:
                self._unreachable(flow)
            return
        if len(self._looked_up) >= _REMEMBERED_HOSTS:
            self._looked_up.clear()
        self._looked_up[host] = (address, self._loop.time() + LOOKUP_LIFETIME_S)
        for flow, data in self._looking_up.pop(host):
            self.send(flow, data)

    # --- connections ----------------------------------------------------------------------

    def _connect(self, flow: Flow, address: str, data: bytes) -> None:
        waiting = self._connecting.setdefault((address, flow.port), [])
        if len(waiting) < 1000:
            waiting.append((flow, data))
        if len(waiting) == 1:
            self._spawn(self._open((address, flow.port), flow.local))

    async def _open(self, peer: tuple[str, int], local: int) -> None:
        listener = self._listeners[local]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await self._loop.create_connection(
                    partial(_Connection, self, local),
                    *peer,
                    # Peers may know us by the address we listen at.
                    local_addr=None if listener.wildcard else (listener.host, 0),
                )
        except (OSError, TimeoutError, ValueError):
            self.counters["sip_connects_failed_total"] += 1
            for failed in {flow for flow, _ in self._connecting.pop(peer)}:
                self._unreachable(failed)
            return
        for _, data in self._connecting.pop(peer):
            connection.write(data)

    def _unreachable(self, flow: Flow) -> None:
        if self._endpoint is not None and not self._closed:
            self._guarded(self._endpoint.on_unreachable, flow, self._loop.time())

    def add_connection(self, connection: _Connection) -> int:
        """Take in a connection; 0: there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS or self._closed:
            self.counters["sip_connections_refused_total"] += 1
            return 0
        number = self._next_connection
        self._next_connection += 1
        self._connections[number] = connection
        self._by_peer.setdefault(connection.peer, connection)
        return number

    def drop_connection(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._connections.pop(connection.number, None)
        if self._by_peer.get(connection.peer) is connection:
            del self._by_peer[connection.peer]

    # --- start-up -------------------------------------------------------------------------

    def _add_listener(self, transport: str, sock: socket.socket) -> int:
        host, port = sock.getsockname()[:2]
        address = ip_address(host.partition("%")[0])
        self._listeners.append(
            _Listener(transport, host, port, address.is_loopback, address.is_unspecified, address.version)
        )
        return len(self._listeners) - 1

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _nobody(_: Event) -> None:
    """Before the start there is nothing to report."""


class _Datagrams(asyncio.DatagramProtocol):
    """One UDP socket."""

    def __init__(self, owner: SipTransport, index: int) -> None:
        self._owner = owner
        self._index = index

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) <= 4:
            return  # keep-alive (RFC 5626 3.5.1 and older habits)
        if addr[1] == 0:
            self._owner.counters["sip_unanswerable_total"] += 1
            return
        self._owner.on_message(data, Flow("udp", self._index, addr[0], addr[1]))

    def error_received(self, exc: Exception) -> None:  # an ICMP error names no datagram: timers decide
        del exc
        self._owner.counters["sip_udp_errors_total"] += 1


class _Connection(asyncio.Protocol):
    """One TCP connection, ours or theirs."""

    def __init__(self, owner: SipTransport, index: int) -> None:
        self._owner = owner
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
        self.number = self._owner.add_connection(self)
        if self.number == 0:
            stream.abort()
            return
        self._flow = Flow("tcp", self._index, *self.peer, self.number)
        self._idle = self._loop.call_later(SILENT_LIMIT_S, self._on_idle)

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
        limit_s = IDLE_LIMIT_S if self._introduced else SILENT_LIMIT_S
        left = self._heard_at + limit_s - self._loop.time()
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
        if transport.get_write_buffer_size() > MAX_UNSENT:
            self._owner.counters["sip_connections_stuck_total"] += 1
            transport.abort()
            return
        transport.write(data)

    def close(self) -> None:
        """Close once everything is written."""
        if self._transport is not None:
            self._transport.close()
        self._owner.drop_connection(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._idle is not None:
            self._idle.cancel()
        self._owner.drop_connection(self)
