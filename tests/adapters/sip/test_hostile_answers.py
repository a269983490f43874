"""Whatever a called phone answers, a session ends exactly once and nothing of it is left."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.sip.message import Request, build_response, parse_message
from adapters.sip.session import Login, SessionEnded, SessionState
from adapters.sip.transaction import Flow
from adapters.sip.uri import SipUri
from tests.sip_link import SDP, Link, Node

STATUSES = st.sampled_from([100, 180, 183, 199, 200, 202, 302, 401, 407, 408, 481, 486, 487, 491, 503, 600])
CONTACTS = st.sampled_from(
    [None, "<sip:b@192.0.2.99>", "<sip:b@10.0.0.1;transport=tcp>", "<sips:b@h>", "<tel:+1>", "*", ";", "<sip:b@h:0>"]
)
ROUTES = st.sampled_from([None, None, "<sip:p@192.0.2.50;lr>", "<sip:p@192.0.2.50>, <sip:q@x;lr>", "<sip:p@h:0>", "<"])
TAGS = st.sampled_from([None, "r1", "r1", "r2"])
CHALLENGES = st.sampled_from([None, 'Digest realm="x", nonce="n"', "Basic x", 'Digest realm="x"'])
ANSWERS = st.tuples(STATUSES, TAGS, CONTACTS, ROUTES, CHALLENGES, st.integers(0, 2))
STEPS = st.lists(ANSWERS | st.sampled_from(["hang up", "probe", "reinvite", "unreachable", "3 s", "40 s"]), max_size=10)

Answer = tuple[int, str | None, str | None, str | None, str | None, int]


@example(steps=[(200, None, None, None, None, 0), "reinvite"], login=None, ring_timeout_s=5.0)  # was told late
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
        elif step == "unreachable":
            node.carry_out(node.endpoint.on_unreachable(Flow("udp", 0, "192.0.2.99", 5060), link.now))
        elif step.endswith(" s"):
            link.run(link.now + float(step.removesuffix(" s")))
    node.carry_out(node.endpoint.hang_up(session, link.now))
    link.run(link.now + 400)
    assert node.endpoint.sessions == node.endpoint.transactions == 0
    assert [type(event) for event in node.events].count(SessionEnded) == 1
    assert isinstance(node.events[-1], SessionEnded)


def answer(
    link: Link, status: int, tag: str | None, contact: str | None, route: str | None, challenge: str | None, back: int
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
    response.body = SDP
    return response.serialise()
