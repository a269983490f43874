from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.sip.dialogs.session import (
    EndReason,
    Login,
    Session,
    SessionAcked,
    SessionAnswered,
    SessionDtmf,
    SessionEnded,
    SessionOffered,
    SessionProbed,
    SessionProgress,
    SessionReoffered,
)
from adapters.sip.endpoint import SessionIncoming
from adapters.sip.syntax.info_dtmf import parse_dtmf
from adapters.sip.syntax.message import Request, build_response, parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Transaction
from tests.sip_link import SDP, Link, Node, session_of


@dataclass
class Pair:
    caller: Node
    called: Node
    link: Link
    a: Session
    b: Session

    def ends(self) -> tuple[list[EndReason], list[EndReason]]:
        return reasons(self.caller), reasons(self.called)


def reasons(node: Node) -> list[EndReason]:
    return [event.reason for event in node.events if isinstance(event, SessionEnded)]


def make_nodes(transport: str = "udp") -> tuple[Node, Node, Link]:
    caller, called = Node("192.0.2.1", transport=transport), Node("192.0.2.2", trunks={"t": "192.0.2.0/24"})
    return caller, called, Link(caller, called)


def invite(
    caller: Node, link: Link, *, ring_timeout_s: float | None = None, body: bytes = SDP, login: Login | None = None
) -> Session:
    session, effects = caller.endpoint.invite(
        SipUri.parse("sip:500@192.0.2.2" + (";transport=tcp" if caller.transport == "tcp" else "")),
        body,
        from_='"Ann" <sip:100@192.0.2.1>',
        now=link.now,
        ring_timeout_s=ring_timeout_s,
        login=login,
    )
    assert session is not None
    caller.carry_out(effects)
    return session


def ringing(transport: str = "udp", *, ring_timeout_s: float | None = None, body: bytes = SDP) -> Pair:
    caller, called, link = make_nodes(transport)
    a = invite(caller, link, ring_timeout_s=ring_timeout_s, body=body)
    link.run()
    b = session_of(called)
    called.carry_out(called.endpoint.ring(b, link.now))
    link.run()
    return Pair(caller, called, link, a, b)


def talking(transport: str = "udp") -> Pair:
    pair = ringing(transport)
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP + b"a=answer\r\n", pair.link.now))
    pair.link.run()
    pair.caller.take()
    pair.called.take()
    return pair


def assert_nothing_left(*nodes: Node) -> None:
    for node in nodes:
        assert node.endpoint.sessions == 0
        assert node.endpoint.transactions == 0
        assert node.endpoint.deadline() is None


def finish(pair: Pair) -> None:
    pair.link.run(pair.link.now + 200)
    assert_nothing_left(pair.caller, pair.called)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_call_is_answered_and_hung_up_by_either_side(transport: str) -> None:
    for by_caller in (True, False):
        pair = ringing(transport)
        incoming = pair.called.events[0]
        assert isinstance(incoming, SessionIncoming)
        assert incoming.source.trunk == "t"
        assert pair.b.offered == SDP
        pair.called.carry_out(pair.called.endpoint.answer(pair.b, b"answer", pair.link.now, [("x-a", "1")]))
        pair.link.run()
        assert [type(e) for e in pair.caller.events] == [SessionProgress, SessionProgress, SessionAnswered]
        assert pair.caller.events[-1] == SessionAnswered(pair.a, b"answer")
        assert pair.called.events[-1] == SessionAcked(pair.b, b"")
        one, other, session = (pair.caller, pair.called, pair.a) if by_caller else (pair.called, pair.caller, pair.b)
        one.carry_out(one.endpoint.hang_up(session, pair.link.now))
        pair.link.run()
        assert reasons(one) == [EndReason.LOCAL]
        assert reasons(other) == [EndReason.BYE]
        finish(pair)


def test_call_that_is_over_does_not_wait_for_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        pair = talking()
        pair.called.carry_out(pair.called.endpoint.hang_up(pair.b, pair.link.now))
        pair.link.run(100)
        nodes = pair.caller, pair.called  # they stay
        for node in nodes:
            node.take()
        del pair
        assert not [thing for thing in gc.get_objects() if isinstance(thing, Session | Transaction)]
    finally:
        gc.enable()


def progress_of(link: Link) -> list[bytes]:
    return [sent.data[8:11] for _, sent in link.sent if sent.data.startswith(b"SIP/2.0 ")]


def test_trying_is_told_only_to_those_who_hear_nothing_else_soon() -> None:
    caller, called, link = make_nodes()
    called.endpoint.trying_after_s = 0.2
    invite(caller, link)
    link.run(0.19)
    assert progress_of(link) == []
    link.run(0.6)  # the INVITE is not sent again
    assert progress_of(link) == [b"100"]
    called.carry_out(called.endpoint.ring(session_of(called), link.now))
    link.run(61.0)
    assert progress_of(link) == [b"100", b"180", b"180"]


def test_trying_is_left_out_where_the_answer_is_there_already() -> None:
    caller, called, link = make_nodes()
    called.endpoint.trying_after_s = 0.2
    invite(caller, link)
    link.run(0.01)
    called.carry_out(called.endpoint.answer(session_of(called), SDP, link.now))
    link.run(1.0)
    assert progress_of(link) == [b"200"]


def test_caller_who_hangs_up_before_trying_gets_the_final_answer() -> None:
    caller, called, link = make_nodes()
    called.endpoint.trying_after_s = 0.2
    session = invite(caller, link)
    link.run(0.01)
    caller.carry_out(caller.endpoint.hang_up(session, link.now))  # CANCEL waits for a provisional response
    link.run(1.0)
    assert progress_of(link) == [b"100", b"200", b"487"]
    link.run(40.0)
    assert_nothing_left(caller, called)


def test_refusal_carries_status_and_headers() -> None:
    pair = ringing()
    pair.called.carry_out(pair.called.endpoint.reject(pair.b, 503, pair.link.now, [("retry-after", "5")]))
    pair.link.run()
    assert pair.caller.events[-1] == SessionEnded(
        pair.a, EndReason.REFUSED, 503, "Service Unavailable", retry_after_s=5.0
    )
    assert any(b"\r\nRetry-After: 5\r\n" in send.data for _, send in pair.link.sent)
    finish(pair)


def test_cancel_before_the_answer() -> None:
    pair = ringing()
    pair.caller.carry_out(pair.caller.endpoint.hang_up(pair.a, pair.link.now))
    pair.link.run()
    assert pair.ends() == ([EndReason.LOCAL], [EndReason.CANCELLED])
    finish(pair)


def test_cancel_waits_for_a_provisional_response() -> None:
    caller, called, link = make_nodes()
    lost = True
    link.fate = lambda data: [] if lost and data.startswith(b"SIP/2.0 100") else [0.001]
    a = invite(caller, link)
    link.run()
    caller.carry_out(caller.endpoint.hang_up(a, link.now))
    link.run()
    assert not any(send.data.startswith(b"CANCEL") for _, send in link.sent)
    lost = False
    link.run(5.0)  # the repeated INVITE brings the 100 again
    assert sum(send.data.startswith(b"CANCEL") for _, send in link.sent) == 1
    assert reasons(called) == [EndReason.CANCELLED]
    link.run(200)
    assert_nothing_left(caller, called)


def test_answer_that_crosses_our_cancel_is_acked_and_hung_up() -> None:
    pair = ringing()
    pair.caller.carry_out(pair.caller.endpoint.hang_up(pair.a, pair.link.now))
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP, pair.link.now))
    pair.link.run()
    assert pair.ends() == ([EndReason.LOCAL], [EndReason.BYE])
    assert not any(isinstance(e, SessionAnswered) for e in pair.caller.events)
    finish(pair)


def test_ring_timeout_cancels() -> None:
    pair = ringing(ring_timeout_s=15)
    pair.link.run(16.0)
    assert pair.ends() == ([EndReason.RING_TIMEOUT], [EndReason.CANCELLED])
    finish(pair)


def test_silent_phone_misses_the_call_at_the_ring_timeout() -> None:
    caller, _, link = make_nodes()
    link.fate = lambda _: []
    invite(caller, link, ring_timeout_s=15)
    link.run(14.9)
    assert reasons(caller) == []
    link.run(15.1)
    assert reasons(caller) == [EndReason.RING_TIMEOUT]
    link.run(100)
    assert_nothing_left(caller)


def test_silent_phone_is_no_response_after_timer_b() -> None:
    caller, _, link = make_nodes()
    link.fate = lambda _: []
    invite(caller, link, ring_timeout_s=60)
    link.run(31.9)
    assert reasons(caller) == []
    link.run(32.1)
    assert reasons(caller) == [EndReason.NO_RESPONSE]
    link.run(100)
    assert_nothing_left(caller)


def test_unreachable_transport_ends_the_call() -> None:
    caller, called, link = make_nodes("tcp")
    link.fate = lambda _: []
    a = invite(caller, link)
    caller.carry_out(caller.endpoint.on_unreachable(a.flow, link.now))
    assert reasons(caller) == [EndReason.UNREACHABLE]
    link.run(100)
    assert_nothing_left(caller, called)


def test_lost_ack_is_asked_for_and_its_absence_ends_the_call() -> None:
    pair = ringing()
    pair.link.fate = lambda data: [] if data.startswith(b"ACK") else [0.001]
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP, pair.link.now))
    pair.link.run(3.0)
    oks = [s for n, s in pair.link.sent if n is pair.called and b"CSeq: 1 INVITE" in s.data and b" 200 OK" in s.data]
    assert len(oks) == 3  # at once, after 0.5 s and after 1.5 s
    assert sum(s.data.startswith(b"ACK") for _, s in pair.link.sent) == 3
    pair.link.run(40.0)
    assert pair.ends() == ([EndReason.BYE], [EndReason.NO_ACK])
    finish(pair)


def test_hang_up_before_the_ack_waits_for_it() -> None:
    pair = ringing()
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP, pair.link.now))
    pair.called.carry_out(pair.called.endpoint.hang_up(pair.b, pair.link.now))
    assert not any(s.data.startswith(b"BYE") for _, s in pair.link.sent)
    pair.link.run()
    assert pair.ends() == ([EndReason.BYE], [EndReason.LOCAL])
    finish(pair)


def test_delayed_offer_is_answered_in_the_ack() -> None:
    _, called, link = make_nodes()
    replies = link.raw(called, raw_request("INVITE", b"", branch="z9hG4bKd1"))
    b = session_of(called)
    assert b.offered == b""
    called.carry_out(called.endpoint.answer(b, b"our offer", link.now))
    tag = tag_of(replies + [s.data for _, s in link.sent])
    link.raw(called, raw_request("ACK", b"their answer", branch="z9hG4bKd2", to_tag=tag))
    assert called.events[-1] == SessionAcked(b, b"their answer")


def test_hold_and_resume_by_reinvite_and_update() -> None:
    pair = talking()
    pair.caller.carry_out(pair.caller.endpoint.reinvite(pair.a, b"hold", pair.link.now))
    pair.link.run()
    assert pair.called.take() == [SessionOffered(pair.b, b"hold")]
    pair.called.carry_out(pair.called.endpoint.accept_offer(pair.b, b"held", pair.link.now))
    pair.link.run()
    assert pair.caller.take() == [SessionReoffered(pair.a, 200, b"held")]
    assert pair.called.take() == [SessionAcked(pair.b, b"")]
    # our own side offers too, and is refused: the call goes on
    pair.called.carry_out(pair.called.endpoint.reinvite(pair.b, b"g729", pair.link.now))
    pair.link.run()
    pair.caller.carry_out(pair.caller.endpoint.refuse_offer(pair.a, 488, pair.link.now))
    pair.link.run()
    assert pair.called.take() == [SessionReoffered(pair.b, 488, b"")]
    pair.called.carry_out(pair.called.endpoint.hang_up(pair.b, pair.link.now))
    pair.link.run()
    finish(pair)


def test_glare_is_refused_with_491_on_both_sides() -> None:
    pair = talking()
    pair.caller.carry_out(pair.caller.endpoint.reinvite(pair.a, SDP, pair.link.now))
    pair.called.carry_out(pair.called.endpoint.reinvite(pair.b, SDP, pair.link.now))
    pair.link.run()
    assert pair.caller.take() == [SessionReoffered(pair.a, 491, b"")]
    assert pair.called.take() == [SessionReoffered(pair.b, 491, b"")]


def test_second_offer_while_one_waits_is_refused() -> None:
    pair = talking()
    pair.caller.carry_out(pair.caller.endpoint.reinvite(pair.a, SDP, pair.link.now))
    pair.link.run()
    pair.caller.take()
    pair.caller.carry_out(pair.caller.endpoint.reinvite(pair.a, SDP, pair.link.now))
    assert pair.caller.take() == [SessionReoffered(pair.a, 491, b"")]
    pair.called.carry_out(pair.called.endpoint.reinvite(pair.b, SDP, pair.link.now))
    assert pair.called.events[-1] == SessionReoffered(pair.b, 491, b"")


def test_probe_tells_a_living_phone_from_a_dead_one() -> None:
    pair = talking()
    pair.called.carry_out(pair.called.endpoint.probe(pair.b, pair.link.now, 4.0))
    pair.link.run()
    assert pair.called.take() == [SessionProbed(pair.b, alive=True, status=200)]
    pair.link.fate = lambda _: []
    pair.called.carry_out(pair.called.endpoint.probe(pair.b, pair.link.now, 4.0))
    pair.link.run(pair.link.now + 4.1)
    assert pair.called.take() == [SessionProbed(pair.b, alive=False, status=None)]


def test_probe_before_the_ack_is_answered_so_that_another_follows() -> None:
    pair = ringing()
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP, pair.link.now))
    pair.called.take()
    pair.called.carry_out(pair.called.endpoint.probe(pair.b, pair.link.now))
    assert pair.called.take() == [SessionProbed(pair.b, True, None)]


def test_peer_that_forgot_the_dialog_is_noticed() -> None:
    pair = talking()
    pair.caller.endpoint.forget(pair.a)
    pair.called.carry_out(pair.called.endpoint.probe(pair.b, pair.link.now, 4.0))
    pair.link.run()
    assert pair.called.take() == [SessionProbed(pair.b, alive=False, status=481)]
    pair.called.carry_out(pair.called.endpoint.reinvite(pair.b, SDP, pair.link.now))
    pair.link.run()
    assert reasons(pair.called) == [EndReason.LOST]
    finish(pair)


def test_challenge_is_answered_once() -> None:
    for password, expected in (("secret", SessionProgress), ("wrong", SessionEnded)):
        caller, called = Node("192.0.2.1"), Node("192.0.2.2", passwords={"100": "secret"})
        link = Link(caller, called)
        a = invite(caller, link, login=Login("100", password))
        link.run()
        assert type(caller.events[-1]) is expected
        if expected is SessionEnded:
            assert caller.events == [SessionEnded(a, EndReason.REFUSED, 401, "Unauthorized")]
            assert not called.events
        else:
            incoming = called.events[0]
            assert isinstance(incoming, SessionIncoming)
            assert incoming.source.user == "100"
            called.carry_out(called.endpoint.answer(incoming.session, SDP, link.now))
            link.run()
            caller.carry_out(caller.endpoint.hang_up(a, link.now))
        link.run(200)
        assert_nothing_left(caller, called)


def test_second_answer_of_a_fork_is_acked_and_hung_up() -> None:
    pair = ringing()
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP, pair.link.now))
    ok = next(s.data for _, s in reversed(pair.link.sent) if b" 200 OK" in s.data)
    pair.link.run()
    pair.caller.take()
    before = len(pair.link.sent)
    other = ok.replace(f"tag={pair.b.local_tag}".encode(), b"tag=otherbranch")
    pair.caller.carry_out(pair.caller.endpoint.on_message(other, pair.a.flow, pair.link.now))
    methods = [s.data.split(b" ")[0] for _, s in pair.link.sent[before:]]
    assert methods == [b"ACK", b"BYE"]
    assert all(b"tag=otherbranch" in s.data for _, s in pair.link.sent[before:])
    assert pair.caller.take() == []  # the first answer counts
    before = len(pair.link.sent)
    pair.caller.carry_out(pair.caller.endpoint.on_message(other, pair.a.flow, pair.link.now))
    assert [s.data.split(b" ")[0] for _, s in pair.link.sent[before:]] == [b"ACK"]  # our ACK was lost


@pytest.mark.parametrize("contact", ["Contact: <sip:b@192.0.2.2>\r\n", ""])
def test_answer_with_a_broken_route_ends_the_call_once(contact: str) -> None:
    pair = ringing()
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP, pair.link.now))
    ok = next(s.data for _, s in reversed(pair.link.sent) if b" 200 OK" in s.data)
    head, _, tail = ok.partition(b"Contact: ")
    rest = tail.partition(b"\r\n")[2]
    broken = head + contact.encode() + b"Record-Route: <sip:p@h:0>\r\n" + rest
    for answer in (broken, broken, ok):
        pair.caller.carry_out(pair.caller.endpoint.on_message(answer, pair.a.flow, pair.link.now))
    assert reasons(pair.caller) == [EndReason.BROKEN]
    assert not any(isinstance(event, SessionAnswered) for event in pair.caller.events)
    pair.link.run()
    assert reasons(pair.called) == [EndReason.BYE]  # the answer that made sense was hung up
    finish(pair)


def test_reinvite_without_a_final_answer_is_forgotten_with_the_session() -> None:
    pair = talking()
    pair.caller.carry_out(pair.caller.endpoint.reinvite(pair.a, SDP, pair.link.now))
    request = parse_message(pair.link.sent[-1][1].data)
    assert isinstance(request, Request)
    trying = build_response(request, 100).serialise()
    pair.caller.carry_out(pair.caller.endpoint.on_message(trying, pair.a.flow, pair.link.now))
    pair.link.fate = lambda _: []
    pair.caller.carry_out(pair.caller.endpoint.hang_up(pair.a, pair.link.now))
    pair.link.run(pair.link.now + 100)
    assert_nothing_left(pair.caller)


def test_number_of_branches_that_answer_is_bounded() -> None:
    pair = ringing()
    pair.called.carry_out(pair.called.endpoint.answer(pair.b, SDP, pair.link.now))
    ok = next(s.data for _, s in reversed(pair.link.sent) if b" 200 OK" in s.data)
    pair.link.run()
    for number in range(1000):
        other = ok.replace(f"tag={pair.b.local_tag}".encode(), f"tag=branch{number}".encode())
        pair.caller.carry_out(pair.caller.endpoint.on_message(other, pair.a.flow, pair.link.now))
    assert pair.caller.endpoint.transactions < 50


def test_bye_on_an_early_dialog_ends_it() -> None:
    _, called, link = make_nodes()
    link.raw(called, raw_request("INVITE", SDP, branch="z9hG4bKe1"))
    b = session_of(called)
    called.carry_out(called.endpoint.ring(b, link.now))
    tag = tag_of([s.data for _, s in link.sent])
    replies = link.raw(called, raw_request("BYE", b"", branch="z9hG4bKe2", to_tag=tag, cseq=2))
    assert [r.split(b" ")[1] for r in replies] == [b"200", b"487"]
    assert reasons(called) == [EndReason.CANCELLED]


def test_ringing_is_repeated_each_minute() -> None:
    pair = ringing()
    pair.link.run(200)
    assert sum(s.data.startswith(b"SIP/2.0 180") for _, s in pair.link.sent) == 4


@pytest.mark.parametrize(
    ("kind", "body", "key"),
    [
        ("application/dtmf-relay", b"Signal=5\r\nDuration=160\r\n", ("5", 160)),
        ("application/dtmf-relay", b"Signal= *\r\n", ("*", 160)),
        ("application/dtmf-relay", b"signal=11\nduration = 250", ("#", 250)),
        ("application/dtmf", b"d", ("D", 160)),
        ("application/dtmf", b" 0 ", ("0", 160)),
        ("application/dtmf", b"x", None),
        ("application/dtmf-relay", b"Duration=5", None),
    ],
)
def test_dtmf_in_info(kind: str, body: bytes, key: tuple[str, int] | None) -> None:
    assert parse_dtmf(kind, body) == key


@given(st.binary(max_size=200))
def test_any_info_body_is_read_or_refused(body: bytes) -> None:
    for kind in ("application/dtmf", "application/dtmf-relay"):
        key = parse_dtmf(kind, body)
        assert key is None or (len(key[0]) == 1 and key[0] in "0123456789*#ABCD")


def test_info_and_update_reach_the_session() -> None:
    _, called, link = make_nodes()
    b, tag = raw_call(called, link)
    info = raw_request("INFO", b"Signal=7\r\nDuration=90", to_tag=tag, cseq=2, kind="application/dtmf-relay")
    assert status_of(link.raw(called, info)) == 200
    assert called.take() == [SessionDtmf(b, "7", 90)]
    assert status_of(link.raw(called, raw_request("INFO", b"<x/>", to_tag=tag, cseq=3, kind="text/xml"))) == 415
    assert status_of(link.raw(called, raw_request("INFO", b"", to_tag=tag, cseq=4))) == 200
    assert status_of(link.raw(called, raw_request("UPDATE", b"", to_tag=tag, cseq=5))) == 200
    link.raw(called, raw_request("UPDATE", b"hold", to_tag=tag, cseq=6))
    assert called.take() == [SessionOffered(b, b"hold")]
    before = len(link.sent)
    called.carry_out(called.endpoint.accept_offer(b, b"held", link.now))
    assert link.sent[before][1].data.endswith(b"\r\n\r\nheld")
    link.run(100)
    assert called.events == []  # a 2xx to UPDATE needs no ACK


@pytest.mark.parametrize(
    ("method", "status"),
    [("OPTIONS", 200), ("REFER", 405), ("PRACK", 481), ("MESSAGE", 405), ("FOO", 501)],
)
def test_other_methods_in_a_dialog(method: str, status: int) -> None:
    _, called, link = make_nodes()
    _, tag = raw_call(called, link)
    (reply,) = link.raw(called, raw_request(method, b"", to_tag=tag, cseq=2))
    assert status_of([reply]) == status
    assert (b"\r\nAllow: " in reply) is (status != 481)


def test_phone_that_moved_is_followed_though_its_contact_is_the_same() -> None:
    # A new NAT binding or TCP connection, and then a hold: our BYE must take the new way.
    _, called, link = make_nodes()

    def behind_nat(data: bytes) -> bytes:
        return data.replace(b"192.0.2.99:5060", b"10.0.0.7:5060")

    link.raw(called, behind_nat(raw_request("INVITE", SDP)))
    b = session_of(called)
    called.carry_out(called.endpoint.answer(b, SDP, link.now))
    tag = tag_of([s.data for _, s in link.sent])
    link.raw(called, behind_nat(raw_request("ACK", b"", branch="z9hG4bKfirst", to_tag=tag)))
    link.raw(called, behind_nat(raw_request("INVITE", SDP, branch="z9hG4bKmoved", to_tag=tag, cseq=2)), port=5999)
    assert isinstance(called.events[-1], SessionOffered)
    called.carry_out(called.endpoint.accept_offer(b, SDP, link.now))
    link.raw(called, behind_nat(raw_request("ACK", b"", branch="z9hG4bKmoved2", to_tag=tag, cseq=2)), port=5999)
    called.carry_out(called.endpoint.hang_up(b, link.now))
    bye = link.sent[-1][1]
    assert bye.data.startswith(b"BYE")
    assert bye.flow.port == 5999


def test_requests_out_of_order_or_of_another_dialog_are_refused() -> None:
    _, called, link = make_nodes()
    _, tag = raw_call(called, link)
    assert status_of(link.raw(called, raw_request("INFO", b"", to_tag=tag, cseq=9))) == 200
    assert status_of(link.raw(called, raw_request("INFO", b"", to_tag=tag, cseq=8))) == 500
    assert status_of(link.raw(called, raw_request("BYE", b"", to_tag="guess", cseq=10))) == 481
    assert status_of(link.raw(called, raw_request("BYE", b"", to_tag=tag, cseq=10, from_tag="guess"))) == 481
    assert status_of(link.raw(called, raw_request("BYE", b"", to_tag=tag, cseq=11))) == 200
    assert reasons(called) == [EndReason.BYE]


Fate = Callable[[bytes], list[float]]
DELAYS = st.sampled_from(([0.001], [0.02], [], [0.01, 0.3], [0.7], [0.001, 0.001]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(DELAYS, max_size=60),
    st.sampled_from(["answer", "reject", "cancel", "cross", "timeout"]),
    st.sampled_from(["caller", "called"]),
    st.floats(0.1, 20),
)
def test_calls_over_a_bad_link_complete_or_fail_cleanly(
    fates: list[list[float]], plan: str, closer: str, talk_s: float
) -> None:
    caller, called, link = make_nodes()
    pending = list(fates)
    link.fate = lambda _: pending.pop() if pending else [0.001]
    sessions: list[Session] = []

    def on_called(event: object) -> None:
        if isinstance(event, SessionIncoming):
            sessions.append(event.session)
            called.carry_out(called.endpoint.ring(event.session, link.now))
            if plan == "answer":
                called.carry_out(called.endpoint.answer(event.session, SDP, link.now))
            elif plan == "reject":
                called.carry_out(called.endpoint.reject(event.session, 486, link.now))

    called.on_event = on_called
    a = invite(caller, link, ring_timeout_s=30)
    link.run(talk_s)
    if plan in ("cancel", "cross"):
        caller.carry_out(caller.endpoint.hang_up(a, link.now))
    if plan == "cross" and sessions:
        called.carry_out(called.endpoint.answer(sessions[0], SDP, link.now))
    if plan == "answer":
        link.run(talk_s + 5)
        if closer == "caller":
            caller.carry_out(caller.endpoint.hang_up(a, link.now))
        elif sessions:
            called.carry_out(called.endpoint.hang_up(sessions[0], link.now))
    link.run(link.now + 300)
    assert len(reasons(caller)) == 1
    assert len(sessions) <= 1
    assert len(reasons(called)) == len(sessions)
    assert_nothing_left(caller, called)


# --- raw requests ---------------------------------------------------------------------------------


def raw_request(
    method: str,
    body: bytes,
    *,
    branch: str | None = None,
    to_tag: str | None = None,
    from_tag: str = "ft",
    cseq: int = 1,
    kind: str = "application/sdp",
) -> bytes:
    to = "<sip:500@192.0.2.2>" + (f";tag={to_tag}" if to_tag else "")
    lines = [
        f"{method} sip:500@192.0.2.2 SIP/2.0",
        f"Via: SIP/2.0/UDP 192.0.2.99:5060;branch={branch or f'z9hG4bK{method}{cseq}{from_tag}'}",
        "Max-Forwards: 70",
        f"From: <sip:100@192.0.2.99>;tag={from_tag}",
        f"To: {to}",
        "Call-ID: raw",
        f"CSeq: {cseq} {method}",
        "Contact: <sip:100@192.0.2.99:5060>",
        *([f"Content-Type: {kind}"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def tag_of(messages: list[bytes]) -> str:
    line = next(
        line for m in messages for line in m.decode().split("\r\n") if line.startswith("To:") and ";tag=" in line
    )
    return line.partition(";tag=")[2]


def raw_call(called: Node, link: Link) -> tuple[Session, str]:
    link.raw(called, raw_request("INVITE", SDP))
    session = session_of(called)
    called.carry_out(called.endpoint.answer(session, SDP, link.now))
    tag = tag_of([s.data for _, s in link.sent])
    link.raw(called, raw_request("ACK", b"", to_tag=tag))
    called.take()
    return session, tag


def status_of(replies: list[bytes]) -> int:
    assert len(replies) == 1
    return int(replies[0].split(b" ")[1])
