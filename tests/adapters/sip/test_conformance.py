"""What RFC 3261 and its extensions demand of a user agent server, by section: the request, and the answer it gets.

Syntax is in test_torture.py and test_torture_answers.py, transactions in
test_transaction.py, calls in test_session.py; docs/sip.md lists it all by RFC.
"""

from __future__ import annotations

from typing import Any

import pytest

from adapters.sip.dialogs.session import Session
from adapters.sip.dialogs.session_events import SessionAcked, SessionAnswered, SessionOffered
from adapters.sip.endpoint import SessionIncoming
from adapters.sip.errors import PeerError
from adapters.sip.registration.registrar import Registrar
from adapters.sip.syntax.message import (
    KNOWN_METHODS,
    MAX_HEADER_LINES,
    MAX_MESSAGE,
    Request,
    Response,
    build_response,
    parse_message,
)
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import T2, Flow, Send
from adapters.sip.transports.stream import StreamFramer
from tests.sip_link import SDP, Link, Node, new_token

HERE, PEER = "192.0.2.2", "192.0.2.4"
SERVED = ["INVITE", "ACK", "CANCEL", "BYE", "OPTIONS", "INFO", "UPDATE", "REGISTER"]


def make() -> tuple[Node, Link]:
    node = Node(HERE, trunks={"carrier": PEER}, passwords={"a0001": "secret"}, registrar=Registrar())
    return node, Link(node)


def request(method: str, *extra: str, body: bytes = b"", **changed: str) -> bytes:
    """A proper request; keywords change a header (`from_`, `max_forwards`), or leave it out ("")."""
    headers = {
        "via": f"SIP/2.0/UDP {PEER}:5060;branch=z9hG4bK{new_token()}",
        "max-forwards": "70",
        "from": "<sip:600@pbx.test>;tag=f1",
        "to": f"<sip:500@{HERE}>",
        "call-id": new_token(),
        "cseq": f"1 {method}",
        "contact": f"<sip:600@{PEER}>",
    }
    uri = changed.pop("uri", f"sip:500@{HERE}")
    headers |= {name.rstrip("_").replace("_", "-"): value for name, value in changed.items()}
    if body:
        headers.setdefault("content-type", "application/sdp")
    lines = [f"{method} {uri} SIP/2.0", *(f"{name}: {value}" for name, value in headers.items() if value), *extra]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def answers(node: Node, link: Link, data: bytes, host: str = PEER, port: int = 5060) -> list[Response]:
    found = [parse_message(reply) for reply in link.raw(node, data, host, port)]
    return [reply for reply in found if isinstance(reply, Response)]


def ask(node: Node, link: Link, data: bytes, host: str = PEER) -> Response:
    """The one final answer."""
    (final,) = [reply for reply in answers(node, link, data, host) if reply.status >= 200]
    return final


def call(node: Node, link: Link, **changed: str) -> Session:
    """A call of the peer that was answered and acknowledged."""
    data = request("INVITE", body=SDP, **changed)
    link.raw(node, data, PEER)
    event = node.take()[0]
    assert isinstance(event, SessionIncoming)
    node.carry_out(node.endpoint.answer(event.session, SDP, link.now))
    link.raw(node, within(event.session, "ACK", "1 ACK"), PEER)
    assert any(isinstance(found, SessionAcked) for found in node.take())
    return event.session


def within(session: Session, method: str, cseq: str, *extra: str, body: bytes = b"", **changed: str) -> bytes:
    to = f"{session.request.headers['to'][0]};tag={session.local_tag}"
    names: dict[str, Any] = {
        "to": to,
        "call_id": session.sip_call_id,
        "from_": session.request.headers["from"][0],
        "cseq": cseq,
    }
    return request(method, *extra, body=body, **(names | changed))


# --- RFC 3261 8.2: how a user agent server looks at a request ------------------------------------


def test_8_2_1_a_method_that_we_lack_is_405_or_501_with_allow() -> None:
    node, link = make()
    for method in ("MESSAGE", "PUBLISH"):
        refused = ask(node, link, request(method))
        assert refused.status == 405
        assert set(SERVED) <= set(refused.get_all("allow"))
    unknown = ask(node, link, request("WHATEVER"))
    assert (unknown.status, unknown.has("allow")) == (501, True)
    assert ask(node, link, request("options")).status == 501  # methods are case-sensitive (7.1)


def test_8_2_2_1_an_unknown_scheme_in_the_request_uri_is_416() -> None:
    node, link = make()
    for uri in ("urn:uuid:x", "http://example.com", "unknown:500"):
        assert ask(node, link, request("INVITE", uri=uri, body=SDP)).status == 416
    assert ask(node, link, request("OPTIONS", uri="tel:+15551234")).status == 200


def test_8_2_2_2_a_request_that_came_by_two_paths_is_482() -> None:
    node, link = make()
    same: dict[str, Any] = {"call_id": "merged", "from_": "<sip:600@x>;tag=m"}
    first = answers(node, link, request("INVITE", body=SDP, **same))
    assert [reply.status for reply in first] == [100]
    assert ask(node, link, request("INVITE", body=SDP, **same)).status == 482
    assert ask(node, link, request("INVITE", to=f"<sip:500@{HERE}>;tag=x", **same)).status == 481  # not merged: a tag


def test_8_2_2_3_an_unknown_extension_is_420_and_named() -> None:
    node, link = make()
    for method in ("INVITE", "OPTIONS", "REGISTER"):
        refused = ask(node, link, request(method, "Require: foo, bar", "Require: baz"))
        assert refused.status == 420
        assert refused.get_all("unsupported") == ["foo", "bar", "baz"]
    session = call(node, link)
    assert ask(node, link, within(session, "INFO", "2 INFO", "Require: foo")).status == 420
    assert ask(node, link, request("OPTIONS", "Proxy-Require: foo")).status == 200  # for proxies; we are none


def test_8_2_2_3_require_in_cancel_and_ack_is_ignored() -> None:
    node, link = make()
    session = call(node, link)
    via = f"SIP/2.0/UDP {PEER};branch=z9hG4bKc"
    link.raw(node, request("INVITE", body=SDP, via=via, call_id="c"), PEER)
    statuses = [r.status for r in answers(node, link, request("CANCEL", "Require: foo", via=via, call_id="c"))]
    assert statuses == [200, 487]
    assert answers(node, link, within(session, "ACK", "1 ACK", "Require: foo")) == []


def test_8_2_3_a_body_that_we_do_not_understand_is_415_with_what_we_do() -> None:
    node, link = make()
    for extra in (("Content-Type: text/plain",), ("Content-Type: application/sdp", "Content-Encoding: gzip")):
        refused = ask(node, link, request("INVITE", *extra, body=SDP, content_type=""))
        assert refused.status == 415
        assert "application/sdp" in refused.get_all("accept")
        assert refused.get("accept-encoding") == "identity"
    optional = ("Content-Type: text/plain", "Content-Disposition: render;handling=optional")
    assert [r.status for r in answers(node, link, request("INVITE", *optional, body=b"x", content_type=""))] == [100]


def test_8_2_6_answers_carry_what_names_the_transaction_and_a_tag() -> None:
    node, link = make()
    data = request("INVITE", "Timestamp: 54", "v: SIP/2.0/TCP proxy;branch=z9hG4bK2", body=SDP)
    (trying,) = answers(node, link, data)
    asked = parse_message(data)
    event = node.take()[0]
    assert isinstance(event, SessionIncoming)
    before = len(link.sent)
    node.carry_out(node.endpoint.ring(event.session, link.now))
    node.carry_out(node.endpoint.reject(event.session, 486, link.now))
    ringing, busy = (parse_message(send.data) for _, send in link.sent[before:])
    for answer in (trying, ringing, busy):
        assert (answer.call_id, answer.cseq, answer.get("from")) == (asked.call_id, asked.cseq, asked.get("from"))
        assert [via.branch for via in answer.vias] == [via.branch for via in asked.vias]
    assert (trying.get("timestamp"), trying.to.tag) == ("54", None)
    assert ringing.to.tag == busy.to.tag == event.session.local_tag


def test_8_1_1_what_every_request_must_have() -> None:
    node, link = make()
    for missing in ("from_", "to", "call_id", "cseq"):
        without: dict[str, Any] = {missing: ""}
        assert ask(node, link, request("OPTIONS", **without)).status == 400
    assert answers(node, link, request("OPTIONS", via="")) == []  # nobody to answer to
    assert ask(node, link, request("OPTIONS", cseq="2147483648 OPTIONS")).status == 400
    assert ask(node, link, request("OPTIONS", cseq="1 INVITE")).status == 400
    assert ask(node, link, request("OPTIONS", max_forwards="")).status == 200  # RFC 2543 had none
    assert ask(node, link, request("OPTIONS", max_forwards="256")).status == 400


# --- RFC 3261 9 to 15: CANCEL, REGISTER, OPTIONS, dialogs, INVITE, BYE ----------------------------


def test_9_2_cancel_is_200_and_487_in_one_dialog_or_481() -> None:
    node, link = make()
    assert ask(node, link, request("CANCEL")).status == 481
    via = f"SIP/2.0/UDP {PEER};branch=z9hG4bKcan"
    link.raw(node, request("INVITE", body=SDP, via=via, call_id="c"), PEER)
    ok, terminated = answers(node, link, request("CANCEL", via=via, call_id="c"))
    assert (ok.status, ok.cseq.method) == (200, "CANCEL")
    assert (terminated.status, terminated.cseq.method) == (487, "INVITE")
    assert ok.to.tag == terminated.to.tag
    assert node.names() == ["SessionIncoming", "SessionEnded"]


def test_11_2_options_tells_what_we_can() -> None:
    node, link = make()
    found = ask(node, link, request("OPTIONS"))
    assert found.status == 200
    assert set(SERVED) <= set(found.get_all("allow"))
    assert "application/sdp" in found.get_all("accept")
    assert found.get_all("accept-encoding") == ["identity"]
    assert found.has("supported")
    assert found.to.tag


def test_11_16_3_max_forwards_zero_is_483_but_for_options() -> None:
    node, link = make()
    assert ask(node, link, request("OPTIONS", max_forwards="0")).status == 200
    for method in ("INVITE", "REGISTER"):
        assert ask(node, link, request(method, max_forwards="0")).status == 483
    assert node.events == []


def test_12_1_1_the_2xx_opens_a_dialog() -> None:
    node, link = make()
    routes = ("Record-Route: <sip:p2.example.com;lr>, <sip:p1.example.com;lr>",)
    link.raw(node, request("INVITE", *routes, body=SDP), PEER)
    event = node.take()[0]
    assert isinstance(event, SessionIncoming)
    (ok,) = [effect for effect in node.endpoint.answer(event.session, SDP, 0.0) if isinstance(effect, Send)]
    answer = parse_message(ok.data)
    assert answer.get_all("record-route") == ["<sip:p2.example.com;lr>", "<sip:p1.example.com;lr>"]
    assert len(answer.contacts) == 1
    assert answer.to.tag
    assert answer.has("allow")
    assert event.session.dialog is not None
    assert event.session.dialog.routes == answer.get_all("record-route")


def test_12_2_2_order_and_unknown_dialogs() -> None:
    node, link = make()
    session = call(node, link)
    assert ask(node, link, within(session, "OPTIONS", "5 OPTIONS")).status == 200
    assert ask(node, link, within(session, "OPTIONS", "4 OPTIONS")).status == 500
    assert ask(node, link, within(session, "OPTIONS", "9 OPTIONS")).status == 200  # gaps are allowed
    others: list[dict[str, Any]] = [
        {"call_id": "other"},
        {"from_": "<sip:600@x>;tag=other"},
        {"to": "<sip:500@x>;tag=other"},
    ]
    for changed in others:
        assert ask(node, link, within(session, "OPTIONS", "10 OPTIONS", **changed)).status == 481
    assert answers(node, link, within(session, "ACK", "1 ACK", call_id="other")) == []


def test_13_3_1_4_the_2xx_is_repeated_until_its_ack() -> None:
    node, link = make()
    link.raw(node, request("INVITE", body=SDP), PEER)
    event = node.take()[0]
    assert isinstance(event, SessionIncoming)
    node.carry_out(node.endpoint.answer(event.session, SDP, 0.0))
    link.run(20.0)
    times = sum(send.data.startswith(b"SIP/2.0 200") for _, send in link.sent)
    assert times == 1 + 3 + 4  # after 0.5, 1.5, 3.5 s, then every 4 s
    link.raw(node, within(event.session, "ACK", "1 ACK"), PEER)
    before = len(link.sent)
    link.run(60.0)
    assert not [send for _, send in link.sent[before:] if send.data.startswith(b"SIP/2.0")]


def test_14_2_an_offer_while_another_waits_is_500_and_glare_491() -> None:
    node, link = make()
    session = call(node, link)
    link.raw(node, within(session, "INVITE", "2 INVITE", body=SDP), PEER)
    waiting = ask(node, link, within(session, "INVITE", "3 INVITE", body=SDP))
    assert waiting.status == 500
    assert 0 <= int(waiting.get("retry-after") or "") <= 10
    node.carry_out(node.endpoint.accept_offer(session, SDP, link.now))
    link.raw(node, within(session, "ACK", "2 ACK"), PEER)
    node.carry_out(node.endpoint.reinvite(session, SDP, link.now))
    assert ask(node, link, within(session, "INVITE", "4 INVITE", body=SDP)).status == 491
    assert ask(node, link, within(session, "UPDATE", "5 UPDATE", body=SDP)).status == 491  # RFC 3311 5.2


def test_15_1_2_bye_ends_the_dialog_and_is_481_without_one() -> None:
    node, link = make()
    session = call(node, link)
    assert ask(node, link, within(session, "BYE", "2 BYE")).status == 200
    assert ask(node, link, within(session, "BYE", "3 BYE")).status == 481
    assert ask(node, link, within(session, "INVITE", "4 INVITE", body=SDP)).status == 481
    link.run(40.0)
    assert (node.endpoint.sessions, node.endpoint.transactions) == (0, 0)


# --- RFC 3261 18 and 21: transport, sizes, versions ----------------------------------------------


def test_18_2_1_the_source_is_noted_and_answered_rfc_3581() -> None:
    node, link = make()
    data = request("OPTIONS", via="SIP/2.0/UDP phone.invalid:5070;branch=z9hG4bK1;rport")
    (answer,) = answers(node, link, data, port=40000)
    assert (answer.top_via.received, answer.top_via.rport) == (PEER, 40000)
    plain = request("OPTIONS", via="SIP/2.0/UDP phone.invalid:5070;branch=z9hG4bK2")
    before = len(link.sent)
    link.raw(node, plain, PEER, 40000)
    assert link.sent[before][1].flow.port == 5070


def test_18_3_a_datagram_ends_at_content_length_and_a_short_one_is_400() -> None:
    node, link = make()
    data = request("OPTIONS", body=b"12345")
    assert ask(node, link, data + b"noise").status == 200
    assert ask(node, link, data[:-1]).status == 400
    for length in ("-1", "x", "99999999999", ""):
        spoiled = request("OPTIONS").replace(b"Content-Length: 0", f"Content-Length: {length}".encode())
        assert ask(node, link, spoiled).status == 400


def test_21_5_6_another_version_is_505() -> None:
    node, link = make()
    for version in (b"SIP/3.0", b"SIP/2.1", b"SIP/1.0"):
        assert ask(node, link, request("OPTIONS").replace(b" SIP/2.0\r\n", b" %s\r\n" % version, 1)).status == 505
    assert ask(node, link, request("OPTIONS").replace(b" SIP/2.0\r\n", b" sip/2.0\r\n", 1)).status == 200


def test_21_5_7_what_is_too_large_is_513_on_a_stream_and_takes_no_memory() -> None:
    node, _ = make()
    flow = Flow("tcp", 0, PEER, 5060, 1)
    data = request("INVITE").replace(b"Content-Length: 0", b"Content-Length: %d" % MAX_MESSAGE)
    framer = StreamFramer()
    with pytest.raises(PeerError) as caught:
        framer.feed(data)
    (sent,) = node.endpoint.on_fault(caught.value, flow)
    assert isinstance(sent, Send)
    assert sent.data.startswith(b"SIP/2.0 513")
    assert node.endpoint.on_message(b"x" * (MAX_MESSAGE + 1), flow, 0.0) == []
    lines = "\r\n".join(["X: 1"] * (MAX_HEADER_LINES + 1))
    assert node.endpoint.on_message(request("OPTIONS", lines), flow, 0.0) == []
    assert node.endpoint.counters['sip_rejected_total{status="513"}'] == 3


# --- RFC 3261 22: authentication -----------------------------------------------------------------


def test_22_2_who_is_not_known_is_asked_and_learns_nothing() -> None:
    node, link = make()
    stranger = "192.0.2.99"
    known = ask(node, link, request("INVITE", body=SDP, from_="<sip:a0001@pbx.test>;tag=1"), stranger)
    unknown = ask(node, link, request("INVITE", body=SDP, from_="<sip:ghost@pbx.test>;tag=1"), stranger)
    assert known.status == unknown.status == 401
    assert known.headers.keys() == unknown.headers.keys()
    assert node.events == []
    for method in ("ACK", "CANCEL"):  # neither can be asked (22.1)
        assert 401 not in [reply.status for reply in answers(node, link, request(method), stranger)]


# --- RFC 4320: non-INVITE transactions -----------------------------------------------------------


def test_rfc_4320_no_provisional_response_and_no_408_to_other_requests() -> None:
    node, link = make()
    for method in sorted(KNOWN_METHODS - {"INVITE", "ACK"}):
        found = answers(node, link, request(method))
        assert found
        assert all(reply.status >= 200 and reply.status != 408 for reply in found)
    link.run(T2 * 2)


# --- RFC 5621, RFC 6442, RFC 3204: bodies of several parts ------------------------------------------

LOCATION = b'<?xml version="1.0"?><presence xmlns="urn:ietf:params:xml:ns:pidf" entity="pres:x@y"/>'
MULTIPART = (
    b"--b\r\nContent-Type: application/pidf+xml\r\nContent-ID: <t@x>\r\n\r\n" + LOCATION + b"\r\n"
    b"--b\r\nContent-Type: application/ISUP;version=itu-t92+\r\n\r\n\x01\x00\r\n"
    b"--b\r\nContent-Type: Application/SDP\r\n\r\n" + SDP + b"\r\n--b--\r\n"
)
PARTS = ("Geolocation: <cid:t@x>", "Geolocation-Routing: yes")


def test_rfc_6442_an_emergency_call_with_its_location_is_a_call() -> None:
    node, link = make()
    kind: dict[str, Any] = {"content_type": 'multipart/mixed;boundary="b"', "uri": "urn:service:sos"}
    assert ask(node, link, request("INVITE", *PARTS, body=MULTIPART, **kind)).status == 416  # no URI to call
    kind["uri"] = f"sip:112@{HERE}"
    (trying,) = answers(node, link, request("INVITE", *PARTS, body=MULTIPART, **kind))
    assert trying.status == 100
    (event,) = node.take()
    assert isinstance(event, SessionIncoming)
    assert event.session.offered == SDP


def test_rfc_5621_descriptions_are_found_in_every_message_of_a_call() -> None:
    node, link = make()
    kind: dict[str, Any] = {"content_type": "Multipart/Mixed; boundary=b"}
    session = call(node, link)
    link.raw(node, within(session, "INVITE", "2 INVITE", body=MULTIPART, **kind), PEER)
    (offered,) = node.take()
    assert isinstance(offered, SessionOffered)
    assert offered.body == SDP
    node.carry_out(node.endpoint.accept_offer(session, SDP, link.now))
    link.raw(node, within(session, "ACK", "2 ACK"), PEER)
    link.raw(node, within(session, "INVITE", "3 INVITE"), PEER)
    node.carry_out(node.endpoint.accept_offer(session, SDP, link.now))
    node.take()
    link.raw(node, within(session, "ACK", "3 ACK", body=MULTIPART, **kind), PEER)
    (acked,) = node.take()
    assert isinstance(acked, SessionAcked)
    assert acked.body == SDP
    _, effects = node.endpoint.invite(SipUri("sip", "600", host=PEER), SDP, from_="<sip:5@x>", now=link.now)
    (invite,) = [parse_message(effect.data) for effect in effects if isinstance(effect, Send)]
    assert isinstance(invite, Request)
    ok = build_response(invite, 200, to_tag="t")
    ok.set("contact", f"<sip:600@{PEER}>")
    ok.set("content-type", kind["content_type"])
    ok.body = MULTIPART
    link.raw(node, ok.serialise(), PEER)
    (answered,) = node.take()
    assert isinstance(answered, SessionAnswered)
    assert answered.body == SDP


# --- RFC 5393: loops and forks -------------------------------------------------------------------


def test_rfc_5393_max_breadth_is_for_proxies_and_does_not_disturb() -> None:
    node, link = make()
    assert ask(node, link, request("OPTIONS", "Max-Breadth: 0")).status == 200


def test_every_answer_is_a_message_that_we_would_take_ourselves() -> None:
    node, link = make()
    changes: list[dict[str, Any]] = [
        {},
        {"to": "<sip:x@y>;tag=t"},
        {"max_forwards": "0"},
        {"uri": "x:y"},
        {"contact": "<sip:"},
    ]
    for method in sorted(KNOWN_METHODS | {"OTHER"}):
        for changed in changes:
            for reply in link.raw(node, request(method, "Require: q", **changed), PEER):
                assert isinstance(parse_message(reply), Response)
    assert isinstance(parse_message(request("OPTIONS")), Request)
