"""Random histories: every decision agrees with a naive double, and the invariants hold after each event."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from routing.decisions import AgentChanged, Offer
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
from routing.model import (
    AgentSettings,
    AgentState,
    NoAnswer,
    QueueSettings,
    Reason,
    RoutingSettings,
    Strategy,
)
from routing.router import Router
from tests.routing_shadow import Shadowed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "agent-states.md"
ARROWS = set(re.findall(r"^    (\w+) --> (\w+):", PAGE.read_text(encoding="utf-8"), re.MULTILINE))

AGENT_IDS = ("a0", "a1", "a2", "a3", "a4")
QUEUE_IDS = ("q0", "q1", "q2")
CONTACT_IDS = tuple(f"c{n}" for n in range(8))

agent_ids = st.sampled_from((*AGENT_IDS, "stranger"))
contact_ids = st.sampled_from((*CONTACT_IDS, "unknown"))
queue_ids = st.sampled_from(QUEUE_IDS)
levels = st.dictionaries(st.sampled_from(("x", "y")), st.integers(1, 3), max_size=2)


@st.composite
def rules(draw: st.DrawFn) -> RoutingSettings:
    present = [a for a in AGENT_IDS if draw(st.integers(0, 5))]
    agents = tuple(AgentSettings(a, draw(levels), draw(st.booleans()), draw(st.integers(0, 3)) > 0) for a in present)
    members = st.none() | st.permutations(present).map(tuple) | st.permutations(present).map(lambda p: tuple(p[:2]))
    queues = tuple(
        QueueSettings(
            queue_id,
            draw(st.sampled_from(Strategy)),
            draw(members),
            draw(st.just({}) | levels),
            ring_timeout_s=draw(st.sampled_from((3.0, 15.0))),
            wrap_up_s=draw(st.sampled_from((0.0, 4.0))),
            no_answer=draw(st.sampled_from(NoAnswer)),
        )
        for queue_id in QUEUE_IDS
        if draw(st.integers(0, 5))
    )
    return RoutingSettings(agents, queues)


class Histories(RuleBasedStateMachine):
    @initialize(first=rules())
    def start(self, first: RoutingSettings) -> None:
        self.now = 0.0
        self.first = first
        self.shadowed = Shadowed(first)

    def send(self, event: Event) -> None:
        self.shadowed.handle(event, self.now)

    def ringing(self) -> list[tuple[str, str]]:
        return sorted((i, a) for i, c in self.shadowed.contacts.items() for a in c.offers)

    @rule(
        contact_id=contact_ids,
        queue_id=queue_ids,
        ago=st.sampled_from((0.0, 1.0, 20.0)),
        priority=st.sampled_from((0, 0, 0, 5)),
    )
    def arrive(self, contact_id: str, queue_id: str, ago: float, priority: int) -> None:
        self.send(ContactArrived(contact_id, queue_id, self.now - ago, priority))

    @rule(contact_id=contact_ids)
    def leave(self, contact_id: str) -> None:
        self.send(ContactLeft(contact_id))

    @rule(contact_id=contact_ids, agent_id=agent_ids)
    def call_directly(self, contact_id: str, agent_id: str) -> None:
        self.send(DirectRequested(contact_id, agent_id))

    @rule(contact_id=contact_ids, agent_id=agent_ids)
    def accept_anything(self, contact_id: str, agent_id: str) -> None:
        self.send(OfferAccepted(contact_id, agent_id))

    @rule(which=st.integers(0, 9))
    def accept(self, which: int) -> None:
        if offers := self.ringing():
            self.send(OfferAccepted(*offers[which % len(offers)]))

    @rule(contact_id=contact_ids, agent_id=agent_ids, reason=st.sampled_from(Failure))
    def fail_anything(self, contact_id: str, agent_id: str, reason: Failure) -> None:
        self.send(OfferFailed(contact_id, agent_id, reason))

    @rule(which=st.integers(0, 9), reason=st.sampled_from(Failure))
    def fail(self, which: int, reason: Failure) -> None:
        if offers := self.ringing():
            self.send(OfferFailed(*offers[which % len(offers)], reason))

    @rule(contact_id=contact_ids, agent_id=agent_ids, phone_lost=st.booleans())
    def end_anything(self, contact_id: str, agent_id: str, phone_lost: bool) -> None:
        self.send(ConversationEnded(contact_id, agent_id, phone_lost))

    @rule(agent_id=agent_ids, phone_lost=st.booleans())
    def end(self, agent_id: str, phone_lost: bool) -> None:
        status = self.shadowed.router.agent(agent_id)
        if status is not None and status.contact_id is not None:
            self.send(ConversationEnded(status.contact_id, agent_id, phone_lost))

    @rule(agent_id=agent_ids, to_contact_id=st.sampled_from(("outgoing", *CONTACT_IDS)))
    def move(self, agent_id: str, to_contact_id: str) -> None:
        status = self.shadowed.router.agent(agent_id)
        if status is not None and status.contact_id is not None:
            self.send(ConversationMoved(status.contact_id, agent_id, to_contact_id))

    @rule(agent_id=agent_ids, state=st.sampled_from(AgentState))
    def ask(self, agent_id: str, state: AgentState) -> None:
        self.send(AgentStateAsked(agent_id, state, "lunch"))

    @rule(agent_id=agent_ids)
    def ask_ready(self, agent_id: str) -> None:
        self.send(AgentStateAsked(agent_id, AgentState.READY))

    @rule(agent_id=agent_ids, reachable=st.booleans())
    def reach(self, agent_id: str, reachable: bool) -> None:
        self.send(AgentReachable(agent_id, reachable))

    @rule(agent_id=agent_ids, contact_id=st.sampled_from(("outgoing", *CONTACT_IDS)))
    def occupy(self, agent_id: str, contact_id: str) -> None:
        self.send(AgentOccupied(agent_id, contact_id))

    @rule(seconds=st.sampled_from((0.0, 0.5, 3.0, 5.0, 17.0)))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.send(TimeAdvanced())

    @rule(new=rules())
    def replace_settings(self, new: RoutingSettings) -> None:
        self.send(SettingsReplaced(new))

    @invariant()
    def no_timer_is_overdue(self) -> None:
        due = self.shadowed.router.deadline()
        assert due is None or due > self.now

    def teardown(self) -> None:
        if not hasattr(self, "shadowed"):
            return
        again = Router(self.first, 0.0)
        for event, now, decisions in self.shadowed.history:
            assert again.handle(event, now) == decisions, "the same events gave other decisions"
        for _, _, decisions in self.shadowed.history:
            for decision in decisions:
                if isinstance(decision, AgentChanged) and decision.old is not decision.new:
                    removed = decision.reason == Reason.REMOVED
                    assert removed or (decision.old.value, decision.new.value) in ARROWS, "not in the diagram"
                elif isinstance(decision, Offer):
                    assert str(decision.explanation)
                    assert decision.explanation.as_data()["winner"]


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
