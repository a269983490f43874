"""Folding a call's events: the same interaction in whatever order and however often they come."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casebridge.interactions import InteractionBuilder, fold
from engine.events import (
    CallEnded,
    CallId,
    CallStarted,
    EngineStarted,
    HoldEnded,
    HoldStarted,
    LogEvent,
    OutboundTried,
    TalkStarted,
)
from tests.logged_calls import START, queued_call

CALL = queued_call("c1")
ENDED = next(i for i, e in enumerate(CALL) if isinstance(e, CallEnded))


def hold(step: int, after_s: float, by: str, *, start: bool) -> LogEvent:
    kind = HoldStarted if start else HoldEnded
    return kind(event_id=f"h{step}", at=START + timedelta(seconds=after_s), call_id=CallId("c1"), by=by)


def test_a_whole_call() -> None:
    built = fold(CALL)
    assert built is not None
    assert (built.call_id, built.started_at, built.ended_at) == ("c1", START, START + timedelta(seconds=34.5))
    assert built.answered_at == START + timedelta(seconds=0.5)
    assert (built.caller, built.caller_name, built.dialled, built.trunk) == ("0151", "Ann", "500", "carrier")
    assert (built.queue_id, built.agent_id, built.outcome, built.offers) == ("bench", "a0001", "answered", 1)
    assert (built.cause, built.ended_by, built.duration_s) == ("normal", "caller", 34.5)
    assert (built.wait_s, built.talk_s, built.hold_s) == (3.4, 30.0, 5.0)
    assert (built.recording_path, built.recording_ms) == ("recordings/c1.wav", 30000)
    assert [s["party"] for s in built.statistics] == ["caller", "agent"]
    assert built.statistics[0]["packets_received"] == 1700
    assert built.explanation == {"rule": "longest_idle"}


def test_call_to_the_outside_names_the_last_trunk() -> None:
    def tried(step: int, trunk: str) -> LogEvent:
        return OutboundTried(
            event_id=f"t{step}",
            at=START + timedelta(seconds=step),
            call_id=CallId("c1"),
            trunk=trunk,
            gateway=0,
            number="0700111222",
            explanation={"route": trunk},
        )

    built = fold([*CALL, tried(1, "one"), tried(2, "two")])
    assert built is not None
    assert (built.trunk_out, built.number_out, built.explanation) == ("two", "0700111222", {"route": "two"})


def test_last_agent_is_named_when_the_call_went_on_outside() -> None:
    onward = TalkStarted(event_id="x", at=START + timedelta(seconds=30), call_id=CallId("c1"))
    built = fold([*CALL, onward])
    assert built is not None
    assert built.agent_id == "a0001"


def test_events_of_no_call_make_no_interaction() -> None:
    assert fold([]) is None
    assert fold([EngineStarted(event_id="e", at=START, version="1")]) is None


@given(st.lists(st.sampled_from(CALL), max_size=20), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(repeated: list[LogEvent], rng: random.Random) -> None:
    events = [*CALL, *repeated]
    rng.shuffle(events)
    assert fold(events) == fold(CALL)
    builder = InteractionBuilder()
    latest = None
    for event in events:
        builder.add(event, 0.0)
        if rng.random() < 0.3:
            latest = next(iter(builder.take().interactions), latest)
    latest = next(iter(builder.take().interactions), latest)
    assert latest == fold(CALL)


@given(st.lists(st.tuples(st.sampled_from(["caller", "agent"]), st.integers(0, 34), st.booleans()), max_size=12))
def test_hold_time_never_exceeds_the_call(holds: list[tuple[str, int, bool]]) -> None:
    events = [hold(n, after, by, start=start) for n, (by, after, start) in enumerate(holds)]
    built = fold([CALL[0], *events, CALL[ENDED]])
    assert built is not None
    assert 0 <= built.hold_s <= 34.5


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        ([(1, "caller", True), (3, "caller", False)], 2.0),
        (
            [(1, "caller", True), (2, "agent", True), (3, "caller", False), (6, "agent", False)],
            5.0,
        ),  # overlapping: once
        ([(30, "agent", True)], 4.5),  # held until the end
        ([(5, "agent", False)], 0.0),
    ],
)
def test_hold_time(holds: list[tuple[float, str, bool]], expected: float) -> None:
    events = [hold(n, after, by, start=start) for n, (after, by, start) in enumerate(holds)]
    built = fold([CALL[0], *events, CALL[ENDED]])
    assert built is not None
    assert built.hold_s == expected


def test_due_at_the_end_and_again_with_each_late_fact() -> None:
    builder = InteractionBuilder()
    for event in CALL[:ENDED]:
        builder.add(event, 0.0)
    assert not builder.take().interactions
    builder.add(CALL[ENDED], 1.0)
    (ended,) = builder.take().interactions
    assert ended.statistics == ()
    builder.add(CALL[ENDED], 1.0)  # a repetition
    assert not builder.take().interactions
    for event in CALL[ENDED + 1 :]:
        builder.add(event, 2.0)
    assert list(builder.take().interactions) == [fold(CALL)]


def test_a_late_fact_of_a_forgotten_call_asks_for_a_rebuild() -> None:
    builder = InteractionBuilder(late_s=30.0)
    for event in CALL[: ENDED + 1]:
        builder.add(event, 0.0)
    builder.take()
    builder.add(queued_call("c2")[0], 30.0)
    assert len(builder) == 1
    builder.add(CALL[-1], 31.0)
    due = builder.take()
    assert (list(due.interactions), list(due.incomplete)) == ([], ["c1"])
    assert builder.dropped == 0


def test_a_call_without_its_start_asks_for_a_rebuild() -> None:
    builder = InteractionBuilder()
    for event in CALL[ENDED:]:
        builder.add(event, 0.0)
    due = builder.take()
    assert (list(due.interactions), list(due.incomplete)) == ([], ["c1"])


def test_calls_that_never_end_are_dropped_and_counted() -> None:
    builder = InteractionBuilder(most_calls=3, longest_s=100.0)
    for n in range(5):
        builder.add(queued_call(f"c{n}")[0], float(n))
    assert (len(builder), builder.dropped) == (3, 2)
    builder.add(queued_call("late")[0], 103.0)  # c2 and c3 are too old by now
    assert (len(builder), builder.dropped) == (2, 4)


def test_a_call_with_too_many_events_is_left_to_the_log() -> None:
    builder = InteractionBuilder(most_events=20)
    talk = next(e for e in CALL if isinstance(e, TalkStarted))
    for event in [CALL[0], *(replace(talk, event_id=f"t{n}") for n in range(30))]:
        builder.add(event, 0.0)
    assert builder.dropped == 1
    builder.add(CALL[ENDED], 0.0)
    due = builder.take()
    assert (list(due.interactions), list(due.incomplete)) == ([], ["c1"])
    builder.forget_due()
    assert not builder.take().incomplete


def test_a_call_that_cannot_be_folded_is_left_to_the_log() -> None:
    builder = InteractionBuilder()
    for event in [*CALL, replace(CALL[1], event_id="naive", at=CALL[1].at.replace(tzinfo=None))]:
        builder.add(event, 0.0)
    due = builder.take()
    assert (list(due.interactions), list(due.incomplete)) == ([], ["c1"])


def test_start_after_end_completes_the_call() -> None:
    builder = InteractionBuilder()
    started = [e for e in CALL if isinstance(e, CallStarted)]
    for event in CALL:
        if event not in started:
            builder.add(event, 0.0)
    assert list(builder.take().incomplete) == ["c1"]
    builder.add(started[0], 0.0)
    assert list(builder.take().interactions) == [fold(CALL)]
