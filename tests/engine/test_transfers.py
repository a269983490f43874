from __future__ import annotations

import dataclasses
from itertools import count

import pytest

from engine import events as ev
from engine.call import CallState
from engine.events import AgentId, CallId, EndCause, LegId, TransferId, TransferState
from engine.outbound import OutboundRules, TrunkRules
from engine.transfers import MAX_TRANSFERS, TransferError
from routing.model import AgentState
from routing.outbound import OutboundSettings, Route, TrunkChoice, TrunkSettings
from tests.engine.fakes import FakeLeg
from tests.engine.world import World, settings

_ids = count(1)

DONE = [TransferState.TRYING, TransferState.DONE]


def talking(w: World, number: str = "500", agent: str = "a0001", **source: str) -> tuple[CallId, LegId, LegId]:
    """A caller and an agent, bridged."""
    call_id, caller = w.phones.dial(number, **source)
    leg = w.phones.ringing(agent)
    w.phones.pick_up(leg)
    return call_id, caller, leg


def refer(w: World, leg: LegId, target: str, replaces: LegId | None = None) -> TransferId:
    transfer_id = TransferId(f"transfer{next(_ids)}")
    w.control.on_leg_event(ev.LegTransferAsked(leg, transfer_id, target, replaces))
    return transfer_id


def states(w: World, transfer_id: TransferId) -> list[TransferState]:
    return [state for state, _ in w.phones.reports.get(transfer_id, [])]


def take_over(w: World, replaced: LegId, call_id: CallId, **source: str) -> LegId:
    leg = LegId(f"new{next(_ids)}")
    w.phones.legs[leg] = FakeLeg()
    where = ev.Source(**source)  # type: ignore[arg-type]  # test data
    w.control.on_leg_event(ev.LegIncoming(leg, call_id, ev.Party("1"), "x", where, "", replaced))
    return leg


# --- blind -------------------------------------------------------------------------------


def test_agent_transfers_the_caller_to_a_colleague() -> None:
    w = World(wrap_up_s=10)
    call_id, caller, first = talking(w)
    w.pass_time(5)
    w.control.on_leg_event(ev.LegHeld(first))  # as most phones do before
    transfer_id = refer(w, first, "a0003")
    second = w.phones.ringing("a0003")
    request = w.phones.legs[second].request
    assert request is not None
    assert (request.caller.number, request.call_id, request.peer) == ("0700111222", call_id, caller)
    assert w.phones.bridges == {frozenset((caller, first))}  # until the colleague has answered
    w.control.on_leg_event(ev.LegRinging(second))
    w.phones.pick_up(second)
    assert states(w, transfer_id) == [TransferState.TRYING, TransferState.RINGING, TransferState.DONE]
    assert w.phones.bridges == {frozenset((caller, second))}
    assert w.phones.legs[caller].playing is None
    assert w.phones.legs[first].ended
    assert w.phones.recordings == {call_id: (caller, second)}  # one file goes on
    assert w.state("a0001")[0] is AgentState.WRAP_UP
    assert w.state("a0003")[0] is AgentState.TALKING
    call = w.control.calls[call_id]
    assert (call.state, call.agent_id, call.transfer) == (CallState.TALKING, "a0003", None)
    w.pass_time(7)
    w.phones.end(second)
    names = w.names(call_id)
    assert names[names.index("talk.started") :] == [
        "talk.started",
        "hold.started",
        "transfer.started",
        "offer.made",
        "hold.ended",
        "talk.ended",
        "talk.started",
        "transfer.completed",
        "talk.ended",
        "call.ended",
    ]
    started = w.last(ev.TransferStarted)
    assert isinstance(started, ev.TransferStarted)
    assert (started.by, started.from_agent, started.target, started.attended) == ("agent", "a0001", "a0003", False)
    completed = w.last(ev.TransferCompleted)
    assert isinstance(completed, ev.TransferCompleted)
    assert completed.to_agent == "a0003"
    assert [e.talk_s for e in w.events if isinstance(e, ev.TalkEnded)] == [5.0, 7.0]
    w.assert_nothing_left()
    w.pass_time(10)
    assert w.state("a0001")[0] is AgentState.READY
    assert w.state("a0003")[0] is AgentState.READY


@pytest.mark.parametrize("cause", [EndCause.BUSY, EndCause.NO_ANSWER, EndCause.REJECTED])
def test_conversation_goes_on_when_the_new_party_does_not_answer(cause: EndCause) -> None:
    w = World()
    call_id, caller, first = talking(w)
    transfer_id = refer(w, first, "a0003")
    w.phones.end(w.phones.ringing("a0003"), cause)
    assert w.phones.reports[transfer_id][-1] == (TransferState.FAILED, cause)
    assert w.phones.bridges == {frozenset((caller, first))}
    assert w.control.calls[call_id].agent_id == "a0001"
    assert w.state("a0001")[0] is AgentState.TALKING
    assert w.names(call_id)[-1] == "transfer.failed"
    refer(w, first, "a0002")  # and another one may be tried
    w.phones.pick_up(w.phones.ringing("a0002"))
    w.phones.end(caller)
    w.assert_nothing_left()


def test_phone_that_hangs_up_at_once_leaves_the_caller_waiting_for_the_new_party() -> None:
    w = World(wrap_up_s=10)
    call_id, caller, first = talking(w)
    refer(w, first, "a0003")
    second = w.phones.ringing("a0003")
    w.phones.end(first)
    assert not w.phones.legs[caller].ended
    assert w.phones.legs[caller].playing == "music"
    assert w.state("a0001")[0] is AgentState.WRAP_UP
    w.phones.pick_up(second)
    assert w.phones.legs[caller].playing is None
    assert w.phones.bridges == {frozenset((caller, second))}
    assert w.control.calls[call_id].agent_id == "a0003"
    w.phones.end(caller)
    w.assert_nothing_left()


def test_caller_whose_agent_has_left_is_told_when_the_transfer_fails() -> None:
    w = World()
    call_id, caller, first = talking(w)
    refer(w, first, "a0003")
    w.phones.end(first)
    w.phones.end(w.phones.ringing("a0003"), EndCause.NO_ANSWER)
    assert w.phones.legs[caller].ended
    ended = w.last(ev.CallEnded)
    assert isinstance(ended, ev.CallEnded)
    assert (ended.call_id, ended.cause) == (call_id, EndCause.NO_ANSWER)
    w.assert_nothing_left()


def test_caller_who_gives_up_stops_the_new_party_from_ringing() -> None:
    for leaver_gone in (False, True):
        w = World()
        call_id, caller, first = talking(w)
        refer(w, first, "a0003")
        second = w.phones.ringing("a0003")
        if leaver_gone:
            w.phones.end(first)
        w.phones.end(caller)
        assert w.phones.legs[second].ended
        assert "transfer.failed" in w.names(call_id)
        w.assert_nothing_left()
        assert w.state("a0003")[0] is AgentState.READY


def test_transfer_into_a_queue_frees_the_agent_at_once() -> None:
    w = World()
    for busy in ("a0002",):
        w.control.ask_agent_state(AgentId(busy), AgentState.OFFLINE, "")
    call_id, caller, first = talking(w, "7a0003", "a0003")
    transfer_id = refer(w, first, "500")
    assert states(w, transfer_id) == DONE
    assert w.phones.legs[first].ended
    assert w.state("a0003")[0] is AgentState.READY
    call = w.control.calls[call_id]
    assert call.queue_id == "support"
    assert w.phones.legs[caller].playing == "music"
    w.phones.pick_up(w.phones.ringing("a0001"))
    assert w.phones.bridges == {frozenset((caller, w.control.calls[call_id].agent.leg_id))}  # type: ignore[union-attr]  # talks
    assert "queue.left" in w.names(call_id)
    w.phones.end(caller)
    w.assert_nothing_left()


def test_transfer_to_a_prompt() -> None:
    w = World()
    call_id, caller, first = talking(w)
    assert states(w, refer(w, first, "601")) == DONE
    assert w.phones.legs[caller].playing == "welcome"
    assert w.phones.legs[first].ended
    w.phones.end(caller)
    assert w.names(call_id)[-1] == "call.ended"
    assert w.names(call_id).count("queue.left") == 1
    w.assert_nothing_left()


def test_calling_agent_transfers_the_colleague_called() -> None:
    w = World()
    call_id, caller, called = talking(w, "a0002", "a0002", agent_id="a0001")
    refer(w, caller, "a0003")
    third = w.phones.ringing("a0003")
    w.phones.pick_up(third)
    assert w.phones.bridges == {frozenset((called, third))}
    assert w.phones.legs[caller].ended
    assert w.state("a0001")[0] is AgentState.READY
    for agent in ("a0002", "a0003"):
        assert w.state(agent)[0] is AgentState.TALKING
    w.phones.end(called)
    w.assert_nothing_left()
    assert w.state("a0002")[0] is AgentState.READY
    assert w.names(call_id)[-1] == "call.ended"


def test_colleague_called_can_be_sent_into_a_queue() -> None:
    w = World()
    call_id, caller, called = talking(w, "a0002", "a0002", agent_id="a0003")
    refer(w, caller, "500")
    assert w.control.calls[call_id].caller_leg.leg_id == called
    w.phones.pick_up(w.phones.ringing("a0001"))
    assert len(w.phones.bridges) == 1
    w.phones.end(called)
    w.assert_nothing_left()
    assert w.state("a0002")[0] is AgentState.READY


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("999", EndCause.NOT_FOUND),
        ("502", EndCause.UNREACHABLE),
        ("8a0002", EndCause.FORBIDDEN),
    ],
)
def test_only_what_the_one_who_leaves_could_dial_is_reached(target: str, cause: EndCause) -> None:
    w = World()
    call_id, caller, first = talking(w)
    transfer_id = refer(w, first, target)
    assert w.phones.reports[transfer_id] == [(TransferState.REFUSED, cause)]
    assert w.phones.bridges == {frozenset((caller, first))}
    assert "transfer.started" not in w.names(call_id)


def test_callers_of_a_trunk_transfer_only_where_it_is_allowed() -> None:
    w = World()
    _, caller, first = talking(w)
    assert w.phones.reports[refer(w, caller, "a0003")] == [(TransferState.REFUSED, EndCause.FORBIDDEN)]
    assert not w.phones.legs[first].ended
    w = World()
    call_id, caller, first = talking(w, trunk="boss")
    # Colleagues' ids are for colleagues: a trunk reaches what `numbers` says.
    assert w.phones.reports[refer(w, caller, "a0003")] == [(TransferState.REFUSED, EndCause.NOT_FOUND)]
    refer(w, caller, "7a0003")
    second = w.phones.ringing("a0003")
    w.phones.pick_up(second)
    assert w.phones.bridges == {frozenset((first, second))}
    assert w.phones.legs[caller].ended
    assert w.state("a0001")[0] is AgentState.TALKING
    w.phones.end(second)
    assert w.names(call_id)[-1] == "call.ended"
    w.assert_nothing_left()


def test_one_transfer_at_a_time_and_not_for_ever() -> None:
    w = World()
    call_id, caller, leg = talking(w)
    refer(w, leg, "a0003")
    second = refer(w, leg, "a0002")
    assert states(w, second) == [TransferState.BUSY]
    w.phones.pick_up(w.phones.ringing("a0003"))
    for turn in range(MAX_TRANSFERS - 1):
        agent = w.control.calls[call_id].agent
        assert agent is not None
        target = "a0002" if turn % 2 == 0 else "a0003"
        refer(w, agent.leg_id, target)
        w.phones.pick_up(w.phones.ringing(target))
    agent = w.control.calls[call_id].agent
    assert agent is not None
    assert w.phones.reports[refer(w, agent.leg_id, "a0001")] == [(TransferState.REFUSED, EndCause.FORBIDDEN)]
    w.phones.end(caller)
    w.assert_nothing_left()


def test_asking_for_a_call_that_has_ended_is_refused() -> None:
    w = World()
    assert states(w, refer(w, LegId("gone"), "a0003")) == [TransferState.REFUSED]
    _, alone = w.phones.dial("600", agent_id="a0001")
    assert w.phones.reports[refer(w, alone, "a0003")] == [(TransferState.REFUSED, EndCause.UNSUPPORTED)]


def test_agent_rung_by_a_transfer_is_taken_by_an_own_call() -> None:
    w = World()
    _, caller, first = talking(w)
    transfer_id = refer(w, first, "a0003")
    ringing = w.phones.ringing("a0003")
    w.phones.dial("600", agent_id="a0003")
    assert w.phones.legs[ringing].ended
    assert w.phones.reports[transfer_id][-1] == (TransferState.FAILED, EndCause.BUSY)
    assert w.phones.bridges == {frozenset((caller, first))}


# --- to the outside ----------------------------------------------------------------------


def outbound_world() -> World:
    w = World()
    carriers = (TrunkSettings("one"), TrunkSettings("two"))
    route = Route("world", frozenset({"0800"}), (TrunkChoice("one", 1), TrunkChoice("two", 2)))
    rules = OutboundRules(OutboundSettings(carriers, (route,)), {"carrier": TrunkRules(), "boss": TrunkRules()})
    w.control.replace_settings(dataclasses.replace(settings(), outbound=rules))
    return w


def ringing_outside(w: World, trunk: str) -> LegId:
    (found,) = (
        leg_id
        for leg_id, leg in w.phones.legs.items()
        if leg.request is not None and leg.request.outside is not None
        if leg.request.outside.trunk == trunk and not leg.answered and not leg.ended
    )
    return found


def test_agent_transfers_the_caller_to_a_number_outside() -> None:
    w = outbound_world()
    call_id, caller, first = talking(w)
    transfer_id = refer(w, first, "0800")
    w.phones.end(ringing_outside(w, "one"), EndCause.FAILED, 500)
    outside = ringing_outside(w, "two")
    request = w.phones.legs[outside].request
    assert request is not None
    assert (request.peer, request.caller.number) == (caller, "0700111222")
    assert w.phones.bridges == {frozenset((caller, first))}
    w.control.on_leg_event(ev.LegRinging(outside))
    w.phones.pick_up(outside)
    assert states(w, transfer_id) == [TransferState.TRYING, TransferState.RINGING, TransferState.DONE]
    assert w.phones.bridges == {frozenset((caller, outside))}
    assert w.phones.legs[first].ended
    assert w.state("a0001")[0] is AgentState.READY
    w.phones.end(outside)
    ended = w.last(ev.CallEnded)
    assert isinstance(ended, ev.CallEnded)
    assert (ended.call_id, ended.by) == (call_id, "callee")
    w.assert_nothing_left()


def test_conversation_goes_on_when_nobody_outside_answers() -> None:
    for gone in (False, True):
        w = outbound_world()
        _, caller, first = talking(w)
        transfer_id = refer(w, first, "0800")
        if gone:
            w.phones.end(first)
        w.phones.end(ringing_outside(w, "one"), EndCause.BUSY, 486)
        assert w.phones.reports[transfer_id][-1] == (TransferState.FAILED, EndCause.BUSY)
        assert w.phones.legs[caller].ended is gone
        w.phones.end(caller)
        w.assert_nothing_left()


def test_number_outside_joins_the_agents_other_call() -> None:
    w = outbound_world()
    call_id, caller, held = talking(w)
    _, consulting = w.phones.dial("0800", agent_id="a0001")
    outside = ringing_outside(w, "one")
    w.phones.pick_up(outside)
    refer(w, held, "0800", consulting)
    assert w.phones.bridges == {frozenset((caller, outside))}
    assert list(w.control.calls) == [call_id]
    w.phones.end(outside)
    w.assert_nothing_left()


def test_person_called_outside_is_transferred_to_a_colleague() -> None:
    w = outbound_world()
    _, caller = w.phones.dial("0800", agent_id="a0001")
    outside = ringing_outside(w, "one")
    w.phones.pick_up(outside)
    refer(w, caller, "a0003")
    colleague = w.phones.ringing("a0003")
    w.phones.pick_up(colleague)
    assert w.phones.bridges == {frozenset((outside, colleague))}
    (call,) = w.control.calls.values()
    assert (call.caller_leg.leg_id, call.source) == (outside, ev.Source(trunk="one"))
    assert w.state("a0001")[0] is AgentState.READY
    w.phones.end(colleague)
    w.assert_nothing_left()


def test_trunks_do_not_transfer_to_the_outside() -> None:
    w = outbound_world()
    _, caller, _ = talking(w, trunk="boss")
    assert w.phones.reports[refer(w, caller, "0800")] == [(TransferState.REFUSED, EndCause.NOT_FOUND)]
    call_id, _ = w.phones.dial("500", trunk="boss")
    with pytest.raises(TransferError):
        w.control.transfer(call_id, "0800", by="operator")


# --- attended ----------------------------------------------------------------------------


@pytest.mark.parametrize("on_first", [True, False])
def test_partners_of_two_calls_are_joined(on_first: bool) -> None:
    w = World(wrap_up_s=10)
    call_id, caller, held = talking(w)
    w.control.on_leg_event(ev.LegHeld(held))
    w.pass_time(3)
    consult_id, consulting, colleague = talking(w, "a0003", "a0003", agent_id="a0001")
    w.pass_time(4)
    transfer_id = refer(w, held, "a0003", consulting) if on_first else refer(w, consulting, "a0001", held)
    assert states(w, transfer_id) == DONE
    assert w.phones.bridges == {frozenset((caller, colleague))}
    assert w.phones.legs[caller].playing is None
    assert w.phones.legs[held].ended
    assert w.phones.legs[consulting].ended
    assert (f"move {call_id}", colleague) in w.phones.log
    assert list(w.control.calls) == [call_id]
    assert w.phones.recordings[call_id] == (caller, colleague)
    assert w.state("a0001")[0] is AgentState.WRAP_UP
    status = w.control.router.agent("a0003")
    assert status is not None
    assert (status.state, status.contact_id) == (AgentState.TALKING, call_id)
    ended = w.last(ev.CallEnded)
    assert isinstance(ended, ev.CallEnded)
    assert (ended.call_id, ended.cause, ended.detail) == (consult_id, EndCause.NORMAL, f"joined with call {call_id}")
    started = w.last(ev.TransferStarted)
    assert isinstance(started, ev.TransferStarted)
    assert (started.call_id, started.attended, started.other_call) == (call_id, True, consult_id)
    w.phones.end(colleague)
    w.assert_nothing_left()
    assert w.state("a0003")[0] is AgentState.READY
    w.pass_time(10)
    assert w.state("a0001")[0] is AgentState.READY


def test_two_calls_placed_by_one_agent_are_joined() -> None:
    w = World()
    call_id, one, first = talking(w, "a0002", "a0002", agent_id="a0001")
    _, other, second = talking(w, "a0003", "a0003", agent_id="a0001")
    refer(w, one, "a0003", other)
    assert w.phones.bridges == {frozenset((first, second))}
    assert w.state("a0001")[0] is AgentState.READY
    assert w.state("a0002")[0] is AgentState.TALKING
    assert w.state("a0003")[0] is AgentState.TALKING
    w.phones.end(first)
    w.assert_nothing_left()
    assert w.names(call_id)[-1] == "call.ended"


def test_second_call_that_rings_yet_becomes_a_blind_transfer() -> None:
    w = World()
    call_id, caller, held = talking(w)
    consult_id, consulting = w.phones.dial("a0003", agent_id="a0001")
    ringing = w.phones.ringing("a0003")
    transfer_id = refer(w, held, "a0003", consulting)
    assert w.phones.legs[ringing].ended
    assert w.phones.legs[consulting].ended
    again = w.phones.ringing("a0003")
    w.phones.pick_up(again)
    assert states(w, transfer_id) == DONE
    assert w.phones.bridges == {frozenset((caller, again))}
    assert w.names(consult_id)[-1] == "call.ended"
    w.phones.end(caller)
    assert w.names(call_id)[-1] == "call.ended"
    w.assert_nothing_left()


def test_calls_of_others_or_on_other_workers_are_not_joined() -> None:
    w = World()
    _, _, mine = talking(w)
    _, foreign, theirs = talking(w, "7a0002", "a0002")
    for leg, cause in (
        (theirs, EndCause.FORBIDDEN),
        (foreign, EndCause.FORBIDDEN),
        (LegId("gone"), EndCause.NOT_FOUND),
    ):
        assert w.phones.reports[refer(w, mine, "x", leg)] == [(TransferState.REFUSED, cause)]
    _, consulting, _ = talking(w, "a0003", "a0003", agent_id="a0001")
    w.phones.one_place = False
    assert w.phones.reports[refer(w, mine, "x", consulting)] == [(TransferState.REFUSED, EndCause.UNSUPPORTED)]
    assert len(w.phones.bridges) == 3


def test_agent_in_two_calls_is_not_free_when_the_first_one_ends() -> None:
    w = World(wrap_up_s=10)
    w.control.ask_agent_state(AgentId("a0002"), AgentState.OFFLINE, "")
    _, caller, _ = talking(w)
    consult_id, consulting, _ = talking(w, "a0003", "a0003", agent_id="a0001")
    w.phones.dial("500")  # somebody waits
    w.phones.end(caller)
    status = w.control.router.agent("a0001")
    assert status is not None
    assert (status.state, status.contact_id) == (AgentState.TALKING, consult_id)
    w.phones.end(consulting)
    assert w.state("a0001")[0] is AgentState.WRAP_UP
    w.pass_time(10)
    w.phones.ringing("a0001")


# --- the place of a leg ------------------------------------------------------------------


@pytest.mark.parametrize("number", ["500", "6a0001"])
def test_colleague_picks_up_a_ringing_call(number: str) -> None:
    w = World(wrap_up_s=10)
    call_id, caller = w.phones.dial(number)
    ringing = w.phones.ringing("a0001")
    leg = take_over(w, ringing, call_id, agent_id="a0003")
    assert w.phones.legs[ringing].ended
    assert w.phones.legs[caller].answered
    assert w.phones.bridges == {frozenset((caller, leg))}
    assert w.state("a0001")[0] is AgentState.READY
    assert w.state("a0003")[0] is AgentState.TALKING
    assert w.phones.recordings == {call_id: (caller, leg)}
    w.phones.end(leg)
    assert w.state("a0003")[0] is (AgentState.WRAP_UP if number == "500" else AgentState.READY)
    w.assert_nothing_left()


def test_strangers_pick_up_nothing() -> None:
    w = World()
    call_id, _ = w.phones.dial("500")
    ringing = w.phones.ringing("a0001")
    leg = take_over(w, ringing, call_id, trunk="boss")
    assert ("reject forbidden", leg) in w.phones.log
    assert not w.phones.legs[ringing].ended
    late = take_over(w, LegId("gone"), CallId("nowhere"), agent_id="a0003")
    assert ("reject not_found", late) in w.phones.log
    assert ("release", "nowhere") in w.phones.log


def test_nobody_talks_with_themselves() -> None:
    w = World()
    call_id, caller = w.phones.dial("a0001", "a0003", agent_id="a0003")
    own = take_over(w, w.phones.ringing("a0001"), call_id, agent_id="a0003")
    assert ("reject forbidden", own) in w.phones.log
    w.phones.pick_up(w.phones.ringing("a0001"))
    own = take_over(w, caller, call_id, agent_id="a0001")
    assert ("reject forbidden", own) in w.phones.log
    assert w.state("a0003")[0] is w.state("a0001")[0] is AgentState.TALKING
    w.phones.end(caller)
    w.assert_nothing_left()


def test_placed_call_sent_elsewhere_while_the_agents_phone_rings_goes_there_once() -> None:
    w = outbound_world()
    call_id = w.control.place(AgentId("a0003"), "7a0001")
    assert call_id is not None
    w.control.transfer(call_id, "0800", by="operator")
    assert [leg.request.agent_id for leg in w.phones.legs.values() if leg.request is not None] == ["a0003"]
    w.phones.pick_up(w.phones.ringing("a0003"))
    w.phones.pick_up(ringing_outside(w, "one"))
    assert len(w.phones.bridges) == 1
    w.control.hang_up(call_id)
    w.assert_nothing_left()


def test_call_rung_by_a_transfer_is_picked_up() -> None:
    w = World()
    call_id, caller, first = talking(w)
    transfer_id = refer(w, first, "a0003")
    ringing = w.phones.ringing("a0003")
    leg = take_over(w, ringing, call_id, agent_id="a0002")
    assert w.phones.legs[ringing].ended
    assert states(w, transfer_id) == DONE
    assert w.phones.bridges == {frozenset((caller, leg))}
    assert w.state("a0003")[0] is AgentState.READY
    assert w.state("a0002")[0] is AgentState.TALKING
    w.phones.end(caller)
    w.assert_nothing_left()
    assert w.state("a0002")[0] is AgentState.READY


def test_another_phone_takes_the_place_of_one_who_talks() -> None:
    w = World()
    call_id, caller, first = talking(w)
    leg = take_over(w, first, call_id, agent_id="a0003")
    assert w.phones.bridges == {frozenset((caller, leg))}
    assert w.phones.legs[first].ended
    assert w.state("a0001")[0] is AgentState.READY
    assert w.state("a0003")[0] is AgentState.TALKING
    w.phones.end(leg)
    assert w.state("a0003")[0] is AgentState.READY
    w.assert_nothing_left()


def test_second_phone_of_the_same_agent_takes_the_call() -> None:
    w = World()
    call_id, caller, first = talking(w)
    leg = take_over(w, first, call_id, agent_id="a0001")
    assert w.phones.bridges == {frozenset((caller, leg))}
    assert w.state("a0001")[0] is AgentState.TALKING
    w.phones.end(leg)
    w.assert_nothing_left()
    assert w.state("a0001")[0] is AgentState.READY


def test_trunk_takes_the_place_of_its_own_legs_only() -> None:
    w = World()
    call_id, caller, first = talking(w, trunk="boss")
    leg = take_over(w, caller, call_id, trunk="boss")
    assert w.phones.bridges == {frozenset((first, leg))}
    assert w.phones.legs[caller].ended
    w.phones.end(leg)
    w.assert_nothing_left()
    call_id, caller, first = talking(w)
    for replaced in (caller, first):
        assert ("reject forbidden", take_over(w, replaced, call_id, trunk="boss")) in w.phones.log
    assert ("reject forbidden", take_over(w, caller, call_id, agent_id="a0003")) in w.phones.log


# --- operators ---------------------------------------------------------------------------


def test_operator_transfers_the_caller_of_an_agent() -> None:
    w = World()
    call_id, caller, first = talking(w)
    assert w.control.transfer(call_id, "a0003", by="operator")
    w.phones.pick_up(w.phones.ringing("a0003"))
    assert w.phones.legs[first].ended
    assert w.phones.reports == {}
    assert w.control.transfer(CallId("nowhere"), "a0003", by="operator") is None
    w.phones.end(caller)
    w.assert_nothing_left()


def test_agent_joins_two_calls_without_a_phone_that_can() -> None:
    w = World()
    call_id, caller, _ = talking(w)
    _, _, colleague = talking(w, "a0003", "a0003", agent_id="a0001")
    with pytest.raises(TransferError):
        w.control.transfer(call_id, "a0002", by="agent", agent_id=AgentId("a0001"), attended=True)
    w.control.transfer(call_id, "a0003", by="agent", agent_id=AgentId("a0001"), attended=True)
    assert w.phones.bridges == {frozenset((caller, colleague))}
    with pytest.raises(TransferError):
        w.control.transfer(call_id, "a0002", by="agent", agent_id=AgentId("a0001"))


def test_operator_sends_a_waiting_caller_elsewhere() -> None:
    w = World()
    for agent in ("a0001", "a0002"):
        w.control.ask_agent_state(AgentId(agent), AgentState.OFFLINE, "")
    call_id, caller = w.phones.dial("500")
    with pytest.raises(TransferError):
        w.control.transfer(call_id, "999", by="operator")
    w.control.transfer(call_id, "a0003", by="operator")
    assert w.phones.legs[caller].playing is None
    w.phones.pick_up(w.phones.ringing("a0003"))
    assert len(w.phones.bridges) == 1
    left = w.last(ev.QueueLeft)
    assert isinstance(left, ev.QueueLeft)
    assert left.outcome == "transferred"
    w.phones.end(caller)
    w.assert_nothing_left()


@pytest.mark.parametrize("done", [True, False])
def test_far_side_is_asked_to_place_the_call_itself(done: bool) -> None:
    w = World()
    call_id, caller, first = talking(w)
    transfer_id = w.control.transfer(call_id, "a0003", by="operator", release=True)
    assert transfer_id is not None
    assert w.phones.referred == [(caller, transfer_id, "a0003")]
    w.control.on_leg_event(ev.LegReferred(caller, transfer_id, TransferState.TRYING))
    if done:
        w.control.on_leg_event(ev.LegReferred(caller, transfer_id, TransferState.DONE))
        assert w.phones.live() == []
        assert "transfer.completed" in w.names(call_id)
    else:
        w.control.on_leg_event(ev.LegReferred(caller, transfer_id, TransferState.REFUSED, EndCause.FORBIDDEN))
        assert w.phones.bridges == {frozenset((caller, first))}
        assert w.names(call_id)[-1] == "transfer.failed"
        w.phones.end(caller)
    w.assert_nothing_left()


def test_takeovers_that_cannot_be_are_refused_and_nothing_else_happens() -> None:
    w = World()
    call_id, _, first = talking(w)
    w.control.calls[call_id].transfers = MAX_TRANSFERS
    leg = take_over(w, first, call_id, agent_id="a0003")
    assert ("reject forbidden", leg) in w.phones.log
    w.control.calls[call_id].transfers = 0
    w.control.on_leg_event(ev.LegEnded(first, EndCause.NORMAL))  # its place is asked for in the same moment
    late = take_over(w, first, call_id, agent_id="a0003")
    assert ("reject not_found", late) in w.phones.log
    assert w.state("a0003")[0] is AgentState.READY


def test_phone_of_an_agent_who_is_called_for_a_number_of_theirs_is_nobody_elses_to_pick_up() -> None:
    w = World()
    call_id = w.control.place(AgentId("a0001"), "600")
    assert call_id is not None
    leg = take_over(w, w.phones.ringing("a0001"), call_id, agent_id="a0003")
    assert ("reject forbidden", leg) in w.phones.log


def test_withheld_number_stays_withheld_when_the_call_is_transferred() -> None:
    w = outbound_world()
    caller = LegId("hidden")
    w.phones.legs[caller] = FakeLeg()
    hidden = ev.Forwarded(withheld=True)
    source = ev.Source(trunk="carrier")
    w.control.on_leg_event(ev.LegIncoming(caller, CallId("h"), ev.Party("0151"), "7a0001", source, forwarded=hidden))
    first = w.phones.ringing("a0001")
    w.phones.pick_up(first)
    refer(w, first, "a0003")
    request = w.phones.legs[w.phones.ringing("a0003")].request
    assert request is not None
    assert (request.forwarded, request.referred_by) == (hidden, "a0001")
    w.phones.end(w.phones.ringing("a0003"), EndCause.BUSY)
    refer(w, first, "0800")
    request = w.phones.legs[ringing_outside(w, "one")].request
    assert request is not None
    assert request.outside is not None
    assert request.outside.withheld


def test_call_on_its_way_outside_is_sent_elsewhere() -> None:
    w = outbound_world()
    call_id, caller = w.phones.dial("0800", agent_id="a0001")
    outside = ringing_outside(w, "one")
    w.control.transfer(call_id, "a0003", by="operator")
    assert w.phones.legs[outside].ended
    w.phones.pick_up(w.phones.ringing("a0003"))
    assert len(w.phones.bridges) == 1
    w.phones.end(caller)
    w.assert_nothing_left()


def test_transfer_that_failed_leaves_no_wish_to_record() -> None:
    w = World()
    call_id, _, first = talking(w, "7a0001", "a0001")
    refer(w, first, "6a0003")  # that number records
    w.phones.end(w.phones.ringing("a0003"), EndCause.BUSY)
    refer(w, first, "a0002")
    w.phones.pick_up(w.phones.ringing("a0002"))
    assert w.phones.recordings == {}
    agent = w.control.calls[call_id].agent
    assert agent is not None
    refer(w, agent.leg_id, "6a0003")
    w.phones.pick_up(w.phones.ringing("a0003"))
    assert call_id in w.phones.recordings
