"""Whatever a called phone answers, a session ends exactly once and nothing of it is left."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.sip.dialogs.session import Login, Session, SessionEnded, SessionState
from adapters.sip.syntax.message import Request, build_response, parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow
from tests.sip_link import SDP, Link, Node

STATUSES = st.sampled_from([100, 180, 183, 199, 200, 202, 302, 401, 407, 408, 422, 481, 486, 487, 491, 500, 503, 600])
CONTACTS = st.sampled_from(
    [None, "<sip:b@192.0.2.99>", "<sip:b@10.0.0.1;transport=tcp>", "<sips:b@h>", "<tel:+1>", "*", ";", "<sip:b@h:0>"]
)
ROUTES = st.sampled_from([None, None, "<sip:p@192.0.2.50;lr>", "<sip:p@192.0.2.50>, <sip:q@x;lr>", "<sip:p@h:0>", "<"])
TAGS = st.sampled_from([None, "r1", "r1", "r2"])
CHALLENGES = st.sampled_from([None, 'Digest realm="x", nonce="n"', "Basic x", 'Digest realm="x"'])
EXTRAS = st.sampled_from(
    [
        (),
        (("require", "100rel"), ("rseq", "1")),
        (("require", "100rel"), ("rseq", "2")),
        (("require", "100rel"), ("rseq", "x")),
        (("session-expires", "90;refresher=uac"), ("allow", "UPDATE")),
        (("session-expires", "90;refresher=uac"),),
        (("session-expires", "1;refresher=uas"),),
        (("session-expires", "soon"), ("min-se", "99999999999")),
        (("min-se", "4000"), ("retry-after", "3")),
    ]
)
ANSWERS = st.tuples(STATUSES, TAGS, CONTACTS, ROUTES, CHALLENGES, st.integers(0, 2), EXTRAS)
ASKED = ["hang up", "probe", "reinvite", "update", "unreachable", "3 s", "40 s", "100 s"]
THEIRS = ["UPDATE r1", "UPDATE r2", "INVITE r1", "PRACK r1", "BYE r1", "BYE r2", "INFO r1", "ACK r1"]
STEPS = st.lists(ANSWERS | st.sampled_from([*ASKED, *THEIRS]), max_size=12)

Answer = tuple[int, str | None, str | None, str | None, str | None, int, tuple[tuple[str, str], ...]]


@example(  # was never cancelled
    steps=["hang up", (180, "r1", "<tel:+1>", None, None, 0, (("require", "100rel"), ("rseq", "1")))],
    login=None,
    ring_timeout_s=5.0,
)
@example(  # left the UPDATE without an answer
    steps=[(180, "r1", None, None, None, 0, (("require", "100rel"), ("rseq", "1"))), "UPDATE r1", "unreachable"],
    login=None,
    ring_timeout_s=60.0,
)
@example(steps=[(200, None, None, None, None, 0, ()), "reinvite"], login=None, ring_timeout_s=5.0)  # was told late
@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([None, Login("u", "p")]), st.sampled_from([5.0, 60.0]))
def test_session_ends_once_and_leaves_nothing(
    steps: list[Answer | str], login: Login | None, ring_timeout_s: float
) -> None:
    node = Node("192.0.2.2")
    link = Link(node)
    session, effects = node.endpoint.invite(
        SipUri.parse("sip:a@192.0.2.99"),
        SDP,
        from_="<sip:1@x>",
        now=0.0,
        ring_timeout_s=ring_timeout_s,
        login=login,
    )
    assert session is not None
    node.carry_out(effects)
    for step in steps:
        if isinstance(step, tuple):
            link.raw(node, answer(link, *step))
        elif step == "hang up":
            node.carry_out(node.endpoint.hang_up(session, link.now))
        elif step == "probe":
            node.carry_out(node.endpoint.probe(session, link.now, 4.0))
        elif step == "reinvite" and session.state is SessionState.CONFIRMED:
            node.carry_out(node.endpoint.reinvite(session, SDP, link.now))
        elif step == "update" and session.state is SessionState.CONFIRMED:
            node.carry_out(node.endpoint.update(session, SDP, link.now))
        elif step in THEIRS:
            link.raw(node, asked(session, step, len(link.sent)))
        elif step == "unreachable":
            node.carry_out(node.endpoint.on_unreachable(Flow("udp", 0, "192.0.2.99", 5060), link.now))
        elif step.endswith(" s"):
            link.run(link.now + float(step.removesuffix(" s")))
    node.carry_out(node.endpoint.hang_up(session, link.now))
    link.run(link.now + 400)
    assert node.endpoint.sessions == node.endpoint.transactions == 0
    assert [type(event) for event in node.events].count(SessionEnded) == 1
    assert isinstance(node.events[-1], SessionEnded)


def asked(session: Session, step: str, cseq: int) -> bytes:
    """A request of the called phone within a dialog."""
    method, _, tag = step.partition(" ")
    request = Request.build(
        method,
        "sip:murima@192.0.2.2",
        via=f"SIP/2.0/UDP 192.0.2.99;branch=z9hG4bK{method}{cseq}",
        from_=f"<sip:a@192.0.2.99>;tag={tag}",
        to=f"<sip:1@x>;tag={session.local_tag}",
        call_id=session.sip_call_id,
        cseq=cseq + 1,
    )
    request.set("contact", "<sip:b@192.0.2.99>")
    if method in ("INVITE", "UPDATE"):
        request.set("content-type", "application/sdp")
        request.set("session-expires", "100")
        request.body = SDP
    return request.serialise()


def answer(
    link: Link,
    status: int,
    tag: str | None,
    contact: str | None,
    route: str | None,
    challenge: str | None,
    back: int,
    extras: tuple[tuple[str, str], ...],
) -> bytes:
    """A response to one of the last requests that were sent."""
    requests = [
        message
        for message in (parse_message(sent.data) for _, sent in link.sent)
        if isinstance(message, Request) and message.method != "ACK"
    ]
    response = build_response(requests[-1 - min(back, len(requests) - 1)], status, to_tag=tag)
    for name, value in (("contact", contact), ("record-route", route), ("www-authenticate", challenge)):
        if value is not None:
            response.set(name, value)
    for name, value in extras:
        response.set(name, value)
    response.body = SDP
    return response.serialise()
