"""Whatever phones, operators, trunks and the configuration do, in whatever order, calls stay whole and end once."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from config.numbering import Numbering
from config.numbers import NumberSet
from engine import events as ev
from engine.bus import EventBus
from engine.call import IN_CONVERSATION, Call, CallState
from engine.control import CallControl, ControlSettings, QueueCare
from engine.events import AgentId, CallId, EndCause, LegId, LogEvent, TransferId, TransferState
from engine.holding import HoldError
from engine.outbound import OutboundRules, TrunkRules
from engine.transfers import TransferError
from routing.model import AgentSettings, AgentState, QueueSettings, RoutingSettings, Strategy
from routing.outbound import OutboundSettings, Route, TrunkChoice, TrunkSettings
from tests.engine.fakes import FakeTelephony, SteppedClock
from tests.engine.world import document_numbers

_T = TypeVar("_T")

AGENTS = ("a0001", "a0002", "a0003", "a0004")
TRUNKS = ("one", "two")
SOURCES: Sequence[dict[str, str]] = (*({"agent_id": agent} for agent in AGENTS), {"trunk": "one"}, {"trunk": "pbx"})
TARGETS = ("500", "501", "600", "601", "605", *AGENTS, "7a0002", "6a0003", "+254700111222", "999", "nothing")
CAUSES = (
    EndCause.NORMAL,
    EndCause.BUSY,
    EndCause.NO_ANSWER,
    EndCause.UNREACHABLE,
    EndCause.MEDIA_LOST,
    EndCause.OVERLOADED,
)


def settings(agents: Sequence[str] = AGENTS, trunks: Sequence[str] = TRUNKS, queues: bool = True) -> ControlSettings:
    care = {"support": QueueCare(music="music", record=True), "all": QueueCare()} if queues else {}
    return ControlSettings(
        dial_plan=document_numbers(),
        routing=RoutingSettings(
            agents=tuple(AgentSettings(a, {"x": 50}, auto_ready=True, fixed_contact=True) for a in agents),
            queues=(
                QueueSettings(
                    "support", Strategy.LONGEST_IDLE, tuple(a for a in agents if a != "a0003"), wrap_up_s=5.0
                ),
                QueueSettings("all", Strategy.RING_ALL, tuple(agents)),
            )
            if queues
            else (),
        ),
        queues=care,
        transferring_trunks=frozenset({"pbx"}),
        outbound=OutboundRules(
            choice=OutboundSettings(
                tuple(TrunkSettings(trunk, max_calls=2) for trunk in trunks),
                (
                    Route("emergency", NumberSet(["999"]), (TrunkChoice("one"),), emergency=True),
                    Route("all", NumberSet(["+*"]), (TrunkChoice("one", 1), TrunkChoice("two", 2))),
                ),
            ),
            trunks={"one": TrunkRules(), "pbx": TrunkRules(dial_out=True)},
            numbering=Numbering("KE"),
        ),
    )


class _Faults(logging.Handler):
    """What call control had to swallow."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


class Scene:
    """Call control, and everything that may happen to it; what a step cannot do now, it leaves."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.phones = FakeTelephony()
        self.events: list[LogEvent] = []
        bus = EventBus()
        bus.subscribe(self.events.append)
        ids = itertools.count()
        self.deadline: float | None = None
        self.control = CallControl(
            self.phones, settings(), bus, self.clock, lambda: f"id{next(ids)}", self._on_deadline
        )
        self.phones.sink = self.control.on_leg_event
        self.control.start()

    def _on_deadline(self, deadline: float | None) -> None:
        self.deadline = deadline

    # --- what there is to choose from -----------------------------------------------------

    def live_legs(self) -> list[LegId]:
        return self.phones.live()

    def calls(self) -> list[Call]:
        return list(self.control.calls.values())

    # --- steps ------------------------------------------------------------------------------

    def dial(self, a: int, b: int) -> None:
        source = SOURCES[a % len(SOURCES)]
        if self._known(source):
            self.phones.dial(TARGETS[b % len(TARGETS)], **source)

    def _known(self, source: dict[str, str]) -> bool:
        """Agents whom the configuration has no more have no account."""
        agent = source.get("agent_id")
        return agent is None or self.control.router.agent(agent) is not None

    def answer(self, a: int, b: int) -> None:
        ringing = [i for i in self.live_legs() if not self.phones.legs[i].answered and self.phones.legs[i].request]
        if ringing:
            self.phones.pick_up(_pick(ringing, a))

    def ring(self, a: int, b: int) -> None:
        ringing = [i for i in self.live_legs() if not self.phones.legs[i].answered and self.phones.legs[i].request]
        if ringing:
            leg = _pick(ringing, a)
            self.control.on_leg_event(ev.LegEarlyMedia(leg) if b % 2 else ev.LegRinging(leg))

    def end_leg(self, a: int, b: int) -> None:
        if self.live_legs():
            leg = _pick(self.live_legs(), a)
            cause = CAUSES[b % len(CAUSES)]
            self.phones.end(leg, cause, 503 if cause is EndCause.OVERLOADED else None)

    def hold_by_phone(self, a: int, b: int) -> None:
        answered = [i for i in self.live_legs() if self.phones.legs[i].answered]
        if answered:
            leg_id = _pick(answered, a)
            call = self.control.call_of(leg_id)
            held = call is not None and leg_id in call.legs and call.legs[leg_id].held
            self.control.on_leg_event(ev.LegResumed(leg_id) if held else ev.LegHeld(leg_id))

    def hold(self, a: int, b: int) -> None:
        if self.calls():
            call = _pick(self.calls(), a)
            with contextlib.suppress(HoldError):
                if call.held_by:
                    self.control.resume(call.call_id)
                else:
                    self.control.hold(call.call_id, by="agent" if b % 2 else "operator")

    def refer(self, a: int, b: int) -> None:
        answered = [i for i in self.live_legs() if self.phones.legs[i].answered]
        if answered:
            leg = _pick(answered, a)
            transfer_id = TransferId(self.control.new_id())
            self.control.on_leg_event(ev.LegTransferAsked(leg, transfer_id, TARGETS[b % len(TARGETS)]))

    def refer_attended(self, a: int, b: int) -> None:
        """Of a party's two calls, if there is one who has."""
        pairs = [
            (x, y)
            for x, y in itertools.permutations(self.live_legs(), 2)
            if self._who(x) is not None and self._who(x) == self._who(y)
        ]
        if pairs:
            x, y = _pick(pairs, a)
            self.control.on_leg_event(ev.LegTransferAsked(x, TransferId(self.control.new_id()), "", replaces=y))

    def _who(self, leg_id: LegId) -> AgentId | None:
        call = self.control.call_of(leg_id)
        return None if call is None else call.agent_of(call.legs[leg_id])

    def take_over(self, a: int, b: int) -> None:
        if self.live_legs():
            replaced = _pick(self.live_legs(), a)
            leg_id, source = LegId(f"in{len(self.phones.legs)}"), SOURCES[b % len(SOURCES)]
            call = self.control.call_of(replaced)
            if call is None or not self._known(source):
                return
            self.phones.legs[leg_id] = type(self.phones.legs[replaced])()
            self.control.on_leg_event(
                ev.LegIncoming(
                    leg_id,
                    call.call_id,
                    ev.Party("x"),
                    "x",
                    ev.Source(**source),  # type: ignore[arg-type]  # names of fields
                    replaces=replaced,
                )
            )

    def operate(self, a: int, b: int) -> None:
        if self.calls():
            call, target = _pick(self.calls(), a), TARGETS[b % len(TARGETS)]
            attended, release = (a + b) % 4 == 1, (a + b) % 4 == 2
            with contextlib.suppress(TransferError):
                self.control.transfer(
                    call.call_id,
                    "" if attended else target,
                    by="operator",
                    agent_id=AgentId("a0001") if (a + b) % 4 == 3 else None,
                    attended=attended,
                    release=release,
                )

    def referred(self, a: int, b: int) -> None:
        """The far side tells of the call that it was asked to place."""
        if self.phones.referred:
            leg, transfer_id, _ = self.phones.referred[-1]
            states = (TransferState.RINGING, TransferState.DONE, TransferState.FAILED, TransferState.REFUSED)
            self.control.on_leg_event(ev.LegReferred(leg, transfer_id, states[b % 4], EndCause.BUSY))

    def place(self, a: int, b: int) -> None:
        agent = AGENTS[a % len(AGENTS)]
        if self._known({"agent_id": agent}):
            self.control.place(AgentId(agent), TARGETS[b % len(TARGETS)])

    def hang_up(self, a: int, b: int) -> None:
        if self.calls():
            self.control.hang_up(_pick(self.calls(), a).call_id)

    def played(self, a: int, b: int) -> None:
        playing = [i for i in self.live_legs() if self.phones.legs[i].playing == "welcome"]
        if playing:
            leg = _pick(playing, a)
            self.phones.legs[leg].playing = None
            self.control.on_leg_event(ev.PlayFinished(leg, ev.PlayId("p"), completed=True))

    def ask_state(self, a: int, b: int) -> None:
        state = (AgentState.READY, AgentState.BREAK, AgentState.OFFLINE)[b % 3]
        self.control.ask_agent_state(AgentId(AGENTS[a % len(AGENTS)]), state, "")

    def lose_phone(self, a: int, b: int) -> None:
        agent = AGENTS[a % len(AGENTS)]
        self.phones.unreachable ^= {agent}

    def reload(self, a: int, b: int) -> None:
        """A configuration without an agent, without a trunk, without queues, or the whole again."""
        which = b % 4
        self.control.replace_settings(
            settings(
                agents=[agent for n, agent in enumerate(AGENTS) if which != 0 or n != a % len(AGENTS)],
                trunks=[trunk for n, trunk in enumerate(TRUNKS) if which != 1 or n != a % len(TRUNKS)],
                queues=which != 2,
            )
        )

    def wait(self, a: int, b: int) -> None:
        end = self.clock.now + (1.0, 6.0, 20.0, 40.0)[b % 4]
        while self.deadline is not None and self.deadline <= end:
            self.clock.now = max(self.clock.now, self.deadline)
            self.control.on_time()
        self.clock.now = end

    # --- what is always so ------------------------------------------------------------------

    def assert_whole(self) -> None:
        bridged = Counter(leg for bridge in self.phones.bridges for leg in bridge)
        assert not bridged or max(bridged.values()) == 1
        for bridge in self.phones.bridges:
            assert len({id(self.control.call_of(leg)) for leg in bridge}) == 1
        for call in self.calls():
            if not call.over:
                self._assert_call(call)
        self._assert_agents()
        for trunk in (*TRUNKS, "pbx"):
            legs = [i for i in self.live_legs() if self.control.outbound.trunk_of(i) == trunk]
            assert self.control.outbound.book.calls(trunk) == len(legs)

    def _assert_call(self, call: Call) -> None:
        gone = call.transfer is not None and call.transfer.gone
        assert call.caller_leg.leg_id in call.legs or gone
        assert all(self.control.call_of(leg) is call for leg in call.legs)
        assert (call.state in IN_CONVERSATION) == (call.talk_started is not None)
        if call.state not in IN_CONVERSATION:
            assert self._holds(call.call_id) == set()
            return
        assert call.agent is not None
        assert call.agent.leg_id in call.legs
        pair = (call.caller_leg, call.agent)
        assert (frozenset(leg.leg_id for leg in pair) in self.phones.bridges) == (not call.held_by)
        held = bool(call.held_by) or any(leg.held for leg in pair)
        assert (call.state is CallState.HELD) == held
        by = {leg.side for leg in pair if leg.held} | ({call.held_by} if call.held_by else set())
        assert self._holds(call.call_id) == by
        if not held:
            assert [self.phones.legs[leg.leg_id].playing for leg in pair] == [None, None]
        assert not call.recording or set(self.phones.recordings[call.call_id]) == {leg.leg_id for leg in pair}

    def _holds(self, call_id: CallId) -> set[str]:
        """On whose word a call is on hold, as the log tells it."""
        holds: set[str] = set()
        for event in self.events:
            if isinstance(event, ev.HoldStarted) and event.call_id == call_id:
                assert event.by not in holds
                holds.add(event.by)
            elif isinstance(event, ev.HoldEnded) and event.call_id == call_id:
                holds.remove(event.by)
        return holds

    def _assert_agents(self) -> None:
        talking = Counter[AgentId]()
        for call in self.calls():
            if not call.over:
                for leg in (call.caller_leg, call.agent):
                    agent = None if leg is None else call.agent_of(leg)
                    if leg is not None and leg.leg_id in call.legs and agent is not None:
                        talking[agent] += 1
                leg = None if call.transfer is None else call.transfer.leg
                if leg is not None and leg.agent_id is not None:
                    talking[leg.agent_id] += 1
        for status in self.control.router.agents():
            if status.state is AgentState.TALKING:
                assert talking[AgentId(status.agent_id)]
                assert status.contact_id in self.control.calls
            elif status.state is not AgentState.RINGING:
                in_talk = [
                    call.call_id
                    for call in self.calls()
                    if call.state in IN_CONVERSATION and status.agent_id in (call.agent_id, call.source.agent_id)
                ]
                assert not in_talk, f"{status.agent_id} is {status.state}"

    def assert_nothing_left(self) -> None:
        for leg in self.live_legs():
            self.phones.end(leg)
        self.wait(0, 3)
        for leg in self.live_legs():  # who waited in a queue no more, rang nobody
            self.phones.end(leg)
        self.wait(0, 3)
        control = self.control
        assert self.live_legs() == []
        assert control.calls == {}
        assert control._call_by_leg == {}
        assert control._second_calls == {}
        assert control.transfers._ringing == {}
        assert control.outbound._dialling == {}
        assert control.outbound._trunk_of == {}
        assert self.phones.snapshots == {}
        for status in control.router.agents():
            assert status.contact_id is None
            assert status.state not in (AgentState.TALKING, AgentState.RINGING)
        for queue in control.router.queues():
            assert not any((queue.waiting, queue.ringing, queue.talking))
        self._assert_story()

    def _assert_story(self) -> None:
        """The log tells of everything that began that it ended, and once."""
        starts = self._counted(ev.CallStarted)
        assert set(starts.values()) <= {1}
        assert starts == self._counted(ev.CallEnded)
        assert self._counted(ev.TalkStarted) == self._counted(ev.TalkEnded)
        refused = Counter(e.call_id for e in self.events if isinstance(e, ev.QueueLeft) and e.outcome == "refused")
        assert self._counted(ev.QueueJoined) <= self._counted(ev.QueueLeft) <= self._counted(ev.QueueJoined) + refused
        begun = Counter(e.transfer_id for e in self.events if isinstance(e, ev.TransferStarted))
        over = Counter(e.transfer_id for e in self.events if isinstance(e, (ev.TransferCompleted, ev.TransferFailed)))
        assert begun == over
        assert set(begun.values()) <= {1}
        released = Counter(CallId(leg) for command, leg in self.phones.log if command == "release")
        assert all(released[call] == 1 for call in starts)
        last_words = {
            call: [type(e) for e in self.events if e.call_id == call and not isinstance(e, ev.AgentStateChanged)][-1]
            for call in starts
        }
        assert set(last_words.values()) <= {ev.CallEnded}, last_words

    def _counted(self, kind: type[LogEvent]) -> Counter[CallId]:
        return Counter(e.call_id for e in self.events if type(e) is kind and e.call_id is not None)


def _pick(things: Sequence[_T], which: int) -> _T:
    return things[which % len(things)]


Step = Callable[[Scene, int, int], None]
STEPS: Sequence[Step] = (
    Scene.dial,
    Scene.dial,
    Scene.answer,
    Scene.answer,
    Scene.answer,
    Scene.ring,
    Scene.end_leg,
    Scene.end_leg,
    Scene.hold_by_phone,
    Scene.hold,
    Scene.refer,
    Scene.refer,
    Scene.refer_attended,
    Scene.take_over,
    Scene.operate,
    Scene.referred,
    Scene.place,
    Scene.hang_up,
    Scene.played,
    Scene.ask_state,
    Scene.lose_phone,
    Scene.reload,
    Scene.wait,
)


ANYTHING = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 20), st.integers(0, 20)), max_size=40)


@given(ANYTHING)
def test_calls_stay_whole_and_end_once(steps: list[tuple[Step, int, int]]) -> None:
    faults = _Faults()
    log = logging.getLogger("murima.call")
    log.addHandler(faults)
    try:
        scene = Scene()
        for step, a, b in steps:
            step(scene, a, b)
            assert faults.texts == []
            scene.assert_whole()
        scene.assert_nothing_left()
        assert faults.texts == []
    finally:
        log.removeHandler(faults)


@given(ANYTHING)
def test_the_next_engine_knows_whom_and_what_the_calls_it_finds_occupy(steps: list[tuple[Step, int, int]]) -> None:
    before, after = Scene(), Scene()
    for step, a, b in steps:
        step(before, a, b)
    talks = [call for call in before.calls() if call.state in IN_CONVERSATION]
    for call in talks:
        after.control.on_leg_event(ev.CallAbandonedByEngine(call.call_id, before.phones.snapshots[call.call_id]))
    for ended in range(len(talks) + 1):
        rest = talks[ended:]
        occupied = {agent for call in rest for agent in (call.agent_id, call.source.agent_id)}
        for status in after.control.router.agents():
            assert (status.state is AgentState.TALKING) == (status.agent_id in occupied)
        legs = [leg.leg_id for call in rest for leg in (call.caller_leg, call.agent) if leg is not None]
        for trunk in (*TRUNKS, "pbx"):
            lines = sum(before.control.outbound.trunk_of(leg) == trunk for leg in legs)
            assert after.control.outbound.book.calls(trunk) == lines
        if rest:
            after.control.on_leg_event(ev.OrphanEnded(rest[0].call_id))
    told = Counter(e.call_id for e in after.events if isinstance(e, ev.CallEnded))
    assert told == Counter(call.call_id for call in talks)
    assert after.control._second_calls == {}
    assert after.control.outbound._trunk_of == {}
