"""The router's rules one by one."""

from __future__ import annotations

import json

import pytest

from routing.decisions import (
    AgentChanged,
    Connected,
    ContactRefused,
    Decision,
    Offer,
    OfferWithdrawn,
    Refusal,
    Withdrawal,
)
from routing.events import (
    AgentReachable,
    AgentStateAsked,
    ContactArrived,
    ContactLeft,
    ConversationEnded,
    DirectRequested,
    Failure,
    OfferAccepted,
    OfferFailed,
    SettingsReplaced,
    TimeAdvanced,
)
from routing.explanation import Candidate
from routing.model import (
    AgentSettings,
    AgentState,
    NoAnswer,
    QueueSettings,
    RoutingError,
    RoutingSettings,
    Strategy,
)
from routing.router import RING_GRACE_S, Router


def agent(agent_id: str, **skills: int) -> AgentSettings:
    return AgentSettings(agent_id, skills, auto_ready=True, fixed_contact=True)


def router(*queues: QueueSettings, agents: tuple[AgentSettings, ...] | None = None) -> Router:
    return Router(RoutingSettings(agents or tuple(agent(a) for a in "abc"), queues), 0.0)


def offered(decisions: list[Decision]) -> list[tuple[str, str]]:
    return [(d.contact_id, d.agent_id) for d in decisions if isinstance(d, Offer)]


def serve(r: Router, contact_id: str, queue_id: str, now: float) -> str:
    """One whole call; returns who took it."""
    [(_, agent_id)] = offered(r.handle(ContactArrived(contact_id, queue_id, now), now))
    r.handle(OfferAccepted(contact_id, agent_id), now)
    r.handle(ConversationEnded(contact_id, agent_id), now + 1)
    return agent_id


# --- strategies ------------------------------------------------------------------------------


def test_longest_idle_takes_the_one_who_waited_longest() -> None:
    r = router(QueueSettings("q"))
    assert [serve(r, f"c{n}", "q", n * 10.0) for n in range(1, 6)] == ["a", "b", "c", "a", "b"]


def test_round_robin_goes_on_after_the_last_one_in_the_members_order() -> None:
    r = router(QueueSettings("q", Strategy.ROUND_ROBIN, members=("c", "a", "b")))
    assert [serve(r, f"c{n}", "q", n * 10.0) for n in range(1, 6)] == ["c", "a", "b", "c", "a"]
    r.handle(AgentStateAsked("b", AgentState.BREAK), 90)
    assert serve(r, "x", "q", 91) == "c"  # b's turn is passed over
    r.handle(AgentStateAsked("b", AgentState.READY), 95)
    assert serve(r, "y", "q", 96) == "a"  # and not made up for


def test_top_skill_takes_the_highest_sum_of_levels_then_the_longest_idle() -> None:
    people = (agent("a", x=50, y=10), agent("b", x=30, y=40), agent("c", x=60, y=10), agent("d", x=100))
    r = router(QueueSettings("q", Strategy.TOP_SKILL, requires={"x": 20, "y": 10}), agents=people)
    assert serve(r, "c1", "q", 1) == "b"  # 70, like c, and the lower id
    assert serve(r, "c2", "q", 3) == "c"  # 70, and idle for longer than b now
    assert r.agent("d") is not None
    status = r.queue("q")
    assert status is not None
    assert status.members == ("a", "b", "c")  # d lacks y


def test_ring_all_rings_everyone_and_the_first_to_accept_wins() -> None:
    r = router(QueueSettings("q", Strategy.RING_ALL))
    assert offered(r.handle(ContactArrived("c1", "q", 1), 1)) == [("c1", "a"), ("c1", "b"), ("c1", "c")]
    decisions = r.handle(OfferAccepted("c1", "b"), 2)
    assert Connected("c1", "b", "q") in decisions
    assert [d for d in decisions if isinstance(d, OfferWithdrawn)] == [
        OfferWithdrawn("c1", "a", Withdrawal.TAKEN),
        OfferWithdrawn("c1", "c", Withdrawal.TAKEN),
    ]
    assert r.handle(OfferAccepted("c1", "c"), 2) == [OfferWithdrawn("c1", "c", Withdrawal.LATE)]
    assert r.handle(OfferAccepted("c1", "b"), 2) == []


def test_ring_all_is_joined_by_whoever_becomes_free() -> None:
    r = router(QueueSettings("q", Strategy.RING_ALL))
    r.handle(AgentStateAsked("c", AgentState.BREAK), 0)
    assert offered(r.handle(ContactArrived("c1", "q", 1), 1)) == [("c1", "a"), ("c1", "b")]
    assert offered(r.handle(AgentStateAsked("c", AgentState.READY), 2)) == [("c1", "c")]
    r.handle(OfferFailed("c1", "a", Failure.REJECTED), 3)
    assert r.position("c1") == 0
    assert offered(r.handle(AgentStateAsked("a", AgentState.READY), 4)) == []  # has rejected this very ringing


def test_ring_all_does_not_join_a_ringing_contact_while_a_more_urgent_one_waits() -> None:
    r = router(QueueSettings("q", Strategy.RING_ALL), agents=(agent("a"), agent("b")))
    r.handle(AgentStateAsked("b", AgentState.BREAK), 0)
    r.handle(ContactArrived("c1", "q", 1), 1)
    r.handle(ContactArrived("urgent", "q", 2, priority=5), 2)
    assert offered(r.handle(AgentStateAsked("b", AgentState.READY), 3)) == [("urgent", "b")]


def test_losing_a_ring_all_costs_no_idle_time() -> None:
    r = router(QueueSettings("all", Strategy.RING_ALL), QueueSettings("q"))
    r.handle(ContactArrived("c1", "all", 5), 5)
    r.handle(OfferAccepted("c1", "b"), 6)
    r.handle(ConversationEnded("c1", "b"), 7)
    [offer] = [d for d in r.handle(ContactArrived("c2", "q", 9), 9) if isinstance(d, Offer)]
    assert offer.explanation.winner == Candidate("a", 9.0, 0)


# --- who is next -----------------------------------------------------------------------------


def test_priority_goes_first_then_the_time_of_joining() -> None:
    r = router(QueueSettings("q"), agents=(agent("a"),))
    r.handle(ContactArrived("busy", "q", 0), 0)
    r.handle(OfferAccepted("busy", "a"), 0)
    r.handle(ContactArrived("late", "q", 3), 3)
    r.handle(ContactArrived("urgent", "q", 4, priority=9), 4)
    r.handle(ContactArrived("moved", "q", 1), 5)  # kept the time of joining from elsewhere
    assert [r.position(c) for c in ("urgent", "moved", "late", "nobody")] == [1, 2, 3, None]
    order = []
    current = "busy"
    for now in range(10, 13):
        [(current, _)] = offered(r.handle(ConversationEnded(current, "a"), now))
        r.handle(OfferAccepted(current, "a"), now)
        order.append(current)
    assert order == ["urgent", "moved", "late"]


def test_an_agent_of_several_queues_takes_the_oldest_of_all() -> None:
    r = router(QueueSettings("q1"), QueueSettings("q2"), agents=(agent("a"),))
    r.handle(AgentStateAsked("a", AgentState.BREAK), 0)
    r.handle(ContactArrived("c1", "q2", 1), 1)
    r.handle(ContactArrived("c2", "q1", 2), 2)
    assert offered(r.handle(AgentStateAsked("a", AgentState.READY), 3)) == [("c1", "a")]


def test_a_failed_offer_goes_on_at_once_and_keeps_the_place() -> None:
    r = router(QueueSettings("q"), agents=(agent("a"), agent("b")))
    for n, who in ((1, "a"), (2, "b")):
        assert offered(r.handle(ContactArrived(f"c{n}", "q", n), n)) == [(f"c{n}", who)]
    r.handle(ContactArrived("c3", "q", 3), 3)
    r.handle(OfferFailed("c1", "a", Failure.NO_ANSWER), 16)
    assert [r.position(c) for c in ("c1", "c2", "c3")] == [1, 0, 2]
    r.handle(OfferAccepted("c2", "b"), 17)
    assert offered(r.handle(ConversationEnded("c2", "b"), 18)) == [("c1", "b")]


def test_everybody_is_tried_before_anybody_is_tried_again() -> None:
    people = (agent("a", x=90), agent("b", x=80), agent("c", x=70))
    queue = QueueSettings("q", Strategy.TOP_SKILL, requires={"x": 1}, no_answer=NoAnswer.READY)
    r = router(queue, agents=people)
    tried = [offered(r.handle(ContactArrived("c1", "q", 0), 0))[0][1]]
    for n in range(1, 6):
        tried.append(offered(r.handle(OfferFailed("c1", tried[-1], Failure.NO_ANSWER), n * 15))[0][1])
    assert tried == ["a", "b", "c", "a", "b", "c"]


def test_a_phone_that_rejects_at_once_is_not_hammered() -> None:
    r = router(QueueSettings("q", no_answer=NoAnswer.READY), agents=(agent("a"),))
    for n in range(100):
        r.handle(ContactArrived(f"c{n}", "q", n), n)
    assert offered(r.handle(OfferFailed("c0", "a", Failure.REJECTED), 100)) == []
    assert r.deadline() == 105
    assert offered(r.handle(TimeAdvanced(), 104.9)) == []
    assert offered(r.handle(TimeAdvanced(), 105)) == [("c0", "a")]


def test_an_agent_who_was_away_needs_no_rest() -> None:
    r = router(QueueSettings("q", no_answer=NoAnswer.READY), agents=(AgentSettings("a", auto_ready=True),))
    r.handle(AgentReachable("a", reachable=True), 0)
    r.handle(ContactArrived("c1", "q", 1), 1)
    r.handle(OfferFailed("c1", "a", Failure.NO_ANSWER), 2)
    r.handle(AgentReachable("a", reachable=False), 3)
    assert offered(r.handle(AgentReachable("a", reachable=True), 4)) == [("c1", "a")]


# --- time ------------------------------------------------------------------------------------


def test_the_deadline_is_the_next_thing_that_ends_by_itself() -> None:
    r = router(QueueSettings("q", wrap_up_s=8, ring_timeout_s=12))
    assert r.deadline() is None
    r.handle(ContactArrived("c1", "q", 1), 1)
    assert r.deadline() == 13 + RING_GRACE_S
    r.handle(OfferAccepted("c1", "a"), 2)
    assert r.deadline() is None
    r.handle(ConversationEnded("c1", "a"), 5)
    assert r.deadline() == 13
    assert r.handle(TimeAdvanced(), 12) == []
    assert r.handle(TimeAdvanced(), 13) == [AgentChanged("a", AgentState.WRAP_UP, AgentState.READY, "wrap-up-ended")]
    assert r.deadline() is None


def test_what_is_due_happens_before_the_event() -> None:
    r = router(QueueSettings("q", wrap_up_s=8), agents=(agent("a"),))
    r.handle(ContactArrived("c1", "q", 1), 1)
    r.handle(OfferAccepted("c1", "a"), 2)
    r.handle(ContactArrived("c2", "q", 3), 3)
    r.handle(ConversationEnded("c1", "a"), 5)
    assert offered(r.handle(ContactArrived("vip", "q", 20, priority=9), 20)) == [("c2", "a")]


@pytest.mark.parametrize("now", [float("nan"), float("inf"), float("-inf"), -5.0, 3.0])
def test_a_strange_clock_stands_still(now: float) -> None:
    r = router(QueueSettings("q"))
    r.handle(ContactArrived("c1", "q", 10), 10)
    r.handle(TimeAdvanced(), now)
    r.handle(OfferFailed("c1", "a", Failure.NO_ANSWER), now)
    status = r.agent("a")
    assert status is not None
    assert (status.state, status.since) == (AgentState.BREAK, 10)


# --- direct calls and refusals ---------------------------------------------------------------


def test_a_direct_call_leaves_the_place_among_the_idle_if_nobody_answers() -> None:
    r = router(QueueSettings("q"))
    [offer] = [d for d in r.handle(DirectRequested("d", "a"), 5) if isinstance(d, Offer)]
    assert (offer.queue_id, offer.ring_timeout_s) == (None, 60)
    assert str(offer.explanation) == "a: called directly."
    assert ContactRefused("d", Refusal.NO_ANSWER) in r.handle(OfferFailed("d", "a", Failure.NO_ANSWER), 9)
    assert offered(r.handle(ContactArrived("c1", "q", 10), 10)) == [("c1", "a")]


def test_a_direct_call_to_nobody_is_refused() -> None:
    assert router().handle(DirectRequested("d", "who"), 1) == [ContactRefused("d", Refusal.UNKNOWN_AGENT)]


def test_contacts_wait_when_nobody_is_ready_and_are_refused_when_nobody_can_ever_serve() -> None:
    r = router(QueueSettings("q"), QueueSettings("none", requires={"x": 1}))
    for a in "abc":
        r.handle(AgentStateAsked(a, AgentState.OFFLINE), 1)
    assert r.handle(ContactArrived("c1", "q", 2), 2) == []
    assert r.handle(ContactArrived("c2", "none", 2), 2) == [ContactRefused("c2", Refusal.NOBODY_QUALIFIES)]
    assert r.handle(ContactLeft("c2"), 3) == []  # the router has forgotten it


def test_a_registering_phone_serves_the_waiting_caller() -> None:
    people = (AgentSettings("a", auto_ready=True),)
    r = router(QueueSettings("q"), agents=people)
    r.handle(ContactArrived("c1", "q", 1), 1)
    assert offered(r.handle(AgentReachable("a", reachable=True), 2)) == [("c1", "a")]
    assert r.handle(AgentReachable("a", reachable=True), 3) == []


# --- settings --------------------------------------------------------------------------------


def test_new_rules_apply_to_those_who_wait_and_lose_none() -> None:
    old = RoutingSettings((agent("a", x=1), agent("b", x=90)), (QueueSettings("q", requires={"x": 50}),))
    r = Router(old, 0)
    r.handle(AgentStateAsked("b", AgentState.BREAK), 0)
    for n in range(200):
        assert r.handle(ContactArrived(f"c{n:03}", "q", n), n) == []
    new = RoutingSettings(old.agents, (QueueSettings("q"),))
    assert offered(r.handle(SettingsReplaced(new), 200)) == [("c000", "a")]
    status = r.queue("q")
    assert status is not None
    assert [w.contact_id for w in status.waiting] == [f"c{n:03}" for n in range(1, 200)]
    assert status.longest_wait_since == 0
    r.handle(SettingsReplaced(old), 201)  # rolled back while a, who no longer qualifies, rings
    r.handle(OfferFailed("c000", "a", Failure.NO_ANSWER), 202)
    assert r.position("c000") == 1
    status = r.queue("q")
    assert status is not None
    assert len(status.waiting) == 200


def test_round_robin_goes_on_where_it_was_under_new_rules() -> None:
    people = tuple(agent(a) for a in "abc")
    r = router(QueueSettings("q", Strategy.ROUND_ROBIN), agents=people)
    assert serve(r, "c1", "q", 1) == "a"
    r.handle(SettingsReplaced(RoutingSettings(people, (QueueSettings("q", Strategy.ROUND_ROBIN, wrap_up_s=3),))), 5)
    assert serve(r, "c2", "q", 6) == "b"


def test_an_agent_who_becomes_auto_ready_takes_calls() -> None:
    r = router(QueueSettings("q"), agents=(AgentSettings("a", fixed_contact=True),))
    r.handle(ContactArrived("c1", "q", 1), 1)
    new = RoutingSettings((agent("a"),), (QueueSettings("q"),))
    assert offered(r.handle(SettingsReplaced(new), 2)) == [("c1", "a")]


def test_contradictory_settings_name_the_fault() -> None:
    def fault(*args: object) -> str:
        with pytest.raises(RoutingError) as caught:
            RoutingSettings(*args)  # type: ignore[arg-type]  # tuples of agents and queues
        return str(caught.value)

    assert fault((agent("a"), agent("a"))) == "agent 'a' appears twice"
    assert fault((), (QueueSettings("q"), QueueSettings("q"))) == "queue 'q' appears twice"
    assert fault((), (QueueSettings("q", members=("x", "y")),)) == "queue 'q': unknown members: x, y"
    assert fault((), (), 0.0).startswith("direct_ring_timeout_s is 0.0")
    assert fault((), (), 60.0, float("nan")).startswith("retry_s is nan")


@pytest.mark.parametrize(
    ("queue", "fault"),
    [
        ({"members": ("a", "b", "a")}, "members named twice: a"),
        ({"requires": {"x": 0}}, "requires 'x': level 0; levels go from 1 to 100"),
        ({"ring_timeout_s": 0}, "ring_timeout_s is 0; it must be above 0"),
        ({"wrap_up_s": -1}, "wrap_up_s is -1; it must be 0 or more"),
    ],
)
def test_a_wrong_queue_names_the_fault(queue: dict[str, object], fault: str) -> None:
    with pytest.raises(RoutingError, match=fault):
        QueueSettings("q", **queue)  # type: ignore[arg-type]  # wrong on purpose


def test_a_wrong_level_names_the_fault() -> None:
    with pytest.raises(RoutingError, match="agent 'a': skill 'x': level 101"):
        agent("a", x=101)


# --- explanations ----------------------------------------------------------------------------


def test_an_offer_explains_itself() -> None:
    people = (*(agent(f"a{n}", x=10 * n) for n in range(1, 8)), agent("z"))
    r = router(QueueSettings("q", Strategy.TOP_SKILL, requires={"x": 10}), agents=people)
    r.handle(AgentStateAsked("a6", AgentState.BREAK), 1)
    r.handle(ContactArrived("c1", "q", 2), 2)
    [offer] = [d for d in r.handle(OfferFailed("c1", "a7", Failure.NO_ANSWER), 20) if isinstance(d, Offer)]
    data = offer.explanation.as_data()
    assert json.loads(json.dumps(data)) == {
        "strategy": "top_skill",
        "winner": {"agent_id": "a5", "idle_s": 20.0, "skill": 50},
        "runners_up": [{"agent_id": f"a{n}", "idle_s": 20.0, "skill": 10 * n} for n in (4, 3, 2)],
        "free": 5,
        "refused": {"break": 2, "lacks_skill": 1},
        "already_tried": [],
        "waiting": 0,
        "waited_s": 18,
        "priority": 0,
    }
    assert str(offer.explanation) == (
        "a5: highest skill, idle 20 s, skill 50; 5 free, next a4, a3, a2; not free: 2 break, 1 lacks skill. "
        "The caller waited 18 s at priority 0; 0 more wait."
    )


# --- size ------------------------------------------------------------------------------------


def test_a_full_house_is_served_in_order() -> None:
    people = tuple(agent(f"a{n:04}") for n in range(500))
    r = router(QueueSettings("q"), agents=people)
    for n in range(2500):
        for contact_id, agent_id in offered(r.handle(ContactArrived(f"c{n:04}", "q", n), n)):
            r.handle(OfferAccepted(contact_id, agent_id), n)
    served = []
    for n in range(2000):
        status = r.agent(f"a{n % 500:04}")
        assert status is not None
        assert status.contact_id is not None
        [(contact_id, agent_id)] = offered(r.handle(ConversationEnded(status.contact_id, status.agent_id), 3000 + n))
        r.handle(OfferAccepted(contact_id, agent_id), 3000 + n)
        served.append(contact_id)
    assert served == [f"c{n:04}" for n in range(500, 2500)]
