"""Small stand-ins for the protocols that call control is written against."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from engine import events as ev
from engine.events import CallId, EndCause, LegId, PlayId, TransferId, TransferState
from engine.telephony import EventSink, Originate


class SteppedClock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._start = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.now

    def utc(self) -> datetime:
        return self._start + timedelta(seconds=self.now - 1000.0)


@dataclass
class FakeLeg:
    answered: bool = False
    playing: str | None = None
    echo: bool = False
    ended: bool = False
    request: Originate | None = None


@dataclass
class FakeTelephony:
    """Phones that do what the test says. Every leg ends with exactly one LegEnded, as the protocol promises."""

    sink: EventSink = lambda _: None
    legs: dict[LegId, FakeLeg] = field(default_factory=dict)
    bridges: set[frozenset[LegId]] = field(default_factory=set)
    recordings: dict[CallId, tuple[LegId, LegId]] = field(default_factory=dict)
    snapshots: dict[CallId, bytes] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    unreachable: set[str] = field(default_factory=set)
    answer_fails: bool = False
    one_place: bool = True
    reports: dict[TransferId, list[tuple[TransferState, EndCause]]] = field(default_factory=dict)
    referred: list[tuple[LegId, TransferId, str]] = field(default_factory=list)
    first_id: int = 0

    # what the test does

    def dial(self, dialled: str, caller: str = "0700111222", **source: str) -> tuple[CallId, LegId]:
        number = self.first_id + len(self.legs)
        call_id, leg_id = CallId(f"call{number}"), LegId(f"in{number}")
        self.legs[leg_id] = FakeLeg()
        where = ev.Source(**source) if source else ev.Source(trunk="carrier")  # type: ignore[arg-type]  # test data
        self.sink(ev.LegIncoming(leg_id, call_id, ev.Party(caller), dialled, where))
        return call_id, leg_id

    def pick_up(self, leg_id: LegId) -> None:
        self.legs[leg_id].answered = True
        self.sink(ev.LegAnswered(leg_id))

    def end(self, leg_id: LegId, cause: EndCause = EndCause.NORMAL, status: int | None = None) -> None:
        leg = self.legs[leg_id]
        if not leg.ended:
            leg.ended = True
            self.bridges = {b for b in self.bridges if leg_id not in b}
            self.sink(ev.LegEnded(leg_id, cause, status))

    def ringing(self, agent_id: str) -> LegId:
        """The one leg on which this agent's phone rings."""
        (found,) = (
            i
            for i, leg in self.legs.items()
            if leg.request is not None and leg.request.agent_id == agent_id and not leg.answered and not leg.ended
        )
        return found

    def live(self) -> list[LegId]:
        return [i for i, leg in self.legs.items() if not leg.ended]

    # the protocol

    def ring(self, leg_id: LegId) -> None:
        self.log.append(("ring", leg_id))

    def progress(self, leg_id: LegId, peer: LegId) -> None:
        self.log.append((f"progress {peer}", leg_id))

    def answer(self, leg_id: LegId, *, peer: LegId | None = None) -> None:
        self.log.append(("answer", leg_id))
        if self.answer_fails:
            self.end(leg_id, EndCause.OVERLOADED)
        elif not self.legs[leg_id].ended:
            self.pick_up(leg_id)

    def reject(self, leg_id: LegId, cause: EndCause) -> None:
        self.log.append((f"reject {cause}", leg_id))
        assert self.legs[leg_id].request is None  # only who calls us can be refused
        self.end(leg_id, cause)

    def originate(self, leg_id: LegId, request: Originate) -> None:
        self.legs[leg_id] = FakeLeg(request=request)
        if request.agent_id in self.unreachable:
            self.end(leg_id, EndCause.UNREACHABLE)

    def hang_up(self, leg_id: LegId, cause: EndCause = EndCause.NORMAL) -> None:
        self.log.append((f"hang_up {cause}", leg_id))
        self.end(leg_id, cause)

    def bridge(self, a: LegId, b: LegId) -> None:
        assert self.legs[a].answered
        assert self.legs[b].answered
        self.bridges.add(frozenset((a, b)))

    def unbridge(self, a: LegId, b: LegId) -> None:
        self.bridges.discard(frozenset((a, b)))

    def play(self, leg_id: LegId, play_id: PlayId, prompt: str, *, loop: bool = False) -> None:
        self.legs[leg_id].playing = prompt

    def stop_play(self, leg_id: LegId) -> None:
        self.legs[leg_id].playing = None

    def echo(self, leg_id: LegId) -> None:
        self.legs[leg_id].echo = True

    def shares_audio(self, a: LegId, b: LegId) -> bool:
        return self.one_place

    def move_leg(self, leg_id: LegId, call_id: CallId) -> None:
        self.log.append((f"move {call_id}", leg_id))

    def report_transfer(self, transfer_id: TransferId, state: TransferState, cause: EndCause = EndCause.NORMAL) -> None:
        self.reports.setdefault(transfer_id, []).append((state, cause))

    def refer(self, leg_id: LegId, transfer_id: TransferId, target: str) -> None:
        self.referred.append((leg_id, transfer_id, target))

    def send_dtmf(self, leg_id: LegId, digits: str) -> None:
        self.log.append((f"dtmf {digits}", leg_id))

    def start_recording(self, call_id: CallId, left: LegId, right: LegId) -> None:
        self.recordings[call_id] = (left, right)

    def stop_recording(self, call_id: CallId) -> None:
        self.log.append(("stop_recording", call_id))

    def save_snapshot(self, call_id: CallId, snapshot: bytes) -> None:
        self.snapshots[call_id] = snapshot

    def release_call(self, call_id: CallId) -> None:
        self.log.append(("release", call_id))
        self.snapshots.pop(call_id, None)
