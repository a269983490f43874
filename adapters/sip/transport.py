"""The endpoint's sockets (asyncio): they carry, they do not decide.

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

from adapters.sip.connections import Connection, ConnectionLimits, Connections
from adapters.sip.datagrams import Datagrams
from adapters.sip.endpoint import Effect, Endpoint, Event
from adapters.sip.errors import PeerError
from adapters.sip.hosts import HostNames
from adapters.sip.transaction import Flow, Send

log = logging.getLogger("murima.sip")

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

    Args:
        limits: for stream connections.

    Attributes:
        counters: what was dropped, by reason.
        hosts: finds the addresses of host names.
    """

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self._owner: Callable[[Event], None] = _nobody
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time
        self._endpoint: Endpoint | None = None
        self._listeners: list[_Listener] = []
        self._udp: dict[int, asyncio.DatagramTransport] = {}
        self._servers: list[asyncio.Server] = []
        self.hosts = HostNames(self.counters)
        self._connections = Connections(self, limits or ConnectionLimits())
        self._connecting: dict[tuple[str, int], list[tuple[Flow, bytes]]] = {}
        self._local_addresses: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
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
            transport, _ = await self._loop.create_datagram_endpoint(partial(Datagrams, self, index), sock=sock)
            self._udp[index] = transport
        for sock in tcp:
            index = self._add_listener("tcp", sock)
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self._servers.append(
                await self._loop.create_server(partial(Connection, self._connections, index), sock=sock)
            )

    async def close(self) -> None:
        """Stop listening and close everything."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for server in self._servers:
            server.close()
        self._connections.close()
        for transport in self._udp.values():
            transport.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hosts.close()
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
            target = host if self.hosts.is_literal(host) else self.hosts.known(host) or "192.0.2.1"
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
        if connection is not None:  # whatever name its owner gave in Contact
            connection.write(data)
            return
        address = flow.host if self.hosts.is_literal(flow.host) else self.hosts.known(flow.host)
        if address is None:
            self.hosts.find(flow.host, self._listeners[flow.local].version, partial(self._on_found, flow, data))
        else:
            self._deliver(flow, address, data)

    def _on_found(self, flow: Flow, data: bytes, address: str | None) -> None:
        if address is None:
            self._unreachable(flow)
        else:
            self._deliver(flow, address, data)

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
        connection = self._connections.towards(address, flow.port)
        if connection is not None:
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
            async with asyncio.timeout(self._connections.limits.connect_s):
                _, connection = await self._loop.create_connection(
                    partial(Connection, self._connections, local),
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
