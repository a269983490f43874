"""Transfers: a conversation goes on with somebody else.

We stand between the two who talk, so nobody's phone is sent anywhere: the one
who leaves is replaced by a new leg (blind), by the partner of another call of
theirs (attended), or by a phone that asks for the place (`engine.takeovers`).
Until the new party has answered, the old conversation stays as it is.

Who transfers reaches what they could dial themselves, no more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from config.schema import Action, DialOut, RingAgent, Supervise, ToQueue
from engine import events as ev
from engine.call import IN_CONVERSATION, Call, CallState, Leg
from engine.causes import FAILURES
from engine.events import AgentId, EndCause, LegId, Party, QueueId, Source, TransferId, TransferState
from engine.telephony import Originate
from routing.decisions import Connected, ContactRefused, Offer, OfferWithdrawn
from routing.events import ContactLeft, ConversationMoved, DirectRequested, Failure, OfferAccepted, OfferFailed

if TYPE_CHECKING:
    from engine.control import CallControl

log = logging.getLogger("murima.call")

MAX_TRANSFERS = 20
"""Of one call: more is a loop of phones that transfer to each other, or abuse."""


class TransferError(Exception):
    """A transfer cannot begin; `cause` says why, `pending` that another one is in progress."""

    def __init__(self, cause: EndCause, reason: str, *, pending: bool = False) -> None:
        super().__init__(reason)
        self.cause = cause
        self.pending = pending


@dataclass(slots=True)
class Transfer:
    """One transfer in progress.

    Attributes:
        leaving: the leg whose place is given away, and `staying` its partner.
        report: a phone asked for it and hears how it goes.
        leg: the new party's, once it is called.
        gone: who leaves has hung up already; the partner waits for the new party.
        record: where the call goes, conversations are recorded.
        released: `staying` is asked to place the new call itself, and both leave us.
    """

    transfer_id: TransferId
    call: Call
    leaving: Leg
    staying: Leg
    target: str
    report: bool
    leg: Leg | None = None
    gone: bool = False
    released: bool = False
    record: bool = False


class Transfers:
    """All transfers of one call control, whose calls and turns these are."""

    def __init__(self, control: CallControl) -> None:
        self._control = control
        self._ringing: dict[str, Transfer] = {}  # by the router's name of the contact, which is the transfer's

    # --- what is asked --------------------------------------------------------------------

    def on_asked(self, event: ev.LegTransferAsked) -> None:
        """A phone asks for it (REFER)."""
        try:
            self._ask(event)
        except TransferError as exc:
            log.info("transfer.refused", extra={"leg_id": event.leg_id, "cause": exc.cause, "reason": str(exc)})
            state = TransferState.BUSY if exc.pending else TransferState.REFUSED
            self._control.telephony.report_transfer(event.transfer_id, state, exc.cause)

    def _ask(self, event: ev.LegTransferAsked) -> None:
        control = self._control
        call = control.call_of(event.leg_id)
        if call is None:
            raise TransferError(EndCause.NOT_FOUND, "the call has ended")
        leaving = call.legs[event.leg_id]
        if call.agent_of(leaving) is None and self.trunk_of(call, leaving) not in control.settings.transferring_trunks:
            raise TransferError(EndCause.FORBIDDEN, "this trunk may not transfer calls")
        if event.replaces is None:
            self.begin(call, leaving, event.target, by=leaving.side, transfer_id=event.transfer_id, report=True)
            return
        other = control.call_of(event.replaces)
        if other is None:
            raise TransferError(EndCause.NOT_FOUND, "the other call has ended")
        leg = other.legs[event.replaces]
        mine = (call.agent_of(leaving), self.trunk_of(call, leaving))
        if mine != (other.agent_of(leg), self.trunk_of(other, leg)):
            raise TransferError(EndCause.FORBIDDEN, "the other call is somebody else's")
        self.join(call, leaving, other, leg, transfer_id=event.transfer_id, report=True)

    def identity_of(self, call: Call, leg: Leg) -> tuple[Party, Source, ev.Forwarded]:
        """Who a leg is to the party that it is connected to, and what that party is told of it."""
        if leg is call.caller_leg:
            return call.caller, call.source, call.forwarded
        source = Source(agent_id=leg.agent_id) if leg.agent_id is not None else Source(trunk=self.trunk_of(call, leg))
        return Party(leg.agent_id or call.dialled), source, ev.NOTHING_FORWARDED

    def trunk_of(self, call: Call, leg: Leg) -> str | None:
        """The trunk at a leg, if it is none of an agent."""
        return self._control.outbound.trunk_of(leg.leg_id) or (call.source.trunk if leg is call.caller_leg else None)

    def begin(
        self,
        call: Call,
        leaving: Leg,
        target: str,
        *,
        by: str,
        transfer_id: TransferId | None = None,
        report: bool = False,
    ) -> TransferId:
        """Connect the partner of a leg to whatever is dialled as `target` (blind).

        Args:
            call: of the leg; both sides talk.
            leaving: its place is given away.
            target: as the one who leaves would dial it.
            by: agent, caller or operator.
            transfer_id: None: a new one.
            report: a phone asked, and is to be told.

        Raises:
            TransferError: nothing has changed.
        """
        control = self._control
        staying = self.partner(call, leaving)
        source = self._source_of(call, leaving)
        action = control.action_for(target, source)
        if action is None:
            raise TransferError(EndCause.NOT_FOUND, "nobody can be reached there")
        self._check(action, source)
        transfer = Transfer(
            TransferId(control.new_id()) if transfer_id is None else transfer_id, call, leaving, staying, target, report
        )
        self.start(transfer, by)
        self._report(transfer, TransferState.TRYING)
        if isinstance(action, RingAgent):
            transfer.record = action.record
            self._ringing[transfer.transfer_id] = transfer
            control.route(DirectRequested(transfer.transfer_id, action.agent))
        elif isinstance(action, DialOut):
            control.outbound.begin(call, action.dial, source, record=action.record)
        else:
            self._hand_over(transfer, action)
        return transfer.transfer_id

    def join(
        self,
        call: Call,
        leg: Leg,
        other: Call,
        other_leg: Leg,
        *,
        by: str | None = None,
        transfer_id: TransferId | None = None,
        report: bool = False,
    ) -> TransferId:
        """Connect the partners of two legs of the same party, who leaves (attended).

        The older call goes on, the younger one ends. A second call that nobody
        has answered yet becomes a blind transfer to where it went.

        Raises:
            TransferError: nothing has changed.
        """
        control = self._control
        by = by or leg.side
        if call is other:
            raise TransferError(EndCause.FORBIDDEN, "a call cannot be joined with itself")
        if other.state not in IN_CONVERSATION:
            target = other.dialled
            self.partner(call, leg)  # before anything is changed
            if control.action_for(target, self._source_of(call, leg)) is None:
                raise TransferError(EndCause.NOT_FOUND, "nobody can be reached there")
            control.end(other, EndCause.CANCELLED, by="system", detail=f"transferred with call {call.call_id}")
            return self.begin(call, leg, target, by=by, transfer_id=transfer_id, report=report)
        self.partner(other, other_leg)
        if other.started < call.started:
            call, leg, other, other_leg = other, other_leg, call, leg
        staying, partner = self.partner(call, leg), self.partner(other, other_leg)
        if not control.telephony.shares_audio(staying.leg_id, partner.leg_id):
            raise TransferError(EndCause.UNSUPPORTED, "the two calls are on different media workers")
        partner_agent = other.agent_of(partner)
        self.check_partner(call, staying, partner_agent)
        transfer = Transfer(
            TransferId(control.new_id()) if transfer_id is None else transfer_id,
            call,
            leg,
            staying,
            other.dialled,
            report,
            leg=partner,
        )
        self.start(transfer, by, attended=True, other=other)
        other.transfers += 1
        self._report(transfer, TransferState.TRYING)
        # The partner leaves the younger call before that one ends.
        control.telephony.unbridge(other_leg.leg_id, partner.leg_id)
        control.telephony.stop_play(partner.leg_id)
        del other.legs[partner.leg_id]
        control.telephony.move_leg(partner.leg_id, call.call_id)
        if partner is other.caller_leg:
            partner.agent_id = partner_agent
        control.adopt(call, partner)
        if partner_agent is not None:
            control.route(ConversationMoved(other.call_id, partner_agent, call.call_id))
        self._complete(transfer, other=other)
        control.end(other, EndCause.NORMAL, by=by, detail=f"joined with call {call.call_id}")
        return transfer.transfer_id

    def release(self, call: Call, leg: Leg, target: str, *, by: str) -> TransferId:
        """Ask the far side of a leg to place the new call itself (REFER); the call ends when it has.

        Raises:
            TransferError: nothing has changed.
        """
        control = self._control
        staying = self.partner(call, leg)
        if call.agent_of(staying) is None and call.agent_of(leg) is None:
            raise TransferError(EndCause.FORBIDDEN, "no agent is in this call")
        transfer = Transfer(TransferId(control.new_id()), call, staying, leg, target, report=False, released=True)
        self.start(transfer, by)
        control.telephony.refer(leg.leg_id, transfer.transfer_id, target)
        return transfer.transfer_id

    def on_referred(self, event: ev.LegReferred) -> None:
        """The far side tells how its new call goes."""
        call = self._control.call_of(event.leg_id)
        transfer = None if call is None else call.transfer
        if call is None or transfer is None or transfer.transfer_id != event.transfer_id:
            return
        if event.state is TransferState.DONE:
            self._settle(transfer)
            self._publish_done(transfer)
            self._control.end(call, EndCause.NORMAL, by="system", detail=f"transferred to {transfer.target} by REFER")
        elif event.state in (TransferState.REFUSED, TransferState.FAILED, TransferState.BUSY):
            self._fail(transfer, event.cause)

    # --- operators ------------------------------------------------------------------------

    def ask(
        self,
        call: Call,
        target: str,
        *,
        by: str,
        agent_id: AgentId | None = None,
        attended: bool = False,
        release: bool = False,
    ) -> TransferId:
        """Transfer a call on somebody's word, without a phone asking.

        Args:
            call: the one that goes on.
            target: what is dialled; with `attended` the agent or number in the agent's other call, or empty.
            by: agent or operator.
            agent_id: who leaves; None: the agent in the call.
            attended: join the call with the other call of the agent.
            release: let the caller's side place the new call (REFER).

        Raises:
            TransferError: nothing has changed.
        """
        if call.state not in IN_CONVERSATION and agent_id is None and not (attended or release):
            return self._redirect(call, target, by)
        leaving = self._agents_leg(call, agent_id)
        if attended:
            agent = call.agent_of(leaving)
            other = self._other_call(call, agent, target)
            return self.join(call, leaving, other, self._agents_leg(other, agent), by=by)
        if release:
            if self._control.action_for(target, self._source_of(call, leaving)) is None:
                raise TransferError(EndCause.NOT_FOUND, "nobody can be reached there")
            return self.release(call, self.partner(call, leaving), target, by=by)
        return self.begin(call, leaving, target, by=by)

    def _agents_leg(self, call: Call, agent_id: AgentId | None) -> Leg:
        for leg in (call.agent, call.caller_leg):
            agent = None if leg is None else call.agent_of(leg)
            if leg is not None and agent is not None and agent_id in (None, agent):
                return leg
        raise TransferError(EndCause.UNSUPPORTED, "no agent is in this call")

    def _other_call(self, call: Call, agent_id: AgentId | None, target: str) -> Call:
        for other in self._control.calls.values():
            if other is call or other.over or agent_id not in (other.source.agent_id, other.agent_id):
                continue
            if target in ("", other.dialled, other.agent_id, other.caller.number):
                return other
        raise TransferError(EndCause.NOT_FOUND, "the agent is in no such other call")

    def _redirect(self, call: Call, target: str, by: str) -> TransferId:
        """Send a caller who talks to nobody elsewhere."""
        control = self._control
        action = control.action_for(target, Source(call.source.trunk, call.source.agent_id))
        if action is None and control.router.agent(target) is not None:
            action = RingAgent(agent=target)
        if action is None:
            raise TransferError(EndCause.NOT_FOUND, "nobody can be reached there")
        self._check(action, call.source)
        if call.over or call.agent is not None or call.transfers >= MAX_TRANSFERS:
            raise TransferError(EndCause.BUSY, "the call cannot be transferred in this moment", pending=True)
        call.transfers += 1
        transfer_id = TransferId(control.new_id())
        control.publish(ev.TransferStarted, call, transfer_id=transfer_id, by=by, target=target)
        if call.queue_id is not None:
            wait_s = round(control.clock.monotonic() - call.joined, 3)
            control.publish(ev.QueueLeft, call, outcome="transferred", wait_s=wait_s)
        control.route(ContactLeft(call.call_id))
        control.outbound.withdraw(call)
        control.telephony.stop_play(call.caller_leg.leg_id)
        call.queue_id = call.music = None
        control.publish(ev.TransferCompleted, call, transfer_id=transfer_id, target=target)
        if call.placed and not call.caller_leg.answered:
            call.action = action  # begins when the agent answers
        else:
            control.begin(call, action)
        return transfer_id

    # --- the new party --------------------------------------------------------------------

    def on_offer(self, offer: Offer) -> bool:
        """The router lets an agent be rung; False if this is no transfer's."""
        transfer = self._ringing.get(offer.contact_id)
        if transfer is None:
            return False
        control = self._control
        agent_id = AgentId(offer.agent_id)
        call = transfer.call
        leg = transfer.leg = Leg(LegId(control.new_id()), "agent", agent_id)
        control.adopt(call, leg)
        control.publish(ev.OfferMade, call, agent_id=agent_id, explanation=offer.explanation.as_data())
        log.info("offer.made", extra={"call_id": call.call_id, "queue": None, "agent_id": agent_id})
        caller, _, forwarded = self.identity_of(call, transfer.staying)
        control.telephony.originate(
            leg.leg_id,
            Originate(
                call_id=call.call_id,
                agent_id=agent_id,
                caller=caller,
                peer=transfer.staying.leg_id,
                ring_timeout_s=offer.ring_timeout_s,
                forwarded=forwarded,
                referred_by=call.agent_of(transfer.leaving) or "",
            ),
        )
        return True

    def replace_ringing(self, transfer: Transfer, leg: Leg) -> None:
        """Another phone picks up what rings for a transfer: the router places it no longer."""
        ringing = transfer.leg
        transfer.leg = leg
        del self._ringing[transfer.transfer_id]
        self._control.route(ContactLeft(transfer.transfer_id))
        if ringing is not None:
            self._control.telephony.hang_up(ringing.leg_id, EndCause.TAKEN)

    def on_ringing(self, transfer: Transfer) -> None:
        """The new party's phone rings."""
        self._control.outbound.on_ringing(transfer.call)
        self._report(transfer, TransferState.RINGING)

    def on_answered(self, transfer: Transfer) -> None:
        """The new party has answered."""
        leg = transfer.leg
        assert leg is not None
        if transfer.transfer_id in self._ringing and leg.agent_id is not None:
            self._control.route(OfferAccepted(transfer.transfer_id, leg.agent_id))
        else:
            self._complete(transfer)

    def on_connected(self, decision: Connected) -> None:
        """The router agrees that they talk."""
        transfer = self._ringing.get(decision.contact_id)
        if transfer is not None:
            self._complete(transfer)

    def on_withdrawn(self, decision: OfferWithdrawn) -> None:
        """The router takes the offer back."""
        transfer = self._ringing.get(decision.contact_id)
        if transfer is not None and transfer.leg is not None and transfer.leg.agent_id == decision.agent_id:
            leg, transfer.leg = transfer.leg, None
            leg.side = "leaving"
            self._control.telephony.hang_up(leg.leg_id, EndCause.CANCELLED)

    def on_refused(self, decision: ContactRefused, cause: EndCause) -> None:
        """The agent cannot be rung, or did not answer."""
        transfer = self._ringing.get(decision.contact_id)
        if transfer is not None:
            self._fail(transfer, cause)

    def on_unreached(self, transfer: Transfer, cause: EndCause) -> None:
        """The number outside does not answer."""
        self._fail(transfer, cause)

    def on_ended(self, transfer: Transfer, leg: Leg, event: ev.LegEnded) -> bool:
        """A leg of the call has ended; False if its end is that of the call."""
        control = self._control
        call = transfer.call
        if leg is transfer.leg:
            if leg.agent_id is not None and transfer.transfer_id in self._ringing:
                control.publish(ev.OfferFailed, call, agent_id=leg.agent_id, cause=event.cause)
                failure = FAILURES.get(event.cause, Failure.FAILED)
                control.route(OfferFailed(transfer.transfer_id, leg.agent_id, failure))
            elif control.outbound.is_dialling(call):
                control.outbound.on_failed(call, event)
            else:
                # It wanted a leg's place.
                if leg.agent_id is not None and (transfer.gone or leg.agent_id != call.agent_of(transfer.leaving)):
                    control.part(call.call_id, leg.agent_id, phone_lost=leg.lost)
                self._fail(transfer, event.cause)
            return True
        if leg is not transfer.leaving or transfer.released:
            return False
        transfer.gone = True
        self._part(transfer)
        call.state = CallState.RINGING
        if call.music is not None:
            control.play(transfer.staying.leg_id, call.music, loop=True)
        return True

    def on_call_over(self, transfer: Transfer) -> None:
        """The call ends before the new party has answered."""
        self._settle(transfer)
        self._control.route(ContactLeft(transfer.transfer_id))
        self._publish_failed(transfer, EndCause.CANCELLED)

    # --- outcomes -------------------------------------------------------------------------

    def _complete(self, transfer: Transfer, other: Call | None = None) -> None:
        """The new party has answered: it takes the place of the one who leaves."""
        control = self._control
        call, leg = transfer.call, transfer.leg
        assert leg is not None
        self._settle(transfer)
        self._leave(transfer)
        leg.side = "callee" if leg.agent_id is None else "agent"
        leg.trunk = self.trunk_of(call, leg)
        call.agent = leg
        call.record = call.record or transfer.record
        if leg.agent_id is not None:
            control.route(ConversationMoved(transfer.transfer_id, leg.agent_id, call.call_id))
        control.talk(call)
        self._report(transfer, TransferState.DONE)
        self._publish_done(transfer, other)
        control.telephony.hang_up(transfer.leaving.leg_id)

    def _hand_over(self, transfer: Transfer, action: Action) -> None:
        """To where nobody has to answer first: a queue, a prompt."""
        control = self._control
        call = transfer.call
        authority = self._source_of(call, transfer.leaving)
        self._settle(transfer)
        self._leave(transfer)
        call.agent = None
        call.talk_started = call.talk_started_at = None
        call.queue_id = None
        self._report(transfer, TransferState.DONE)
        self._publish_done(transfer)
        control.telephony.hang_up(transfer.leaving.leg_id)
        control.begin(call, action, authority=authority)
        control.save(call)

    def _fail(self, transfer: Transfer, cause: EndCause) -> None:
        """The new party did not take the call: the old conversation goes on, if there still is one."""
        control = self._control
        self._settle(transfer)
        self._publish_failed(transfer, cause)
        leg = transfer.leg
        if leg is not None and not transfer.released:
            leg.side = "leaving"
            control.telephony.hang_up(leg.leg_id, EndCause.CANCELLED)
        if transfer.gone:
            control.end(transfer.call, cause, by="system", detail="the transfer failed")

    def start(self, transfer: Transfer, by: str, *, attended: bool = False, other: Call | None = None) -> None:
        """It is in progress from now on."""
        call = transfer.call
        call.transfer = transfer
        call.transfers += 1
        self._control.publish(
            ev.TransferStarted,
            call,
            transfer_id=transfer.transfer_id,
            by=by,
            target=transfer.target,
            from_agent=call.agent_of(transfer.leaving),
            attended=attended,
            released=transfer.released,
            other_call=None if other is None else other.call_id,
        )
        log.info("transfer.started", extra={"call_id": call.call_id, "by": by, "attended": attended})

    def _settle(self, transfer: Transfer) -> None:
        """It is no longer in progress, whatever its outcome."""
        transfer.call.transfer = None
        self._ringing.pop(transfer.transfer_id, None)
        self._control.outbound.on_over(transfer.call)

    def _leave(self, transfer: Transfer) -> None:
        """Who leaves gives up the place; the partner stays as the call's caller."""
        control = self._control
        call, leaving, staying = transfer.call, transfer.leaving, transfer.staying
        if not transfer.gone:
            self._part(transfer)
            control.telephony.unbridge(leaving.leg_id, staying.leg_id)
        control.telephony.stop_play(staying.leg_id)
        leaving.side = "leaving"
        if staying is not call.caller_leg:
            agent_id = staying.agent_id
            call.caller, call.source, call.forwarded = self.identity_of(call, staying)
            call.caller_leg = staying
            staying.side = "caller"
            if agent_id is not None:  # the call may be offered to agents under its own name again
                control.route(ConversationMoved(call.call_id, agent_id, call.call_id))

    def _part(self, transfer: Transfer) -> None:
        """The conversation of the one who leaves is over."""
        control = self._control
        call, leaving = transfer.call, transfer.leaving
        if call.talk_started is not None:
            if call.state is CallState.HELD:
                control.holding.on_part(call)
            talk_s = round(control.clock.monotonic() - call.talk_started, 3)
            control.publish(ev.TalkEnded, call, agent_id=call.agent_of(leaving), talk_s=talk_s)
            call.talk_started = call.talk_started_at = None
        agent_id = call.agent_of(leaving)
        stays = transfer.leg is not None and transfer.leg.agent_id == agent_id  # on another phone
        if agent_id is not None and not stays:
            control.part(call.call_id, agent_id, phone_lost=leaving.lost)

    def _report(self, transfer: Transfer, state: TransferState, cause: EndCause = EndCause.NORMAL) -> None:
        if transfer.report:
            self._control.telephony.report_transfer(transfer.transfer_id, state, cause)

    def _publish_done(self, transfer: Transfer, other: Call | None = None) -> None:
        to_agent = None if transfer.leg is None else transfer.leg.agent_id
        self._control.publish(
            ev.TransferCompleted,
            transfer.call,
            transfer_id=transfer.transfer_id,
            target=transfer.target,
            to_agent=to_agent,
            other_call=None if other is None else other.call_id,
        )
        log.info("transfer.completed", extra={"call_id": transfer.call.call_id, "to_agent": to_agent})

    def _publish_failed(self, transfer: Transfer, cause: EndCause) -> None:
        self._report(transfer, TransferState.FAILED, cause)
        self._control.publish(
            ev.TransferFailed, transfer.call, transfer_id=transfer.transfer_id, target=transfer.target, cause=cause
        )
        log.info("transfer.failed", extra={"call_id": transfer.call.call_id, "cause": cause})

    # --- checks ---------------------------------------------------------------------------

    def partner(self, call: Call, leg: Leg) -> Leg:
        """The leg that talks with `leg`, which may leave now.

        Raises:
            TransferError: it may not.
        """
        if call.transfer is not None:
            raise TransferError(EndCause.BUSY, "another transfer of this call is in progress", pending=True)
        if call.transfers >= MAX_TRANSFERS:
            raise TransferError(EndCause.FORBIDDEN, f"this call was transferred {MAX_TRANSFERS} times")
        partner = call.other(leg)
        if (
            call.over
            or call.state not in IN_CONVERSATION
            or partner is None
            or leg not in (call.caller_leg, call.agent)
        ):
            raise TransferError(EndCause.UNSUPPORTED, "there is nobody to be transferred")
        return partner

    def check_partner(self, call: Call, staying: Leg, agent_id: AgentId | None) -> None:
        """Whether `staying` may talk with an agent: not with the own other phone, where one end would free both.

        Raises:
            TransferError: it may not.
        """
        if agent_id is not None and agent_id == call.agent_of(staying):
            raise TransferError(EndCause.FORBIDDEN, "nobody talks with themselves")

    def _source_of(self, call: Call, leg: Leg) -> Source:
        """Whose rights a transfer uses: those of the one who leaves."""
        agent_id = call.agent_of(leg)
        return Source(agent_id=agent_id) if agent_id is not None else Source(trunk=self.trunk_of(call, leg))

    def _check(self, action: Action, source: Source) -> None:
        """Whether a call may be sent there on the word of `source`.

        Raises:
            TransferError: it may not.
        """
        if isinstance(action, Supervise):
            raise TransferError(EndCause.FORBIDDEN, "a call cannot be transferred into supervision")
        if isinstance(action, DialOut) and not self._control.outbound.may_dial_out(source):
            raise TransferError(EndCause.FORBIDDEN, "this trunk may not dial out")
        if isinstance(action, ToQueue):
            status = self._control.router.queue(QueueId(action.queue))
            if status is None:
                raise TransferError(EndCause.NOT_FOUND, "there is no such queue")
            if not status.members:
                raise TransferError(EndCause.UNREACHABLE, "nobody serves this queue")
