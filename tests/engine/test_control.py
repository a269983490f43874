from __future__ import annotations

import pytest

from engine import events as ev
from engine.call import CallState
from engine.control import ControlSettings
from engine.events import AgentId, CallId, EndCause, LegEnded, LegId
from engine.snapshot import decode
from routing.model import AgentSettings, AgentState, QueueSettings, RoutingSettings, Strategy
from tests.engine.fakes import FakeLeg
from tests.engine.world import World, settings


def test_queue_call_from_dialling_to_hanging_up() -> None:
    w = World(wrap_up_s=10)
    call_id, caller = w.phones.dial("500")
    call = w.control.calls[call_id]
    assert w.phones.legs[caller].answered
    assert w.phones.legs[caller].playing == "music"
    assert call.state is CallState.RINGING
    agent = w.phones.ringing("a0001")
    request = w.phones.legs[agent].request
    assert request is not None
    assert request.caller.number == "0700111222"
    w.pass_time(3)
    w.phones.pick_up(agent)
    assert w.phones.legs[caller].playing is None
    assert w.phones.bridges == {frozenset((caller, agent))}
    assert w.phones.recordings == {call_id: (caller, agent)}
    assert w.state("a0001")[0] is AgentState.TALKING
    assert decode(w.phones.snapshots[call_id]).agent_id == "a0001"
    w.pass_time(60)
    w.phones.end(caller)
    assert w.names(call_id) == [
        "call.started",
        "queue.joined",
        "offer.made",
        "call.answered",
        "queue.left",
        "recording.started",
        "talk.started",
        "talk.ended",
        "call.ended",
    ]
    ended = w.last(ev.CallEnded)
    assert isinstance(ended, ev.CallEnded)
    assert (ended.by, ended.cause, ended.duration_s) == ("caller", EndCause.NORMAL, 63.0)
    w.assert_nothing_left()
    assert w.state("a0001")[0] is AgentState.WRAP_UP
    w.pass_time(10)
    assert w.state("a0001")[0] is AgentState.READY


def test_rejected_offer_goes_to_the_next_agent_and_the_caller_keeps_the_place() -> None:
    w = World()
    call_id, caller = w.phones.dial("500")
    w.phones.end(w.phones.ringing("a0001"), EndCause.REJECTED, 603)
    failed = w.last(ev.OfferFailed)
    assert isinstance(failed, ev.OfferFailed)
    assert (failed.agent_id, failed.cause) == ("a0001", EndCause.REJECTED)
    assert w.phones.legs[caller].playing == "music"
    w.phones.pick_up(w.phones.ringing("a0002"))
    assert w.control.calls[call_id].agent_id == "a0002"


def test_unreachable_phones_leave_the_caller_waiting() -> None:
    w = World()
    w.phones.unreachable = {"a0001", "a0002"}
    call_id, caller = w.phones.dial("500")
    assert w.control.calls[call_id].state is CallState.WAITING
    w.phones.end(caller)
    left = w.last(ev.QueueLeft)
    assert isinstance(left, ev.QueueLeft)
    assert left.outcome == "abandoned"
    w.assert_nothing_left()


def test_ring_all_hangs_up_the_other_phones() -> None:
    w = World()
    _, caller = w.phones.dial("501")
    first, second = w.phones.ringing("a0001"), w.phones.ringing("a0002")
    w.phones.pick_up(second)
    assert w.phones.legs[first].ended
    assert ("hang_up taken", first) in w.phones.log  # that phone shows no missed call
    assert w.phones.bridges == {frozenset((caller, second))}
    assert w.state("a0001")[0] is AgentState.READY


@pytest.mark.parametrize("cause", [EndCause.BROKEN, EndCause.UNSUPPORTED])
def test_answer_that_the_phone_alone_explains_is_told_the_direct_caller(cause: EndCause) -> None:
    w = World()
    _, caller = w.phones.dial("7a0001")
    w.phones.end(w.phones.ringing("a0001"), cause)
    assert (f"reject {cause}", caller) in w.phones.log
    w.assert_nothing_left()


def test_queue_that_nobody_can_serve_refuses_before_answering() -> None:
    w = World()
    call_id, caller = w.phones.dial("502")
    assert ("reject unreachable", caller) in w.phones.log
    assert not w.phones.legs[caller].answered
    assert w.names(call_id)[-1] == "call.ended"
    w.assert_nothing_left()


def test_answer_that_fails_leaves_nothing() -> None:
    w = World()
    w.phones.answer_fails = True
    for number in ("500", "600", "601", "602"):
        w.phones.dial(number)
    w.assert_nothing_left()
    assert w.state("a0001")[0] is AgentState.READY


def test_unknown_number_is_refused() -> None:
    w = World()
    _, caller = w.phones.dial("999")
    assert ("reject not_found", caller) in w.phones.log
    w.assert_nothing_left()


def test_numbers_do_what_they_say() -> None:
    w = World()
    _, silent = w.phones.dial("600")
    assert w.phones.legs[silent].answered
    _, echoed = w.phones.dial("602")
    assert w.phones.legs[echoed].echo
    _, played = w.phones.dial("601")
    assert w.phones.legs[played].playing == "welcome"
    w.control.on_leg_event(ev.PlayFinished(played, ev.PlayId("x"), completed=True))
    assert not w.phones.legs[played].ended
    call_id, queued = w.phones.dial("603")
    w.control.on_leg_event(ev.PlayFinished(queued, ev.PlayId("x"), completed=True))
    assert w.control.calls[call_id].queue_id == "support"
    assert w.phones.legs[queued].playing == "music"
    _, short = w.phones.dial("604")
    w.control.on_leg_event(ev.PlayFinished(short, ev.PlayId("x"), completed=True))
    assert w.phones.legs[short].ended


def test_supervision_numbers_are_refused_as_forbidden_or_not_there_yet() -> None:
    w = World()
    for source, refusal in ({}, "forbidden"), ({"agent_id": "a0002"}, "forbidden"), ({"trunk": "boss"}, "unsupported"):
        _, caller = w.phones.dial("8a0001", **source)
        assert (f"reject {refusal}", caller) in w.phones.log


def test_direct_call_is_answered_when_the_agent_answers() -> None:
    w = World()
    call_id, caller = w.phones.dial("6a0001")
    agent = w.phones.ringing("a0001")
    assert ("ring", caller) not in w.phones.log
    w.control.on_leg_event(ev.LegRinging(agent))
    assert ("ring", caller) in w.phones.log
    assert not w.phones.legs[caller].answered
    w.phones.pick_up(agent)
    assert w.phones.legs[caller].answered
    assert w.phones.bridges == {frozenset((caller, agent))}
    assert call_id in w.phones.recordings
    w.phones.end(agent)
    ended = w.last(ev.CallEnded)
    assert isinstance(ended, ev.CallEnded)
    assert ended.by == "agent"
    w.assert_nothing_left()


def test_answer_that_crosses_the_end_of_the_call_starts_no_talk() -> None:
    w = World()
    call_id, caller = w.phones.dial("6a0001")
    agent = w.phones.ringing("a0001")
    late: list[ev.LegEvent] = []
    w.phones.sink = late.append
    w.phones.legs[agent].answered = True
    w.control.on_leg_event(ev.LegAnswered(agent))
    assert late == [ev.LegAnswered(caller)]
    w.control.on_leg_event(LegEnded(agent, EndCause.NORMAL))  # overtakes the caller's answer
    w.phones.legs[agent].ended = True
    w.phones.sink = w.control.on_leg_event
    for event in late:
        w.control.on_leg_event(event)
    assert w.names(call_id)[-1] == "call.ended"
    assert w.phones.recordings == {}
    w.assert_nothing_left()


def test_recordings_are_named_within_the_data_folder() -> None:
    w = World()
    w.control.on_leg_event(ev.RecordingFinished(CallId("c1"), "/srv/murima/recordings/c1.wav", 1, 2, "00"))
    stored = w.last(ev.RecordingStored)
    assert isinstance(stored, ev.RecordingStored)
    assert stored.path == "recordings/c1.wav"


def test_direct_call_to_a_busy_agent_is_busy() -> None:
    w = World()
    w.phones.dial("7a0001")
    w.phones.pick_up(w.phones.ringing("a0001"))
    _, second = w.phones.dial("7a0001")
    assert ("reject busy", second) in w.phones.log


def test_direct_call_fails_as_the_phone_does() -> None:
    for cause, expected in (
        (EndCause.BUSY, "busy"),
        (EndCause.NO_ANSWER, "no_answer"),
        (EndCause.REJECTED, "rejected"),
    ):
        w = World()
        _, caller = w.phones.dial("7a0001")
        w.phones.end(w.phones.ringing("a0001"), cause)
        assert (f"reject {expected}", caller) in w.phones.log
        w.assert_nothing_left()


def test_colleagues_reach_each_other_by_id_and_strangers_do_not() -> None:
    w = World()
    w.phones.dial("a0002", agent_id="a0001")
    assert w.state("a0001")[0] is AgentState.TALKING
    w.phones.pick_up(w.phones.ringing("a0002"))
    _, stranger = w.phones.dial("a0002")
    assert ("reject not_found", stranger) in w.phones.log


def test_agent_who_calls_out_gets_no_offers_and_is_ready_again_afterwards() -> None:
    w = World()
    _, out = w.phones.dial("600", agent_id="a0001")
    w.phones.dial("500")
    w.phones.ringing("a0002")
    w.phones.end(out)
    assert w.state("a0001")[0] is AgentState.READY


def test_hold_plays_music_to_the_other_side() -> None:
    w = World()
    call_id, caller = w.phones.dial("500")
    agent = w.phones.ringing("a0001")
    w.phones.pick_up(agent)
    w.control.on_leg_event(ev.LegHeld(agent))
    assert w.control.calls[call_id].state is CallState.HELD
    assert w.phones.legs[caller].playing == "music"
    w.control.on_leg_event(ev.LegResumed(agent))
    assert w.phones.legs[caller].playing is None
    assert w.control.calls[call_id].state is CallState.TALKING


def test_agent_who_drops_off_the_network_gets_no_further_call_until_the_phone_is_back() -> None:
    w = World()
    w.control.ask_agent_state(AgentId("a0002"), AgentState.OFFLINE, "")
    w.phones.dial("500")
    agent = w.phones.ringing("a0001")
    w.phones.pick_up(agent)
    w.phones.dial("500")  # waits
    w.phones.end(agent, EndCause.MEDIA_LOST)
    assert w.state("a0001") == (AgentState.OFFLINE, "unreachable")
    w.control.on_leg_event(ev.AgentReachability(AgentId("a0001"), reachable=True))
    assert w.state("a0001")[0] is AgentState.RINGING


def test_operator_hangs_up() -> None:
    w = World()
    call_id, _ = w.phones.dial("500")
    w.phones.pick_up(w.phones.ringing("a0001"))
    assert w.control.hang_up(call_id)
    assert not w.control.hang_up(call_id)
    ended = w.last(ev.CallEnded)
    assert isinstance(ended, ev.CallEnded)
    assert ended.by == "system"
    w.assert_nothing_left()


def test_calls_of_an_earlier_engine_keep_their_agent_busy_until_they_end() -> None:
    before = World()
    call_id, _ = before.phones.dial("500")
    before.phones.pick_up(before.phones.ringing("a0001"))
    kept = before.phones.snapshots[call_id]

    w = World()
    w.phones.first_id = 100
    w.control.on_leg_event(ev.CallAbandonedByEngine(call_id, kept))
    assert w.state("a0001")[0] is AgentState.TALKING
    w.phones.dial("500")
    w.phones.ringing("a0002")
    w.control.on_leg_event(ev.OrphanEnded(call_id))
    assert w.state("a0001")[0] is AgentState.READY
    assert w.names(call_id) == ["talk.ended", "call.ended"]


def test_agent_in_two_calls_of_an_earlier_engine_is_busy_until_both_have_ended() -> None:
    before = World()
    calls = [before.phones.dial(number, "a0003", agent_id="a0003")[0] for number in ("600", "602")]
    w = World()
    for call_id in calls:
        w.control.on_leg_event(ev.CallAbandonedByEngine(call_id, before.phones.snapshots[call_id]))
    w.control.on_leg_event(ev.OrphanEnded(calls[1]))
    assert w.state("a0003")[0] is AgentState.TALKING
    w.control.on_leg_event(ev.OrphanEnded(calls[0]))
    assert w.state("a0003")[0] is AgentState.READY


def test_unreadable_snapshots_are_left_alone() -> None:
    w = World()
    for data in (b"", b"\x91\x63", b"garbage"):
        w.control.on_leg_event(ev.CallAbandonedByEngine(CallId("old"), data))
    assert w.control.orphans == {}


def test_settings_replaced_while_callers_wait() -> None:
    w = World()
    for agent in ("a0001", "a0002"):
        w.control.ask_agent_state(AgentId(agent), AgentState.OFFLINE, "")
    call_id, caller = w.phones.dial("500")
    new = settings()
    agents = (*new.routing.agents, AgentSettings("a0004", auto_ready=True, fixed_contact=True))
    queues = (QueueSettings("support", Strategy.LONGEST_IDLE, ("a0004",)),)
    w.control.replace_settings(ControlSettings(new.dial_plan, RoutingSettings(agents, queues), new.queues))
    w.phones.pick_up(w.phones.ringing("a0004"))
    assert w.control.calls[call_id].agent_id == "a0004"
    w.phones.end(caller)
    w.assert_nothing_left()


def test_a_late_answer_of_a_forgotten_leg_is_hung_up() -> None:
    w = World()
    w.phones.legs[LegId("ghost")] = FakeLeg()
    w.phones.pick_up(LegId("ghost"))
    assert w.phones.legs[LegId("ghost")].ended
    w.control.on_leg_event(LegEnded(LegId("never-was"), EndCause.NORMAL))
