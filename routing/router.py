"""The router: a pure state machine from events and the time to decisions.

It keeps one rule at all times: no contact waits in a queue in which an agent
who may serve it is free. So an event needs a look only at the queues it stirs,
and a decision costs a few binary searches, whatever the number of agents and
contacts. The strategy of a queue chooses among its free agents; an agent who
becomes free goes to the contact that ranks first (priority, then join time)
over all queues the agent serves.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite

from routing.decisions import (
    Connected,
    ContactRefused,
    Decision,
    Offer,
    OfferWithdrawn,
    Refusal,
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
from routing.explanation import Candidate, Explanation
from routing.lane import Lane, WaitKey
from routing.model import AgentState, NoAnswer, Reason, RoutingSettings
from routing.presence import FAULTS_BEFORE_BREAK, Presence
from routing.records import Agent, Contact, Phase
from routing.status import AgentStatus, QueueStatus, Waiting

RING_GRACE_S = 2.0
"""The router takes an offer back this long after its ring timeout if nobody reported its end."""

_DIRECT_STATES = frozenset({AgentState.READY, AgentState.BREAK, AgentState.WRAP_UP})

_REFUSAL = {
    Failure.NO_ANSWER: Refusal.NO_ANSWER,
    Failure.REJECTED: Refusal.REJECTED,
    Failure.BUSY: Refusal.AGENT_BUSY,
    Failure.UNREACHABLE: Refusal.AGENT_UNREACHABLE,
    Failure.FAILED: Refusal.FAILED,
}

_REASON = {
    Failure.NO_ANSWER: Reason.NO_ANSWER,
    Failure.REJECTED: Reason.REJECTED,
    Failure.BUSY: Reason.PHONE_BUSY,
    Failure.UNREACHABLE: Reason.UNREACHABLE,
    Failure.FAILED: Reason.PHONE_FAILED,
}


_PHONE_SPOKE = frozenset({Failure.REJECTED, Failure.BUSY})


class Router:
    """Queues, agents and contacts of one tenant.

    Args:
        settings: the rules.
        now: monotonic seconds, as in every later call. A clock that steps back
            counts as standing still.

    The states in which agents start make no decisions: read `agents()`.
    """

    def __init__(self, settings: RoutingSettings, now: float) -> None:
        self._presence = Presence(now)
        self._lanes: dict[str, Lane] = {}
        self._contacts: dict[str, Contact] = {}
        self._arrivals = 0
        self._settings = settings
        self._handlers: dict[type, Callable[..., None]] = {
            ContactArrived: self._on_arrived,
            ContactLeft: self._on_left,
            DirectRequested: self._on_direct,
            OfferAccepted: self._on_accepted,
            OfferFailed: self._on_failed,
            ConversationEnded: self._on_ended,
            ConversationMoved: self._on_moved,
            AgentStateAsked: self._on_asked,
            AgentReachable: self._on_reachable,
            AgentOccupied: self._on_occupied,
            TimeAdvanced: self._on_time,
            SettingsReplaced: self._on_settings,
        }
        self._install(settings)

    # --- in and out ----------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Take in one event. What was due by `now` happens before it.

        Returns:
            What to do, in this order.
        """
        presence = self._presence
        if presence.now < now < inf:  # not so for a time that is not a number either
            presence.now = now
        presence.decisions = []
        self._end_what_is_due()
        self._handlers[type(event)](event)
        self._match()
        return presence.decisions

    def deadline(self) -> float | None:
        """When to send TimeAdvanced, unless another event comes before; None: not at all."""
        return self._presence.deadline()

    # --- views ---------------------------------------------------------------------------

    def contact_of(self, agent_id: str) -> str | None:
        """What an agent is busy with; None for one who is free or unknown."""
        agent = self._presence.agents.get(agent_id)
        return None if agent is None else _contact_of(agent)

    def agent(self, agent_id: str) -> AgentStatus | None:
        """One agent, or None if there is no such agent."""
        agent = self._presence.agents.get(agent_id)
        return None if agent is None else _agent_status(agent)

    def agents(self) -> list[AgentStatus]:
        """Every agent, those who leave after their call included."""
        return [_agent_status(agent) for agent in self._presence.agents.values()]

    def queue(self, queue_id: str) -> QueueStatus | None:
        """One queue, or None if there is no such queue. Costs a walk over its contacts."""
        lane = self._lanes.get(queue_id)
        return None if lane is None else _queue_status(lane)

    def queues(self) -> list[QueueStatus]:
        """Every queue."""
        return [_queue_status(lane) for lane in self._lanes.values()]

    def position(self, contact_id: str) -> int | None:
        """A contact's place among those waiting in its queue, from 1; 0: being offered; None: in no queue."""
        contact = self._contacts.get(contact_id)
        if contact is None or contact.lane is None or contact.phase is Phase.TALKING:
            return None
        return 0 if contact.phase is Phase.RINGING else contact.lane.waiting.rank(contact.key) + 1

    # --- contacts --------------------------------------------------------------------------

    def _on_arrived(self, event: ContactArrived) -> None:
        if event.contact_id in self._contacts:
            return
        lane = self._lanes.get(event.queue_id)
        if lane is None:
            self._refuse(event.contact_id, Refusal.UNKNOWN_QUEUE)
        elif not lane.members:
            self._refuse(event.contact_id, Refusal.NOBODY_QUALIFIES)
        else:
            self._arrivals += 1
            # Not a number would break the order of everybody else.
            joined_at = event.joined_at if isfinite(event.joined_at) else self._presence.now
            contact = Contact(event.contact_id, lane, joined_at, event.priority, self._arrivals)
            self._contacts[contact.contact_id] = contact
            lane.waiting.add(contact.key)
            self._presence.stirred[lane.queue_id] = lane

    def _on_left(self, event: ContactLeft) -> None:
        contact = self._contacts.get(event.contact_id)
        if contact is None:
            return
        if contact.phase is Phase.TALKING:
            for agent in tuple(contact.offers.values()):
                self._end_conversation(contact, agent)
            return
        self._take_back(contact, Withdrawal.CONTACT_LEFT)
        self._forget(contact)

    def _on_direct(self, event: DirectRequested) -> None:
        if event.contact_id in self._contacts:
            return
        presence = self._presence
        agent = presence.agents.get(event.agent_id)
        refusal = _direct_refusal(agent)
        if agent is None or refusal is not None:
            self._refuse(event.contact_id, refusal or Refusal.UNKNOWN_AGENT)
            return
        self._arrivals += 1
        contact = Contact(event.contact_id, None, presence.now, 0, self._arrivals)
        contact.phase = Phase.RINGING
        self._contacts[contact.contact_id] = contact
        idle_s = presence.now - (presence.now if agent.idle_since is None else agent.idle_since)
        explanation = Explanation(winner=Candidate(agent.agent_id, idle_s, 0), strategy=None)
        self._offer(contact, agent, self._settings.direct_ring_timeout_s, explanation)

    # --- offers ----------------------------------------------------------------------------

    def _match(self) -> None:
        """Serve the stirred queues until no contact in them can have an agent."""
        stirred = self._presence.stirred
        while stirred:
            best: WaitKey | None = None
            best_lane: Lane | None = None
            for lane in tuple(stirred.values()):
                key = lane.next_up(self._contacts)
                if key is None:
                    del stirred[lane.queue_id]
                elif best is None or key < best:
                    best, best_lane = key, lane
            if best is not None and best_lane is not None:
                self._serve(best_lane, self._contacts[best[3]])

    def _serve(self, lane: Lane, contact: Contact) -> None:
        agents = self._presence.agents
        chosen, passed_over = lane.choose(contact.tried)
        if not chosen:  # everybody free has failed this contact before: a new round
            contact.tried.clear()
            chosen, passed_over = lane.choose(contact.tried)
        explanations = [lane.explain(key, passed_over, contact, agents, self._presence.now) for key in chosen]
        if contact.phase is Phase.WAITING:
            lane.waiting.remove(contact.key)
            lane.ringing.add(contact.key)
            contact.phase = Phase.RINGING
        lane.last_turn = chosen[-1] if lane.in_turn else None
        for key, explanation in zip(chosen, explanations, strict=True):
            self._offer(contact, agents[key[2]], lane.settings.ring_timeout_s, explanation)

    def _offer(self, contact: Contact, agent: Agent, ring_timeout_s: float, explanation: Explanation) -> None:
        presence = self._presence
        presence.ring(agent, contact, presence.now + ring_timeout_s + RING_GRACE_S)
        queue_id = contact.lane.queue_id if contact.lane else None
        presence.decisions.append(Offer(contact.contact_id, agent.agent_id, queue_id, ring_timeout_s, explanation))

    def _on_accepted(self, event: OfferAccepted) -> None:
        contact = self._contacts.get(event.contact_id)
        agent = contact.offers.get(event.agent_id) if contact else None
        decisions = self._presence.decisions
        if contact is None or agent is None:
            decisions.append(OfferWithdrawn(event.contact_id, event.agent_id, Withdrawal.LATE))
            return
        if contact.phase is Phase.TALKING:
            return
        lane = contact.lane
        contact.phase = Phase.TALKING
        if lane is not None:
            lane.ringing.remove(contact.key)
            lane.talking += 1
            contact.wrap_up_s = lane.settings.wrap_up_s
        self._presence.talk(agent, contact)
        decisions.append(Connected(contact.contact_id, agent.agent_id, lane.queue_id if lane else None))
        for other in tuple(contact.offers.values()):
            if other is not agent:
                self._withdraw(contact, other, Withdrawal.TAKEN)

    def _on_failed(self, event: OfferFailed) -> None:
        contact = self._contacts.get(event.contact_id)
        agent = contact.offers.get(event.agent_id) if contact else None
        if contact is not None and agent is not None and contact.phase is Phase.RINGING:
            self._fail(contact, agent, event.reason)

    def _fail(self, contact: Contact, agent: Agent, failure: Failure) -> None:
        """One agent did not take the contact: settle the agent, then the contact."""
        reason = _REASON[failure]
        lane = contact.lane
        if failure is Failure.UNREACHABLE:
            self._presence.lose_phone(agent)
        elif lane is None:
            agent.silent = agent.silent and failure not in _PHONE_SPOKE
        else:
            agent.idle_since = None
            agent.faults = agent.faults + 1 if failure is Failure.FAILED else 0
            if failure is Failure.FAILED:  # may be our fault: one bad moment must not empty the floor
                stays_ready = agent.faults < FAULTS_BEFORE_BREAK
            else:
                stays_ready = lane.settings.no_answer is NoAnswer.READY
            if stays_ready:
                agent.rest_until = self._presence.now + self._settings.retry_s
            elif agent.asked is AgentState.READY:  # else a person has asked for something meanwhile
                agent.asked, agent.asked_reason = AgentState.BREAK, reason
        self._presence.release(agent, reason)
        contact.tried.add(agent.agent_id)
        self._after_offer(contact, _REFUSAL[failure])

    def _withdraw(self, contact: Contact, agent: Agent, why: Withdrawal) -> None:
        self._presence.decisions.append(OfferWithdrawn(contact.contact_id, agent.agent_id, why))
        self._presence.release(agent, Reason.OFFER_WITHDRAWN)

    def _take_back(self, contact: Contact, why: Withdrawal) -> None:
        for agent in tuple(contact.offers.values()):
            self._withdraw(contact, agent, why)

    def _after_offer(self, contact: Contact, refusal: Refusal) -> None:
        """An offer of this contact has ended without a conversation."""
        if contact.offers:  # ring-all: other phones still ring
            if contact.lane is not None:
                self._presence.stirred[contact.lane.queue_id] = contact.lane
            return
        lane = contact.lane
        if lane is None:
            self._forget(contact)
            self._refuse(contact.contact_id, refusal)
            return
        contact.phase = Phase.WAITING
        lane.ringing.remove(contact.key)
        lane.waiting.add(contact.key)
        self._presence.stirred[lane.queue_id] = lane

    # --- conversations -----------------------------------------------------------------------

    def _on_ended(self, event: ConversationEnded) -> None:
        agent = self._presence.agents.get(event.agent_id)
        if agent is None or agent.state is not AgentState.TALKING:
            return
        contact = agent.contact
        if event.contact_id != (agent.other_call if contact is None else contact.contact_id):
            return
        if event.phone_lost:
            self._presence.lose_phone(agent)
        if contact is not None:
            self._end_conversation(contact, agent)
            return
        if agent.owed_wrap_up_s > 0:
            agent.wrap_until = self._presence.now + agent.owed_wrap_up_s
        self._presence.release(agent, Reason.CALL_ENDED)

    def _on_moved(self, event: ConversationMoved) -> None:
        agent = self._presence.agents.get(event.agent_id)
        if agent is None or agent.state is not AgentState.TALKING:
            return
        contact = agent.contact
        if event.contact_id != (agent.other_call if contact is None else contact.contact_id):
            return
        owed_wrap_up_s = agent.owed_wrap_up_s
        if contact is not None:
            owed_wrap_up_s = max(owed_wrap_up_s, contact.wrap_up_s)
            self._forget(contact)
        self._presence.talk(agent, None, event.to_contact_id)
        agent.owed_wrap_up_s = owed_wrap_up_s

    def _end_conversation(self, contact: Contact, agent: Agent) -> None:
        if contact.wrap_up_s > 0:
            agent.wrap_until = self._presence.now + contact.wrap_up_s
        self._forget(contact)
        self._presence.release(agent, Reason.CALL_ENDED)

    def _forget(self, contact: Contact) -> None:
        del self._contacts[contact.contact_id]
        lane = contact.lane
        if lane is None:
            return
        match contact.phase:
            case Phase.WAITING:
                lane.waiting.remove(contact.key)
            case Phase.RINGING:
                lane.ringing.remove(contact.key)
            case Phase.TALKING:
                lane.talking -= 1

    def _refuse(self, contact_id: str, reason: Refusal) -> None:
        self._presence.decisions.append(ContactRefused(contact_id, reason))

    # --- agents ------------------------------------------------------------------------------

    def _on_asked(self, event: AgentStateAsked) -> None:
        agent = self._presence.agents.get(event.agent_id)
        if agent is not None:
            self._presence.ask(agent, event.state, event.reason)

    def _on_reachable(self, event: AgentReachable) -> None:
        agent = self._presence.agents.get(event.agent_id)
        if agent is not None:
            self._presence.reach(agent, registered=event.reachable)

    def _on_occupied(self, event: AgentOccupied) -> None:
        agent = self._presence.agents.get(event.agent_id)
        if agent is None or agent.state is AgentState.TALKING:
            return
        contact = agent.contact
        if contact is not None and contact.contact_id == event.contact_id:
            return  # its acceptance or failure will follow
        if contact is not None:
            self._presence.decisions.append(
                OfferWithdrawn(contact.contact_id, agent.agent_id, Withdrawal.AGENT_OCCUPIED)
            )
            del contact.offers[agent.agent_id]
        self._presence.talk(agent, None, event.contact_id)
        agent.wrap_until = None
        agent.owed_wrap_up_s = event.wrap_up_s if isfinite(event.wrap_up_s) else 0.0
        if contact is not None:
            self._after_offer(contact, Refusal.AGENT_BUSY)

    def _on_time(self, event: TimeAdvanced) -> None:
        """`handle` has done it all."""

    def _end_what_is_due(self) -> None:
        presence = self._presence
        while (agent := presence.take_due()) is not None:
            contact = agent.contact
            if contact is None:
                presence.release(agent, Reason.WRAP_UP_ENDED)
            else:
                presence.decisions.append(OfferWithdrawn(contact.contact_id, agent.agent_id, Withdrawal.RING_TIMEOUT))
                self._fail(contact, agent, Failure.NO_ANSWER)
        if presence.stirred:
            self._match()

    # --- settings ----------------------------------------------------------------------------

    def _on_settings(self, event: SettingsReplaced) -> None:
        presence = self._presence
        queue_ids = {queue.queue_id for queue in event.settings.queues}
        for contact in tuple(self._contacts.values()):
            if contact.lane is None or contact.lane.queue_id in queue_ids:
                continue
            if contact.phase is Phase.TALKING:
                contact.lane = None
                continue
            self._take_back(contact, Withdrawal.QUEUE_REMOVED)
            self._forget(contact)
            self._refuse(contact.contact_id, Refusal.QUEUE_REMOVED)
        agent_ids = {agent.agent_id for agent in event.settings.agents}
        for agent in tuple(presence.agents.values()):
            if agent.agent_id in agent_ids:
                continue
            ringing = agent.contact if agent.state is AgentState.RINGING else None
            presence.dismiss(agent)
            if ringing is not None:
                self._withdraw(ringing, agent, Withdrawal.AGENT_REMOVED)
                self._after_offer(ringing, Refusal.AGENT_REMOVED)
        self._install(event.settings)

    def _install(self, settings: RoutingSettings) -> None:
        """Build the queues of new settings and move everyone into them."""
        presence = self._presence
        self._settings = settings
        by_id = {agent.agent_id: agent for agent in settings.agents}
        former, self._lanes = self._lanes, {q.queue_id: Lane(q, by_id) for q in settings.queues}
        for contact in self._contacts.values():
            if contact.lane is None:
                continue
            lane = contact.lane = self._lanes[contact.lane.queue_id]
            match contact.phase:
                case Phase.WAITING:
                    lane.waiting.add(contact.key)
                case Phase.RINGING:
                    lane.ringing.add(contact.key)
                case Phase.TALKING:
                    lane.talking += 1
                    contact.wrap_up_s = lane.settings.wrap_up_s
        serves: dict[str, list[Lane]] = {}
        for lane in self._lanes.values():
            if lane.queue_id in former:
                lane.take_turns_from(former[lane.queue_id])
            for agent_id in lane.members:
                serves.setdefault(agent_id, []).append(lane)
        presence.stirred = dict(self._lanes)
        for agent in presence.agents.values():
            agent.lanes, agent.keys = (), ()  # those who leave after their call serve no queue
        for agent_settings in settings.agents:
            agent = presence.admit(agent_settings)
            presence.enlist(agent, serves.get(agent.agent_id, ()))


def _direct_refusal(agent: Agent | None) -> Refusal | None:
    """Why a call straight to this agent cannot ring; None: it can.

    A phone that did not reply last time is tried again: this is how an agent
    with a fixed contact comes back without asking.
    """
    if agent is None or agent.leaving:
        return Refusal.UNKNOWN_AGENT
    if agent.state in _DIRECT_STATES:
        return None if agent.has_phone else Refusal.AGENT_UNREACHABLE
    if agent.state is not AgentState.OFFLINE:
        return Refusal.AGENT_BUSY
    if not agent.has_phone:
        return Refusal.AGENT_UNREACHABLE
    return Refusal.AGENT_OFFLINE if agent.asked is AgentState.OFFLINE else None


def _contact_of(agent: Agent) -> str | None:
    return agent.contact.contact_id if agent.contact else agent.other_call


def _agent_status(agent: Agent) -> AgentStatus:
    return AgentStatus(
        agent_id=agent.agent_id,
        state=agent.state,
        reason=agent.reason,
        since=agent.since,
        reachable=agent.reachable,
        has_phone=agent.has_phone,
        contact_id=_contact_of(agent),
        queues=tuple(lane.queue_id for lane in agent.lanes),
        asked=agent.asked,
    )


def _queue_status(lane: Lane) -> QueueStatus:
    waiting = tuple(_waiting(key) for key in lane.waiting)
    ringing = tuple(_waiting(key) for key in lane.ringing)
    return QueueStatus(
        queue_id=lane.queue_id,
        strategy=lane.settings.strategy,
        waiting=waiting,
        ringing=ringing,
        talking=lane.talking,
        longest_wait_since=min((w.joined_at for w in waiting + ringing), default=None),
        ready=len(lane.free),
        busy=lane.busy(),
        members=lane.members,
    )


def _waiting(key: WaitKey) -> Waiting:
    return Waiting(contact_id=key[3], joined_at=key[1], priority=-key[0])
