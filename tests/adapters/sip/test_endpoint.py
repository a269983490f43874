from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.sip.dialogs.session import SessionEnded
from adapters.sip.endpoint import Endpoint, RegistrationChanged, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Admitted, Refused
from adapters.sip.protection.digest import Challenge, answer_challenge
from adapters.sip.registration.registrar import Registrar, RegistrarLimits
from adapters.sip.syntax.message import Request, Response, parse_message
from adapters.sip.transactions.layer import TransactionLayer
from adapters.sip.transactions.transaction import Flow, Send
from tests.sip_link import SDP, Link, Node, new_token

HERE = "192.0.2.2"
SOURCE = ("192.0.2.99", 5060)


def make() -> tuple[Node, Link]:
    node = Node(
        HERE,
        trunks={"carrier": "192.0.2.4/32"},
        passwords={"a0001": "secret", "a0002": "other"},
        registrar=Registrar(RegistrarLimits(per_user=3)),
    )
    return node, Link(node)


def request(method: str, *extra: str, body: bytes = b"", drop: str = "", **parts: str) -> bytes:
    values = {
        "uri": f"sip:500@{HERE}",
        "via": f"SIP/2.0/UDP {SOURCE[0]}:5060;branch=z9hG4bK{new_token()}",
        "max-forwards": "70",
        "from": "<sip:a0001@pbx.test>;tag=f1",
        "to": f"<sip:500@{HERE}>",
        "call-id": "c1",
        "cseq": f"1 {method}",
        "contact": f"<sip:a0001@{SOURCE[0]}>",
    } | {name.rstrip("_").replace("_", "-"): value for name, value in parts.items()}
    lines = [f"{method} {values.pop('uri')} SIP/2.0"]
    lines += [f"{name}: {value}" for name, value in values.items() if name != drop and value]
    lines += [*extra, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ask(node: Node, link: Link, data: bytes, host: str = SOURCE[0], port: int = SOURCE[1]) -> Response:
    replies = [parse_message(reply) for reply in link.raw(node, data, host, port)]
    final = [reply for reply in replies if isinstance(reply, Response) and reply.status >= 200]
    assert len(final) == 1
    return final[0]


@pytest.mark.parametrize(
    ("data", "status", "header"),
    [
        (request("OPTIONS"), 200, "allow"),
        (request("OPTIONS", max_forwards="0"), 200, "accept"),
        (request("INVITE", max_forwards="0"), 483, None),
        (request("INVITE", "Require: 100rel, gruu"), 420, "unsupported"),
        (request("REGISTER", "Require: outbound, gruu"), 420, "unsupported"),
        (request("SUBSCRIBE"), 405, "allow"),
        (request("MESSAGE"), 405, "allow"),
        (request("NEWTHING"), 501, "allow"),
        (request("BYE"), 481, None),
        (request("BYE", to=f"<sip:500@{HERE}>;tag=gone"), 481, None),
        (request("OPTIONS", to=f"<sip:500@{HERE}>;tag=gone"), 481, None),
        (request("CANCEL"), 481, None),
        (request("INVITE", cseq="1 BYE"), 400, None),
        (request("INVITE", drop="call-id"), 400, None),
        (request("INVITE", uri="http://x"), 416, None),
        (request("INVITE", body=SDP), 401, "www-authenticate"),
    ],
)
def test_requests_get_the_right_answer(data: bytes, status: int, header: str | None) -> None:
    node, link = make()
    answer = ask(node, link, data)
    assert answer.status == status
    assert header is None or answer.has(header)
    assert answer.to.tag
    assert answer.get("server") == "Murima"
    assert node.events == []
    assert node.endpoint.sessions == 0


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"hello", 415),
        ("multipart/mixed", b"--x", 400),
        ("multipart/mixed;boundary=x", b"--x\r\n\r\nhello\r\n--x--\r\n", 415),
    ],
)
def test_invite_of_a_trunk_with_another_body_is_refused(kind: str, body: bytes, status: int) -> None:
    node, link = make()
    assert ask(node, link, request("INVITE", f"Content-Type: {kind}", body=body), "192.0.2.4").status == status


def test_trunk_needs_no_password_and_gets_100_at_once() -> None:
    node, link = make()
    replies = link.raw(node, request("INVITE", "Content-Type: application/sdp", body=SDP), "192.0.2.4")
    assert [reply.split(b"\r\n")[0] for reply in replies] == [b"SIP/2.0 100 Trying"]
    (event,) = node.events
    assert isinstance(event, SessionIncoming)
    assert (event.source.trunk, event.source.user) == ("carrier", None)
    assert len(event.session.local_tag) >= 16  # 64 bits in hex


def test_invite_without_contact_is_refused() -> None:
    node, link = make()
    assert ask(node, link, request("INVITE", drop="contact"), "192.0.2.4").status == 400
    assert node.endpoint.sessions == 0


def test_malformed_request_is_answered_where_it_came_from() -> None:
    node, link = make()
    broken = request("OPTIONS").replace(b"Content-Length: 0", b"Content-Length: 10")
    assert ask(node, link, broken).status == 400
    assert link.raw(node, b"\x00\xff garbage") == []
    assert link.raw(node, request("ACK")) == []
    assert node.endpoint.counters['sip_rejected_total{status="400"}'] == 2


def test_responses_go_to_rport_or_to_sent_by() -> None:
    node, link = make()
    for via, expected in (
        ("SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bKa;rport", ("192.0.2.99", 40000)),
        ("SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bKb", ("192.0.2.99", 5070)),
        ("SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKc", ("192.0.2.99", 5060)),
    ):
        before = len(link.sent)
        link.raw(node, request("OPTIONS", via=via), "192.0.2.99", 40000)
        (sent,) = [send for _, send in link.sent[before:]]
        assert (sent.flow.host, sent.flow.port) == expected
        answer = parse_message(sent.data)
        assert answer.top_via.received == "192.0.2.99"
        assert answer.top_via.rport == (40000 if "rport" in via else None)
        node.endpoint.on_time(1000.0)


def test_repeated_request_gets_the_same_answer_and_merged_ones_482() -> None:
    node, link = make()
    data = request("OPTIONS")
    first = link.raw(node, data)
    assert link.raw(node, data) == first
    assert node.endpoint.transactions == 0  # nothing is kept of what changes nothing
    call = request("INVITE", "Content-Type: application/sdp", body=SDP)
    assert link.raw(node, call, "192.0.2.4") == link.raw(node, call, "192.0.2.4")
    assert len(node.events) == 1
    merged = request("INVITE", "Content-Type: application/sdp", body=SDP)  # same Call-ID and CSeq by another path
    assert ask(node, link, merged, "192.0.2.4").status == 482


def test_equipment_of_rfc_2543_is_matched_without_branch() -> None:
    node, link = make()
    via = "SIP/2.0/UDP 192.0.2.4"
    data = request("INVITE", "Content-Type: application/sdp", body=SDP, via=via, from_="<sip:1@x>")
    link.raw(node, data, "192.0.2.4")
    link.raw(node, data, "192.0.2.4")
    assert len(node.events) == 1
    event = node.events[0]
    assert isinstance(event, SessionIncoming)
    before = len(link.sent)
    node.carry_out(node.endpoint.reject(event.session, 486, link.now))
    tag = parse_message(link.sent[before][1].data).to.tag
    ack = request("ACK", via=via, to=f"<sip:500@{HERE}>;tag={tag}", from_="<sip:1@x>")
    link.raw(node, ack, "192.0.2.4")
    link.run(20)
    assert node.endpoint.transactions == 0  # not repeated until timer H: the ACK was recognised


def authorised(node: Node, link: Link, method: str, password: str, **parts: str) -> Response:
    """Send a request, answer the challenge."""
    user = "a0001"
    body = SDP if method == "INVITE" else b""
    extra = ("Content-Type: application/sdp",) if body else ()
    challenged = ask(node, link, request(method, *extra, body=body, **parts))
    assert challenged.status == 401
    value = answer_challenge(
        [Challenge.parse(text) for text in challenged.get_all("www-authenticate")],
        method=method,
        uri=f"sip:{HERE}",
        username=user,
        password=password,
        cnonce=new_token(),
    )
    number = int(parts.get("cseq", "1 x").split()[0]) + 1
    data = request(method, f"Authorization: {value}", *extra, body=body, **(parts | {"cseq": f"{number} {method}"}))
    replies = [parse_message(reply) for reply in link.raw(node, data)]
    assert isinstance(replies[-1], Response)
    return replies[-1]


def test_agent_calls_with_a_password() -> None:
    node, link = make()
    assert authorised(node, link, "INVITE", "secret").status == 100
    (event,) = node.events
    assert isinstance(event, SessionIncoming)
    assert (event.source.trunk, event.source.user) == (None, "a0001")


def test_wrong_password_and_unknown_user_get_the_same_answer() -> None:
    node, link = make()
    wrong = authorised(node, link, "REGISTER", "wrong", to="<sip:a0001@pbx.test>")
    unknown = authorised(node, link, "INVITE", "x", from_="<sip:ghost@pbx.test>;tag=f1", call_id="c2")
    assert wrong.status == unknown.status == 401
    assert wrong.headers.keys() == unknown.headers.keys()
    assert 'sip_auth_refused_total{reason="wrong"}' in node.endpoint.counters


def test_user_registers_its_own_name_only() -> None:
    node, link = make()
    answer = authorised(node, link, "REGISTER", "secret", to="<sip:a0001@pbx.test>", uri=f"sip:{HERE}")
    assert answer.status == 200
    assert answer.get("contact") == "<sip:a0001@192.0.2.99>;expires=3600"
    assert node.take() == [RegistrationChanged("a0001", reachable=True)]
    answer = authorised(node, link, "REGISTER", "secret", to="<sip:a0002@pbx.test>", cseq="5 REGISTER", call_id="c3")
    assert answer.status == 403
    link.run(4000)
    assert node.take() == [RegistrationChanged("a0001", reachable=False)]


def test_too_brief_registration_is_told_the_minimum() -> None:
    node, link = make()
    answer = authorised(
        node, link, "REGISTER", "secret", to="<sip:a0001@pbx.test>", contact="<sip:a@192.0.2.99>;expires=5"
    )
    assert answer.status == 423
    assert answer.get("min-expires") == "60"


def test_draining_and_full_tables_refuse_with_retry_after() -> None:
    node, link = make()
    node.endpoint.draining = True
    answer = ask(node, link, request("INVITE"), "192.0.2.4")
    assert (answer.status, answer.get("retry-after")) == (503, "5")
    small = Endpoint(
        network=node, policy=node.endpoint.policy, registrar=None, new_token=new_token, layer=TransactionLayer(limit=1)
    )
    statuses = []
    for number in (1, 2):
        data = request("INVITE", "Content-Type: application/sdp", body=SDP, call_id=f"c{number}")
        for effect in small.on_message(data, Flow("udp", 0, "192.0.2.4", 5060), 0.0):
            if isinstance(effect, Send):
                answer = parse_message(effect.data)  # type: ignore[assignment]  # responses only
                statuses.append(answer.status)
    assert statuses[-1] == 503
    assert small.transactions == 1


def test_full_tables_still_let_calls_end() -> None:
    node, _ = make()
    small = Endpoint(
        network=node, policy=node.endpoint.policy, registrar=None, new_token=new_token, layer=TransactionLayer(limit=2)
    )
    carrier = Flow("udp", 0, "192.0.2.4", 5060)
    via = "SIP/2.0/UDP 192.0.2.4:5060;branch=z9hG4bKfull"
    first = small.on_message(request("INVITE", "Content-Type: application/sdp", body=SDP), carrier, 0.0)[-1]
    assert isinstance(first, SessionIncoming)
    small.on_message(request("INVITE", "Content-Type: application/sdp", body=SDP, via=via, call_id="c2"), carrier, 0.0)
    stranger = small.on_message(request("OPTIONS", call_id="c3"), carrier, 0.0)
    assert isinstance(stranger[0], Send)
    assert stranger[0].data.startswith(b"SIP/2.0 503")
    bye = request("BYE", to=f"<sip:500@{HERE}>;tag={first.session.local_tag}", cseq="2 BYE")
    ended = [e for e in small.on_message(bye, carrier, 0.0) if isinstance(e, SessionEnded)]
    assert [e.session for e in ended] == [first.session]
    cancel = request("CANCEL", via=via, call_id="c2", cseq="1 CANCEL")
    assert any(isinstance(e, SessionEnded) for e in small.on_message(cancel, carrier, 0.0))
    assert small.sessions == 0


def test_fault_of_ours_answers_500_and_leaves_no_transaction() -> None:
    class Broken(AccessPolicy):
        def admit(self, request: Request, source: Flow, now: float) -> Admitted | Refused:
            raise RuntimeError("a bug")

    node, link = make()
    node.endpoint.policy = Broken((), {}, node.endpoint.policy._verifier)
    with pytest.raises(RuntimeError):
        node.endpoint.on_message(request("INVITE"), Flow("udp", 0, "192.0.2.4", 5060), 0.0)
    reply, *_ = [e for e in node.endpoint.on_time(0.5) if isinstance(e, Send)]
    assert reply.data.startswith(b"SIP/2.0 500")
    link.run(100)
    assert node.endpoint.transactions == 0


@pytest.mark.parametrize("contact", ["<sip:a@192.0.2.4;x=\x01>", "<sip:a@192.0.2.4?h=\x7f>"])
def test_contact_that_could_not_be_called_back_is_refused(contact: str) -> None:
    node, link = make()
    assert ask(node, link, request("INVITE", contact=contact), "192.0.2.4").status == 400


def test_session_limit() -> None:
    node, _ = make()
    small = Endpoint(network=node, policy=node.endpoint.policy, registrar=None, new_token=new_token, max_sessions=1)
    flow = Flow("udp", 0, "192.0.2.4", 5060)
    assert isinstance(small.on_message(request("INVITE"), flow, 0.0)[-1], SessionIncoming)
    (refused,) = small.on_message(request("INVITE", call_id="c9"), flow, 0.0)
    assert isinstance(refused, Send)
    assert refused.data.startswith(b"SIP/2.0 503")


def test_cancel_of_an_answered_or_unknown_invite() -> None:
    node, link = make()
    via = "SIP/2.0/UDP 192.0.2.4:5060;branch=z9hG4bKcan"
    link.raw(node, request("INVITE", "Content-Type: application/sdp", body=SDP, via=via), "192.0.2.4")
    event = node.events[0]
    assert isinstance(event, SessionIncoming)
    replies = link.raw(node, request("CANCEL", via=via), "192.0.2.4")
    assert [reply.split(b" ")[1] for reply in replies] == [b"200", b"487"]
    tags = {parse_message(reply).to.tag for reply in replies}
    assert len(tags) == 1


def test_strays_are_counted_not_answered() -> None:
    node, link = make()
    via = "SIP/2.0/UDP 192.0.2.2;branch=z9hG4bKnone"
    stray = Request.build("OPTIONS", "sip:x@y", via=via, from_="<sip:a@b>", to="<sip:c@d>", call_id="x", cseq=1)
    data = stray.serialise().replace(b"OPTIONS sip:x@y SIP/2.0", b"SIP/2.0 200 OK", 1)
    assert link.raw(node, data) == []
    assert node.endpoint.counters["sip_stray_responses_total"] == 1


TEMPLATES = [
    request("INVITE", body=SDP),
    request("INVITE", "Content-Type: application/sdp", body=SDP, via="SIP/2.0/UDP h"),
    *(request(method) for method in ("REGISTER", "OPTIONS", "ACK", "BYE", "CANCEL")),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_disturb_the_endpoint(data: st.DataObject) -> None:
    node, link = make()
    host = data.draw(st.sampled_from(["192.0.2.4", "192.0.2.99"]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw = bytearray(data.draw(st.sampled_from(TEMPLATES)))
        for _ in range(data.draw(st.integers(0, 6))):
            position = data.draw(st.integers(0, len(raw) - 1))
            raw[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        link.raw(node, bytes(raw), host)
    link.run(400)
    assert ask(node, link, request("OPTIONS", call_id="after")).status == 200
