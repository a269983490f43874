"""Requests to host names over a link in memory: the next target, its branch, and what stays behind."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial

import pytest

from adapters.sip.dialogs.session import EndReason, Session, SessionAnswered, SessionEnded
from adapters.sip.endpoint import Event, SessionIncoming
from adapters.sip.syntax.message import Request, Response, build_response, parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets.failover import AVOID_S, FAILOVER_AFTER_S, Locate
from adapters.sip.targets.location import Target
from adapters.sip.transactions.transaction import ClientTransaction, Flow
from tests.sip_link import SDP, Link, Node, session_of

ONE, TWO = "192.0.2.11", "192.0.2.12"
NAME = "phones.example.com"


def target(host: str, transport: str = "udp", port: int = 5060) -> Target:
    return Target(transport, host, port, NAME)


class Scene:
    """A caller that knows the name of two phones; those that are dead are not on the link."""

    def __init__(self, *, dead: Sequence[str] = (), names: Sequence[Target] | None = None) -> None:
        self.caller = Node("192.0.2.1")
        self.phones = {host: Node(host, trunks={"t": "192.0.2.0/24"}) for host in (ONE, TWO)}
        self.link = Link(self.caller, *(phone for host, phone in self.phones.items() if host not in dead))
        for phone in self.phones.values():
            phone.link = self.link
        self.caller.hosts[NAME] = [target(ONE), target(TWO)] if names is None else list(names)

    @property
    def one(self) -> Node:
        return self.phones[ONE]

    @property
    def two(self) -> Node:
        return self.phones[TWO]

    def call(
        self, uri: str = f"sip:500@{NAME}", ring_timeout_s: float | None = None, until: float | None = None
    ) -> Session:
        session, effects = self.caller.endpoint.invite(
            SipUri.parse(uri), SDP, from_="<sip:100@192.0.2.1>", now=self.link.now, ring_timeout_s=ring_timeout_s
        )
        assert session is not None
        self.caller.carry_out(effects)
        self.link.run(until)
        return session

    def requests(self, method: str, host: str) -> list[Request]:
        """What the caller sent there, repetitions once."""
        found: dict[bytes, Request] = {}
        for sender, sent in self.link.sent:
            if sender is self.caller and sent.flow.host == host and sent.data.startswith(f"{method} ".encode()):
                message = parse_message(sent.data)
                assert isinstance(message, Request)
                found.setdefault(sent.data, message)
        return list(found.values())

    def ends(self) -> list[EndReason]:
        return [event.reason for event in self.caller.events if isinstance(event, SessionEnded)]

    def answer(self, phone: Node) -> Session:
        session = session_of(phone)
        phone.carry_out(phone.endpoint.answer(session, SDP, self.link.now))
        self.link.run()
        return session

    def finish(self) -> None:
        self.link.run(self.link.now + 200)
        for node in (self.caller, *self.phones.values()):
            assert node.endpoint.sessions == 0
            assert node.endpoint.transactions == 0


def test_a_call_goes_to_the_first_target_and_stays_there() -> None:
    scene = Scene()
    session = scene.call()
    scene.answer(scene.one)
    assert isinstance(scene.caller.events[-1], SessionAnswered)
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.finish()
    assert scene.ends() == [EndReason.LOCAL]
    assert scene.caller.asked == [f"sip:500@{NAME}"]
    assert not scene.two.events


def test_an_address_is_not_located() -> None:
    scene = Scene()
    scene.call(f"sip:500@{ONE}")
    assert not scene.caller.asked
    assert isinstance(scene.one.events[0], SessionIncoming)


def test_a_silent_target_is_left_for_the_next_with_a_new_branch_and_the_same_call() -> None:
    scene = Scene(dead=[ONE])
    session = scene.call()
    scene.link.run(FAILOVER_AFTER_S - 0.1)
    assert not scene.two.events
    scene.link.run(FAILOVER_AFTER_S + 0.1)
    scene.answer(scene.two)
    (first,), (second,) = scene.requests("INVITE", ONE), scene.requests("INVITE", TWO)
    assert first.top_via.branch != second.top_via.branch
    assert (first.call_id, first.cseq, first.from_.tag) == (second.call_id, second.cseq, second.from_.tag)
    assert isinstance(scene.caller.events[-1], SessionAnswered)
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.finish()
    assert len(scene.requests("BYE", TWO)) == 1
    assert scene.ends() == [EndReason.LOCAL]
    counters = scene.caller.endpoint.counters
    assert (counters["sip_targets_failed_total"], counters["sip_failovers_total"]) == (1, 1)


def test_a_dead_target_is_avoided_by_later_calls_and_tried_again_in_the_end() -> None:
    scene = Scene(dead=[ONE])
    scene.call()
    scene.link.run(FAILOVER_AFTER_S + 0.1)
    scene.call()
    assert [type(event) for event in scene.two.events] == [SessionIncoming, SessionIncoming]
    scene.link.run(FAILOVER_AFTER_S + AVOID_S + 1)
    scene.call()
    assert len(scene.requests("INVITE", ONE)) == 2


def test_the_only_target_is_tried_although_it_failed() -> None:
    scene = Scene(dead=[ONE], names=[target(ONE)])
    scene.call()
    scene.link.run(33)
    assert scene.ends() == [EndReason.NO_RESPONSE]  # the full time of timer B
    scene.link.nodes[ONE, 5060] = scene.one
    scene.call()
    assert isinstance(scene.one.events[0], SessionIncoming)


def test_all_targets_dead_is_one_failure() -> None:
    scene = Scene(dead=[ONE, TWO])
    scene.call()
    scene.link.run(FAILOVER_AFTER_S + 33)
    assert scene.ends() == [EndReason.NO_RESPONSE]
    scene.finish()


def test_a_name_that_leads_nowhere_is_unreachable() -> None:
    scene = Scene(names=[])
    scene.call()
    assert scene.ends() == [EndReason.UNREACHABLE]
    scene.finish()


def test_a_target_without_a_socket_of_ours_is_passed_over() -> None:
    scene = Scene(names=[target(ONE, "tls"), target(TWO)])
    plain = scene.caller.route
    scene.caller.endpoint._courses._route = lambda transport, host, port: (
        None if transport == "tls" else plain(transport, host, port)
    )
    scene.call()
    assert isinstance(scene.two.events[0], SessionIncoming)


def test_a_refused_connection_is_left_at_once() -> None:
    scene = Scene(names=[target(ONE, "tcp"), target(TWO, "tcp")], dead=[ONE])
    scene.call()
    flow = Flow("tcp", 0, ONE, 5060)
    scene.caller.carry_out(scene.caller.endpoint.on_unreachable(flow, scene.link.now))
    scene.link.run()
    assert scene.link.now < 1
    assert isinstance(scene.two.events[0], SessionIncoming)
    (invite,) = scene.requests("INVITE", TWO)
    assert invite.top_via.transport == "TCP"
    assert "transport=tcp" in (invite.get("contact") or "")


def test_a_lost_connection_fails_the_request_at_once_and_the_next_target_is_used() -> None:
    scene = Scene(names=[target(ONE, "tcp"), target(TWO, "tcp")])
    scene.one.endpoint.on_message = lambda *_: []  # type: ignore[method-assign]  # accepts and says nothing
    scene.call()
    lost = scene.caller.endpoint.on_connection_lost(7, [Flow("tcp", 0, ONE, 5060)], scene.link.now)
    scene.caller.carry_out(lost)
    scene.link.run()
    assert isinstance(scene.two.events[0], SessionIncoming)
    scene.call()
    assert len(scene.two.events) == 2  # the first is avoided


def test_503_leads_to_the_next_target_and_its_retry_after_is_kept() -> None:
    scene = Scene()
    scene.one.endpoint.draining = True  # refuses with 503 and Retry-After: 5
    scene.call()
    assert isinstance(scene.two.events[0], SessionIncoming)
    assert not scene.ends()
    assert len(scene.requests("ACK", ONE)) == 1
    scene.answer(scene.two)
    scene.link.run(4)
    scene.call()
    assert len(scene.requests("INVITE", ONE)) == 1
    scene.link.run(6)
    scene.call()
    assert len(scene.requests("INVITE", ONE)) == 2


def test_503_of_the_last_target_is_the_answer() -> None:
    scene = Scene()
    for phone in scene.phones.values():
        phone.endpoint.draining = True
    scene.call()
    (end,) = [event for event in scene.caller.events if isinstance(event, SessionEnded)]
    assert (end.reason, end.status) == (EndReason.REFUSED, 503)
    scene.finish()


def test_other_refusals_are_final() -> None:
    scene = Scene()
    scene.call()
    scene.one.carry_out(scene.one.endpoint.reject(session_of(scene.one), 486, scene.link.now))
    scene.link.run()
    assert scene.ends() == [EndReason.REFUSED]
    assert not scene.two.events
    scene.finish()


def test_a_target_that_we_left_and_that_rings_late_is_cancelled() -> None:
    scene = Scene()
    scene.link.fate = lambda data: [7.0] if data.startswith(b"INVITE") else [0.001]
    scene.call(until=FAILOVER_AFTER_S - 0.1)
    scene.link.fate = lambda _: [0.001]
    scene.link.run(FAILOVER_AFTER_S + 0.5)
    scene.answer(scene.two)
    scene.link.run(20)
    ends = [event.reason for event in scene.one.events if isinstance(event, SessionEnded)]
    assert ends == [EndReason.CANCELLED] * len(ends)
    assert ends
    assert not scene.ends()  # the call with the other goes on


def test_a_target_that_we_left_and_that_rings_late_and_dies_is_forgotten() -> None:
    scene = Scene()
    scene.link.fate = lambda data: [7.0] if data.startswith(b"INVITE") else [0.001]
    session = scene.call(until=FAILOVER_AFTER_S - 0.1)
    scene.link.fate = lambda data: [] if data.startswith((b"SIP/2.0 200", b"SIP/2.0 487")) else [0.001]
    scene.link.run(20)  # its final responses are lost
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.link.run(scene.link.now + 100)
    assert scene.caller.endpoint.transactions == 0


def test_a_target_that_we_left_and_that_answers_late_is_hung_up() -> None:
    scene = Scene()
    scene.link.fate = lambda data: [] if data.startswith(b"SIP/2.0") else [0.001]
    session = scene.call()
    scene.one.carry_out(scene.one.endpoint.answer(session_of(scene.one), SDP, scene.link.now))
    scene.link.run(FAILOVER_AFTER_S + 0.1)  # its answers are lost
    scene.link.fate = lambda _: [0.001]
    scene.link.run(FAILOVER_AFTER_S + 0.6)
    scene.answer(scene.two)
    scene.link.run(20)
    assert [event.reason for event in scene.one.events if isinstance(event, SessionEnded)] == [EndReason.BYE]
    assert len([event for event in scene.caller.events if isinstance(event, SessionAnswered)]) == 1
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.finish()


@pytest.mark.parametrize("how", ["hang up", "ring timeout"])
def test_a_call_that_is_given_up_goes_to_no_further_target(how: str) -> None:
    scene = Scene(dead=[ONE])
    session = scene.call(ring_timeout_s=2.0)
    if how == "hang up":
        scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.finish()
    assert scene.ends() == [EndReason.LOCAL if how == "hang up" else EndReason.RING_TIMEOUT]
    assert not scene.two.events


def test_a_call_that_is_given_up_while_its_name_is_looked_up_is_not_sent() -> None:
    scene = Scene()
    endpoint = scene.caller.endpoint
    session, effects = endpoint.invite(SipUri.parse(f"sip:500@{NAME}"), SDP, from_="<sip:a@b>", now=0.0)
    assert session is not None
    (locate,) = effects
    assert isinstance(locate, Locate)
    scene.caller.carry_out(endpoint.hang_up(session, 1.0))
    scene.caller.carry_out(endpoint.on_located(locate.ticket, [target(ONE)], 2.0))
    scene.caller.carry_out(endpoint.on_located(locate.ticket, [target(ONE)], 2.0))  # once more: nothing
    assert not scene.link.sent
    scene.finish()


def test_a_look_up_that_never_ends_ends_the_call() -> None:
    scene = Scene()
    endpoint = scene.caller.endpoint
    _, effects = endpoint.invite(SipUri.parse(f"sip:500@{NAME}"), SDP, from_="<sip:a@b>", now=0.0)
    scene.link.run(40)
    assert scene.ends() == [EndReason.NO_RESPONSE]
    (locate,) = effects
    assert isinstance(locate, Locate)
    scene.caller.carry_out(endpoint.on_located(locate.ticket, [target(ONE)], 40.0))
    assert not scene.link.sent
    scene.finish()


class Outcomes:
    """The user of a request."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        self.seen.append((response.status, tx.flow.host))

    def on_timeout(self, tx: ClientTransaction, now: float, *, reached: bool) -> None:
        self.seen.append(reached)


def options(node: Node, uri: str, route: str | None = None) -> tuple[Request, Flow]:
    flow = node.endpoint.flow_to(SipUri.parse(uri))
    assert flow is not None
    request = Request.build(
        "OPTIONS",
        uri,
        via=node.endpoint.via(flow),
        from_="<sip:a@b>;tag=1",
        to=f"<{uri}>",
        call_id=node.endpoint.new_token(),
        cseq=1,
    )
    if route is not None:
        request.set("route", route)
    return request, flow


def test_other_requests_fail_over_too() -> None:
    scene = Scene(dead=[ONE])
    outcomes = Outcomes()
    request, flow = options(scene.caller, f"sip:{NAME}")
    scene.caller.carry_out(scene.caller.endpoint.send_request(request, flow, outcomes, 0.0))
    scene.link.run(10)
    assert outcomes.seen == [(200, TWO)]


def test_a_contact_follows_to_the_transport_that_was_found() -> None:
    scene = Scene(names=[target(TWO, "tcp", 5070)])
    request, flow = options(scene.caller, f"sip:{NAME}")
    request.set("contact", "<sip:line1@192.0.2.1:5060;line=1>")
    scene.caller.carry_out(scene.caller.endpoint.send_request(request, flow, Outcomes(), 0.0))
    (sent,) = scene.requests("OPTIONS", TWO)
    assert sent.get("contact") == "<sip:line1@192.0.2.1:5060;transport=tcp;line=1>"
    assert sent.top_via.transport == "TCP"


def test_the_time_that_the_user_gives_is_for_all_targets() -> None:
    scene = Scene(dead=[ONE, TWO])
    outcomes = Outcomes()
    request, flow = options(scene.caller, f"sip:{NAME}")
    scene.caller.carry_out(scene.caller.endpoint.send_request(request, flow, outcomes, 0.0, timeout_s=8.0))
    scene.link.run(7.9)
    assert outcomes.seen == []
    scene.link.run(8.1)
    assert outcomes.seen == [True]


def test_the_first_route_is_what_is_located() -> None:
    scene = Scene()
    outcomes = Outcomes()
    request, _ = options(scene.caller, "sip:far.example", route=f"<sip:{NAME};lr>")
    flow = scene.caller.endpoint.flow_to(SipUri.parse(f"sip:{NAME}"))
    assert flow is not None
    scene.caller.carry_out(scene.caller.endpoint.send_request(request, flow, outcomes, 0.0))
    scene.link.run(5)
    assert scene.caller.asked == [f"sip:{NAME};lr"]
    assert outcomes.seen == [(200, ONE)]


def in_dialog_scene(contact: str) -> tuple[Scene, Session, Request]:
    """A call to an address, answered by a phone whose Contact is a name."""
    scene = Scene()
    session = scene.call(f"sip:500@{ONE}")
    (invite,) = scene.requests("INVITE", ONE)
    response = build_response(invite, 200, to_tag="tag")
    response.set("contact", contact)
    response.set("content-type", "application/sdp")
    response.body = SDP
    source = Flow("udp", 0, ONE, 5060)
    scene.link.nodes.pop((ONE, 5060))
    scene.caller.carry_out(scene.caller.endpoint.on_message(response.serialise(), source, scene.link.now))
    return scene, session, invite


def test_the_ack_and_what_follows_go_where_the_contact_leads() -> None:
    scene, session, _ = in_dialog_scene(f"<sip:500@{NAME}>")
    assert len(scene.requests("ACK", ONE)) == 1
    assert session.dialog is not None
    assert session.dialog.flow == Flow("udp", 0, ONE, 5060)
    scene.caller.hosts[NAME] = [target(TWO)]
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    assert len(scene.requests("BYE", ONE)) == 1  # the answer holds for the dialog


def test_a_contact_by_another_transport_gets_ack_and_bye_over_it() -> None:
    scene = Scene(names=[target(TWO, "tcp", 5070)])
    session = scene.call(f"sip:500@{ONE}")
    (invite,) = scene.requests("INVITE", ONE)
    response = build_response(invite, 200, to_tag="tag")
    response.set("contact", f"<sip:500@{NAME}>")
    scene.caller.carry_out(
        scene.caller.endpoint.on_message(response.serialise(), Flow("udp", 0, ONE, 5060), scene.link.now)
    )
    (ack,) = scene.requests("ACK", TWO)
    assert ack.top_via.transport == "TCP"
    scene.caller.carry_out(
        scene.caller.endpoint.on_message(response.serialise(), Flow("udp", 0, ONE, 5060), scene.link.now)
    )
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    (bye,) = scene.requests("BYE", TWO)
    assert bye.top_via.transport == "TCP"
    assert len(scene.caller.asked) == 1  # the answer holds for the dialog
    assert {(sent.flow.transport, sent.flow.port) for _, sent in scene.link.sent if sent.flow.host == TWO} == {
        ("tcp", 5070)
    }


def test_a_request_in_a_dialog_whose_connection_is_refused_goes_to_the_next_address_of_the_contact() -> None:
    scene = Scene(names=[target(ONE, "tcp"), target(TWO, "tcp")])
    session = scene.call()
    scene.answer(scene.one)
    assert session.dialog is not None
    assert session.dialog.flow.host == ONE
    session.dialog.target = f"sip:500@{NAME}"
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.caller.carry_out(scene.caller.endpoint.on_unreachable(session.dialog.flow, scene.link.now))
    assert len(scene.requests("BYE", TWO)) == 1


def test_a_name_that_leads_nowhere_ends_a_dialog_too() -> None:
    scene, session, _ = in_dialog_scene("<sip:500@phone.invalid>")
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.link.run(1)
    assert scene.caller.endpoint.sessions == 0
    assert scene.ends() == [EndReason.LOCAL]


def test_every_failure_is_bounded() -> None:
    """A dialog whose Contact leads nowhere, again and again, is no loop."""
    scene = Scene(names=[target(ONE, "tcp")])
    session = scene.call()
    scene.answer(scene.one)
    assert session.dialog is not None
    session.dialog.target = f"sip:500@{NAME}"
    scene.caller.carry_out(scene.caller.endpoint.hang_up(session, scene.link.now))
    scene.caller.carry_out(scene.caller.endpoint.on_unreachable(session.dialog.flow, scene.link.now))
    assert scene.caller.endpoint.sessions == 0
    assert len(scene.caller.asked) == 2


def test_retry_after_in_odd_forms() -> None:
    scene = Scene()
    scene.call()
    (invite,) = scene.requests("INVITE", ONE)
    for value in ("18000;duration=3600", "x", "120 (in a meeting)", "", "9" * 30):
        refusal = build_response(invite, 503, to_tag="t")
        refusal.set("retry-after", value)
        scene.caller.endpoint.on_message(refusal.serialise(), Flow("udp", 0, ONE, 5060), scene.link.now)
    assert scene.caller.endpoint._courses.avoided.is_avoided("udp", ONE, 5060, AVOID_S - 1)


class Storm:
    """Calls to a name of three phones over a link that loses a fifth: one is dead now and then, one is full."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.caller = Node("192.0.2.1")
        self.phones = [Node(f"192.0.2.{n}", trunks={"t": "192.0.2.0/24"}) for n in (11, 12, 13)]
        self.link = Link(self.caller, *self.phones)
        self.link.fate = self.fate
        self.answered: Counter[str] = Counter()
        self.ended: dict[str, Counter[str]] = {node.address[0]: Counter() for node in (self.caller, *self.phones)}
        self.incoming: dict[str, Counter[str]] = {node.address[0]: Counter() for node in self.phones}
        self.todo: list[tuple[float, str, Node, Session]] = []
        for node in (self.caller, *self.phones):
            node.on_event = partial(self.on_event, node)

    def fate(self, _: bytes) -> list[float]:
        if self.chance.random() < 0.2:
            return []
        return [self.chance.uniform(0.005, 0.02 if self.chance.random() < 0.7 else 1.0)]

    def on_event(self, node: Node, event: Event) -> None:
        if isinstance(event, SessionIncoming):
            self.incoming[node.address[0]][event.session.sip_call_id] += 1
            what = self.chance.choice(["answer", "answer", "answer", "refuse"])
            self.todo.append((self.link.now + self.chance.uniform(0, 6), what, node, event.session))
        elif isinstance(event, SessionAnswered):
            self.answered[event.session.sip_call_id] += 1
            self.todo.append((self.link.now + self.chance.uniform(1, 8), "hang up", node, event.session))
        elif isinstance(event, SessionEnded):
            self.ended[node.address[0]][event.session.sip_call_id] += 1

    def call(self) -> str:
        targets = [target(phone.address[0]) for phone in self.phones]
        self.chance.shuffle(targets)
        self.caller.hosts[NAME] = targets
        ring_timeout_s = self.chance.choice([None, 4.0, 15.0])
        session, effects = self.caller.endpoint.invite(
            SipUri.parse(f"sip:500@{NAME}"),
            SDP,
            from_="<sip:100@192.0.2.1>",
            now=self.link.now,
            ring_timeout_s=ring_timeout_s,
        )
        assert session is not None
        self.caller.carry_out(effects)
        if self.chance.random() < 0.15:
            self.todo.append((self.link.now + self.chance.uniform(0, 8), "hang up", self.caller, session))
        return session.sip_call_id

    def run(self, calls: int) -> list[str]:
        made = []
        dead, full = self.phones[0], self.phones[1]
        for step in range(calls + 400):
            if step < calls:
                made.append(self.call())
            if step % 40 == 0:
                if self.link.nodes.pop(dead.address, None) is None:
                    self.link.nodes[dead.address] = dead
                full.endpoint.draining = not full.endpoint.draining
            self.link.run(self.link.now + 0.5)
            due = [entry for entry in self.todo if entry[0] <= self.link.now]
            self.todo = [entry for entry in self.todo if entry[0] > self.link.now]
            for _, what, node, session in due:
                endpoint, now = node.endpoint, self.link.now
                if what == "answer":
                    node.carry_out(endpoint.answer(session, SDP, now))
                elif what == "refuse":
                    node.carry_out(endpoint.reject(session, 486, now))
                else:
                    node.carry_out(endpoint.hang_up(session, now))
        self.link.nodes[dead.address] = dead
        self.link.run(self.link.now + 300)
        return made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_calls_to_a_name_end_once_whatever_happens_to_its_servers(seed: int) -> None:
    storm = Storm(seed)
    made = storm.run(300)
    assert storm.ended["192.0.2.1"] == Counter(made)  # each ends once
    assert max(storm.answered.values()) == 1
    assert len(storm.answered) > 100
    for host, calls in storm.incoming.items():
        assert max(calls.values()) == 1  # none doubled
        assert storm.ended[host] == calls
    for node in (storm.caller, *storm.phones):
        assert node.endpoint.sessions == 0
        assert node.endpoint.transactions == 0
        assert node.endpoint.deadline() is None
    assert storm.caller.endpoint.counters["sip_failovers_total"] > 20
