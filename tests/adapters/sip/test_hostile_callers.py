"""Whatever a calling phone sends within its call, and whatever we do, the session ends once and nothing is left."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.sip.dialogs.session import Session, SessionEnded, SessionState
from adapters.sip.syntax.message import Request, Response, parse_message
from tests.sip_link import SDP, Link, Node, session_of

DEMANDS = st.sampled_from(
    ["", "Supported: 100rel, timer\r\nSession-Expires: 90\r\n", "Require: 100rel\r\n", "Session-Expires: 200\r\n"]
)
OURS = ["ring", "progress", "answer", "reject", "hang up", "accept", "refuse", "update", "reinvite", "probe"]
THEIRS = ["PRACK", "PRACK offer", "PRACK wrong", "UPDATE", "UPDATE empty", "INVITE", "CANCEL", "ACK", "BYE", "INFO"]
STATUSES = ["200", "401", "422", "481", "491", "500"]  # of our last request
TIMES = ["0.6 s", "33 s", "100 s"]
STEPS = st.lists(st.sampled_from([*OURS, *THEIRS, *STATUSES, *TIMES]), max_size=14)


@settings(max_examples=300, deadline=None)
@given(STEPS, DEMANDS, st.booleans())
def test_session_ends_once_and_leaves_nothing(steps: list[str], demand: str, offers: bool) -> None:
    node = Node("192.0.2.2", trunks={"t": "192.0.2.0/24"})
    link = Link(node)
    link.raw(node, request("INVITE", 1, extra=demand, body=SDP if offers else b""))
    session = session_of(node)
    for number, step in enumerate(steps, 2):
        if step in OURS:
            do(node, link, session, step)
        elif step in STATUSES:
            answer(node, link, int(step))
        elif step in TIMES:
            link.run(link.now + float(step.removesuffix(" s")))
        else:
            link.raw(node, theirs(link, session, step, number))
    node.carry_out(node.endpoint.hang_up(session, link.now))
    link.run(link.now + 400)
    assert node.endpoint.sessions == node.endpoint.transactions == 0
    assert node.endpoint.deadline() is None
    assert [type(event) for event in node.events].count(SessionEnded) == 1
    assert isinstance(node.events[-1], SessionEnded)


def do(node: Node, link: Link, session: Session, step: str) -> None:
    endpoint, now = node.endpoint, link.now
    talks = session.state is SessionState.CONFIRMED
    if step == "ring":
        node.carry_out(endpoint.ring(session, now))
    elif step == "progress":
        node.carry_out(endpoint.progress(session, SDP, now))
    elif step == "answer":
        node.carry_out(endpoint.answer(session, SDP, now))
    elif step == "reject":
        node.carry_out(endpoint.reject(session, 486, now))
    elif step == "hang up":
        node.carry_out(endpoint.hang_up(session, now))
    elif step == "accept":
        node.carry_out(endpoint.accept_offer(session, SDP, now))
    elif step == "refuse":
        node.carry_out(endpoint.refuse_offer(session, 488, now))
    elif step == "update" and talks:
        node.carry_out(endpoint.update(session, SDP, now))
    elif step == "reinvite" and talks:
        node.carry_out(endpoint.reinvite(session, SDP, now))
    elif step == "probe":
        node.carry_out(endpoint.probe(session, now, 4.0))


def theirs(link: Link, session: Session, step: str, number: int) -> bytes:
    method, _, kind = step.partition(" ")
    tag = None if method == "CANCEL" else session.local_tag
    cseq = 1 if method in ("CANCEL", "ACK") else number
    extra = ""
    if method == "PRACK":
        told = [message.get("rseq") for message in responses(link) if message.has("rseq")]
        extra = f"RAck: {told[-1] if told and kind != 'wrong' else 7} 1 INVITE\r\n"
    elif method in ("INVITE", "UPDATE"):
        extra = "Session-Expires: 90\r\nSupported: timer\r\n"
    body = SDP if kind == "offer" or (method in ("INVITE", "UPDATE") and not kind) else b""
    return request(method, cseq, tag=tag, extra=extra, body=body)


def responses(link: Link) -> list[Response]:
    return [m for m in (parse_message(sent.data) for _, sent in link.sent) if isinstance(m, Response)]


def answer(node: Node, link: Link, status: int) -> None:
    asked = [m for m in (parse_message(sent.data) for _, sent in link.sent) if isinstance(m, Request)]
    asked = [message for message in asked if message.method != "ACK"]
    if asked:
        extra = {
            401: 'WWW-Authenticate: Digest realm="x", nonce="n"\r\n',
            422: "Min-SE: 500\r\n",
            500: "Retry-After: 2\r\n",
        }
        head = asked[-1].headers
        lines = [f"SIP/2.0 {status} So", *(f"{n}: {head[n][0]}" for n in ("via", "from", "to", "call-id", "cseq"))]
        link.raw(node, ("\r\n".join(lines) + "\r\n" + extra.get(status, "") + "\r\n").encode())


def request(method: str, cseq: int, *, tag: str | None = None, extra: str = "", body: bytes = b"") -> bytes:
    branch = "z9hG4bKINVITE1" if method == "CANCEL" else f"z9hG4bK{method}{cseq}"
    return (
        f"{method} sip:500@192.0.2.2 SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 192.0.2.99;branch={branch}\r\n"
        "From: <sip:100@192.0.2.99>;tag=ft\r\n"
        f"To: <sip:500@192.0.2.2>{f';tag={tag}' if tag else ''}\r\n"
        f"Call-ID: raw\r\nCSeq: {cseq} {method}\r\nContact: <sip:100@192.0.2.99>\r\n{extra}"
        f"{'Content-Type: application/sdp' if body else 'X-None: x'}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
