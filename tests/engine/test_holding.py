"""Hold on somebody's word, and what phones do meanwhile; early media on its way to the caller."""

from __future__ import annotations

import pytest

from engine import events as ev
from engine.call import Call, CallState
from engine.events import AgentId, EndCause, LegEarlyMedia, LegHeld, LegId, LegResumed
from engine.holding import HoldError
from tests.engine.world import World


def talking(w: World, number: str = "500") -> tuple[Call, LegId, LegId]:
    call_id, caller = w.phones.dial(number)
    agent = w.phones.ringing("a0001")
    w.phones.pick_up(agent)
    return w.control.calls[call_id], caller, agent


def test_held_caller_hears_music_and_is_joined_again() -> None:
    w = World()
    call, caller, agent = talking(w)
    w.control.hold(call.call_id, by="agent")
    assert call.state is CallState.HELD
    assert w.phones.bridges == set()
    assert (w.phones.legs[caller].playing, w.phones.legs[agent].playing) == ("music", None)
    w.pass_time(5)
    w.control.resume(call.call_id)
    assert call.state.value == "talking"
    assert w.phones.bridges == {frozenset((caller, agent))}
    assert w.phones.legs[caller].playing is None
    assert [(type(e), e.by) for e in w.events if isinstance(e, ev.HoldStarted | ev.HoldEnded)] == [
        (ev.HoldStarted, "agent"),
        (ev.HoldEnded, "agent"),
    ]
    w.phones.end(caller)
    w.assert_nothing_left()


def test_phone_that_holds_while_its_partner_is_transferred_holds_the_new_one_too() -> None:
    w = World()
    call, caller, agent = talking(w)
    w.control.on_leg_event(LegHeld(caller))
    w.control.on_leg_event(LegHeld(agent))
    w.control.transfer(call.call_id, "7a0002", by="agent")
    w.phones.pick_up(w.phones.ringing("a0002"))
    assert call.agent is not None
    new = call.agent.leg_id
    assert call.state is CallState.HELD
    assert (w.phones.legs[new].playing, w.phones.legs[caller].playing) == ("music", None)
    w.control.on_leg_event(LegResumed(caller))
    assert call.state.value == "talking"
    assert w.phones.legs[new].playing is None
    assert [(type(e), e.by) for e in w.events if isinstance(e, ev.HoldStarted | ev.HoldEnded)] == [
        (ev.HoldStarted, "caller"),
        (ev.HoldStarted, "agent"),
        (ev.HoldEnded, "caller"),
        (ev.HoldEnded, "agent"),
        (ev.HoldStarted, "caller"),
        (ev.HoldEnded, "caller"),
    ]
    w.phones.end(new)
    w.assert_nothing_left()


def test_hold_without_music_is_silent_and_ends_with_the_call() -> None:
    w = World()
    call, caller, agent = talking(w, "7a0001")
    w.control.hold(call.call_id, by="operator")
    assert w.phones.legs[caller].playing is None
    assert w.phones.bridges == set()
    w.phones.end(agent)
    assert w.phones.legs[caller].ended
    w.assert_nothing_left()


def test_phone_that_holds_as_well_keeps_the_call_on_hold() -> None:
    w = World()
    call, caller, agent = talking(w)
    w.control.hold(call.call_id, by="operator")
    w.phones.sink(LegHeld(agent))
    w.control.resume(call.call_id)
    assert call.state is CallState.HELD
    assert w.phones.legs[caller].playing == "music"
    w.phones.sink(LegResumed(agent))
    assert call.state.value == "talking"
    assert w.phones.legs[caller].playing is None


def test_phone_that_resumes_does_not_end_the_hold() -> None:
    w = World()
    call, caller, agent = talking(w)
    w.phones.sink(LegHeld(agent))
    w.control.hold(call.call_id, by="operator")
    w.phones.sink(LegResumed(agent))
    assert call.state is CallState.HELD
    assert w.phones.legs[caller].playing == "music"
    assert w.phones.bridges == set()
    w.control.resume(call.call_id)
    assert call.state.value == "talking"


def test_what_cannot_be_held_stays_as_it_is() -> None:
    w = World()
    call_id, _ = w.phones.dial("500")
    with pytest.raises(HoldError):
        w.control.hold(call_id, by="operator")
    with pytest.raises(HoldError):
        w.control.resume(call_id)
    w.phones.pick_up(w.phones.ringing("a0001"))
    with pytest.raises(HoldError):
        w.control.resume(call_id)
    w.control.hold(call_id, by="operator")
    with pytest.raises(HoldError):
        w.control.hold(call_id, by="operator")
    assert not w.control.hold(ev.CallId("nobody"), by="operator")
    assert not w.control.resume(ev.CallId("nobody"))


def test_direct_caller_hears_the_phone_that_rings() -> None:
    w = World()
    _, caller = w.phones.dial("7a0001")
    agent = w.phones.ringing("a0001")
    w.phones.sink(LegEarlyMedia(agent))
    assert (f"progress {agent}", caller) in w.phones.log
    w.phones.end(agent, EndCause.BUSY, 486)
    w.assert_nothing_left()


def test_answered_caller_hears_the_phone_that_rings() -> None:
    w = World()
    _, caller = w.phones.dial("605")
    w.phones.sink(ev.PlayFinished(caller, ev.PlayId("x"), completed=True))
    agent = w.phones.ringing("a0001")
    w.phones.sink(LegEarlyMedia(agent))
    assert (f"progress {agent}", caller) in w.phones.log


def test_caller_in_a_queue_goes_on_hearing_music() -> None:
    w = World()
    _, caller = w.phones.dial("500")
    w.phones.sink(LegEarlyMedia(w.phones.ringing("a0001")))
    w.phones.sink(LegEarlyMedia(LegId("gone")))
    assert not any(what.startswith("progress") for what, _ in w.phones.log)
    assert w.phones.legs[caller].playing == "music"
    assert w.control.router.agent(AgentId("a0001")) is not None
