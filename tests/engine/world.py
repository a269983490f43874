"""Call control with stand-ins for phones and time, and what tests ask of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from config.numbers import DialPlan
from config.schema import Document
from engine.bus import EventBus
from engine.control import CallControl, ControlSettings, QueueCare
from engine.events import CallId, LogEvent
from routing.model import AgentSettings, AgentState, QueueSettings, RoutingSettings, Strategy
from tests.engine.fakes import FakeTelephony, SteppedClock

NUMBERS: Mapping[str, object] = {
    "500": {"queue": "support"},
    "501": {"queue": "all"},
    "502": {"queue": "nobody"},
    "600": {"answer": "silence"},
    "601": {"play": "welcome", "then": "silence"},
    "602": {"echo": True},
    "603": {"play": "welcome", "then": {"queue": "support"}},
    "604": {"play": "welcome"},
    "605": {"play": "welcome", "then": {"agent": "a0001"}},
    r"~7(\w+)": {"agent": r"\1"},
    r"~6(\w{5})": {"agent": r"\1", "record": True},
    r"~8(\w+)": {"listen": r"\1"},
}


def document_numbers() -> DialPlan:
    document = Document.model_validate(
        {
            "domain": "pbx.local",
            "sip": {"listen": ["udp:127.0.0.1:5060"]},
            "media": {"address": "127.0.0.1", "ports": [20000, 29999]},
            "http": {"listen": "127.0.0.1:8080"},
            "numbers": NUMBERS,
        }
    )
    return DialPlan(document.numbers)


def settings(wrap_up_s: float = 0.0) -> ControlSettings:
    agents = tuple(AgentSettings(f"a000{n}", {"x": 50}, auto_ready=True, fixed_contact=True) for n in (1, 2))
    agents += (AgentSettings("a0003", auto_ready=True, fixed_contact=True),)  # serves no queue
    return ControlSettings(
        dial_plan=document_numbers(),
        routing=RoutingSettings(
            agents=agents,
            queues=(
                QueueSettings("support", Strategy.LONGEST_IDLE, ("a0001", "a0002"), wrap_up_s=wrap_up_s),
                QueueSettings("all", Strategy.RING_ALL, ("a0001", "a0002")),
                QueueSettings("nobody", requires={"greek": 1}),
            ),
        ),
        queues={"support": QueueCare(music="music", record=True), "all": QueueCare()},
        supervising_trunks=frozenset({"boss"}),
        transferring_trunks=frozenset({"boss"}),
    )


class World:
    def __init__(self, wrap_up_s: float = 0.0) -> None:
        self.clock = SteppedClock()
        self.phones = FakeTelephony()
        self.events: list[LogEvent] = []
        bus = EventBus()
        bus.subscribe(self.events.append)
        ids = itertools.count()
        self.deadline: float | None = None
        self.control = CallControl(
            self.phones, settings(wrap_up_s), bus, self.clock, lambda: f"id{next(ids)}", self._on_deadline
        )
        self.phones.sink = self.control.on_leg_event
        self.control.start()

    def _on_deadline(self, deadline: float | None) -> None:
        self.deadline = deadline

    def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.deadline is not None and self.deadline <= end:
            self.clock.now = max(self.clock.now, self.deadline)
            self.control.on_time()
        self.clock.now = end

    def names(self, call_id: CallId) -> list[str]:
        return [e.name for e in self.events if e.call_id == call_id and not e.name.startswith("agent.")]

    def last(self, kind: type[LogEvent]) -> LogEvent:
        return next(e for e in reversed(self.events) if type(e) is kind)

    def state(self, agent_id: str) -> tuple[AgentState, str]:
        status = self.control.router.agent(agent_id)
        assert status is not None
        return status.state, status.reason

    def assert_nothing_left(self) -> None:
        assert self.phones.live() == []
        assert self.control.calls == {}
        assert self.control._call_by_leg == {}
        for agent in self.control.router.agents():
            assert agent.contact_id is None
        for queue in self.control.router.queues():
            assert not queue.waiting
            assert not queue.ringing
            assert not queue.talking
