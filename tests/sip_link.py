"""SIP endpoints joined in memory, on a clock of their own: the link can lose, repeat and reorder."""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Callable, Mapping
from itertools import count

from adapters.sip.dialogs.session import Session
from adapters.sip.endpoint import Effect, Endpoint, Event
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.protection.digest import DigestVerifier, ha1
from adapters.sip.registration.registrar import Registrar
from adapters.sip.targets.failover import Locate
from adapters.sip.targets.location import Target
from adapters.sip.transactions.transaction import Flow, Send

REALM = "pbx.test"
SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"

_tokens = count(1)


def new_token() -> str:
    return f"{next(_tokens):016x}"


class Node:
    """One endpoint at one address.

    Attributes:
        hosts: where host names lead; a name that is not listed leads nowhere.
        asked: names that the endpoint wanted located.
    """

    def __init__(
        self,
        host: str,
        *,
        port: int = 5060,
        trunks: Mapping[str, str] | None = None,
        passwords: Mapping[str, str] | None = None,
        registrar: Registrar | None = None,
        transport: str = "udp",
    ) -> None:
        self.address = (host, port)
        self.transport = transport
        self.events: list[Event] = []
        self.on_event: Callable[[Event], None] | None = None
        self.link: Link | None = None
        self.hosts: dict[str, list[Target]] = {}
        self.asked: list[str] = []
        verifier = DigestVerifier(
            REALM, bytes(range(32)), algorithms=("SHA-256", "MD5"), random_bytes=lambda n: next(_tokens).to_bytes(n)
        )
        self.endpoint = Endpoint(
            network=self,
            policy=AccessPolicy(
                [Trunk(name, (ipaddress.ip_network(net),)) for name, net in (trunks or {}).items()],
                {u: {a: ha1(u, REALM, p, a) for a in ("MD5", "SHA-256")} for u, p in (passwords or {}).items()},
                verifier,
            ),
            registrar=registrar,
            new_token=new_token,
        )

    def local(self, flow: Flow) -> tuple[str, int]:
        return self.address

    def route(self, transport: str, host: str, port: int) -> Flow | None:
        return Flow(transport, 0, host, port)

    def vouch(self, flow: Flow, silence_s: float | None) -> None: ...
    def alias(self, flow: Flow, host: str, port: int, *, trusted: bool) -> None: ...

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                assert self.link is not None
                self.link.post(self, effect)
            elif isinstance(effect, Locate):
                assert self.link is not None
                self.asked.append(str(effect.uri))
                targets = self.hosts.get(effect.uri.host, [])
                self.carry_out(self.endpoint.on_located(effect.ticket, targets, self.link.now))
            else:
                self.events.append(effect)
                if self.on_event is not None:
                    self.on_event(effect)

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.take()]


class Link:
    """Carries what nodes send; `fate` says after which delays a message arrives (none: it is lost)."""

    def __init__(self, *nodes: Node) -> None:
        self.now = 0.0
        self.nodes = {node.address: node for node in nodes}
        self.fate: Callable[[bytes], list[float]] = lambda _: [0.001]
        self.sent: list[tuple[Node, Send]] = []
        self._queue: list[tuple[float, int, Flow, Node, bytes]] = []
        self._order = count()
        for node in nodes:
            node.link = self

    def post(self, sender: Node, message: Send) -> None:
        self.sent.append((sender, message))
        target = self.nodes.get((message.flow.host, message.flow.port))
        if target is None:
            return
        source = Flow(message.flow.transport, 0, *sender.address, 1 if message.flow.reliable else 0)
        for delay in self.fate(message.data):
            heapq.heappush(self._queue, (self.now + delay, next(self._order), source, target, message.data))

    def run(self, until: float | None = None) -> None:
        """Deliver and fire timers up to a time; without one, only what is on the way."""
        while True:
            arrival = self._queue[0][0] if self._queue else None
            if until is None:
                if arrival is None:
                    return
                step = arrival
            else:
                times = [node.endpoint.deadline() for node in self.nodes.values()]
                step = min([at for at in (arrival, *times) if at is not None], default=until)
                if step > until:
                    self.now = until
                    return
                if arrival is None and step == until and all(at is None or at > until for at in times):
                    self.now = until
                    return
            self.now = max(self.now, step)
            if arrival is not None and arrival <= self.now:
                _, _, source, target, data = heapq.heappop(self._queue)
                target.carry_out(target.endpoint.on_message(data, source, self.now))
            if until is not None:
                for node in self.nodes.values():
                    at = node.endpoint.deadline()
                    if at is not None and at <= self.now:
                        node.carry_out(node.endpoint.on_time(self.now))

    def raw(self, target: Node, data: bytes, host: str = "192.0.2.99", port: int = 5060) -> list[bytes]:
        """Hand bytes to a node as if they came from somewhere; what it sends back there."""
        before = len(self.sent)
        target.carry_out(target.endpoint.on_message(data, Flow("udp", 0, host, port), self.now))
        return [s.data for _, s in self.sent[before:] if (s.flow.host, s.flow.port) == (host, port)]


def session_of(node: Node, index: int = 0) -> Session:
    """The session of the node's n-th event."""
    session = getattr(node.events[index], "session", None)
    assert isinstance(session, Session)
    return session
