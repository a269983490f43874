"""The endpoint's sockets (asyncio): they carry, they do not decide.

Listening sockets come ready bound from whoever starts the process. One timer
serves all deadlines of the stack. What one peer sends never disturbs the rest:
it is refused, dropped or counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import ip_address

from adapters.sip.endpoint import Effect, Endpoint, Event
from adapters.sip.errors import PeerError
from adapters.sip.protection.congestion import widen
from adapters.sip.targets.dns import DnsSettings
from adapters.sip.targets.failover import Locate
from adapters.sip.targets.location import DEFAULT_PORTS, Target, is_address
from adapters.sip.targets.locator import Locator
from adapters.sip.trace import SipTrace
from adapters.sip.transactions.transaction import Flow, Send
from adapters.sip.transports.connections import ConnectionLimits, Connections, KeepAliveTimes
from adapters.sip.transports.connector import Connector
from adapters.sip.transports.datagrams import Datagrams
from adapters.sip.transports.stream import PING
from adapters.sip.transports.websocket import WebSocketLink

log = logging.getLogger("murima.sip")

_REMEMBERED_HOSTS = 4096
_FAULT_LOG_INTERVAL_S = 1.0
_UDP_PING_FIRST_S, _UDP_PING_LAST_S = 24.0, 29.0


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
        keep_alive: for connections of ours.
        dns: whom to ask for host names; None: the system's name servers.

    Attributes:
        counters: what was dropped, by reason.
        hosts: finds the addresses of host names.
        trace: keeps what comes and goes; None: nothing does.
    """

    def __init__(
        self,
        limits: ConnectionLimits | None = None,
        keep_alive: KeepAliveTimes | None = None,
        dns: DnsSettings | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.trace: SipTrace | None = None
        self._owner: Callable[[Event], None] = _nobody
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time
        self._endpoint: Endpoint | None = None
        self._listeners: list[_Listener] = []
        self._udp: dict[int, asyncio.DatagramTransport] = {}
        self.hosts = Locator(self.counters, dns)
        self._connections = Connections(
            self, limits or ConnectionLimits(), keep_alive or KeepAliveTimes(), self._is_trunk
        )
        self._connector = Connector(self, self._connections)
        self._kept: dict[Flow, asyncio.TimerHandle] = {}
        self._local_addresses: dict[str, str] = {}
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
        tls: Sequence[socket.socket] = (),
        *,
        tls_server: ssl.SSLContext | None = None,
        tls_client: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Serve an endpoint.

        Args:
            endpoint: made with this transport as its network.
            owner: gets the endpoint's events, at once and in order.
            udp: bound sockets; they belong to us from now on.
            tcp: bound or listening sockets; likewise.
            tls: the same, for TLS.
            tls_server: for connections of peers; needed with `tls`.
            tls_client: gives the context for a connection of ours, or raises OSError; needed to open
                any over TLS. The names of peers are compared here (RFC 5922), not by the context.
        """
        self._endpoint = endpoint
        self._owner = owner
        for sock in udp:
            index = self._add_listener("udp", sock)
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            widen(sock)
            transport, _ = await self._loop.create_datagram_endpoint(partial(Datagrams, self, index), sock=sock)
            self._udp[index] = transport
        self._connector.tls = tls_client
        for kind, context, sockets in (("tcp", None, tcp), ("tls", tls_server, tls)):
            for sock in sockets:
                if kind == "tls" and context is None:
                    raise ValueError("a TLS listener needs a certificate")
                self._connector.listen(sock, self._add_listener(kind, sock), context)
        self.hosts.ways = self._ways()

    def serve_web(self, host: str, port: int, *, secure: bool) -> None:
        """Take WebSockets (`on_web_socket`) of the HTTP server that listens here; WSS if `secure`."""
        address = ip_address(host)
        transport = "wss" if secure else "ws"
        self._listeners.append(
            _Listener(transport, host, port, address.is_loopback, address.is_unspecified, address.version)
        )

    def on_web_socket(
        self, peer: tuple[str, int], send: Callable[[bytes], None], close: Callable[[], None]
    ) -> WebSocketLink | None:
        """A WebSocket was opened (RFC 7118).

        Args:
            peer: address and port of the client.
            send: puts one message into a frame, at once.
            close: ends the WebSocket.

        Returns:
            What is to be told of its messages and its end; None: it is to be refused (503).
        """
        index = next((at for at, item in enumerate(self._listeners) if item.transport in ("ws", "wss")), None)
        if index is None or not self.accepts(peer[0]) or not self._connections.admit(peer[0]):
            return None
        link = WebSocketLink(self._connections, self._listeners[index].transport, index, peer, send, close)
        return link if link.number else None

    def replace_limits(self, limits: ConnectionLimits) -> None:
        """Put other limits in force; connections that are up stay."""
        self._connections.limits = limits

    async def close(self) -> None:
        """Stop listening and close everything."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._connections.close()
        for flow in tuple(self._kept):
            self.let_go(flow)
        for transport in self._udp.values():
            transport.close()
        await self._connector.close()
        await self.hosts.close()
        await asyncio.sleep(0)  # lets the transports close their sockets

    @property
    def connections(self) -> int:
        """How many connections are open, WebSockets included."""
        return len(self._connections)

    # --- Network --------------------------------------------------------------------------

    def local(self, flow: Flow) -> tuple[str, int]:
        listener = self._listeners[flow.local]
        if listener.transport != flow.transport:  # a dialog that goes on over another transport
            found = self.route(flow.transport, flow.host, flow.port)
            listener = listener if found is None else self._listeners[found.local]
        if not listener.wildcard:
            return listener.host, listener.port
        return self._address_towards(flow.host, listener.version), listener.port

    def route(self, transport: str, host: str, port: int) -> Flow | None:
        """The best listener of that transport: same address family, loopback for loopback."""
        version, loopback = _family(host)
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
            target = host if is_address(host) else self.hosts.known(host) or "192.0.2.1"
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

    def vouch(self, flow: Flow, silence_s: float | None) -> None:
        link = self._connections.get(flow.connection)
        if link is not None:
            link.vouch(silence_s)

    def alias(self, flow: Flow, host: str, port: int, *, trusted: bool) -> None:
        link = self._connections.get(flow.connection)
        if link is not None and (link.certified(host) if flow.transport == "tls" else trusted):
            self._connections.alias(link, port, host if flow.transport == "tls" else "")

    def keep_open(self, flow: Flow) -> None:
        """Keep NATs from forgetting a UDP flow of ours (RFC 5626 4.4.2); connections are pinged anyway."""
        if flow.transport == "udp" and flow not in self._kept:
            delay = random.uniform(_UDP_PING_FIRST_S, _UDP_PING_LAST_S)  # noqa: S311 - spreads load, protects nothing
            self._kept[flow] = self._loop.call_later(delay, self._on_ping_due, flow)

    def let_go(self, flow: Flow) -> None:
        """The opposite of `keep_open`; safe to repeat."""
        timer = self._kept.pop(flow, None)
        if timer is not None:
            timer.cancel()

    def _on_ping_due(self, flow: Flow) -> None:
        del self._kept[flow]
        transport = self._udp.get(flow.local)
        if self._closed or transport is None or transport.is_closing():
            return
        if is_address(flow.host):
            transport.sendto(PING, (flow.host, flow.port))
        self.keep_open(flow)

    # --- effects --------------------------------------------------------------------------

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the endpoint wants, and set the timer to its next deadline."""
        for effect in effects:
            if isinstance(effect, Send):
                self.send(effect.flow, effect.data)
            elif isinstance(effect, Locate):
                self.hosts.locate(effect.uri, partial(self._on_located, effect.ticket))
            else:
                self._owner(effect)
        self._arm()

    def _on_located(self, ticket: int, targets: Sequence[Target]) -> None:
        if self._endpoint is not None and not self._closed:
            self._guarded(self._endpoint.on_located, ticket, targets, self._loop.time())

    def send(self, flow: Flow, data: bytes) -> None:
        """Put bytes on the wire; failures come back to the endpoint."""
        if self.trace is not None:
            self.trace.on_sent(flow, data)
        link = self._connections.get(flow.connection) if flow.connection else None
        if link is not None:  # whatever name its owner gave in Contact
            self._connector.write(link, flow, data)
            return
        if flow.transport in ("ws", "wss"):  # only the client opens these
            self._unsendable(flow)
            return
        address = flow.host if is_address(flow.host) else self.hosts.known(flow.host)
        if address is None:
            self.hosts.find(flow.host, self._listeners[flow.local].version, partial(self._on_found, flow, data))
        else:
            self._deliver(flow, address, data)

    def _on_found(self, flow: Flow, data: bytes, address: str | None) -> None:
        if address is None:
            self.on_unreachable(flow)
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
        listener = self._listeners[flow.local]
        # Peers may know us by the address we listen at.
        self._connector.send(flow, address, data, None if listener.wildcard else listener.host)

    def _unsendable(self, flow: Flow) -> None:
        self.counters["sip_unsendable_total"] += 1
        self._loop.call_soon(self.on_unreachable, flow)  # once the command that wanted it has returned

    def _arm(self) -> None:
        endpoint = self._endpoint
        if endpoint is None or self._closed:
            return
        timer = self._timer
        if timer is not None and not endpoint.is_due_before(self._timer_at - 0.001):
            return  # an early timer costs less than moving it with each message
        at = endpoint.deadline()
        if at is None or (timer is not None and self._timer_at <= at + 0.001):
            return
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
        endpoint = self._endpoint
        if endpoint is None or self._closed:
            return
        guard, now = endpoint.guard, self._loop.time()
        if guard is not None and guard.closed and guard.blocks(flow.host, now):  # nor does it crowd the trace
            connection = self._connections.get(flow.connection)
            if connection is not None:
                connection.close()
            return
        if self.trace is not None:
            self.trace.on_received(flow, data)
        self._guarded(endpoint.on_message, data, flow, now)

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

    def accepts(self, address: str) -> bool:
        """Whether a connection from an IP address is to be accepted."""
        return self._endpoint is not None and self._endpoint.accepts(address, self._loop.time())

    def on_connection_lost(self, number: int, flows: list[Flow]) -> None:
        """A connection has ended: what waits for answers on it need not wait any longer."""
        self._loop.call_soon(self._lost, number, flows)

    def _lost(self, number: int, flows: list[Flow]) -> None:
        if self._endpoint is not None and not self._closed:
            self._guarded(self._endpoint.on_connection_lost, number, flows, self._loop.time())

    def _is_trunk(self, address: str) -> bool:
        return self._endpoint is not None and self._endpoint.policy.trunk_at(address) is not None

    def on_unreachable(self, flow: Flow) -> None:
        """What was to be sent to `flow` is lost."""
        if self._endpoint is not None and not self._closed:
            self._guarded(self._endpoint.on_unreachable, flow, self._loop.time())

    def _ways(self) -> list[tuple[str, int]]:
        """Transports and IP versions that we can send by: UDP first, then in the order of our listeners."""
        found = [(item.transport, item.version) for item in self._listeners if item.transport in DEFAULT_PORTS]
        if self._connector.tls is None:
            found = [way for way in found if way[0] != "tls"]
        return sorted(dict.fromkeys(found), key=lambda way: list(DEFAULT_PORTS).index(way[0]))

    # --- start-up -------------------------------------------------------------------------

    def _add_listener(self, transport: str, sock: socket.socket) -> int:
        host, port = sock.getsockname()[:2]
        address = ip_address(host.partition("%")[0])
        self._listeners.append(
            _Listener(transport, host, port, address.is_loopback, address.is_unspecified, address.version)
        )
        return len(self._listeners) - 1


@lru_cache(maxsize=4096)
def _family(host: str) -> tuple[int, bool]:
    """IP version, and whether this is the loopback; a name is taken for a public IPv4 address."""
    try:
        address = ip_address(host)
    except ValueError:
        return 4, False
    return address.version, address.is_loopback


def _nobody(_: Event) -> None:
    """Before the start there is nothing to report."""
