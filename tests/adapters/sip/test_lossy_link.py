"""1,000 calls over UDP that loses 20 % both ways, reorders and repeats: each ends once, on both sides alike."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from adapters.sip.dialogs.session import (
    EndReason,
    Session,
    SessionAcked,
    SessionAnswered,
    SessionEnded,
    SessionOffered,
    SessionReoffered,
)
from adapters.sip.endpoint import Event, SessionIncoming
from adapters.sip.syntax.uri import SipUri
from tests.sip_link import SDP, Link, Node

LOSS = 0.2
CALLS = 1000
APART_S = 0.05


@dataclass
class Call:
    """What both sides saw of one call."""

    incoming: int = 0
    answered: bool = False  # the caller heard the answer
    accepted: bool = False  # the called side gave it
    acked: bool = False
    ends: dict[str, list[EndReason]] = field(default_factory=lambda: {"caller": [], "called": []})


class Traffic:
    """Calls of every kind: answered, refused, given up, put on hold, hung up by either side."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.caller = Node("192.0.2.1")
        self.called = Node("192.0.2.2", trunks={"t": "192.0.2.0/24"})
        self.link = Link(self.caller, self.called)
        self.link.fate = self.fate
        self.carried: Counter[str] = Counter()
        self.calls: dict[str, Call] = {}
        self.todo: list[tuple[float, int, str, Node, Session]] = []
        self.caller.on_event = self.on_caller
        self.called.on_event = self.on_called
        self.started = 0

    def fate(self, _: bytes) -> list[float]:
        chance = self.random
        self.carried["sent"] += 1
        if chance.random() < LOSS:
            self.carried["lost"] += 1
            return []
        delays = [chance.uniform(0.005, 0.02)]
        if chance.random() < 0.3:  # what was sent later overtakes it
            delays[0] += chance.uniform(0.02, 1.0)
        if chance.random() < 0.02:
            delays.append(chance.uniform(0.005, 1.0))
        return delays

    def later(self, delay_s: float, what: str, node: Node, session: Session) -> None:
        self.todo.append((self.link.now + delay_s, len(self.todo), what, node, session))

    def run(self) -> None:
        now = 0.0
        while now < CALLS * APART_S + 300:
            if self.started < CALLS:
                self.call()
            now += APART_S
            self.link.run(now)
            due = [entry for entry in self.todo if entry[0] <= now]
            if due:
                self.todo = [entry for entry in self.todo if entry[0] > now]
                for _, _, what, node, session in due:
                    self.act(what, node, session)

    def call(self) -> None:
        self.started += 1
        ring_timeout_s = self.random.choice([None, 3.0, 20.0])
        session, effects = self.caller.endpoint.invite(
            SipUri.parse("sip:500@192.0.2.2"),
            SDP,
            from_="<sip:100@192.0.2.1>",
            now=self.link.now,
            ring_timeout_s=ring_timeout_s,
        )
        assert session is not None
        self.calls[session.sip_call_id] = Call()
        self.caller.carry_out(effects)
        if self.random.random() < 0.15:
            self.later(self.random.uniform(0, 4), "hang up", self.caller, session)

    def act(self, what: str, node: Node, session: Session) -> None:
        endpoint, now = node.endpoint, self.link.now
        if what == "answer":
            self.calls[session.sip_call_id].accepted = True
            node.carry_out(endpoint.answer(session, SDP, now))
        elif what == "ring":
            node.carry_out(endpoint.ring(session, now))
        elif what == "refuse":
            node.carry_out(endpoint.reject(session, 486, now))
        elif what == "hang up":
            node.carry_out(endpoint.hang_up(session, now))
        elif not self.calls[session.sip_call_id].ends["caller" if node is self.caller else "called"]:
            node.carry_out(endpoint.reinvite(session, SDP, now))

    def on_caller(self, event: Event) -> None:
        if isinstance(event, SessionAnswered):
            call = self.calls[event.session.sip_call_id]
            assert not call.answered
            call.answered = True
            self.talk(self.caller, event.session)
        self.on_either("caller", self.caller, event)

    def on_called(self, event: Event) -> None:
        chance = self.random
        if isinstance(event, SessionIncoming):
            call = self.calls[event.session.sip_call_id]
            call.incoming += 1
            self.later(chance.uniform(0, 0.3), "ring", self.called, event.session)
            decision = chance.choice(["answer"] * 6 + ["refuse"])
            self.later(chance.uniform(0.3, 8), decision, self.called, event.session)
        elif isinstance(event, SessionAcked):
            call = self.calls[event.session.sip_call_id]
            if not call.acked:
                call.acked = True
                self.talk(self.called, event.session)
        self.on_either("called", self.called, event)

    def talk(self, node: Node, session: Session) -> None:
        if self.random.random() < 0.3:
            self.later(self.random.uniform(0.5, 3), "hold", node, session)
        # Either side hangs up, or both at nearly the same time.
        self.later(self.random.uniform(3, 12), "hang up", node, session)

    def on_either(self, side: str, node: Node, event: Event) -> None:
        if isinstance(event, SessionOffered):
            node.carry_out(node.endpoint.accept_offer(event.session, SDP, self.link.now))
        elif isinstance(event, SessionReoffered):
            self.carried[f"re-INVITE {'done' if event.status < 300 else 'refused'}"] += 1
        elif isinstance(event, SessionEnded):
            self.calls[event.session.sip_call_id].ends[side].append(event.reason)


@pytest.mark.parametrize("seed", [1, 2])
def test_calls_complete_or_fail_cleanly(seed: int) -> None:
    traffic = Traffic(seed)
    traffic.run()
    assert len(traffic.calls) == CALLS
    assert 0.15 < traffic.carried["lost"] / traffic.carried["sent"] < 0.25
    outcomes: Counter[str] = Counter()
    for call in traffic.calls.values():
        assert call.incoming <= 1  # none doubled
        assert len(call.ends["caller"]) == 1  # each ends, and once
        assert len(call.ends["called"]) == call.incoming
        # Both agree: who heard the answer talks to somebody who gave it, and an ACK means that it was heard
        # (or that it crossed the CANCEL and was hung up).
        assert not call.answered or call.accepted
        assert not call.acked or call.answered or call.ends["called"] == [EndReason.BYE]
        if call.ends["caller"] in ([EndReason.REFUSED], [EndReason.RING_TIMEOUT]):
            assert not call.answered
        outcomes["completed" if call.answered else str(call.ends["caller"][0])] += 1
    for node in (traffic.caller, traffic.called):  # none stuck
        assert node.endpoint.sessions == 0
        assert node.endpoint.transactions == 0
        assert node.endpoint.deadline() is None
    assert outcomes["completed"] > CALLS * 0.5
    # Seven INVITEs or their answers are all lost about once in a thousand calls.
    assert outcomes["no_response"] < CALLS * 0.01
