"""A naive double of the router's book-keeping: it scans everything and checks each decision.

It follows events and decisions from outside, keeps plain dictionaries, and at
each Offer chooses contact and agent anew with `min` over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    AgentStateAsked,
    ContactArrived,
    ContactLeft,
    ConversationEnded,
    ConversationMoved,
    DirectRequested,
    Event,
    OfferFailed,
    SettingsReplaced,
    TimeAdvanced,
)
from routing.model import (
    AgentSettings,
    AgentState,
    QueueSettings,
    RoutingSettings,
    Strategy,
)
from routing.router import Router


@dataclass
class ShadowAgent:
    settings: AgentSettings
    state: AgentState
    idle_since: float | None = None
    rest_until: float = 0.0
    ringing_for: str | None = None
    talking_to: str | None = None
    failed_a_queue: bool = False


@dataclass
class ShadowContact:
    queue_id: str | None
    rank: tuple[int, float, int]
    offers: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)
    talking: bool = False


def qualifies(agent: AgentSettings, queue: QueueSettings) -> bool:
    listed = queue.members is None or agent.agent_id in queue.members
    return listed and all(agent.skills.get(skill, 0) >= level for skill, level in queue.requires.items())


class Shadowed:
    """A router and its double; `handle` checks every decision and the invariants after it."""

    def __init__(self, settings: RoutingSettings, now: float = 0.0) -> None:
        self.router = Router(settings, now)
        self.settings = settings
        self.now = now
        self.contacts: dict[str, ShadowContact] = {}
        self.agents: dict[str, ShadowAgent] = {}
        self.turns: dict[str, str] = {}
        self.arrivals = 0
        self.history: list[tuple[Event, float, list[Decision]]] = []
        self._adopt(settings)

    # --- driving ---------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Decision]:
        while (due := self.router.deadline()) is not None and due <= now:
            self._step(TimeAdvanced(), due)
        return self._step(event, now)

    def _step(self, event: Event, now: float) -> list[Decision]:
        self.now = now
        known = set(self.contacts)
        self._on_event(event)
        decisions = self.router.handle(event, now)
        self.history.append((event, now, decisions))
        if isinstance(event, SettingsReplaced):
            self._follow_settings(event, decisions)
        else:
            for decision in decisions:
                self._follow(decision)
        if isinstance(event, ContactArrived | DirectRequested) and event.contact_id not in known:
            answered = any(
                isinstance(d, Offer | ContactRefused) and d.contact_id == event.contact_id for d in decisions
            )
            assert answered or isinstance(event, ContactArrived)
        self.check()
        return decisions

    def _on_event(self, event: Event) -> None:
        match event:
            case ContactArrived(contact_id, queue_id, joined_at, priority) if contact_id not in self.contacts:
                self.arrivals += 1
                self.contacts[contact_id] = ShadowContact(queue_id, (-priority, joined_at, self.arrivals))
            case DirectRequested(contact_id, _) if contact_id not in self.contacts:
                self.arrivals += 1
                self.contacts[contact_id] = ShadowContact(None, (0, self.now, self.arrivals))
            case ContactLeft(contact_id):
                contact = self.contacts.pop(contact_id, None)
                if contact is not None and contact.talking:
                    for agent in self.agents.values():
                        if agent.talking_to == contact_id:
                            agent.talking_to = None
            case OfferFailed(contact_id, agent_id, _):
                contact = self.contacts.get(contact_id)
                if contact is not None and agent_id in contact.offers:
                    self._end_offer(contact_id, agent_id)
                    self._fail(contact, agent_id)
            case ConversationEnded(contact_id, agent_id) | ConversationMoved(contact_id, agent_id):
                found = self.agents.get(agent_id)
                if found is not None and found.talking_to == contact_id:
                    found.talking_to = None
                    del self.contacts[contact_id]
            case AgentStateAsked(agent_id, AgentState.READY, _):
                found = self.agents.get(agent_id)
                if found is not None and found.state is AgentState.READY:
                    found.rest_until = 0.0
            case _:
                pass

    def _end_offer(self, contact_id: str, agent_id: str) -> None:
        contact = self.contacts.get(contact_id)
        if contact is not None:
            contact.offers.discard(agent_id)
        self.agents[agent_id].ringing_for = None

    def _fail(self, contact: ShadowContact, agent_id: str) -> None:
        contact.tried.add(agent_id)
        self.agents[agent_id].failed_a_queue = contact.queue_id is not None

    # --- following decisions -----------------------------------------------------------------

    def _follow(self, decision: Decision) -> None:
        match decision:
            case AgentChanged(agent_id, old, new, _):
                agent = self.agents[agent_id]
                assert agent.state is old
                agent.state = new
                agent.failed_a_queue, failed = False, agent.failed_a_queue
                if new is AgentState.READY:
                    if failed:
                        agent.rest_until = self.now + self.settings.retry_s
                        agent.idle_since = self.now
                    elif agent.idle_since is None:
                        agent.idle_since = self.now
                elif new is not AgentState.RINGING:
                    agent.idle_since = None
                    agent.rest_until = 0.0
                if new not in (AgentState.RINGING, AgentState.TALKING):
                    agent.ringing_for = None
            case Offer():
                self._check_offer(decision)
            case OfferWithdrawn(contact_id, agent_id, reason):
                if reason is Withdrawal.LATE:
                    assert agent_id not in self.agents or self.agents[agent_id].ringing_for != contact_id
                    return
                assert self.agents[agent_id].ringing_for == contact_id
                self._end_offer(contact_id, agent_id)
                if reason is Withdrawal.RING_TIMEOUT:
                    self._fail(self.contacts[contact_id], agent_id)
            case Connected(contact_id, agent_id, _):
                agent = self.agents[agent_id]
                contact = self.contacts[contact_id]
                assert agent.ringing_for == contact_id
                assert not contact.talking, "a contact with two agents"
                contact.talking = True
                self._end_offer(contact_id, agent_id)
                agent.talking_to = contact_id
            case ContactRefused(contact_id, _):
                contact = self.contacts.pop(contact_id)
                assert not contact.talking

    # --- the naive choice ----------------------------------------------------------------------

    def queue(self, queue_id: str) -> QueueSettings:
        return next(q for q in self.settings.queues if q.queue_id == queue_id)

    def free(self, queue: QueueSettings) -> list[str]:
        return [
            a
            for a, agent in self.agents.items()
            if agent.state is AgentState.READY and agent.rest_until <= self.now and qualifies(agent.settings, queue)
        ]

    def servable(self, contact: ShadowContact) -> bool:
        if contact.queue_id is None or contact.talking:
            return False
        queue = self.queue(contact.queue_id)
        free = self.free(queue)
        if not contact.offers:
            return bool(free)
        return queue.strategy is Strategy.RING_ALL and bool(set(free) - contact.tried)

    def _check_offer(self, offer: Offer) -> None:
        agent = self.agents[offer.agent_id]
        contact = self.contacts[offer.contact_id]
        # The change to RINGING came just before; look at the moment before it.
        assert agent.state is AgentState.RINGING
        assert agent.ringing_for is None
        assert agent.talking_to is None, "an agent with two contacts"
        if offer.queue_id is not None:
            agent.state = AgentState.READY
            queue = self.queue(offer.queue_id)
            assert contact.queue_id == offer.queue_id
            servable = [c for c in self.contacts.values() if self.servable(c)]
            assert contact is min(servable, key=lambda c: c.rank), "not the contact that ranks first"
            free = self.free(queue)
            told = offer.explanation
            considered = len(self.settings.agents if queue.members is None else queue.members)
            assert told.free == len(free) or (queue.strategy is Strategy.RING_ALL and told.free > len(free))
            assert told.free + sum((told.refused or {}).values()) == considered, "an agent is unaccounted for"
            untried = [a for a in free if a not in contact.tried]
            if not untried:
                assert not contact.offers
                contact.tried.clear()
                untried = free
            assert offer.agent_id in untried
            if queue.strategy is not Strategy.RING_ALL:
                assert not contact.offers, "offered to two agents"
                assert offer.agent_id == self.naive_choice(queue, untried)
            if queue.strategy is Strategy.ROUND_ROBIN:
                self.turns[queue.queue_id] = offer.agent_id
            agent.state = AgentState.RINGING
        contact.offers.add(offer.agent_id)
        agent.ringing_for = offer.contact_id

    def naive_choice(self, queue: QueueSettings, free: list[str]) -> str:
        def idle(agent_id: str) -> tuple[float, str]:
            since = self.agents[agent_id].idle_since
            assert since is not None
            return (since, agent_id)

        match queue.strategy:
            case Strategy.TOP_SKILL:
                return min(
                    free, key=lambda a: (-sum(self.agents[a].settings.skills[s] for s in queue.requires), idle(a))
                )
            case Strategy.ROUND_ROBIN:
                everyone = queue.members or tuple(sorted(a.agent_id for a in self.settings.agents))
                order = [a for a in everyone if qualifies(self.agents[a].settings, queue)]
                last = self.turns.get(queue.queue_id)
                start = order.index(last) + 1 if last in order else 0
                return next(a for a in order[start:] + order[:start] if a in free)
            case _:
                return min(free, key=idle)

    # --- settings --------------------------------------------------------------------------------

    def _adopt(self, settings: RoutingSettings) -> None:
        self.settings = settings
        for agent_settings in settings.agents:
            agent = self.agents.get(agent_settings.agent_id)
            if agent is None:
                self.agents[agent_settings.agent_id] = ShadowAgent(agent_settings, AgentState.OFFLINE)
                status = self.router.agent(agent_settings.agent_id)
                assert status is not None
                if not self.history:
                    self.agents[agent_settings.agent_id].state = status.state
                    if status.state is AgentState.READY:
                        self.agents[agent_settings.agent_id].idle_since = self.now
            else:
                agent.settings = agent_settings

    def _follow_settings(self, event: SettingsReplaced, decisions: list[Decision]) -> None:
        # Withdrawals come first and are judged by the old rules, offers by the new.
        former = {q.queue_id: q for q in self.settings.queues}
        self._adopt(event.settings)
        for queue_id in list(self.turns):
            new = next((q for q in event.settings.queues if q.queue_id == queue_id), None)
            in_turn = new is not None and new.strategy is Strategy.ROUND_ROBIN
            agent = self.agents.get(self.turns[queue_id])
            still = agent is not None and new is not None and qualifies(agent.settings, new)
            listed = any(a.agent_id == self.turns[queue_id] for a in event.settings.agents)
            if queue_id not in former or not in_turn or not still or not listed:
                del self.turns[queue_id]
        for decision in decisions:
            self._follow(decision)
        for agent_id in set(self.agents) - {a.agent_id for a in event.settings.agents}:
            if self.agents[agent_id].state is not AgentState.TALKING:
                del self.agents[agent_id]

    # --- what always holds -------------------------------------------------------------------------

    def check(self) -> None:
        statuses = {s.agent_id: s for s in self.router.agents()}
        for agent_id in [a for a in self.agents if a not in statuses]:
            assert self.agents.pop(agent_id).state is AgentState.OFFLINE
        assert statuses.keys() == self.agents.keys()
        for agent_id, agent in self.agents.items():
            status = statuses[agent_id]
            assert status.state is agent.state
            assert (status.state is AgentState.RINGING) == (agent.ringing_for is not None), "stuck in ringing"
            if agent.talking_to is not None:
                assert status.state is AgentState.TALKING
            if agent.ringing_for or agent.talking_to:
                assert status.contact_id == (agent.ringing_for or agent.talking_to)
            if status.state in (AgentState.RINGING, AgentState.WRAP_UP):
                assert self.router.deadline() is not None
        for queue in self.settings.queues:
            view = self.router.queue(queue.queue_id)
            assert view is not None
            mine = [(c.rank, i) for i, c in self.contacts.items() if c.queue_id == queue.queue_id and not c.talking]
            waiting = [i for _, i in sorted(mine) if not self.contacts[i].offers]
            assert [w.contact_id for w in view.waiting] == waiting, "lost, or out of order"
            assert {w.contact_id for w in view.ringing} == {i for _, i in mine} - set(waiting)
            for place, contact_id in enumerate(waiting, 1):
                assert self.router.position(contact_id) == place
            assert view.ready == len(self.free(queue))
            held = [s for s in statuses.values() if queue.queue_id in s.queues]
            assert view.busy == sum(
                s.state in (AgentState.RINGING, AgentState.TALKING, AgentState.WRAP_UP) for s in held
            )
        assert not any(self.servable(c) for c in self.contacts.values()), "a contact waits beside a free agent"
