"""Two of our own endpoints do whatever they like to one call, over a link that loses, repeats and reorders."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.sip.dialogs.session import Session, SessionEnded, SessionOffered, SessionOfferWanted
from adapters.sip.dialogs.session_timer import TimerSettings
from adapters.sip.endpoint import Event
from adapters.sip.errors import UsageError
from adapters.sip.syntax.uri import SipUri
from tests.sip_link import SDP, Link, Node, session_of

DELAYS = st.sampled_from(([0.001], [0.001], [0.02], [], [0.01, 0.3], [0.7], [0.001, 0.001]))
DEEDS = st.sampled_from(["ring", "progress", "answer", "update", "reinvite", "probe", "hang up"])
STEPS = st.lists(st.tuples(st.booleans(), DEEDS, st.sampled_from([0.0, 0.3, 2.0, 50.0])), max_size=12)


@settings(max_examples=250, deadline=None)
@given(STEPS, st.lists(DELAYS, max_size=80), st.booleans())
def test_both_sides_end_once_and_leave_nothing(
    steps: list[tuple[bool, str, float]], fates: list[list[float]], accepts: bool
) -> None:
    caller, called = Node("192.0.2.1"), Node("192.0.2.2", trunks={"t": "192.0.2.0/24"})
    for node in (caller, called):
        node.endpoint.session_timer = TimerSettings(90)
    link = Link(caller, called)
    pending = list(fates)

    def react(node: Node, event: Event) -> None:
        if isinstance(event, SessionOffered):
            if accepts:
                node.carry_out(node.endpoint.accept_offer(event.session, SDP, link.now))
            else:
                node.carry_out(node.endpoint.refuse_offer(event.session, 488, link.now))
        elif isinstance(event, SessionOfferWanted):
            node.carry_out(node.endpoint.reinvite(event.session, SDP, link.now))

    caller.on_event = lambda event: react(caller, event)
    called.on_event = lambda event: react(called, event)
    a, effects = caller.endpoint.invite(SipUri.parse("sip:500@192.0.2.2"), SDP, from_="<sip:1@x>", now=0.0)
    assert a is not None
    caller.carry_out(effects)
    link.run()
    b = session_of(called)
    link.fate = lambda _: pending.pop() if pending else [0.001]
    for calling, deed, pause in steps:
        do(caller if calling else called, a if calling else b, deed, link)
        link.run(link.now + pause)
    link.fate = lambda _: [0.001]
    for node, session in ((caller, a), (called, b)):
        node.carry_out(node.endpoint.hang_up(session, link.now))
        link.run(link.now + 300)
    for node in (caller, called):
        assert node.endpoint.sessions == node.endpoint.transactions == 0
        assert node.endpoint.deadline() is None
        assert [type(event) for event in node.events].count(SessionEnded) == 1


def do(node: Node, session: Session, deed: str, link: Link) -> None:
    endpoint, now = node.endpoint, link.now
    try:
        if deed == "ring":
            node.carry_out(endpoint.ring(session, now))
        elif deed == "progress":
            node.carry_out(endpoint.progress(session, SDP, now))
        elif deed == "answer":
            node.carry_out(endpoint.answer(session, SDP, now))
        elif deed == "update":
            node.carry_out(endpoint.update(session, SDP, now))
        elif deed == "reinvite":
            node.carry_out(endpoint.reinvite(session, SDP, now))
        elif deed == "probe":
            node.carry_out(endpoint.probe(session, now, 4.0))
        else:
            node.carry_out(endpoint.hang_up(session, now))
    except UsageError:
        return  # not now
