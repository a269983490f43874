"""docs/agent-states.md against the router: every row of its table is tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from routing.decisions import AgentChanged, ContactRefused, OfferWithdrawn, Withdrawal
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
from routing.model import AgentSettings, AgentState, NoAnswer, QueueSettings, RoutingSettings, Strategy
from routing.router import RING_GRACE_S, Router
from tests.agent_states import documented_rows

BREAK, READY, OFFLINE = AgentState.BREAK, AgentState.READY, AgentState.OFFLINE


class World:
    """Agent `a`, who alone serves `q`, `quick` and `patient`; `b` answers only in `all`."""

    def __init__(self, *, auto_ready: bool = True, fixed_contact: bool = True) -> None:
        self.now = 0.0
        self.agents = (
            AgentSettings("a", {}, auto_ready, fixed_contact),
            AgentSettings("b", {}, auto_ready=True, fixed_contact=True),
        )
        self.queues = (
            QueueSettings("q", members=("a",), wrap_up_s=10),
            QueueSettings("quick", members=("a",)),
            QueueSettings("patient", members=("a",), no_answer=NoAnswer.READY),
            QueueSettings("all", Strategy.RING_ALL, members=("a", "b")),
            QueueSettings("nobody", members=()),
        )
        self.router = Router(RoutingSettings(self.agents, self.queues), self.now)
        self.fate: str | None = None
        self.last_reason = ""

    def send(self, *events: Event, after_s: float = 1.0) -> World:
        self.now += after_s
        for event in events:
            for decision in self.router.handle(event, self.now):
                match decision:
                    case ContactRefused("c", reason):
                        self.fate = f"refused: {reason.value}"
                    case OfferWithdrawn("c", "a", Withdrawal.LATE):
                        self.fate = "ended"
                    case AgentChanged("a", _, _, why):
                        self.last_reason = why
                    case _:
                        pass
        return self

    def ring(self, queue_id: str = "q") -> World:
        return self.send(ContactArrived("c", queue_id, self.now))

    def talk(self, queue_id: str = "q") -> World:
        return self.ring(queue_id).send(OfferAccepted("c", "a"))

    def fail(self, reason: Failure, queue_id: str = "q") -> World:
        return self.ring(queue_id).send(OfferFailed("c", "a", reason))

    def end(self, contact_id: str = "c", *, phone_lost: bool = False) -> World:
        return self.send(ConversationEnded(contact_id, "a", phone_lost))

    def move(self, contact_id: str, to_contact_id: str) -> World:
        return self.send(ConversationMoved(contact_id, "a", to_contact_id))

    def ask(self, state: AgentState, reason: str = "") -> World:
        return self.send(AgentStateAsked("a", state, reason))

    def lunch(self) -> World:
        return self.ask(BREAK, "lunch")

    def reach(self, reachable: bool) -> World:
        return self.send(AgentReachable("a", reachable))

    def direct(self) -> World:
        return self.send(DirectRequested("c", "a"))

    def wait(self, seconds: float) -> World:
        return self.send(TimeAdvanced(), after_s=seconds)

    def without_agent(self) -> World:
        queues = tuple(
            QueueSettings(q.queue_id, q.strategy, tuple(m for m in q.members or () if m != "a")) for q in self.queues
        )
        return self.send(SettingsReplaced(RoutingSettings(self.agents[1:], queues)))

    def without_queue(self) -> World:
        return self.send(SettingsReplaced(RoutingSettings(self.agents, self.queues[1:])))

    def outcome(self) -> tuple[str, str, str]:
        agent = self.router.agent("a")
        state, reason = (agent.state.value, str(agent.reason)) if agent else ("gone", self.last_reason)
        return state, reason, self.fate or self.contact()

    def contact(self) -> str:
        for queue in self.router.queues():
            if any(w.contact_id == "c" for w in queue.waiting):
                return "waits"
            if any(w.contact_id == "c" for w in queue.ringing):
                return "rings"
        for agent in self.router.agents():
            if agent.contact_id == "c":
                return "talks" if agent.state is AgentState.TALKING else "rings"
        return "ended"


def registered(*, auto_ready: bool = True) -> World:
    return World(auto_ready=auto_ready, fixed_contact=False).reach(True)


def third_fault() -> World:
    world = World().fail(Failure.FAILED)
    for _ in range(2):
        world.wait(6).send(OfferFailed("c", "a", Failure.FAILED))
    return world


CASES: dict[str, Callable[[], World]] = {
    "caller hangs up while queued": lambda: (
        World().send(ContactArrived("first", "q", 0), OfferAccepted("first", "a")).ring().send(ContactLeft("c"))
    ),
    "caller hangs up while ringing": lambda: World().ring().send(ContactLeft("c")),
    "caller hangs up while talking": lambda: World().talk().send(ContactLeft("c")),
    "caller hangs up while talking, no wrap-up": lambda: World().talk("quick").send(ContactLeft("c")),
    "agent hangs up while talking": lambda: World().talk().end(),
    "wrap-up time is over": lambda: World().talk().end().wait(10),
    "agent does not answer": lambda: World().fail(Failure.NO_ANSWER),
    "agent does not answer, no_answer: ready": lambda: World().fail(Failure.NO_ANSWER, "patient"),
    "agent rejects": lambda: World().fail(Failure.REJECTED),
    "agent rejects, no_answer: ready": lambda: World().fail(Failure.REJECTED, "patient"),
    "agent's phone is busy": lambda: World().fail(Failure.BUSY),
    "agent's phone is busy, no_answer: ready": lambda: World().fail(Failure.BUSY, "patient"),
    "agent's phone is unreachable": lambda: World().fail(Failure.UNREACHABLE),
    "agent's phone is unreachable, no_answer: ready": lambda: World().fail(Failure.UNREACHABLE, "patient"),
    "agent's phone fails (fault, garbage)": lambda: World().fail(Failure.FAILED),
    "agent's phone fails for the third time in a row": third_fault,
    "nobody reports how the ringing ended": lambda: World().ring().wait(15 + RING_GRACE_S),
    "another agent answers first (ring_all)": lambda: World().ring("all").send(OfferAccepted("c", "b")),
    "agent answers after the offer was withdrawn": lambda: (
        World().ring().send(ContactLeft("c")).send(OfferAccepted("c", "a"))
    ),
    "registration expires while ready": lambda: registered().reach(False).ring(),
    "registration expires while ringing": lambda: registered().ring().reach(False),
    "registration expires while talking": lambda: registered().talk().reach(False),
    "agent drops off the network while talking": lambda: World().talk().end(phone_lost=True),
    "agent dropped off while talking, wrap-up is over": lambda: World().talk().end(phone_lost=True).wait(10),
    "agent drops off the network while talking, no wrap-up": lambda: World().talk("quick").end(phone_lost=True),
    "registration expires while talking, call ends": lambda: registered().talk("quick").reach(False).end(),
    "phone is back, auto_ready": lambda: registered().reach(False).reach(True),
    "phone is back, not auto_ready": lambda: registered(auto_ready=False).ask(READY).reach(False).reach(True),
    "phone is back, agent had asked for break": lambda: registered().lunch().reach(False).reach(True),
    "phone registers for the first time, not auto_ready": lambda: registered(auto_ready=False),
    "agent asks for break while ready": lambda: World().lunch(),
    "agent asks for break while ringing": lambda: World().ring().lunch(),
    "agent asks for break while ringing and does not answer": lambda: (
        World().ring().lunch().send(OfferFailed("c", "a", Failure.NO_ANSWER))
    ),
    "agent asks for break while talking": lambda: World().talk().lunch(),
    "agent asks for break while talking, call ends": lambda: World().talk().lunch().end(),
    "agent asks for break while talking, wrap-up is over": lambda: World().talk().lunch().end().wait(10),
    "agent asks for break while talking, call ends, no wrap-up": lambda: World().talk("quick").lunch().end(),
    "agent signs off while talking, wrap-up is over": lambda: World().talk().ask(OFFLINE).end().wait(10),
    "agent asks for break in wrap-up": lambda: World().talk().end().lunch(),
    "agent asks for ready in wrap-up": lambda: World().talk().end().ask(READY),
    "agent signs off while ready": lambda: World().ask(OFFLINE),
    "agent asks for ready while unreachable": lambda: registered().reach(False).ask(READY),
    "agent asks for ready after the phone did not reply": lambda: World().fail(Failure.UNREACHABLE).ask(READY),
    "agent places a call while ready": lambda: World().send(AgentOccupied("a", "own")),
    "agent's own call ends": lambda: World().send(AgentOccupied("a", "own")).end("own"),
    "agent places a call while ringing": lambda: World().ring().send(AgentOccupied("a", "own")),
    "agent transfers the caller away": lambda: World().talk().end(),
    "caller hangs up while the agent is in a second call": lambda: World().talk().move("c", "own"),
    "caller hung up, the second call ends too": lambda: World().talk().move("c", "own").end("own"),
    "agent takes a caller over by a transfer": lambda: World().send(AgentOccupied("a", "consult")).move("consult", "c"),
    "agent's conversation taken over by a transfer ends": lambda: (
        World().send(DirectRequested("consult", "a"), OfferAccepted("consult", "a")).move("consult", "c").end()
    ),
    "agent picks up a colleague's call from the queue, call ends": lambda: (
        World().send(AgentOccupied("a", "c", wrap_up_s=10)).end()
    ),
    "direct call to a ready agent": lambda: World().direct(),
    "direct call, agent does not answer": lambda: World().direct().send(OfferFailed("c", "a", Failure.NO_ANSWER)),
    "direct call, agent rejects": lambda: World().direct().send(OfferFailed("c", "a", Failure.REJECTED)),
    "direct call, phone is busy": lambda: World().direct().send(OfferFailed("c", "a", Failure.BUSY)),
    "direct call, phone is unreachable": lambda: World().direct().send(OfferFailed("c", "a", Failure.UNREACHABLE)),
    "direct call, caller hangs up while ringing": lambda: World().direct().send(ContactLeft("c")),
    "direct call ends": lambda: World().direct().send(OfferAccepted("c", "a")).end(),
    "direct call to an agent on break ends": lambda: World().lunch().direct().send(OfferAccepted("c", "a")).end(),
    "direct call in wrap-up ends before the wrap-up": lambda: (
        World()
        .send(ContactArrived("first", "q", 0), OfferAccepted("first", "a"))
        .end("first")
        .direct()
        .send(OfferAccepted("c", "a"))
        .end()
    ),
    "direct call to a ringing agent": lambda: World().send(ContactArrived("first", "q", 0)).direct(),
    "direct call to a talking agent": lambda: (
        World().send(ContactArrived("first", "q", 0), OfferAccepted("first", "a")).direct()
    ),
    "direct call to an agent who signed off": lambda: World().ask(OFFLINE).direct(),
    "direct call to an agent whose phone is gone": lambda: registered().reach(False).direct(),
    "direct call to an agent whose phone did not reply": lambda: (
        World()
        .send(ContactArrived("first", "q", 0))
        .send(OfferFailed("first", "a", Failure.UNREACHABLE))
        .send(ContactLeft("first"))
        .direct()
    ),
    "call to an unknown queue": lambda: World().ring("elsewhere"),
    "call to a queue that nobody may serve": lambda: World().ring("nobody"),
    "queue is removed while the caller waits": lambda: (
        World().send(ContactArrived("first", "q", 0), OfferAccepted("first", "a")).ring().without_queue()
    ),
    "queue is removed while ringing": lambda: World().ring().without_queue(),
    "queue is removed while talking": lambda: World().talk().without_queue(),
    "agent is removed while ringing": lambda: World().ring().without_agent(),
    "agent is removed while talking": lambda: World().talk().without_agent(),
    "agent is removed while talking, call ends": lambda: World().talk().without_agent().end(),
}

ROWS = documented_rows()


def test_page_and_test_name_the_same_cases() -> None:
    assert list(ROWS) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_true(case: str) -> None:
    state, reason, contact = ROWS[case]
    outcome = CASES[case]().outcome()
    assert outcome[:2] == (state, reason)
    assert contact in ("–", outcome[2])


def test_every_state_takes_every_event() -> None:
    places: dict[AgentState, Callable[[], World]] = {
        AgentState.OFFLINE: lambda: World().ask(OFFLINE),
        AgentState.READY: World,
        AgentState.RINGING: lambda: World().ring(),
        AgentState.TALKING: lambda: World().talk(),
        AgentState.WRAP_UP: lambda: World().talk().end(),
        AgentState.BREAK: lambda: World().lunch(),
    }
    for state, place in places.items():
        rules = RoutingSettings(World().agents, World().queues)
        events: list[Event] = [
            ContactArrived("c", "q", float("nan"), 3),
            ContactLeft("c"),
            DirectRequested("d", "a"),
            OfferAccepted("c", "a"),
            *(OfferFailed("c", "a", failure) for failure in Failure),
            ConversationEnded("c", "a"),
            ConversationMoved("c", "a", "d"),
            AgentOccupied("a", "own", float("nan")),
            *(AgentStateAsked("a", wanted) for wanted in AgentState),
            AgentReachable("a", True),
            AgentReachable("a", False),
            AgentOccupied("a", "c"),
            AgentOccupied("a", "own"),
            TimeAdvanced(),
            SettingsReplaced(rules),
            SettingsReplaced(RoutingSettings()),
        ]
        for event in events:
            world = place()
            before = world.router.agent("a")
            assert before is not None
            assert before.state is state
            world.send(event)
            world.send(event, after_s=0)  # the same again, late
            world.wait(100)
            after = world.router.agent("a")
            assert after is None or after.state is not AgentState.RINGING or world.router.deadline() is not None
