from __future__ import annotations

import dataclasses
import itertools

import pytest

from config.numbering import Numbering
from config.numbers import DialPlan, NumberSet
from config.schema import DialOut, EchoBack, RingAgent
from config.trunks import NumberFormat
from engine import events as ev
from engine.bus import EventBus
from engine.call import CallState
from engine.control import CallControl, ControlSettings
from engine.events import AgentId, CallId, EndCause, LegId, LogEvent, Party
from engine.outbound import OutboundRules, TrunkRules, is_trunks_fault
from engine.telephony import Originate, Outside
from routing.model import AgentSettings, AgentState, RoutingSettings
from routing.outbound import OutboundSettings, Route, TrunkChoice, TrunkSettings
from tests.engine.fakes import FakeTelephony, SteppedClock

SHOWN = Party("+254201234567", "Murima")


def rules(**trunks: TrunkRules) -> OutboundRules:
    everything = NumberSet(["+*", "999"])
    return OutboundRules(
        choice=OutboundSettings(
            (TrunkSettings("one", max_calls=1), TrunkSettings("two")),
            (
                Route("emergency", NumberSet(["999"]), (TrunkChoice("one"),), emergency=True),
                Route("all", everything, (TrunkChoice("one", 1), TrunkChoice("two", 2)), ring_timeout_s=40.0),
            ),
        ),
        trunks={
            "carrier": TrunkRules(),
            "pbx": TrunkRules(dial_out=True, country="KE"),
            "narrow": TrunkRules(reach=NumberSet(["600"])),
            "one": TrunkRules(shown=SHOWN, number_format=NumberFormat.E164),
            **trunks,
        },
        numbering=Numbering("KE"),
    )


def settings(**trunks: TrunkRules) -> ControlSettings:
    plan = DialPlan(
        {
            "600": EchoBack(echo=True),
            "59": DialOut(dial="+254700000001", record=True),
            r"~9(\d{6,})": DialOut(dial=r"\1"),
            r"~99\d": EchoBack(echo=True),
            r"~7(\w+)": RingAgent(agent=r"\1"),
        }
    )
    agents = tuple(AgentSettings(f"a000{n}", fixed_contact=True, auto_ready=True) for n in (1, 2))
    return ControlSettings(plan, RoutingSettings(agents, ()), {}, outbound=rules(**trunks))


class World:
    def __init__(self, **trunks: TrunkRules) -> None:
        self.clock = SteppedClock()
        self.phones = FakeTelephony()
        self.events: list[LogEvent] = []
        bus = EventBus()
        bus.subscribe(self.events.append)
        ids = itertools.count()
        self.control = CallControl(self.phones, settings(**trunks), bus, self.clock, lambda: f"id{next(ids)}")
        self.phones.sink = self.control.on_leg_event
        self.control.start()

    def from_agent(self, number: str) -> tuple[CallId, LegId]:
        return self.phones.dial(number, "a0001", agent_id="a0001")

    def outside(self, number: int = -1) -> tuple[LegId, Originate, Outside]:
        """The leg to the outside that was made last."""
        found = [
            (leg_id, leg.request, leg.request.outside)
            for leg_id, leg in self.phones.legs.items()
            if leg.request is not None and leg.request.outside is not None
        ]
        return found[number]

    def tried(self) -> list[str]:
        return [event.trunk for event in self.events if isinstance(event, ev.OutboundTried)]

    def ended(self) -> ev.CallEnded:
        return next(event for event in reversed(self.events) if isinstance(event, ev.CallEnded))

    def assert_nothing_left(self) -> None:
        assert self.phones.live() == []
        assert self.control.calls == {}
        for trunk in ("one", "two", "carrier", "pbx"):
            assert self.control.outbound.book.calls(trunk) == 0
        for agent in self.control.router.agents():
            assert agent.contact_id is None


def test_agents_call_from_dialling_to_hanging_up() -> None:
    w = World()
    call_id, caller = w.from_agent("0700 111 222".replace(" ", ""))
    call = w.control.calls[call_id]
    status = w.control.router.agent("a0001")
    assert status is not None
    assert status.state is AgentState.TALKING
    leg, request, outside = w.outside()
    assert (outside.trunk, outside.number, request.ring_timeout_s) == ("one", "+254700111222", 40.0)
    assert (request.caller, outside.withheld, outside.diverted_from) == (SHOWN, False, "")
    assert request.peer == caller
    w.control.on_leg_event(ev.LegRinging(leg))
    assert ("ring", caller) in w.phones.log
    assert not w.phones.legs[caller].answered
    w.phones.pick_up(leg)
    assert w.phones.legs[caller].answered
    assert w.phones.bridges == {frozenset((caller, leg))}
    assert call.state is CallState.TALKING
    assert call.explanation is not None
    assert call.explanation["route"] == "all"
    w.phones.end(leg)
    assert w.ended().by == "callee"
    w.assert_nothing_left()
    assert [event.name for event in w.events if event.call_id == call_id and not event.name.startswith("agent.")] == [
        "call.started",
        "outbound.tried",
        "call.answered",
        "talk.started",
        "talk.ended",
        "call.ended",
    ]


def test_no_parameter_of_a_number_leads_a_carrier_elsewhere() -> None:
    w = World()
    w.from_agent("+254700111222;rn=+88213000000;npdi")
    assert w.outside()[2].number == "+254700111222"
    choice = OutboundSettings((TrunkSettings("one"),), (Route("any", NumberSet(["*"]), (TrunkChoice("one"),)),))
    w.control.outbound.replace(dataclasses.replace(rules(), choice=choice))
    w.from_agent(";rn=+88213000000")
    assert w.ended().cause is EndCause.NOT_FOUND


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (EndCause.OVERLOADED, 503),
        (EndCause.FAILED, 500),
        (EndCause.UNREACHABLE, 408),
        (EndCause.UNREACHABLE, None),
        (EndCause.REJECTED, 403),
        (EndCause.FAILED, 407),
        (EndCause.UNSUPPORTED, 488),
        (EndCause.UNREACHABLE, 302),
    ],
)
def test_next_trunk_is_tried_when_one_fails(cause: EndCause, status: int | None) -> None:
    w = World()
    _, caller = w.from_agent("+254700111222")
    w.phones.end(w.outside()[0], cause, status)
    assert w.tried() == ["one", "two"]
    leg = w.outside()[0]
    w.phones.pick_up(leg)
    assert w.phones.bridges == {frozenset((caller, leg))}
    w.phones.end(caller)
    w.assert_nothing_left()


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (EndCause.BUSY, 486),
        (EndCause.NOT_FOUND, 404),
        (EndCause.NO_ANSWER, 480),
        (EndCause.NO_ANSWER, None),
        (EndCause.BUSY, 600),
        (EndCause.REJECTED, 603),
    ],
)
def test_what_the_person_called_decides_is_final(cause: EndCause, status: int | None) -> None:
    w = World()
    _, caller = w.from_agent("+254700111222")
    w.phones.end(w.outside()[0], cause, status)
    assert w.tried() == ["one"]
    assert (f"reject {cause}", caller) in w.phones.log
    assert (w.ended().cause, w.ended().status, w.ended().by) == (cause, status, "callee")
    w.assert_nothing_left()


def test_no_other_trunk_once_it_rang() -> None:
    w = World()
    w.from_agent("+254700111222")
    leg = w.outside()[0]
    w.control.on_leg_event(ev.LegRinging(leg))
    w.phones.end(leg, EndCause.FAILED, 500)
    assert w.tried() == ["one"]
    w.assert_nothing_left()


def test_last_failure_is_told_when_no_trunk_is_left() -> None:
    w = World()
    w.from_agent("+254700111222")
    w.phones.end(w.outside()[0], EndCause.OVERLOADED, 503)
    w.phones.end(w.outside()[0], EndCause.FAILED, 500)
    assert w.tried() == ["one", "two"]
    assert (w.ended().cause, w.ended().status) == (EndCause.FAILED, 500)
    w.assert_nothing_left()


def test_caller_who_gives_up_ends_the_search() -> None:
    w = World()
    _, caller = w.from_agent("+254700111222")
    w.phones.end(caller, EndCause.CANCELLED)
    assert w.tried() == ["one"]
    w.assert_nothing_left()


def test_overloaded_trunk_is_left_alone_as_long_as_it_asks() -> None:
    w = World()
    _, first = w.from_agent("+254700111222")
    leg = w.outside()[0]
    w.phones.legs[leg].ended = True
    w.control.on_leg_event(ev.LegEnded(leg, EndCause.OVERLOADED, 503, "", 30.0))
    w.phones.end(first)
    w.clock.now += 29
    w.phones.end(w.from_agent("+254700111222")[1])
    w.clock.now += 2
    w.phones.end(w.from_agent("+254700111222")[1])
    assert w.tried() == ["one", "two", "two", "one"]
    w.assert_nothing_left()


def test_trunk_that_is_full_or_dead_is_passed_over() -> None:
    w = World()
    _, first = w.from_agent("+254700111222")
    w.phones.pick_up(w.outside()[0])
    _, second = w.phones.dial("+254700111333", "a0002", agent_id="a0002")
    assert w.tried() == ["one", "two"]
    w.phones.end(first)
    w.phones.end(second)
    w.control.on_leg_event(ev.TrunkReachability("one", None, reachable=False, detail="no registration"))
    w.phones.end(w.from_agent("+254700111222")[1])
    assert w.tried() == ["one", "two", "two"]
    w.control.on_leg_event(ev.TrunkReachability("one", None, reachable=True))
    w.phones.end(w.from_agent("+254700111222")[1])
    assert w.tried()[-1] == "one"
    states = [(e.trunk, e.reachable, e.detail) for e in w.events if isinstance(e, ev.TrunkStateChanged)]
    assert states == [("one", False, "no registration"), ("one", True, "")]
    w.assert_nothing_left()


def test_emergency_call_goes_out_on_a_trunk_that_is_full_and_seems_dead() -> None:
    w = World()
    _, first = w.from_agent("+254700111222")
    w.control.on_leg_event(ev.TrunkReachability("one", None, reachable=False))
    _, second = w.phones.dial("999", "a0002", agent_id="a0002")
    leg, _, outside = w.outside()
    assert (outside.trunk, outside.number) == ("one", "999")
    w.phones.pick_up(leg)
    assert w.phones.legs[second].answered
    w.phones.end(first)
    w.phones.end(second)
    w.assert_nothing_left()


# --- toll fraud ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["+254700111222", "0700111222", "112", "unknown"])
def test_callers_from_trunks_never_reach_routes_by_dialling(number: str) -> None:
    for trunk in ("carrier", "pbx", "never-heard-of"):
        w = World()
        w.phones.dial(number, trunk=trunk)
        assert w.ended().cause is EndCause.NOT_FOUND
        assert w.tried() == []
        w.assert_nothing_left()


@pytest.mark.parametrize("number", ["59", "90700111222"])
def test_number_that_dials_out_is_forbidden_to_trunks_that_may_not(number: str) -> None:
    for trunk in ("carrier", "never-heard-of"):
        w = World()
        w.phones.dial(number, trunk=trunk)
        assert w.ended().cause is EndCause.FORBIDDEN
        assert w.tried() == []
        w.assert_nothing_left()


def test_trunk_with_dial_out_goes_out_under_its_callers_number() -> None:
    w = World()
    call_id, caller = w.phones.dial("59", "0700999888", trunk="pbx")
    leg, request, outside = w.outside()
    assert (outside.number, outside.diverted_from) == ("+254700000001", "59")
    assert request.caller.number == "+254700999888"
    w.phones.pick_up(leg)
    assert call_id in w.phones.recordings
    w.phones.end(caller)
    w.assert_nothing_left()


def test_reach_limits_what_a_trunks_callers_may_dial() -> None:
    w = World()
    w.phones.dial("7a0001", trunk="narrow")
    assert w.ended().cause is EndCause.NOT_FOUND
    _, caller = w.phones.dial("600", trunk="narrow")
    assert w.phones.legs[caller].echo
    w.phones.end(caller)
    w.assert_nothing_left()


# --- caller id ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules_of_one", "caller", "shown", "withheld"),
    [
        (TrunkRules(), "0700999888", "0700999888", False),
        (TrunkRules(number_format=NumberFormat.E164, country="KE"), "0700999888", "+254700999888", False),
        (TrunkRules(number_format=NumberFormat.NATIONAL, country="KE"), "+254700999888", "0700999888", False),
        (TrunkRules(shown=SHOWN, allow=NumberSet(["+25420*"])), "0700999888", SHOWN.number, False),
        (TrunkRules(shown=SHOWN, allow=NumberSet(["+2547*"])), "0700999888", "0700999888", False),
        (TrunkRules(allow=NumberSet(["+25420*"])), "0700999888", "anonymous", True),
        (TrunkRules(shown=SHOWN), "anonymous", SHOWN.number, True),
        (TrunkRules(), "anonymous", "anonymous", True),
        (TrunkRules(withhold=True), "0700999888", "0700999888", True),
    ],
)
def test_caller_id_follows_the_rules_of_the_trunk(
    rules_of_one: TrunkRules, caller: str, shown: str, withheld: bool
) -> None:
    w = World(one=rules_of_one)
    w.phones.dial("59", caller, trunk="pbx")
    _, request, outside = w.outside()
    assert (request.caller.number, outside.withheld) == (shown, withheld)


def test_agent_without_a_number_to_show_is_shown_by_the_id() -> None:
    w = World(one=TrunkRules())
    w.from_agent("+254700111222")
    assert w.outside()[1].caller == Party("a0001")


# --- placed calls -------------------------------------------------------------------------


def test_placed_call_rings_the_agent_first_and_then_dials() -> None:
    w = World()
    call_id = w.control.place(AgentId("a0001"), "0700111222")
    assert call_id is not None
    agent = w.phones.ringing("a0001")
    request = w.phones.legs[agent].request
    assert request is not None
    assert request.caller == Party("0700111222")
    assert w.tried() == []
    w.phones.pick_up(agent)
    leg, _, outside = w.outside()
    assert outside.number == "+254700111222"
    w.phones.pick_up(leg)
    assert w.phones.bridges == {frozenset((agent, leg))}
    w.phones.end(agent)
    assert w.ended().by == "caller"
    w.assert_nothing_left()


def test_placed_call_that_the_agent_does_not_take_dials_nobody() -> None:
    w = World()
    w.control.place(AgentId("a0001"), "0700111222")
    w.phones.end(w.phones.ringing("a0001"), EndCause.NO_ANSWER)
    assert w.tried() == []
    w.assert_nothing_left()


def test_placed_call_reaches_colleagues_and_numbers_too() -> None:
    w = World()
    w.control.place(AgentId("a0001"), "a0002")
    agent = w.phones.ringing("a0001")
    w.phones.pick_up(agent)
    colleague = w.phones.ringing("a0002")
    w.phones.pick_up(colleague)
    assert w.phones.bridges == {frozenset((agent, colleague))}
    w.phones.end(colleague)
    w.assert_nothing_left()
    assert w.control.place(AgentId("a0001"), "nobody") is None
    w.assert_nothing_left()


def test_lines_of_an_earlier_engines_calls_stay_occupied_until_they_end() -> None:
    before = World()
    call_id, _ = before.from_agent("+254700111222")
    before.phones.pick_up(before.outside()[0])
    after = World()
    after.control.on_leg_event(ev.CallAbandonedByEngine(call_id, before.phones.snapshots[call_id]))
    assert after.control.outbound.book.calls("one") == 1
    after.phones.dial("+254700111222", "a0002", agent_id="a0002")
    assert after.tried() == ["two"]
    after.control.on_leg_event(ev.OrphanEnded(call_id))
    assert after.control.outbound.book.calls("one") == 0


def test_new_configuration_is_in_force_at_once() -> None:
    w = World()
    _, caller = w.from_agent("+254700111222")
    w.control.replace_settings(dataclasses.replace(settings(), outbound=OutboundRules()))
    w.phones.end(w.outside()[0], EndCause.OVERLOADED, 503)  # the trunks that would come next are gone
    assert w.tried() == ["one"]
    w.phones.end(caller)
    w.from_agent("+254700111222")
    assert w.ended().cause is EndCause.NOT_FOUND
    w.assert_nothing_left()


def test_every_status_is_either_the_trunks_or_the_persons_affair() -> None:
    faults = {s for s in range(300, 700) if is_trunks_fault(ev.LegEnded(LegId("x"), EndCause.FAILED, s))}
    assert {408, 500, 503, 504, 401, 407, 403} <= faults
    assert not faults & {404, 410, 480, 484, 486, 487, *range(600, 700)}
