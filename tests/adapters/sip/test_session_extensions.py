"""What sessions do beyond RFC 3261: reliable provisional responses, timers, UPDATE, early dialogs of a fork, Reason."""

from __future__ import annotations

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
    SessionEnded,
    SessionOffered,
    SessionOfferWanted,
    SessionProgress,
    SessionReoffered,
    SessionState,
)
from adapters.sip.dialogs.session_timer import TimerSettings
from adapters.sip.syntax.message import Request, Response, build_response, parse_message
from adapters.sip.syntax.uri import SipUri
from tests.sip_link import SDP, Link, Node, session_of

EARLY = SDP + b"a=early\r\n"
PEER = "192.0.2.99"


@dataclass
class Call:
    """Two endpoints of ours; the called one has the INVITE."""

    caller: Node
    called: Node
    link: Link
    a: Session
    b: Session

    def wire(self, start: str) -> list[bytes]:
        """Messages sent so far whose first line begins so."""
        return [sent.data for _, sent in self.link.sent if sent.data.startswith(start.encode())]

    def answer(self, sdp: bytes = SDP) -> None:
        self.called.carry_out(self.called.endpoint.answer(self.b, sdp, self.link.now))
        self.link.run()

    def progress(self, sdp: bytes = EARLY) -> None:
        self.called.carry_out(self.called.endpoint.progress(self.b, sdp, self.link.now))
        self.link.run()


def invite(caller: Node, link: Link, target: str = "sip:500@192.0.2.2", login: Login | None = None) -> Session:
    session, effects = caller.endpoint.invite(
        SipUri.parse(target), SDP, from_="<sip:100@192.0.2.1>", now=link.now, login=login
    )
    assert session is not None
    caller.carry_out(effects)
    return session


def call(*, timer: TimerSettings | None = None, called_timer: TimerSettings | None = None) -> Call:
    caller, called = Node("192.0.2.1"), Node("192.0.2.2", trunks={"t": "192.0.2.0/24"})
    caller.endpoint.session_timer = timer or TimerSettings()
    called.endpoint.session_timer = called_timer or TimerSettings()
    link = Link(caller, called)
    a = invite(caller, link)
    link.run()
    return Call(caller, called, link, a, session_of(called))


def talking(**timers: TimerSettings) -> Call:
    pair = call(**timers)
    pair.answer()
    pair.caller.take()
    pair.called.take()
    return pair


def finish(pair: Call) -> None:
    for node, session in ((pair.caller, pair.a), (pair.called, pair.b)):
        node.carry_out(node.endpoint.hang_up(session, pair.link.now))
        pair.link.run()
    pair.link.run(pair.link.now + 200)
    for node in (pair.caller, pair.called):
        assert node.endpoint.sessions == 0
        assert node.endpoint.transactions == 0
        assert node.endpoint.deadline() is None


def raw(
    method: str, *lines: str, body: bytes = b"", to_tag: str | None = None, cseq: int = 1, kind: str = "application/sdp"
) -> bytes:
    """A request of a phone that is not ours."""
    head = [
        f"{method} sip:500@192.0.2.2 SIP/2.0",
        f"Via: SIP/2.0/UDP {PEER}:5060;branch=z9hG4bK{method}{cseq}{len(body)}",
        "Max-Forwards: 70",
        f"From: <sip:100@{PEER}>;tag=ft",
        "To: <sip:500@192.0.2.2>" + (f";tag={to_tag}" if to_tag else ""),
        "Call-ID: raw",
        f"CSeq: {cseq} {method}",
        f"Contact: <sip:100@{PEER}>",
        *lines,
        *([f"Content-Type: {kind}"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def response(data: bytes) -> Response:
    message = parse_message(data)
    assert isinstance(message, Response)
    return message


def request(data: bytes) -> Request:
    message = parse_message(data)
    assert isinstance(message, Request)
    return message


def phone_calls(*lines: str, body: bytes = SDP) -> tuple[Node, Link, Session]:
    called = Node("192.0.2.2", trunks={"t": "192.0.2.0/24"})
    link = Link(called)
    link.raw(called, raw("INVITE", *lines, body=body))
    return called, link, session_of(called)


def sent_to_phone(link: Link) -> list[bytes]:
    return [sent.data for _, sent in link.sent if sent.flow.host == PEER]


def reply_of_phone(
    node: Node, link: Link, status: int, *headers: tuple[str, str], tag: str = "p", back: int = 1
) -> None:
    """Answer the last request, or an earlier one, that went to the phone."""
    requests = [data for data in sent_to_phone(link) if not data.startswith((b"SIP/2.0", b"ACK"))]
    answer = build_response(request(requests[-back]), status, to_tag=tag)
    for name, value in headers:
        answer.set(name, value)
    if dict(headers).get("content-type"):
        answer.body = EARLY
    link.raw(node, answer.serialise())


# --- reliable provisional responses ------------------------------------------------------------


def test_ringing_is_not_reliable_unless_it_is_demanded() -> None:
    pair = call()
    pair.called.carry_out(pair.called.endpoint.ring(pair.b, pair.link.now))
    pair.link.run()
    (ringing,) = pair.wire("SIP/2.0 180")
    assert not response(ringing).has("rseq")
    assert pair.wire("PRACK") == []
    pair.answer()
    finish(pair)


def test_early_media_is_acknowledged_and_the_answer_follows() -> None:
    pair = call()
    pair.progress()
    assert SessionProgress(pair.a, 183, EARLY) in pair.caller.events
    (told,) = pair.wire("SIP/2.0 183")
    assert response(told).get("require") == "100rel"
    (prack,) = pair.wire("PRACK")
    assert request(prack).get("rack") == f"{response(told).get('rseq')} 1 INVITE"
    pair.answer(EARLY)
    assert pair.caller.events[-1] == SessionAnswered(pair.a, EARLY)
    assert pair.called.events[-1] == SessionAcked(pair.b, b"")
    pair.link.run(pair.link.now + 10)
    assert len(pair.wire("SIP/2.0 183")) == 1
    finish(pair)


def test_phone_without_the_extension_gets_plain_early_media() -> None:
    called, link, session = phone_calls()
    called.carry_out(called.endpoint.progress(session, EARLY, link.now))
    told = response(sent_to_phone(link)[-1])
    assert (told.status, told.body, told.has("rseq"), told.has("require")) == (183, EARLY, False, False)
    called.carry_out(called.endpoint.answer(session, EARLY, link.now))
    assert response(sent_to_phone(link)[-1]).status == 200


def test_demanded_reliability_is_kept_and_repeated_until_the_prack() -> None:
    called, link, session = phone_calls("Require: 100rel")
    called.carry_out(called.endpoint.ring(session, link.now))
    link.run(4.0)
    told = [response(data) for data in sent_to_phone(link) if data.startswith(b"SIP/2.0 180")]
    assert len(told) == 4  # at once, after 0.5, 1.5 and 3.5 s
    rseq, tag = told[0].get("rseq"), told[0].to.tag
    for rack, status in (("1 7 INVITE", 481), ("x", 400), (f"{rseq} 1 INVITE", 200), (f"{rseq} 1 INVITE", 481)):
        cseq = 2 + len(link.sent)
        (reply,) = link.raw(called, raw("PRACK", f"RAck: {rack}", to_tag=tag, cseq=cseq))
        assert response(reply).status == status
    before = len(link.sent)
    link.run(30.0)
    assert len(link.sent) == before
    called.carry_out(called.endpoint.answer(session, SDP, link.now))
    assert response(sent_to_phone(link)[-1]).status == 200


def test_reliable_response_that_nobody_acknowledges_ends_the_call() -> None:
    called, link, session = phone_calls("Require: 100rel")
    called.carry_out(called.endpoint.ring(session, link.now))
    link.run(40.0)
    assert response(sent_to_phone(link)[-1]).status == 504
    assert called.events[-1] == SessionEnded(session, EndReason.NO_ACK, None, "no PRACK")


def test_answer_waits_for_the_prack_of_the_description() -> None:
    called, link, session = phone_calls("Supported: 100rel")
    called.carry_out(called.endpoint.progress(session, EARLY, link.now))
    told = response(sent_to_phone(link)[-1])
    called.carry_out(called.endpoint.answer(session, EARLY, link.now))
    assert response(sent_to_phone(link)[-1]).status == 183
    link.raw(called, raw("PRACK", f"RAck: {told.get('rseq')} 1 INVITE", to_tag=told.to.tag, cseq=2))
    assert [response(data).status for data in sent_to_phone(link)[-2:]] == [200, 200]
    assert session.state is SessionState.ANSWERED


def test_second_reliable_response_waits_for_the_first() -> None:
    called, link, session = phone_calls("Require: 100rel")
    called.carry_out(called.endpoint.ring(session, link.now))
    called.carry_out(called.endpoint.progress(session, EARLY, link.now))
    first = response(sent_to_phone(link)[-1])
    assert first.status == 180
    link.raw(called, raw("PRACK", f"RAck: {first.get('rseq')} 1 INVITE", to_tag=first.to.tag, cseq=2))
    second = response(sent_to_phone(link)[-1])
    assert second.status == 183
    assert int(second.get("rseq") or 0) == int(first.get("rseq") or 0) + 1


def test_offer_in_a_prack_is_answered_in_its_200() -> None:
    called, link, session = phone_calls("Supported: 100rel")
    called.carry_out(called.endpoint.progress(session, EARLY, link.now))
    told = response(sent_to_phone(link)[-1])
    rack = f"RAck: {told.get('rseq')} 1 INVITE"
    link.raw(called, raw("PRACK", rack, body=b"offer", to_tag=told.to.tag, cseq=2))
    assert called.events[-1] == SessionOffered(session, b"offer")
    called.carry_out(called.endpoint.accept_offer(session, b"answer", link.now))
    ok = response(sent_to_phone(link)[-1])
    assert (ok.cseq.method, ok.body) == ("PRACK", b"answer")


def test_demanded_reliability_without_an_offer_is_answered_at_once() -> None:
    called, link, session = phone_calls("Require: 100rel", body=b"")
    called.carry_out(called.endpoint.ring(session, link.now))  # would have to hold our offer
    assert response(sent_to_phone(link)[-1]).status == 100
    called.carry_out(called.endpoint.answer(session, SDP, link.now))
    assert response(sent_to_phone(link)[-1]).status == 200


def phone_called() -> tuple[Node, Link, Session]:
    node = Node("192.0.2.2")
    link = Link(node)
    return node, link, invite(node, link, f"sip:a@{PEER}", Login("u", "p"))


RELIABLY = (("require", "100rel"), ("contact", f"<sip:a@{PEER}>"))


def test_reliable_responses_out_of_order_are_dropped() -> None:
    node, link, session = phone_called()
    for rseq in ("5", "5", "7", "6", "x"):
        reply_of_phone(node, link, 180, *RELIABLY, ("rseq", rseq), back=1 + len(pracks(link)))
    assert [request(data).get("rack") for data in pracks(link)] == ["5 1 INVITE", "6 1 INVITE"]
    assert [request(data).cseq.number for data in pracks(link)] == [2, 3]
    assert len([event for event in node.events if isinstance(event, SessionProgress)]) == 2
    reply_of_phone(node, link, 200, ("contact", f"<sip:a@{PEER}>"), back=3)
    assert session.state is SessionState.CONFIRMED
    node.carry_out(node.endpoint.hang_up(session, link.now))
    assert request(sent_to_phone(link)[-1]).cseq.number == 4  # the early dialog has counted on


def pracks(link: Link) -> list[bytes]:
    return [data for data in sent_to_phone(link) if data.startswith(b"PRACK")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(([0.001], [0.02], [], [0.01, 0.3], [0.7])), max_size=60), st.booleans())
def test_early_media_over_a_bad_link(fates: list[list[float]], answered: bool) -> None:
    pair = call()
    pending = list(fates)
    pair.link.fate = lambda _: pending.pop() if pending else [0.001]
    pair.called.carry_out(pair.called.endpoint.progress(pair.b, EARLY, pair.link.now))
    pair.link.run(1.0)
    if answered:
        pair.called.carry_out(pair.called.endpoint.answer(pair.b, EARLY, pair.link.now))
    pair.link.run(100.0)
    if answered:
        assert pair.a.state in (SessionState.CONFIRMED, SessionState.ENDED)
        assert [e.body for e in pair.caller.events if isinstance(e, SessionAnswered)] in ([EARLY], [])
    finish(pair)
    for node in (pair.caller, pair.called):
        assert [type(event) for event in node.events].count(SessionEnded) == 1


# --- session timers ------------------------------------------------------------------------------


def test_calling_side_refreshes_at_half_time_and_the_call_stays() -> None:
    pair = talking()
    pair.link.run(899.0)
    assert pair.wire("UPDATE") == []
    pair.link.run(5 * 3600.0)
    assert len(pair.wire("UPDATE")) == 5 * 3600 // 900 - (5 * 3600 % 900 == 0)
    assert pair.a.state is pair.b.state is SessionState.CONFIRMED
    finish(pair)


def test_lost_bye_is_found() -> None:
    pair = talking()
    pair.link.fate = lambda _: []
    pair.caller.carry_out(pair.caller.endpoint.hang_up(pair.a, pair.link.now))
    pair.link.run(1760.0)
    assert pair.called.events == []
    pair.link.run(1770.0)
    assert pair.called.events == [SessionEnded(pair.b, EndReason.LOST, None, "nobody refreshed the session")]
    (bye,) = {data for data in pair.wire("BYE") if b"Reason" in data}
    assert request(bye).get("reason") == 'SIP;cause=408;text="Session timer expired"'
    finish(pair)


def test_interval_below_ours_is_refused_and_asked_for_anew() -> None:
    pair = call(timer=TimerSettings(90), called_timer=TimerSettings(1800, 600))
    refusal = response(pair.wire("SIP/2.0 422")[0])
    assert refusal.get("min-se") == "600"
    assert request(pair.wire("INVITE")[-1]).get("session-expires") == "600"
    pair.answer()
    assert (response(pair.wire("SIP/2.0 200")[-1]).get("session-expires")) == "600;refresher=uac"
    pair.link.run(10_000.0)
    assert pair.a.state is pair.b.state is SessionState.CONFIRMED
    finish(pair)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Session-Expires: 1800", "Supported: timer"], ("1800;refresher=uac", True)),
        (["Session-Expires: 7200;refresher=uas", "Supported: timer"], ("1800;refresher=uas", True)),
        (["Session-Expires: 100"], ("100;refresher=uas", False)),  # a proxy put it in
        (["Session-Expires: 20"], (None, False)),  # below what RFC 4028 allows
        (["Session-Expires: 100", "Supported: timer", "Min-SE: 300"], ("100;refresher=uac", True)),  # never lengthened
        (["Session-Expires: 9000", "Supported: timer", "Min-SE: 3000"], ("3000;refresher=uac", True)),
        (["Supported: timer"], (None, False)),
        ([], (None, False)),
    ],
)
def test_timer_of_a_phone_is_answered(lines: list[str], expected: tuple[str | None, bool]) -> None:
    called, link, session = phone_calls(*lines)
    called.carry_out(called.endpoint.answer(session, SDP, link.now))
    ok = response(sent_to_phone(link)[-1])
    assert (ok.get("session-expires"), ok.has("require")) == expected


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Session-Expires: 60", "Supported: timer"], 422),
        (["Session-Expires: soon"], 400),
        (["Session-Expires: 99999999999"], 400),
    ],
)
def test_unusable_timer_is_refused(lines: list[str], status: int) -> None:
    called = Node("192.0.2.2", trunks={"t": "192.0.2.0/24"})
    link = Link(called)
    replies = link.raw(called, raw("INVITE", *lines, body=SDP))
    assert response(replies[-1]).status == status
    assert response(replies[-1]).get("min-se") == ("90" if status == 422 else None)
    assert called.events == []
    assert called.endpoint.sessions == 0


def phone_talks(*lines: tuple[str, str]) -> tuple[Node, Link, Session]:
    node, link, session = phone_called()
    reply_of_phone(node, link, 200, ("contact", f"<sip:a@{PEER}>"), *lines)
    assert session.state is SessionState.CONFIRMED
    node.take()
    return node, link, session


def test_phone_without_update_is_refreshed_by_reinvite() -> None:
    node, link, session = phone_talks(("session-expires", "1800;refresher=uac"), ("allow", "INVITE, BYE"))
    link.run(900.5)
    assert node.take() == [SessionOfferWanted(session)]
    node.carry_out(node.endpoint.reinvite(session, SDP, link.now))
    again = request(sent_to_phone(link)[-1])
    assert (again.method, again.get("session-expires")) == ("INVITE", "1800;refresher=uac")
    reply_of_phone(node, link, 200, ("session-expires", "1800;refresher=uac"), ("content-type", "application/sdp"))
    assert node.take() == [SessionReoffered(session, 200, EARLY)]
    link.run(1800.0)
    assert node.take() == []
    link.run(1801.0)
    assert node.take() == [SessionOfferWanted(session)]


def test_update_that_is_refused_becomes_a_reinvite() -> None:
    node, link, session = phone_talks(("session-expires", "1800;refresher=uac"), ("allow", "INVITE, UPDATE"))
    link.run(900.5)
    assert request(sent_to_phone(link)[-1]).method == "UPDATE"
    reply_of_phone(node, link, 501)
    assert node.take() == [SessionOfferWanted(session)]


def test_refresh_that_nobody_answers_ends_the_call() -> None:
    node, link, session = phone_talks(("session-expires", "1800;refresher=uac"), ("allow", "UPDATE"))
    link.run(940.0)
    assert node.take() == [SessionEnded(session, EndReason.LOST, 408)]


def test_phone_that_knows_no_timers_is_not_refreshed() -> None:
    node, link, _ = phone_talks()
    link.run(10_000.0)
    assert node.take() == []
    assert not any(data.startswith(b"UPDATE") for data in sent_to_phone(link))


# --- UPDATE, glare, challenges ----------------------------------------------------------------------


def test_offers_that_cross_are_made_again_by_the_side_that_waits_less() -> None:
    pair = talking()
    for node, session in ((pair.caller, pair.a), (pair.called, pair.b)):
        node.carry_out(node.endpoint.reinvite(session, SDP, pair.link.now))
    pair.link.run()
    assert pair.caller.take() == [SessionReoffered(pair.a, 491, b"")]
    assert pair.called.take() == [SessionReoffered(pair.b, 491, b"")]
    start = pair.link.now
    pair.link.run(start + 2.05)
    assert pair.called.take() == [SessionOfferWanted(pair.b)]
    assert pair.caller.take() == []
    pair.link.run(start + 4.1)
    assert pair.caller.take() == [SessionOfferWanted(pair.a)]
    finish(pair)


def test_update_before_the_answer() -> None:
    called, link, session = phone_calls("Supported: 100rel")
    tag = session.local_tag
    early = link.raw(called, raw("UPDATE", body=b"offer", to_tag=tag, cseq=2))
    assert response(early[-1]).status == 500
    assert response(early[-1]).has("retry-after")
    called.carry_out(called.endpoint.progress(session, EARLY, link.now))
    rseq = response(sent_to_phone(link)[-1]).get("rseq")
    link.raw(called, raw("PRACK", f"RAck: {rseq} 1 INVITE", to_tag=tag, cseq=3))
    link.raw(called, raw("UPDATE", body=b"offer", to_tag=tag, cseq=4))
    assert called.events[-1] == SessionOffered(session, b"offer")
    called.carry_out(called.endpoint.accept_offer(session, b"answer", link.now))
    assert response(sent_to_phone(link)[-1]).body == b"answer"
    called.carry_out(called.endpoint.update(session, b"ours", link.now))
    assert request(sent_to_phone(link)[-1]).body == b"ours"
    crossing = link.raw(called, raw("UPDATE", body=b"crossing", to_tag=tag, cseq=5))
    assert response(crossing[-1]).status == 491
    reply_of_phone(called, link, 200, ("content-type", "application/sdp"))
    assert called.events[-1:] == [SessionReoffered(session, 200, EARLY)]


@pytest.mark.parametrize(("described", "status"), [(True, None), (False, 491)])
def test_update_of_a_phone_that_rings(described: bool, status: int | None) -> None:
    node, link, session = phone_called()
    headers = [("content-type", "application/sdp")] if described else []
    reply_of_phone(node, link, 183, *RELIABLY, ("rseq", "1"), *headers)
    update = raw("UPDATE", body=b"offer", to_tag=session.local_tag, cseq=1)
    update = update.replace(b"tag=ft", b"tag=p").replace(b"Call-ID: raw", f"Call-ID: {session.sip_call_id}".encode())
    replies = link.raw(node, update)
    if status is None:
        assert node.events[-1] == SessionOffered(session, b"offer")
        node.carry_out(node.endpoint.accept_offer(session, b"answer", link.now))
        assert response(sent_to_phone(link)[-1]).body == b"answer"
    else:
        assert response(replies[-1]).status == status


CHALLENGES = {401: "www-authenticate", 407: "proxy-authenticate"}


def ask_within(node: Node, link: Link, session: Session, method: str) -> None:
    if method == "BYE":
        node.carry_out(node.endpoint.hang_up(session, link.now))
    elif method == "UPDATE":
        node.carry_out(node.endpoint.update(session, SDP, link.now))
    else:
        node.carry_out(node.endpoint.reinvite(session, SDP, link.now))


@pytest.mark.parametrize("status", [401, 407])
@pytest.mark.parametrize("method", ["INVITE", "UPDATE", "BYE"])
def test_challenges_within_the_dialog_are_answered_once(method: str, status: int) -> None:
    node, link, session = phone_called()
    challenge = (CHALLENGES[status], 'Digest realm="x", nonce="n"')
    reply_of_phone(node, link, status, challenge)
    reply_of_phone(node, link, 200, ("contact", f"<sip:a@{PEER}>"))
    node.take()
    ask_within(node, link, session, method)
    reply_of_phone(node, link, status, challenge)
    again = request(sent_to_phone(link)[-1])
    assert (again.method, again.cseq.number) == (method, 4)
    assert again.has("authorization" if status == 401 else "proxy-authorization")
    reply_of_phone(node, link, status, challenge)
    if method == "BYE":
        assert session.state is SessionState.ENDED
    else:
        assert node.take() == [SessionReoffered(session, status, b"")]


@pytest.mark.parametrize("realm", [None, "x"])
@pytest.mark.parametrize("method", ["INVITE", "UPDATE", "BYE"])
def test_no_other_realm_learns_what_our_password_answers_within_the_dialog(method: str, realm: str | None) -> None:
    node, link, session = phone_called()
    if realm is not None:
        reply_of_phone(node, link, 401, (CHALLENGES[401], f'Digest realm="{realm}", nonce="n"'))
    reply_of_phone(node, link, 200, ("contact", f"<sip:a@{PEER}>"))
    ask_within(node, link, session, method)
    sent = len(sent_to_phone(link))
    reply_of_phone(node, link, 401, (CHALLENGES[401], 'Digest realm="y", nonce="n"'))
    assert not any(request(data).has("authorization") for data in sent_to_phone(link)[sent:])


# --- forks ----------------------------------------------------------------------------------------------


def test_branches_of_a_fork_are_told_apart() -> None:
    node, link, session = phone_called()
    invited = sent_to_phone(link)[0]
    for tag, rseq in (("one", "10"), ("two", "900"), ("one", "11")):
        answer = build_response(request(invited), 183, to_tag=tag)
        for name, value in (*RELIABLY, ("rseq", rseq), ("content-type", "application/sdp")):
            answer.set(name, value)
        answer.body = tag.encode()
        link.raw(node, answer.serialise())
    assert [(request(p).to.tag, request(p).get("rack")) for p in pracks(link)] == [
        ("one", "10 1 INVITE"),
        ("two", "900 1 INVITE"),
        ("one", "11 1 INVITE"),
    ]
    assert [e.body for e in node.take() if isinstance(e, SessionProgress)] == [b"one", b"two", b"one"]
    ok = build_response(request(invited), 200, to_tag="two")  # answered reliably before: no description
    ok.set("contact", f"<sip:two@{PEER}>")
    link.raw(node, ok.serialise())
    assert node.take() == [SessionAnswered(session, b"two")]
    assert session.dialog is not None
    assert session.dialog.remote_tag == "two"


def test_number_of_early_dialogs_is_bounded() -> None:
    node, link, session = phone_called()
    invited = request(sent_to_phone(link)[0])
    for number in range(200):
        answer = build_response(invited, 183, to_tag=f"t{number}")
        for name, value in (*RELIABLY, ("rseq", "1")):
            answer.set(name, value)
        link.raw(node, answer.serialise())
    assert len(pracks(link)) <= 16
    assert node.endpoint.transactions < 20
    assert session.state is SessionState.CALLING


@pytest.mark.parametrize("headers", [{"contact": "<tel:+1>"}, {"record-route": "<sip:p@h:0>", "contact": "<sip:b@h>"}])
def test_malformed_answer_is_acknowledged_and_hung_up(headers: dict[str, str]) -> None:
    node, link, session = phone_called()
    reply_of_phone(node, link, 200, *headers.items())
    assert [request(data).method for data in sent_to_phone(link)[1:]] == ["ACK", "BYE"]
    assert [type(event) for event in node.take()] == [SessionEnded]
    reply_of_phone(node, link, 200)
    assert session.state is SessionState.ENDED


# --- why ---------------------------------------------------------------------------------------------------


def test_reason_is_sent_and_read() -> None:
    pair = talking()
    why = ("reason", 'Q.850;cause=16;text="Normal call clearing"')
    pair.caller.carry_out(pair.caller.endpoint.hang_up(pair.a, pair.link.now, headers=[why, ("retry-after", "5")]))
    pair.link.run()
    assert pair.called.take() == [SessionEnded(pair.b, EndReason.BYE, None, why[1])]
    assert not request(pair.wire("BYE")[0]).has("retry-after")
    finish(pair)
    pair = call()
    pair.caller.carry_out(pair.caller.endpoint.hang_up(pair.a, pair.link.now, headers=[("reason", "SIP;cause=200")]))
    pair.link.run()
    assert pair.called.events[-1] == SessionEnded(pair.b, EndReason.CANCELLED, None, "SIP;cause=200")
    finish(pair)


def test_sessions_of_ended_calls_are_not_kept_for_their_timers() -> None:
    pair = talking()
    finish(pair)
    assert pair.called.endpoint.deadline() is None
