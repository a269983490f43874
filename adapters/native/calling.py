"""Calls to phones: where an agent's phone is, and its INVITE."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.native.audio import LegAudio
from adapters.native.early_media import EarlyMedia
from adapters.native.exchange import Exchange
from adapters.native.forking import Fork, Phone
from adapters.native.legs import Call, Leg
from adapters.native.parties import ANONYMOUS, forwarded_headers
from adapters.native.trunks import Trunks
from adapters.sip.dialogs.dialog import next_flow
from adapters.sip.dialogs.session import Session, SessionProgress
from adapters.sip.endpoint import Effect
from adapters.sip.registration.registrar import Binding
from adapters.sip.syntax.headers import NameAddr, quoted
from adapters.sip.syntax.uri import SipUri, escape
from adapters.sip.transactions.transaction import Flow
from engine.events import EndCause, LegId, LegRinging, LegTrying
from engine.telephony import Originate


class Calling:
    """The legs that we originate.

    Attributes:
        trunks: ways to the outside.
        contacts: fixed contacts by agent.
    """

    def __init__(self, exchange: Exchange, trunks: Trunks, early_media: EarlyMedia) -> None:
        self._exchange = exchange
        self._early_media = early_media
        self.trunks = trunks
        self.contacts: Mapping[str, SipUri] = {}

    def originate(self, leg_id: LegId, request: Originate) -> None:
        """As `Telephony.originate`."""
        call = self._exchange.calls.get(request.call_id)
        if call is None:
            call = self._exchange.calls[request.call_id] = Call(request.call_id)
        leg = Leg(leg_id, call, LegAudio(self._exchange.next_sdp_session()))
        leg.request = request
        if request.outside is None:
            self._exchange.seat(leg, request.agent_id)
        self._exchange.legs[leg_id] = leg
        call.legs.add(leg_id)
        peer = None if request.peer is None else self._exchange.legs.get(request.peer)
        if peer is not None:
            leg.preferred = peer.audio.codec or peer.preferred
            leg.max_forwards = peer.max_forwards - 1
        if request.outside is None and not self.phones(request.agent_id):
            self._exchange.drop(leg, EndCause.UNREACHABLE, "not registered")
        elif request.outside is not None and not self.trunks.knows(request.outside):
            self._exchange.drop(leg, EndCause.UNREACHABLE, "no such trunk")
        elif leg.max_forwards <= 0:
            self._exchange.drop(leg, EndCause.UNREACHABLE, "too many hops")
        elif not self._exchange.open(leg):
            self._exchange.drop(leg, EndCause.OVERLOADED, "no media worker")

    def phones(self, agent_id: str) -> list[list[Phone]]:
        """Where an agent's phones are: the fixed contact, else what is registered, by preference."""
        contact = self.contacts.get(agent_id)
        if contact is not None:
            return [[Phone(contact)]]
        registrar = self._exchange.endpoint.registrar
        bindings = [] if registrar is None else registrar.bindings(agent_id)
        if len(bindings) < 2:
            return [[_phone_of(binding)] for binding in bindings]
        groups: dict[float, list[Phone]] = {}
        for binding in bindings:
            groups.setdefault(binding.q, []).append(_phone_of(binding))
        return [groups[q] for q in sorted(groups, reverse=True)]

    def invite(self, leg: Leg, request: Originate, port: int) -> None:
        """Send the INVITE of a leg, now that it has an RTP port."""
        if request.outside is not None:
            self.trunks.invite(leg, request, request.outside, port)
            return
        exchange, worker = self._exchange, leg.call.worker
        groups = self.phones(request.agent_id)
        if not groups or worker is None:
            exchange.drop(leg, EndCause.UNREACHABLE, "not registered")
            return
        number = escape(request.caller.number) or "anonymous"
        name = f"{quoted(request.caller.name)} " if request.caller.name else ""
        from_ = f"{name}<sip:{number}@{exchange.settings.domain}>"
        forwarded = request.forwarded
        if forwarded.withheld:
            from_ = ANONYMOUS
        offer = leg.audio.offer(worker.address, port, leg.preferred)
        headers = (*exchange.call_header(leg), *forwarded_headers(forwarded, exchange.settings.domain))
        if request.referred_by:
            headers += (("referred-by", f"<sip:{escape(request.referred_by)}@{exchange.settings.domain}>"),)

        def call(phone: Phone, ring_timeout_s: float, owner: object) -> tuple[Session | None, list[Effect]]:
            session, effects = exchange.endpoint.invite(
                phone.uri,
                offer,
                from_=from_,
                now=exchange.carrier.clock(),
                flow=phone.flow,
                headers=(*headers, ("route", phone.routes)) if phone.routes else headers,
                ring_timeout_s=ring_timeout_s,
                max_forwards=leg.max_forwards,
                owner=owner,
            )
            if session is not None:
                exchange.on_dialog(session.sip_call_id, leg.call.call_id)
            return session, effects

        if len(groups) > 1 or len(groups[0]) > 1:
            exchange.emit(LegTrying(leg.leg_id))
            fork = Fork(exchange, leg, groups, request.ring_timeout_s, call, self.on_progress, self.on_answered)
            leg.fork = fork
            fork.begin()
            return
        leg.session, effects = call(groups[0][0], request.ring_timeout_s, leg)
        if leg.session is None:
            exchange.drop(leg, EndCause.UNREACHABLE, "no transport for the contact")
            return
        exchange.emit(LegTrying(leg.leg_id))
        exchange.run(effects)

    def on_progress(self, leg: Leg, event: SessionProgress) -> None:
        """A phone rings, or is heard already."""
        if event.status > 100:
            self._exchange.changed(leg)
        if event.status == 100 or (event.body and self._early_media.on_description(leg, event.body)):
            return
        if not leg.ringing:
            leg.ringing = True
            self._exchange.emit(LegRinging(leg.leg_id))

    def on_answered(self, leg: Leg, body: bytes) -> None:
        """The phone took the call."""
        if self._exchange.take_answer(leg, body):
            self._exchange.talk(leg)


def _phone_of(binding: Binding) -> Phone:
    flow = binding.flow
    if binding.path:
        first = NameAddr.parse(binding.path[0]).uri
        way = _way_back(first, flow) if isinstance(first, SipUri) else flow
        return Phone(binding.uri, way, ", ".join(binding.path))
    # Where the phone can be connected to, its Contact says how, once its own connection is gone.
    direct = flow.transport in ("tcp", "tls") and not binding.needs_connection
    return Phone(binding.uri, _way_back(binding.uri, flow) if direct else flow, "")


def _way_back(uri: SipUri, flow: Flow) -> Flow:
    """The way to what a REGISTER named, at the address that it came from, whatever host it named.

    Elsewhere may be a carrier, who takes any call that comes from us: whoever knows the password
    of one phone could have calls to it made at our expense, past all routes and their rules.
    """
    way = next_flow(uri, flow, None)
    if way.host == flow.host:
        return way
    if flow.transport == "udp" and way.transport == "udp":
        return flow
    return way._replace(host=flow.host, domain=way.host if way.transport == "tls" else "")
