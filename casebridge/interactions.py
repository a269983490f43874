"""Interactions: what became of each call, folded from its events.

An interaction is a pure function of the set of the call's events: their order
of arrival and repetitions change nothing, so what is folded while the call
runs and what is rebuilt from the event log later can never disagree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Protocol

from engine.events import (
    CallAnswered,
    CallEnded,
    CallId,
    CallStarted,
    HoldEnded,
    HoldStarted,
    LegMeasured,
    LogEvent,
    MediaStatistics,
    OfferMade,
    OutboundTried,
    QueueJoined,
    QueueLeft,
    RecordingStored,
    TalkEnded,
    TalkStarted,
)

# Events that say something about an interaction; others of the same call are only logged.
FOLDED = (
    CallStarted,
    CallAnswered,
    QueueJoined,
    OfferMade,
    OutboundTried,
    QueueLeft,
    TalkStarted,
    TalkEnded,
    HoldStarted,
    HoldEnded,
    RecordingStored,
    LegMeasured,
    CallEnded,
)
FOLDED_NAMES = frozenset(kind.name for kind in FOLDED)
_FOLDED = frozenset(FOLDED)
_FIGURES = tuple(f.name for f in fields(MediaStatistics))


@dataclass(frozen=True, slots=True)
class Interaction:
    """One call, as people look it up afterwards. Times in UTC, durations in seconds.

    Attributes:
        queue_id: the last queue it waited in.
        agent_id: the last agent it talked with; None if it never did.
        from_agent: the agent who made the call, for a call from inside.
        outcome: how it last left a queue: answered, abandoned, refused, transferred or ended.
        offers: how often an agent's phone was to ring for it.
        hold_s: time during which at least one side held the other.
        statistics: audio figures, one mapping a leg, with its `party`.
        explanation: why the last agent offered, or the last trunk, was chosen.
        trunk_out: the last trunk that was tried for a call to the outside.
        number_out: what was dialled there.
    """

    call_id: CallId
    started_at: datetime
    answered_at: datetime | None = None
    ended_at: datetime | None = None
    caller: str = ""
    caller_name: str = ""
    dialled: str = ""
    trunk: str | None = None
    from_agent: str | None = None
    queue_id: str | None = None
    agent_id: str | None = None
    outcome: str | None = None
    cause: str | None = None
    status: int | None = None
    ended_by: str | None = None
    offers: int = 0
    duration_s: float | None = None
    wait_s: float = 0.0
    talk_s: float = 0.0
    hold_s: float = 0.0
    recording_path: str | None = None
    recording_sha256: str | None = None
    recording_ms: int | None = None
    recording_error: str | None = None
    statistics: Sequence[Mapping[str, object]] = field(default_factory=tuple)
    explanation: Mapping[str, object] | None = None
    trunk_out: str | None = None
    number_out: str | None = None


class InteractionStore(Protocol):
    """Where interactions are kept. Both methods are safe to repeat."""

    async def upsert(self, interactions: Sequence[Interaction]) -> None:
        """Insert or replace by call id."""

    async def rebuild(self, call_id: CallId) -> Interaction | None:
        """Fold the call's logged events again, store and return the result; None without events."""


def fold(events: Iterable[LogEvent]) -> Interaction | None:
    """What the events of one call make of it; None if none of them belongs to an interaction."""
    unique = {e.event_id: e for e in events if type(e) in _FOLDED and e.call_id is not None}
    ordered = sorted(unique.values(), key=lambda e: (e.at, e.event_id))
    if not ordered or ordered[0].call_id is None:
        return None
    return _fold(ordered[0].call_id, ordered)


def _fold(call_id: CallId, ordered: Sequence[LogEvent]) -> Interaction:
    found: dict[str, object] = {"started_at": ordered[0].at}
    wait_s = talk_s = hold_s = 0.0
    offers = 0
    statistics: list[Mapping[str, object]] = []
    holding: dict[str, datetime] = {}
    for event in ordered:
        match event:
            case CallStarted():
                found["started_at"] = event.at
                found["caller"], found["caller_name"] = event.caller.number, event.caller.name
                found["dialled"], found["trunk"], found["from_agent"] = event.dialled, event.trunk, event.from_agent
            case CallAnswered():
                found.setdefault("answered_at", event.at)
            case QueueJoined():
                found["queue_id"] = event.queue_id
            case OfferMade():
                offers += 1
                found["explanation"] = event.explanation or None
            case OutboundTried():
                found["trunk_out"], found["number_out"] = event.trunk, event.number
                found["explanation"] = event.explanation or None
            case QueueLeft():
                wait_s += event.wait_s
                found["outcome"] = event.outcome
            case TalkStarted():
                if event.agent_id is not None:  # else it went on with somebody outside
                    found["agent_id"] = event.agent_id
            case TalkEnded():
                talk_s += event.talk_s
            case HoldStarted():
                holding.setdefault(event.by, event.at)
            case HoldEnded():
                hold_s += _held(holding, (event.by,), event.at)
            case RecordingStored():
                found["recording_path"], found["recording_sha256"] = event.path, event.sha256
                found["recording_ms"], found["recording_error"] = event.duration_ms, event.error or None
            case LegMeasured():
                statistics.append({"party": event.party, "agent_id": event.agent_id, **_figures(event.statistics)})
            case CallEnded():
                found["ended_at"], found["cause"], found["ended_by"] = event.at, str(event.cause), event.by
                found["status"], found["duration_s"] = event.status, event.duration_s
                hold_s += _held(holding, tuple(holding), event.at)
    return Interaction(
        call_id=call_id,
        offers=offers,
        wait_s=wait_s,
        talk_s=talk_s,
        hold_s=hold_s,
        statistics=tuple(statistics),
        **found,  # type: ignore[arg-type]  # keys and values are those of the cases above
    )


def _figures(statistics: MediaStatistics) -> dict[str, object]:
    return {name: getattr(statistics, name) for name in _FIGURES}  # all plain: no need for asdict's deep copies


def _held(holding: dict[str, datetime], parties: tuple[str, ...], at: datetime) -> float:
    """End the holds of `parties`; the seconds held, once nobody holds any more."""
    since = min(holding.values(), default=at)
    for party in parties:
        if holding.pop(party, None) is not None and holding:
            # The other side still holds: its count goes on from the earlier of the two starts.
            holding.update(dict.fromkeys(holding, since))
            return 0.0
    return 0.0 if holding else (at - since).total_seconds()


@dataclass(slots=True)
class _Call:
    events: dict[str, LogEvent] = field(default_factory=dict)
    started: bool = False
    ended: bool = False
    deadline: float = 0.0


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be written: whole interactions, and calls of which only the log knows all events."""

    interactions: Sequence[Interaction]
    incomplete: Sequence[CallId]


def _try_fold(call: _Call) -> Interaction | None:
    try:
        return fold(call.events.values())
    except (TypeError, ValueError, AttributeError):  # a field that is not what its type says: the log may know better
        return None


class InteractionBuilder:
    """Collects the events of running calls and says which interactions are due to be written.

    An interaction is due when its call ends, and again for each fact that
    comes later. Memory is bounded: a call is forgotten `late_s` after its end;
    one that does not end, when it is older than `longest_s`, or is the oldest of
    more than `most_calls`, or has more than `most_events`. A forgotten call is
    not wrong, only costlier: a later event of it makes it `incomplete`, to be
    rebuilt from the log. `dropped` counts those forgotten before their end.

    `now` is monotonic, in seconds.
    """

    def __init__(
        self,
        *,
        late_s: float = 30.0,
        longest_s: float = 24 * 3600.0,
        most_calls: int = 20_000,
        most_events: int = 500,
    ) -> None:
        self.dropped = 0
        self._late_s = late_s
        self._longest_s = longest_s
        self._most_calls = most_calls
        self._most_events = most_events
        self._live: OrderedDict[CallId, _Call] = OrderedDict()  # by start
        self._ended: OrderedDict[CallId, _Call] = OrderedDict()  # by end
        self._due: dict[CallId, None] = {}
        self._incomplete: dict[CallId, None] = {}

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    def add(self, event: LogEvent, now: float) -> None:
        """Take one event in; those of no call, or of no use for an interaction, are ignored."""
        call_id = event.call_id
        if call_id is None or type(event) not in _FOLDED:
            return
        self._expire(now)
        call = self._live.get(call_id) or self._ended.get(call_id)
        if call is None:
            call = self._live[call_id] = _Call(deadline=now + self._longest_s)
        if event.event_id in call.events:
            return
        call.events[event.event_id] = event
        if len(call.events) > self._most_events:
            self._drop(call_id)
            return
        if isinstance(event, CallStarted):
            call.started = True
        elif isinstance(event, CallEnded):
            call.ended = True
            call.deadline = now + self._late_s
            self._live.pop(call_id, None)
            self._ended[call_id] = call
        if call.ended:
            self._due[call_id] = None
        elif not call.started:
            self._incomplete[call_id] = None
        if len(self._live) > self._most_calls:
            self._drop(next(iter(self._live)))
        if len(self._ended) > self._most_calls:
            self._ended.popitem(last=False)

    def take(self) -> Due:
        """What became due since the last call of `take`."""
        interactions: list[Interaction] = []
        incomplete = dict(self._incomplete)
        for call_id in self._due:
            call = self._ended.get(call_id)
            built = _try_fold(call) if call is not None and call.started else None
            if built is None:
                incomplete[call_id] = None
            else:
                interactions.append(built)
        self._due.clear()
        self._incomplete.clear()
        return Due(interactions, [c for c in incomplete if c not in self._live or not self._live[c].started])

    def forget_due(self) -> None:
        """Drop what became due: it will be rebuilt from the log instead."""
        self._due.clear()
        self._incomplete.clear()

    def _drop(self, call_id: CallId) -> None:
        if self._live.pop(call_id, None) is not None:
            self.dropped += 1
        self._ended.pop(call_id, None)
        self._incomplete[call_id] = None

    def _expire(self, now: float) -> None:
        for calls, early in ((self._ended, False), (self._live, True)):
            while calls:
                call_id, call = next(iter(calls.items()))
                if call.deadline > now:
                    break
                del calls[call_id]
                self.dropped += early
