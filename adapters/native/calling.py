"""Calls to phones: where an agent's phone is, and its INVITE."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.native.audio import LegAudio
from adapters.native.exchange import Exchange
from adapters.native.legs import Call, Leg
from adapters.native.trunks import Trunks
from adapters.sip.dialog import next_flow
from adapters.sip.headers import quoted
from adapters.sip.transaction import Flow
from adapters.sip.uri import SipUri, escape
from engine.events import EndCause, LegId, LegTrying
from engine.telephony import Originate


class Calling:
    """The legs that we originate.

    Attributes:
        trunks: ways to the outside.
        contacts: fixed contacts by agent.
    """

    def __init__(self, exchange: Exchange, trunks: Trunks) -> None:
        self._exchange = exchange
        self.trunks = trunks
        self.contacts: Mapping[str, SipUri] = {}

    def originate(self, leg_id: LegId, request: Originate) -> None:
        """As `Telephony.originate`."""
        call = self._exchange.calls.get(request.call_id)
        if call is None:
            call = self._exchange.calls[request.call_id] = Call(request.call_id)
        leg = Leg(leg_id, call, LegAudio(self._exchange.next_sdp_session()))
        leg.request = request
        leg.user = request.agent_id
        self._exchange.legs[leg_id] = leg
        call.legs.add(leg_id)
        peer = None if request.peer is None else self._exchange.legs.get(request.peer)
        if peer is not None:
            leg.preferred = peer.audio.codec or peer.preferred
            leg.max_forwards = peer.max_forwards - 1
        if request.outside is None and self.target(request.agent_id) is None:
            self._exchange.drop(leg, EndCause.UNREACHABLE, "not registered")
        elif request.outside is not None and not self.trunks.knows(request.outside):
            self._exchange.drop(leg, EndCause.UNREACHABLE, "no such trunk")
        elif leg.max_forwards <= 0:
            self._exchange.drop(leg, EndCause.UNREACHABLE, "too many hops")
        elif not self._exchange.open(leg):
            self._exchange.drop(leg, EndCause.OVERLOADED, "no media worker")

    def target(self, agent_id: str) -> tuple[SipUri, Flow | None] | None:
        """Where an agent's phone is: its fixed contact, else what registered last."""
        contact = self.contacts.get(agent_id)
        if contact is not None:
            return contact, None
        registrar = self._exchange.endpoint.registrar
        bindings = [] if registrar is None else registrar.bindings(agent_id)
        if not bindings:
            return None
        uri, flow = bindings[0].uri, bindings[0].flow
        # Over TCP the Contact is where to connect once the phone's own connection is gone.
        return uri, next_flow(uri, flow, None) if flow.transport == "tcp" else flow

    def invite(self, leg: Leg, request: Originate, port: int) -> None:
        """Send the INVITE of a leg, now that it has an RTP port."""
        if request.outside is not None:
            self.trunks.invite(leg, request, request.outside, port)
            return
        worker = leg.call.worker
        target = self.target(request.agent_id)
        if target is None or worker is None:
            self._exchange.drop(leg, EndCause.UNREACHABLE, "not registered")
            return
        uri, flow = target
        number = escape(request.caller.number) or "anonymous"
        name = f"{quoted(request.caller.name)} " if request.caller.name else ""
        session, effects = self._exchange.endpoint.invite(
            uri,
            leg.audio.offer(worker.address, port, leg.preferred),
            from_=f"{name}<sip:{number}@{self._exchange.settings.domain}>",
            now=self._exchange.carrier.clock(),
            flow=flow,
            headers=self._exchange.call_header(leg),
            ring_timeout_s=request.ring_timeout_s,
            max_forwards=leg.max_forwards,
            owner=leg,
        )
        if session is None:
            self._exchange.drop(leg, EndCause.UNREACHABLE, "no transport for the contact")
            return
        leg.session = session
        self._exchange.on_dialog(session.sip_call_id, leg.call.call_id)
        self._exchange.emit(LegTrying(leg.leg_id))
        self._exchange.run(effects)

    def on_answered(self, leg: Leg, body: bytes) -> None:
        """The phone took the call."""
        if self._exchange.take_answer(leg, body):
            self._exchange.talk(leg)
