"""Admission control on a simulated server: a burst is served whole, twice the capacity leaves most of it."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from statistics import mean

import pytest

from adapters.sip.protection.overload import Admission, Load, OverloadSettings, Urgency
from adapters.sip.syntax.message import Request

LOOK_S = 0.05


class Server:
    """Serves messages one after the other: what waits is in a queue that the admission control does not see.

    A call is an INVITE and six more messages, one each 20 ms after the one before was served. A
    message that finds the queue full is lost and sent again after half a second, six times at most.
    """

    def __init__(self, admission: Admission, *, message_s: float, refusal_s: float, room: int) -> None:
        self.admission = admission
        self.now = 0.0
        self.setups: list[tuple[float, float]] = []  # when the call came, and how long it took
        self.refused: list[tuple[float, int]] = []
        self.lost = 0
        self._message_s = message_s
        self._refusal_s = refusal_s
        self._room = room
        self._order = count()
        self._events: list[tuple[float, int, str, tuple[float, int, int, Urgency]]] = []
        self._queue: deque[tuple[float, int, int, Urgency]] = deque()
        self._dropped = 0
        self._served = 0
        self._served_before = 0
        self._busy_until = 0.0
        admission.watch = lambda: self._at(self.now + LOOK_S, "look", (self.now, 0, 0, Urgency.CALL))

    def _at(self, when: float, what: str, message: tuple[float, int, int, Urgency]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, message))

    def call(self, at: float, urgency: Urgency = Urgency.CALL) -> None:
        self._at(at, "arrive", (at, 0, 0, urgency))

    def run(self, until: float) -> None:
        while True:
            idle_at = max(self._busy_until, self.now) if self._queue else float("inf")
            event_at = self._events[0][0] if self._events else float("inf")
            step = min(idle_at, event_at)
            if step > until:
                self.now = until
                return
            self.now = step
            if event_at <= idle_at:
                _, _, what, message = heapq.heappop(self._events)
                if what == "look":
                    self._look()
                else:
                    self._arrive(message)
            else:
                self._serve(self._queue.popleft())

    def _look(self) -> None:
        pace = max(1, self._served - self._served_before) / LOOK_S
        self._served_before = self._served
        load = Load(0.0, len(self._queue) / pace, self._dropped)
        self._dropped = 0
        if self.admission.observe(load, self.now):
            self._at(self.now + LOOK_S, "look", (self.now, 0, 0, Urgency.CALL))

    def _arrive(self, message: tuple[float, int, int, Urgency]) -> None:
        if len(self._queue) < self._room:
            self._queue.append(message)
            return
        self._dropped += 1
        came, stage, tries, urgency = message
        if tries < 6:
            self._at(self.now + 0.5 * 2**tries, "arrive", (came, stage, tries + 1, urgency))
        else:
            self.lost += 1

    def _serve(self, message: tuple[float, int, int, Urgency]) -> None:
        came, stage, _, urgency = message
        self._served += 1
        if stage == 0:
            if self.admission.limiting:
                after = self.admission.refuses(urgency, self.now)
                if after is not None:
                    self._busy_until = self.now + self._refusal_s
                    self.refused.append((self.now, after))
                    return
            self.admission.on_admitted(call=True, now=self.now)
        self._busy_until = self.now + self._message_s
        if stage == 6:
            self.setups.append((came, self._busy_until - came))
        else:
            self._at(self._busy_until + 0.02, "arrive", (came, stage + 1, 0, urgency))


def make(**settings: object) -> Admission:
    numbers = count()
    return Admission(OverloadSettings(**settings), random=lambda: next(numbers) * 0.37 % 1.0)  # type: ignore[arg-type]  # of each test


def server(admission: Admission, *, calls_per_s: float = 400.0, room: int = 900) -> Server:
    return Server(admission, message_s=1 / (7 * calls_per_s), refusal_s=0.02 / calls_per_s, room=room)


@pytest.mark.parametrize("room", [90, 900, 3600])  # receive buffers: the kernel's default, ours, a large one
@pytest.mark.parametrize("excess", [1.5, 2.0, 4.0])
def test_goodput_and_delay_hold_beyond_the_capacity(room: int, excess: float) -> None:
    capacity = 400.0
    simulated = server(make(), calls_per_s=capacity, room=room)
    for number in range(int(30 * capacity * excess)):
        simulated.call(number / (capacity * excess))
    simulated.run(60.0)
    settled = [(came, took) for came, took in simulated.setups if 5.0 <= came < 30.0]
    assert len(settled) / 25.0 >= 0.8 * capacity
    times = sorted(took for _, took in settled)
    assert times[int(len(times) * 0.95)] < 0.6
    assert mean(times) < 0.3
    assert simulated.lost == 0
    assert len(simulated.setups) + len(simulated.refused) == int(30 * capacity * excess)
    assert all(2 <= after <= 6 for _, after in simulated.refused)
    assert {after for _, after in simulated.refused} == {2, 3, 4, 5, 6}  # spread
    assert not simulated.admission.limiting  # and nothing is refused after


def test_without_it_calls_are_late() -> None:
    """The simulation would show it if the control did nothing."""
    simulated = server(make(late_s=1e9, wait_s=1e9, sustained_s=1e9))
    for number in range(24_000):
        simulated.call(number / 800.0)
    simulated.run(60.0)
    times = sorted(took for came, took in simulated.setups if 5.0 <= came < 30.0)
    assert len(times) / 25.0 < 0.8 * 400.0 or times[int(len(times) * 0.95)] > 1.0


@pytest.mark.parametrize("calls_per_s", [20.0, 100.0, 400.0])
def test_a_burst_is_accepted_whole_even_on_a_slow_machine(calls_per_s: float) -> None:
    simulated = server(make(), calls_per_s=calls_per_s)
    for number in range(50):
        simulated.call(number * 0.002)
    simulated.run(30.0)
    assert simulated.refused == []
    assert len(simulated.setups) == 50


def test_full_load_is_not_refused() -> None:
    simulated = server(make())
    for number in range(360 * 20):
        simulated.call(number / 360.0)
    simulated.run(40.0)
    assert simulated.refused == []


def test_emergency_calls_go_first_and_registrations_last() -> None:
    simulated = server(make())
    for number in range(20_000):
        simulated.call(number / 1000.0, Urgency.EMERGENCY if number % 50 == 0 else Urgency.CALL)
        if number % 4 == 0:
            simulated.call(number / 1000.0, Urgency.OTHER)
    simulated.run(50.0)
    counters = simulated.admission.counters
    refused = {urgency: counters[f'sip_overload_refused_total{{urgency="{urgency.value}"}}'] for urgency in Urgency}
    assert refused[Urgency.EMERGENCY] == 0
    assert refused[Urgency.CALL] / 19_600 < refused[Urgency.OTHER] / 5_000
    assert refused[Urgency.CALL] > 5_000


def test_registrations_are_told_to_come_back_spread_over_half_a_minute() -> None:
    admission = make(max_calls_per_s=10.0)
    simulated = server(admission)
    late = [Load(1.0), Load(1.0), Load(1.0)]
    simulated.admission.on_admitted(call=True, now=0.0)
    for step, load in enumerate(late):
        admission.observe(load, 1.0 + step)
    assert admission.shedding
    told = [admission.refuses(Urgency.OTHER, 4.0) for _ in range(200)]
    assert {after for after in told if after is not None} == set(range(10, 41))


def test_one_late_look_changes_nothing() -> None:
    admission = make()
    admission.on_admitted(call=True, now=0.0)
    for step in range(100):  # the machine stalls now and then
        admission.observe(Load(2.0, 0.5, 9) if step % 3 == 0 else Load(), step * 0.1)
    assert not admission.limiting
    for step in range(3):
        admission.observe(Load(0.3), 20.0 + step * 0.35)
    assert admission.shedding


def test_nobody_watches_while_nothing_arrives() -> None:
    admission = make()
    calls: list[float] = []
    admission.watch = lambda: calls.append(1)
    admission.on_admitted(call=True, now=0.0)
    admission.on_admitted(call=True, now=0.1)
    assert calls == [1]
    assert admission.observe(Load(), 0.5)
    assert not admission.observe(Load(), 1.2)
    admission.on_admitted(call=False, now=5.0)
    assert calls == [1, 1]


def test_a_fixed_limit_holds_from_the_first_call() -> None:
    admission = make(max_calls_per_s=20.0)
    assert admission.limiting
    assert not admission.shedding
    taken = sum(admission.refuses(Urgency.CALL, number / 1000.0) is None for number in range(10_000))
    assert 195 <= taken <= 205
    assert admission.refuses(Urgency.OTHER, 10.0) is None  # calls are limited, registrations are not
    assert admission.refuses(Urgency.EMERGENCY, 10.0) is None


def request(method: str = "INVITE", uri: str = "sip:500@pbx.test", **headers: str) -> Request:
    made = Request(method, uri)
    for name, value in headers.items():
        made.add(name.replace("_", "-"), value)
    return made


@pytest.mark.parametrize(
    ("made", "urgency"),
    [
        (request(), Urgency.CALL),
        (request("REGISTER"), Urgency.OTHER),
        (request("SUBSCRIBE", priority="emergency"), Urgency.OTHER),
        (request(uri="sip:112@pbx.test"), Urgency.EMERGENCY),
        (request(uri="sip:112;phone-context=x@pbx.test;user=phone"), Urgency.EMERGENCY),
        (request(uri="tel:911"), Urgency.EMERGENCY),
        (request(uri="sip:1120@pbx.test"), Urgency.CALL),
        (request(priority="Emergency"), Urgency.EMERGENCY),
        (request(priority="urgent"), Urgency.CALL),
        (request(resource_priority="esnet.0"), Urgency.EMERGENCY),
        (request(resource_priority="wps.1, ESNET.3"), Urgency.CALL),
    ],
)
def test_what_is_urgent(made: Request, urgency: Urgency) -> None:
    assert make().urgency(made) is urgency
