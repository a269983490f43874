"""Call control: joins phones (`Telephony`), the router and the event log.

Leg events and operators' commands come in; commands to the telephony provider,
events to the router and log events come out. It knows neither SIP nor RTP, does
no I/O and has no clock of its own.

Everything happens in turns. A provider may report an event from inside a
command (a phone that cannot be reached fails at once); such events wait until
the turn is over, so no handler ever sees half a change.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from config.numbers import DialPlan, is_pattern
from config.schema import Action, AnswerSilence, DialOut, EchoBack, PlayPrompt, RingAgent, Supervise, ToQueue
from engine import events as ev
from engine import orphans, snapshot
from engine.bus import EventBus
from engine.call import Call, CallState, Leg
from engine.causes import FAILURES, PHONE_FAILURES, REFUSALS
from engine.clock import Clock
from engine.events import AgentId, CallId, EndCause, LegId, PlayId, QueueId, TransferId
from engine.holding import Holding
from engine.identity import IdSource
from engine.outbound import OutboundCalls, OutboundRules
from engine.takeovers import Takeovers
from engine.telephony import Originate, Telephony
from engine.transfers import Transfers
from routing.decisions import (
    AgentChanged,
    Connected,
    ContactRefused,
    Decision,
    Offer,
    OfferWithdrawn,
    Withdrawal,
)
from routing.events import (
    AgentOccupied,
    AgentReachable,
    AgentStateAsked,
    ContactArrived,
    ContactLeft,
    ConversationEnded,
    ConversationMoved,
    DirectRequested,
    Event,
    Failure,
    OfferAccepted,
    OfferFailed,
    SettingsReplaced,
    TimeAdvanced,
)
from routing.model import AgentState, RoutingSettings
from routing.router import Router

log = logging.getLogger("murima.call")


@dataclasses.dataclass(frozen=True, slots=True)
class QueueCare:
    """What callers of a queue get from call control: hold music and recording."""

    music: str | None = None
    record: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ControlSettings:
    """Everything that a configuration document decides here."""

    dial_plan: DialPlan
    routing: RoutingSettings
    queues: Mapping[str, QueueCare]
    supervising_trunks: frozenset[str] = frozenset()
    transferring_trunks: frozenset[str] = frozenset()
    outbound: OutboundRules = dataclasses.field(default_factory=OutboundRules)


class CallControl:
    """All calls of this engine."""

    def __init__(
        self,
        telephony: Telephony,
        settings: ControlSettings,
        bus: EventBus,
        clock: Clock,
        new_id: IdSource,
        on_deadline: Callable[[float | None], None] = lambda _: None,
        draw: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Join the parts.

        `on_deadline` is told the monotonic time at which `on_time` is due, whenever it may have changed.
        `draw` gives random numbers from 0 up to 1, which share calls out among trunks.
        """
        self.telephony = telephony
        self.settings = settings
        self.bus = bus
        self.clock = clock
        self.new_id = new_id
        self._on_deadline = on_deadline
        self.router = Router(settings.routing, clock.monotonic())
        self.calls: dict[CallId, Call] = {}
        self.orphans: dict[CallId, snapshot.CallSnapshot] = {}
        self.holding = Holding(self)
        self.transfers = Transfers(self)
        self._takeovers = Takeovers(self, self.transfers)
        self.outbound = OutboundCalls(self, settings.outbound, draw)
        self._call_by_leg: dict[LegId, Call] = {}
        self._second_calls: dict[AgentId, list[CallId]] = {}  # placed by agents who were talking already
        self._inbox: deque[ev.LegEvent] = deque()
        self._in_turn = False

    # --- what comes in ------------------------------------------------------------------

    def start(self) -> None:
        """Begin: agents who are ready at start are reported so."""
        with self.turn():
            self.route(TimeAdvanced())

    def on_leg_event(self, event: ev.LegEvent) -> None:
        """Take what the telephony provider reports."""
        self._inbox.append(event)
        if not self._in_turn:
            self._in_turn = True
            self._end_turn()

    def on_time(self) -> None:
        """Let time pass; due at the last deadline announced, harmless at any other time."""
        with self.turn():
            self.route(TimeAdvanced())

    def replace_settings(self, settings: ControlSettings) -> None:
        """Activate another configuration; calls go on, waiting callers get the new rules."""
        with self.turn():
            self.settings = settings
            self.outbound.replace(settings.outbound)
            self.route(SettingsReplaced(settings.routing))

    def ask_agent_state(self, agent_id: AgentId, state: AgentState, reason: str) -> None:
        """An agent (or a supervisor for one) asks for ready, break or offline."""
        with self.turn():
            self.route(AgentStateAsked(agent_id, state, reason))

    def hang_up(self, call_id: CallId, cause: EndCause = EndCause.NORMAL) -> bool:
        """End a call on an operator's word; False when there is no such call."""
        call = self.calls.get(call_id)
        if call is None:
            return False
        with self.turn():
            self.end(call, cause, by="system")
        return True

    def place(self, agent_id: AgentId, number: str) -> CallId | None:
        """Ring an agent, then call a number for them; None: nobody can be reached there."""
        with self.turn():
            call = self.outbound.place(agent_id, number)
        return None if call is None else call.call_id

    def transfer(self, call_id: CallId, target: str, **how: Any) -> TransferId | None:
        """Connect a call elsewhere on somebody's word (`Transfers.ask`); None when there is no such call.

        Raises:
            TransferError: it cannot be done; nothing has changed.
        """
        call = self.calls.get(call_id)
        if call is None:
            return None
        with self.turn():
            return self.transfers.ask(call, target, **how)

    def hold(self, call_id: CallId, *, by: str) -> bool:
        """Put a call on hold on somebody's word (`Holding.hold`); False when there is no such call.

        Raises:
            HoldError: it cannot be done; nothing has changed.
        """
        call = self.calls.get(call_id)
        if call is None:
            return False
        with self.turn():
            self.holding.hold(call, by=by)
        return True

    def resume(self, call_id: CallId) -> bool:
        """End such a hold; False when there is no such call.

        Raises:
            HoldError: the call is not held so; nothing has changed.
        """
        call = self.calls.get(call_id)
        if call is None:
            return False
        with self.turn():
            self.holding.resume(call)
        return True

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._in_turn = True
        try:
            yield
        except BaseException:
            self._close_turn()
            raise
        self._end_turn()

    def _end_turn(self) -> None:
        """Take what was reported meanwhile."""
        try:
            while self._inbox:
                event = self._inbox.popleft()
                try:
                    _HANDLERS[type(event)](self, event)
                except Exception:  # a bug in one call must not stop the others; the call itself is ended
                    log.exception("control.failed", extra={"event": type(event).__name__})
                    self._abandon(event)
        finally:
            self._close_turn()

    def _close_turn(self) -> None:
        self._in_turn = False
        self._on_deadline(self.router.deadline())

    def _abandon(self, event: ev.LegEvent) -> None:
        call = self._call_by_leg.get(getattr(event, "leg_id", LegId("")))
        if call is None:
            return
        for leg in tuple(call.legs.values()):
            self.telephony.hang_up(leg.leg_id, EndCause.FAILED)

    # --- a caller arrives ---------------------------------------------------------------

    def _on_incoming(self, event: ev.LegIncoming) -> None:
        if event.replaces is not None:
            self._takeovers.on_incoming(event, event.replaces)
            return
        leg = Leg(event.leg_id, "caller")
        call = Call(
            call_id=event.call_id,
            caller=event.caller,
            dialled=event.dialled,
            source=event.source,
            forwarded=event.forwarded,
            caller_leg=leg,
            started=self.clock.monotonic(),
            started_at=self.clock.utc(),
        )
        self.calls[call.call_id] = call
        self.adopt(call, leg)
        self.publish(
            ev.CallStarted,
            call,
            caller=event.caller,
            dialled=event.dialled,
            trunk=event.source.trunk,
            from_agent=event.source.agent_id,
        )
        log.info(
            "call.started",
            extra={
                "call_id": call.call_id,
                "caller": call.caller.number,
                "dialled": call.dialled,
                "trunk": event.source.trunk,
                "agent_id": event.source.agent_id,
                "sip_call_id": event.peer_reference,
            },
        )
        if event.source.trunk is not None:
            self.outbound.on_incoming(leg.leg_id, event.source.trunk)
        if event.source.agent_id is not None:
            self.occupy(event.source.agent_id, call.call_id)
        action = self.action_for(call.dialled, call.source)
        if action is None:
            self.end(call, EndCause.NOT_FOUND, by="system")
        else:
            self.begin(call, action)

    def occupy(self, agent_id: AgentId, call_id: CallId, *, wrap_up_s: float = 0.0) -> None:
        """An agent is in a call that the router did not place; perhaps besides another one."""
        status = self.router.agent(agent_id)
        if status is not None and status.state is AgentState.TALKING and status.contact_id != call_id:
            others = self._second_calls.setdefault(agent_id, [])
            if call_id not in others:  # taken back by the one who was giving it away
                others.append(call_id)
        else:
            self.route(AgentOccupied(agent_id, call_id, wrap_up_s))

    def part(self, call_id: CallId, agent_id: AgentId, *, phone_lost: bool = False) -> None:
        """An agent's part in a call is over; one who is in a second call goes on talking."""
        others = self._second_calls.get(agent_id)
        if others is not None:
            if call_id in others:
                others.remove(call_id)
            if not others:
                del self._second_calls[agent_id]
            else:  # where the phone is lost, the end of that call says so again
                self.route(ConversationMoved(call_id, agent_id, others[0]))
                return
        self.route(ConversationEnded(call_id, agent_id, phone_lost))

    def action_for(self, dialled: str, source: ev.Source) -> Action | None:
        """What happens to a number that somebody dials; None: nothing is there for them."""
        if source.trunk is not None and not self.outbound.may_reach(source.trunk, dialled):
            return None
        match = self.settings.dial_plan.match(dialled)
        if source.agent_id is not None and (match is None or is_pattern(match.number)):
            # No pattern, however wide, comes between an agent and the emergency services.
            emergency = self.outbound.emergency_for(dialled)
            if emergency is not None:
                return emergency
        if match is not None:
            return match.action
        # Colleagues reach each other by id; what strangers may dial is only what `numbers` says.
        if source.agent_id is not None and self.router.agent(dialled) is not None:
            return RingAgent(agent=dialled)
        return None if source.agent_id is None else self.outbound.action_for(dialled)

    def begin(self, call: Call, action: Action, *, authority: ev.Source | None = None) -> None:
        """Start the next step of a call, answered already or not.

        `authority`: on whose word calls to the outside are made; None: on the caller's.
        """
        call.action = action
        match action:
            case ToQueue(queue=queue):
                self._join_queue(call, QueueId(queue))
            case RingAgent(agent=agent, record=record):
                call.record = record
                self._ring_agent(call, AgentId(agent))
            case DialOut(dial=number, record=record):
                self.outbound.begin(call, number, authority or call.source, record=record)
            case Supervise():  # those who may are told that this engine cannot do it yet
                allowed = call.source.trunk in self.settings.supervising_trunks
                self.end(call, EndCause.UNSUPPORTED if allowed else EndCause.FORBIDDEN, by="system")
            case _:
                call.state = CallState.PLAYING
                if call.caller_leg.answered:
                    self._perform(call)
                else:
                    self.telephony.answer(call.caller_leg.leg_id)

    def _perform(self, call: Call) -> None:
        """Carry out a step that needs no agent, on an answered call."""
        leg_id = call.caller_leg.leg_id
        match call.action:
            case PlayPrompt(play=prompt):
                self.play(leg_id, prompt)
            case EchoBack():
                self.telephony.echo(leg_id)
            case AnswerSilence():
                pass

    def _join_queue(self, call: Call, queue_id: QueueId) -> None:
        care = self.settings.queues.get(queue_id, QueueCare())
        call.queue_id = queue_id
        call.music = care.music
        call.record = care.record
        call.joined = self.clock.monotonic()
        call.joined_at = self.clock.utc()
        decisions = self.router.handle(ContactArrived(call.call_id, queue_id, call.joined), call.joined)
        refused = next((d for d in decisions if isinstance(d, ContactRefused)), None)
        if refused is None:
            call.state = CallState.WAITING
            self.publish(ev.QueueJoined, call)
            if call.caller_leg.answered:
                self._wait_with_music(call)
            else:
                self.telephony.answer(call.caller_leg.leg_id)
        self._carry_out(decisions)

    def _ring_agent(self, call: Call, agent_id: AgentId) -> None:
        if not call.caller_leg.answered:
            call.state = CallState.ARRIVING
        self.route(DirectRequested(call.call_id, agent_id))

    # --- what legs report ---------------------------------------------------------------

    def _on_answered(self, event: ev.LegAnswered) -> None:
        call = self._call_by_leg.get(event.leg_id)
        if call is None or call.over:  # the answer crossed the end of the call
            self.telephony.hang_up(event.leg_id)
            return
        leg = call.legs[event.leg_id]
        leg.answered = True
        if call.transfer is not None and leg is call.transfer.leg:
            self.transfers.on_answered(call.transfer)
        elif leg.side == "caller":
            self._caller_answered(call)
        elif leg.side == "callee":
            self.outbound.on_answered(call, leg)
        elif leg is call.agent:  # it took over another phone's call
            self._meet(call)
        elif leg.agent_id is not None:
            self.route(OfferAccepted(call.call_id, leg.agent_id))

    def _caller_answered(self, call: Call) -> None:
        call.answered_at = self.clock.utc()
        self.publish(ev.CallAnswered, call)
        if call.agent is not None:
            if call.agent.answered:
                self.talk(call)
        elif call.state is CallState.PLAYING:
            self._perform(call)
        elif call.placed and call.state is CallState.ARRIVING and call.action is not None:
            self.begin(call, call.action)
        elif call.queue_id is not None:
            self._wait_with_music(call)
        self.save(call)

    def _on_ringing(self, event: ev.LegRinging) -> None:
        call = self._call_by_leg.get(event.leg_id)
        if call is None:
            return
        leg = call.legs[event.leg_id]
        if call.transfer is not None and leg is call.transfer.leg:
            self.transfers.on_ringing(call.transfer)
        elif leg.side in ("agent", "callee"):
            if leg.side == "callee":
                self.outbound.on_ringing(call)
            if not call.caller_leg.answered:
                self.telephony.ring(call.caller_leg.leg_id)

    def _on_early_media(self, event: ev.LegEarlyMedia) -> None:
        call = self._call_by_leg.get(event.leg_id)
        if call is None:
            return
        leg = call.legs[event.leg_id]
        if call.transfer is not None and leg is call.transfer.leg:
            self.transfers.on_ringing(call.transfer)
        elif leg.side in ("agent", "callee"):
            if leg.side == "callee":
                self.outbound.on_ringing(call)
            if call.queue_id is None:  # who waits in a queue hears its music
                self.telephony.progress(call.caller_leg.leg_id, leg.leg_id)

    def _on_ended(self, event: ev.LegEnded) -> None:
        self.outbound.on_gone(event.leg_id)
        call = self._call_by_leg.pop(event.leg_id, None)
        if call is None:
            return
        leg = call.legs.pop(event.leg_id)
        leg.lost = event.cause is EndCause.MEDIA_LOST
        if call.transfer is not None and self.transfers.on_ended(call.transfer, leg, event):
            pass
        elif leg.side == "caller":
            self.end(call, event.cause, by="caller", status=event.status, detail=event.detail)
        elif leg is call.agent:
            self.end(call, event.cause, by=leg.side, status=event.status, detail=event.detail)
        elif leg.side == "callee":
            self.outbound.on_failed(call, event)
        elif leg.agent_id is not None and call.offers.get(leg.agent_id) is leg:
            del call.offers[leg.agent_id]
            call.failure = event.cause if event.cause in PHONE_FAILURES else EndCause.FAILED
            failure = FAILURES.get(event.cause, Failure.FAILED)
            self.publish(ev.OfferFailed, call, agent_id=leg.agent_id, cause=event.cause)
            log.info(
                "offer.failed",
                extra={"call_id": call.call_id, "agent_id": leg.agent_id, "cause": event.cause, "status": event.status},
            )
            self._back_to_waiting(call)
            self.route(OfferFailed(call.call_id, leg.agent_id, failure))
        if not call.legs:
            self._forget(call)

    def _on_dtmf(self, event: ev.LegDtmf) -> None:
        call = self._call_by_leg.get(event.leg_id)
        if call is not None:
            self.publish(ev.DtmfReceived, call, by=call.legs[event.leg_id].side)

    def _on_play_finished(self, event: ev.PlayFinished) -> None:
        call = self._call_by_leg.get(event.leg_id)
        if call is None or call.state is not CallState.PLAYING or not isinstance(call.action, PlayPrompt):
            return
        match call.action.then:
            case "hangup":
                self.end(call, EndCause.NORMAL, by="system")
            case "silence":
                call.action = AnswerSilence(answer="silence")
            case then:
                self.begin(call, then)

    def _on_trunk_reachability(self, event: ev.TrunkReachability) -> None:
        if not self.outbound.on_reachability(event):
            return
        log.log(
            logging.INFO if event.reachable else logging.WARNING,
            "trunk.reachable" if event.reachable else "trunk.unreachable",
            extra={"trunk": event.trunk, "gateway": event.gateway, "detail": event.detail},
        )
        self.bus.publish(
            ev.TrunkStateChanged(
                event_id=self.new_id(),
                at=self.clock.utc(),
                trunk=event.trunk,
                gateway=event.gateway,
                reachable=event.reachable,
                detail=event.detail,
            )
        )

    def _on_reachability(self, event: ev.AgentReachability) -> None:
        self.route(AgentReachable(event.agent_id, event.reachable))

    # --- what the router decides --------------------------------------------------------

    def route(self, event: Event) -> None:
        self._carry_out(self.router.handle(event, self.clock.monotonic()))

    def _carry_out(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case AgentChanged():
                    self._publish_agent(decision)
                case Offer():
                    self._offer(decision)
                case Connected():
                    self._connect(decision)
                case OfferWithdrawn():
                    self._withdraw(decision)
                case ContactRefused():
                    self._refused(decision)

    def _offer(self, offer: Offer) -> None:
        call = self.calls.get(CallId(offer.contact_id))
        agent_id = AgentId(offer.agent_id)
        if call is None and self.transfers.on_offer(offer):
            return
        if call is None or call.over:  # it left in the same turn; ContactLeft is on its way to the router
            return
        leg = Leg(LegId(self.new_id()), "agent", agent_id)
        call.offers[agent_id] = leg
        self.adopt(call, leg)
        call.explanation = offer.explanation.as_data()
        if call.caller_leg.answered or call.queue_id is not None:
            call.state = CallState.RINGING
        self.publish(ev.OfferMade, call, agent_id=agent_id, explanation=call.explanation)
        log.info(
            "offer.made",
            extra={"call_id": call.call_id, "queue": offer.queue_id, "agent_id": agent_id},
        )
        self.telephony.originate(
            leg.leg_id,
            Originate(
                call_id=call.call_id,
                agent_id=agent_id,
                caller=call.caller,
                peer=call.caller_leg.leg_id,
                ring_timeout_s=offer.ring_timeout_s,
                forwarded=call.forwarded,
            ),
        )

    def _connect(self, decision: Connected) -> None:
        call = self.calls.get(CallId(decision.contact_id))
        if call is None:
            self.transfers.on_connected(decision)
            return
        leg = call.offers.pop(AgentId(decision.agent_id), None)
        if leg is None:
            return
        self.take(call, leg)
        self._meet(call)

    def take(self, call: Call, leg: Leg) -> None:
        """An agent has the call: it waits no longer."""
        call.agent = leg
        if call.queue_id is not None:
            wait_s = round(self.clock.monotonic() - call.joined, 3)
            self.publish(ev.QueueLeft, call, agent_id=leg.agent_id, outcome="answered", wait_s=wait_s)
            log.info(
                "queue.answered",
                extra={"call_id": call.call_id, "queue": call.queue_id, "agent_id": leg.agent_id, "wait_s": wait_s},
            )

    def _meet(self, call: Call) -> None:
        """The agent has answered: join both, or answer the caller first."""
        assert call.agent is not None
        if call.caller_leg.answered:
            self.talk(call)
        elif call.queue_id is None:
            self.telephony.answer(call.caller_leg.leg_id, peer=call.agent.leg_id)

    def _withdraw(self, decision: OfferWithdrawn) -> None:
        call = self.calls.get(CallId(decision.contact_id))
        if call is None:
            self.transfers.on_withdrawn(decision)
            return
        leg = call.offers.pop(AgentId(decision.agent_id), None)
        if leg is None:
            return
        taken = decision.reason is Withdrawal.TAKEN
        self.telephony.hang_up(leg.leg_id, EndCause.TAKEN if taken else EndCause.CANCELLED)
        self._back_to_waiting(call)

    def _refused(self, decision: ContactRefused) -> None:
        call = self.calls.get(CallId(decision.contact_id))
        if call is None:
            self.transfers.on_refused(decision, REFUSALS[decision.reason])
        else:
            cause = REFUSALS[decision.reason]
            if cause is EndCause.FAILED:
                cause = call.failure
            self.end(call, cause, by="system", detail=decision.reason)

    # --- talking and ending -------------------------------------------------------------

    def talk(self, call: Call) -> None:
        """Both legs are answered: join them."""
        assert call.agent is not None
        if call.music is not None and call.queue_id is not None:
            self.telephony.stop_play(call.caller_leg.leg_id)
        self.telephony.bridge(call.caller_leg.leg_id, call.agent.leg_id)
        call.state = CallState.TALKING
        call.held_by = ""
        call.talk_started, call.talk_started_at = self.clock.monotonic(), self.clock.utc()
        if call.record or call.recording:
            self.telephony.start_recording(call.call_id, call.caller_leg.leg_id, call.agent.leg_id)
            if not call.recording:
                call.recording = True
                self.publish(ev.RecordingStarted, call)
        self.publish(ev.TalkStarted, call)
        if call.caller_leg.held or call.agent.held:
            self.holding.on_talk(call)
        self.save(call)

    def end(self, call: Call, cause: EndCause, *, by: str, status: int | None = None, detail: str = "") -> None:
        """End the whole call, whatever it was doing; safe to repeat."""
        if call.over:
            return
        call.over = True
        self.outbound.on_over(call)
        if call.transfer is not None:
            self.transfers.on_call_over(call.transfer)
        now = self.clock.monotonic()
        if call.talk_started is not None:
            self.publish(ev.TalkEnded, call, talk_s=round(now - call.talk_started, 3))
        elif call.queue_id is not None and call.agent is None:
            outcome = "abandoned" if by == "caller" else "refused"
            wait_s = round(now - call.joined, 3)
            self.publish(ev.QueueLeft, call, outcome=outcome, wait_s=wait_s, reason=detail)
        if call.recording:
            self.telephony.stop_recording(call.call_id)
        refused = not call.caller_leg.answered and not call.placed
        call.state = CallState.ENDING
        for leg in tuple(call.legs.values()):
            if refused and leg is call.caller_leg:
                self.telephony.reject(leg.leg_id, EndCause.FAILED if cause is EndCause.NORMAL else cause)
            else:
                self.telephony.hang_up(leg.leg_id, EndCause.NORMAL if leg.answered else EndCause.CANCELLED)
        self.publish(
            ev.CallEnded,
            call,
            cause=cause,
            by=by,
            duration_s=round(now - call.started, 3),
            status=status,
            detail=detail,
        )
        log.info(
            "call.ended",
            extra={"call_id": call.call_id, "cause": cause, "by": by, "status": status, "detail": detail},
        )
        self._leave_router(call)

    def _leave_router(self, call: Call) -> None:
        if call.agent is not None and call.agent.agent_id is not None:
            self.part(call.call_id, call.agent.agent_id, phone_lost=call.agent.lost)
        call.offers.clear()
        self.route(ContactLeft(call.call_id))
        if call.source.agent_id is not None:
            self.part(call.call_id, call.source.agent_id, phone_lost=call.caller_leg.lost)

    def _forget(self, call: Call) -> None:
        """The last leg has ended: nothing of the call is left."""
        if not call.over:  # cannot happen while every leg's end ends its call; kept so that nothing can leak
            self.end(call, EndCause.FAILED, by="system")
        del self.calls[call.call_id]
        self.telephony.release_call(call.call_id)

    def _back_to_waiting(self, call: Call) -> None:
        if call.state is CallState.RINGING and not call.offers:
            call.state = CallState.WAITING

    def _wait_with_music(self, call: Call) -> None:
        if call.music is not None:
            self.play(call.caller_leg.leg_id, call.music, loop=True)

    def play(self, leg_id: LegId, prompt: str, *, loop: bool = False) -> None:
        self.telephony.play(leg_id, PlayId(self.new_id()), prompt, loop=loop)

    def call_of(self, leg_id: LegId) -> Call | None:
        """The call that a leg belongs to, or None once it has ended."""
        return self._call_by_leg.get(leg_id)

    def adopt(self, call: Call, leg: Leg) -> None:
        """Make a leg part of a call."""
        call.legs[leg.leg_id] = leg
        self._call_by_leg[leg.leg_id] = call

    def save(self, call: Call) -> None:
        self.telephony.save_snapshot(call.call_id, snapshot.encode(call))

    # --- what comes after a call --------------------------------------------------------

    def _on_report(self, event: ev.LegReport) -> None:
        kept = self.orphans.get(event.call_id)
        originated = event.originated or (kept is not None and kept.agent_leg == event.leg_id)
        self.bus.publish(
            ev.LegMeasured(
                event_id=self.new_id(),
                at=self.clock.utc(),
                call_id=event.call_id,
                party="agent" if originated else "caller",
                statistics=event.statistics,
            )
        )

    def _on_recording(self, event: ev.RecordingFinished) -> None:
        self.bus.publish(
            ev.RecordingStored(
                event_id=self.new_id(),
                at=self.clock.utc(),
                call_id=event.call_id,
                path=str(PurePath("recordings", PurePath(event.path).name)),
                duration_ms=event.duration_ms,
                size_bytes=event.size_bytes,
                sha256=event.sha256,
                error=event.error,
            )
        )
        if event.error:
            log.error("recording.failed", extra={"call_id": event.call_id, "error": event.error})

    # --- publishing ---------------------------------------------------------------------

    def publish(self, kind: type[ev.LogEvent], call: Call, *, agent_id: AgentId | None = None, **facts: Any) -> None:
        self.bus.publish(
            kind(
                event_id=self.new_id(),
                at=self.clock.utc(),
                call_id=call.call_id,
                agent_id=agent_id if agent_id is not None else call.agent_id,
                queue_id=call.queue_id,
                **facts,
            )
        )

    def _publish_agent(self, change: AgentChanged) -> None:
        contact = self.router.contact_of(change.agent_id)
        self.bus.publish(
            ev.AgentStateChanged(
                event_id=self.new_id(),
                at=self.clock.utc(),
                call_id=CallId(contact) if contact is not None else None,
                agent_id=AgentId(change.agent_id),
                old=change.old,
                new=change.new,
                reason=change.reason,
            )
        )


def _nothing(_control: CallControl, _event: ev.LegEvent) -> None:
    """Trying says nothing that anyone waits for."""


_HANDLERS: dict[type, Callable[[CallControl, Any], None]] = {
    ev.LegIncoming: CallControl._on_incoming,
    ev.LegTrying: _nothing,
    ev.LegRinging: CallControl._on_ringing,
    ev.LegEarlyMedia: CallControl._on_early_media,
    ev.LegAnswered: CallControl._on_answered,
    ev.LegHeld: lambda control, event: control.holding.on_held(event),
    ev.LegResumed: lambda control, event: control.holding.on_resumed(event),
    ev.LegDtmf: CallControl._on_dtmf,
    ev.LegEnded: CallControl._on_ended,
    ev.LegTransferAsked: lambda control, event: control.transfers.on_asked(event),
    ev.LegReferred: lambda control, event: control.transfers.on_referred(event),
    ev.LegReport: CallControl._on_report,
    ev.PlayFinished: CallControl._on_play_finished,
    ev.RecordingFinished: CallControl._on_recording,
    ev.CallAbandonedByEngine: orphans.on_found,
    ev.OrphanEnded: orphans.on_ended,
    ev.AgentReachability: CallControl._on_reachability,
    ev.TrunkReachability: CallControl._on_trunk_reachability,
}
