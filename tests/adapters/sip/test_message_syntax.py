"""Messages: any bytes parse or raise PeerError, what is written reads back, nothing can be injected."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.syntax.headers import NameAddr, Via
from adapters.sip.syntax.message import (
    MAX_HEADER_LINES,
    MAX_MESSAGE,
    REASONS,
    Message,
    Request,
    Response,
    build_response,
    parse_message,
    validate_request,
    validate_response,
)
from adapters.sip.syntax.uri import SipUri

INVITE = (
    b"INVITE sip:500@127.0.0.1:5060 SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 127.0.0.4:5070;branch=z9hG4bK-1;rport\r\n"
    b"v: SIP/2.0/TCP proxy.example.com;branch=z9hG4bK-2, SIP/2.0/UDP [2001:db8::1]:5062\r\n"
    b"Max-Forwards: 70\r\n"
    b'From: "Bell, Alexander" <sip:a.g.bell@example.com>;tag=43\r\n'
    b"t: <sip:500@pbx.local>\r\n"
    b"i: abc@127.0.0.4\r\n"
    b"CSeq: 1 INVITE\r\n"
    b"m: <sip:carol@127.0.0.4:5070;transport=udp>\r\n"
    b"Allow: INVITE, ACK,BYE\r\n"
    b"Allow: CANCEL\r\n"
    b"X-Thing: a, b\r\n"
    b"c: application/sdp\r\n"
    b"l: 5\r\n\r\nv=0\r\nignored"
)


def invite(*, without: bytes = b"", instead: tuple[bytes, bytes] = (b"", b"")) -> Request:
    data = b"".join(line for line in INVITE.splitlines(keepends=True) if not without or not line.startswith(without))
    message = parse_message(data.replace(*instead) if instead[0] else data)
    assert isinstance(message, Request)
    return message


def test_headers_are_found_by_long_lower_case_name_and_lists_are_split() -> None:
    message = invite()
    assert (message.method, message.uri) == ("INVITE", "sip:500@127.0.0.1:5060")
    assert message.parsed_uri == SipUri("sip", "500", host="127.0.0.1", port=5060)
    assert message.call_id == "abc@127.0.0.4"
    assert [via.host for via in message.vias] == ["127.0.0.4", "proxy.example.com", "2001:db8::1"]
    assert message.get("via") == "SIP/2.0/UDP 127.0.0.4:5070;branch=z9hG4bK-1;rport"
    assert message.get_all("allow") == ["INVITE", "ACK", "BYE", "CANCEL"]
    assert message.get("allow") == "INVITE"
    assert message.get_all("x-thing") == ["a, b"]
    assert message.from_.display_name == "Bell, Alexander"
    assert message.content_type == "application/sdp"
    assert (message.content_length, message.body) == (5, b"v=0\r\n")
    assert message.expires is None
    assert message.get("subject") is None
    assert message.get_all("subject") == []
    assert not message.has("subject")
    validate_request(message)


def test_changes_are_seen_by_the_parsed_values() -> None:
    message = invite()
    assert message.cseq.number == 1
    message.set("cseq", "2 INVITE")
    assert message.cseq.number == 2
    message.replace_first("via", message.top_via.with_params({"received": "192.0.2.1", "rport": "9"}))
    assert (message.top_via.received, message.top_via.rport) == ("192.0.2.1", 9)
    assert len(message.vias) == 3
    message.prepend("via", Via("UDP", "192.0.2.7", None, {"branch": "z9hG4bK-3"}))
    assert message.top_via.host == "192.0.2.7"
    message.add("route", "<sip:p1.example.com;lr>")
    message.add("route", "<sip:p2.example.com;lr>")
    assert [str(route.uri) for route in message.addresses("route")] == [
        "sip:p1.example.com;lr",
        "sip:p2.example.com;lr",
    ]
    message.remove("contact")
    assert message.contacts == []


def test_messages_may_share_their_lists() -> None:
    first = invite()
    second = Request(first.method, first.uri, dict(first.headers))
    second.add("allow", "INFO")
    second.prepend("via", "SIP/2.0/UDP other")
    second.replace_first("contact", "<sip:other@h>")
    assert first.headers == invite().headers
    assert second.get_all("allow")[-1] == "INFO"


@pytest.mark.parametrize("name", [b"Via", b"From", b"t:", b"i:", b"CSeq"])
def test_a_request_without_a_mandatory_header_is_refused(name: bytes) -> None:
    message = invite(without=name)
    if name == b"Via":
        message = invite()
        message.remove("via")
    with pytest.raises(PeerError) as caught:
        validate_request(message)
    assert (caught.value.status, caught.value.message) == (400, message)


@pytest.mark.parametrize(
    "instead",
    [
        (b"Max-Forwards: 70", b"Max-Forwards: 256"),
        (b"Max-Forwards: 70", b"Max-Forwards: seventy"),
        (b"Max-Forwards: 70", b"Max-Forwards: +7"),
        (b"Max-Forwards: 70", b"Max-Forwards: 70\r\nMax-Forwards: 70"),
        (b"Max-Forwards: 70", b"Expires: 4294967296"),
        (b"CSeq: 1 ", b"CSeq: 2147483648 "),
        (b"CSeq: 1 INVITE", b"CSeq: 1 BYE"),
        (b"tag=43", b"tag=43;tag=44"),
        (b"tag=43", b"tag="),
        (b"127.0.0.4:5070;branch", b"127.0.0.4:0;branch"),
        (b"127.0.0.4:5070;branch", b"127.0.0.4:65536;branch"),
        (b"m: <sip:carol", b"m: <sip:x@y>, <sip:carol"),
        (b"m: <sip:carol@127.0.0.4:5070;transport=udp>", b"m: *"),
        (b"sip:500@127.0.0.1:5060 ", b"sip:500@[::g] "),
        (b"i: abc", b"i: ab c"),
    ],
)
def test_a_request_with_a_malformed_header_is_refused_with_400(instead: tuple[bytes, bytes]) -> None:
    with pytest.raises(PeerError) as caught:
        validate_request(invite(instead=instead))
    assert caught.value.status == 400
    assert caught.value.message is not None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"\r\n\r\n", 400),
        (b"\x00\x00\x00\x00", 400),
        (INVITE.replace(b"SIP/2.0\r\nVia", b"SIP/3.0\r\nVia"), 505),
        (INVITE.replace(b"\r\n", b"\n"), 400),
        (INVITE.replace(b"500@pbx", b"50\n0@pbx"), 400),
        (INVITE.replace(b"500@pbx", b"50\r0@pbx"), 400),
        (INVITE.replace(b"CSeq:", b"CSeq"), 400),
        (INVITE.replace(b"X-Thing", b"X Thing"), 400),
        (INVITE.replace(b"X-Thing", b""), 400),
        (INVITE.replace(b"l: 5", b"l: 500"), 400),
        (INVITE.replace(b"l: 5", b"l: -5"), 400),
        (INVITE.replace(b"l: 5", b"l: 5_0"), 400),
        (INVITE.replace(b"l: 5", "l: ٥".encode()), 400),
        (INVITE.replace(b"l: 5", b"l: 5\r\nl: 5"), 400),
        (INVITE.replace(b"INVITE sip", b"INV@TE sip"), 400),
        (INVITE + b"x" * MAX_MESSAGE, 513),
        (INVITE.replace(b"X-Thing: a, b\r\n", b"X: y\r\n" * MAX_HEADER_LINES), 513),
        (INVITE.split(b"\r\n\r\n")[0], 400),
    ],
)
def test_what_is_not_a_message_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(PeerError) as caught:
        parse_message(data)
    assert caught.value.status == status


def test_a_broken_ack_or_response_leaves_nothing_to_answer() -> None:
    for data in (
        INVITE.replace(b"INVITE", b"ACK").replace(b"l: 5", b"l: 500"),
        INVITE.replace(b"INVITE sip:500@127.0.0.1:5060 SIP/2.0", b"SIP/2.0 200 OK").replace(b"l: 5", b"l: 500"),
    ):
        with pytest.raises(PeerError) as caught:
            parse_message(data)
        assert caught.value.message is None


def test_lower_case_version_empty_lines_before_and_a_missing_length_are_accepted() -> None:
    message = parse_message(b"\r\n\r\nBYE sip:a@b sip/2.0\r\nCall-ID:x\r\n\r\nrest")
    assert isinstance(message, Request)
    assert (message.method, message.call_id, message.body) == ("BYE", "x", b"rest")


def test_validate_response_drops_what_is_not_for_us() -> None:
    request = Request.build(
        "INVITE",
        "sip:a@b",
        via="SIP/2.0/UDP c;branch=z9hG4bK1",
        from_="<sip:d@e>;tag=1",
        to="<sip:a@b>",
        call_id="x",
        cseq=1,
    )
    response = build_response(request, 200, to_tag="2")
    validate_response(response)
    response.add("via", "SIP/2.0/UDP f")
    with pytest.raises(PeerError):
        validate_response(response)


def test_build_response_copies_what_identifies_the_transaction() -> None:
    message = invite()
    message.set("timestamp", "54.2")
    trying = build_response(message, 100, to_tag="ours")
    assert trying.get("timestamp") == "54.2"
    assert trying.to.tag is None
    ringing = build_response(message, 180, to_tag="ours")
    assert ringing.serialise() == (
        b"SIP/2.0 180 Ringing\r\n"
        b"Via: SIP/2.0/UDP 127.0.0.4:5070;branch=z9hG4bK-1;rport\r\n"
        b"Via: SIP/2.0/TCP proxy.example.com;branch=z9hG4bK-2, SIP/2.0/UDP [2001:db8::1]:5062\r\n"
        b'From: "Bell, Alexander" <sip:a.g.bell@example.com>;tag=43\r\n'
        b"To: <sip:500@pbx.local>;tag=ours\r\n"
        b"Call-ID: abc@127.0.0.4\r\n"
        b"CSeq: 1 INVITE\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert message.to.tag is None
    message.set("to", "<sip:500@pbx.local>;tag=theirs")
    assert build_response(message, 200, to_tag="ours").to.tag == "theirs"
    assert build_response(message, 499).reason == REASONS[400]
    assert build_response(message, 404, "Not\r\nHere").reason == "Not  Here"
    for status, tag in ((99, "a"), (700, "a"), (200, "a b")):
        with pytest.raises(UsageError):
            build_response(invite(), status, to_tag=tag)


def test_build_makes_a_request_that_validates() -> None:
    request = Request.build(
        "OPTIONS",
        SipUri("sip", "a b", host="h"),
        via=Via("UDP", "::1", 5060, {"branch": "z9hG4bKx", "rport": None}),
        from_=NameAddr('Joe "X"', SipUri("sip", "joe", host="h"), {"tag": "1"}),
        to=NameAddr(None, "urn:service:sos"),
        call_id="id",
        cseq=7,
    )
    request.set("x-murima-call-id", "c1")
    request.set("x-other-thing", "c2")
    read = parse_message(request.serialise())
    assert isinstance(read, Request)
    validate_request(read)
    assert read.uri == "sip:a%20b@h"
    assert read.from_ == request.from_
    assert b"\r\nX-Murima-Call-ID: c1\r\nX-Other-Thing: c2\r\n" in request.serialise()
    for method, uri in (
        ("IN VITE", "sip:a@b"),
        ("", "sip:a@b"),
        ("BYE", "sip:a@b\r\nX: y"),
        ("BYE", "a b"),
        ("BYE", ""),
    ):
        with pytest.raises(UsageError):
            Request.build(method, uri, via="", from_="", to="", call_id="", cseq=1)


@pytest.mark.parametrize("name", ["", "X y", "x:y", "Via", "x\r\n", "é"])
def test_a_header_name_that_is_none_is_our_bug(name: str) -> None:
    with pytest.raises(UsageError):
        Message().set(name, "v")


VALUES = st.text(max_size=60)
NAMES = st.sampled_from(["subject", "via", "x-new", "user-agent", "contact", "from", "p-asserted-identity", "min-se"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.binary(max_size=40))
def test_no_value_can_start_a_line_of_its_own(pairs: list[tuple[str, str]], body: bytes) -> None:
    message = Request("INVITE", "sip:a@b", None, body)
    for name, value in pairs:
        message.add(name, value)
    data = message.serialise()
    head = data.partition(b"\r\n\r\n")[0]
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == len(pairs) + 1
    read = parse_message(data)
    assert isinstance(read, Request)
    assert read.body == body
    for name in message.headers:
        assert read.get_all(name) == message.get_all(name)
    assert read.serialise() == data


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_raise_peer_error(data: bytes) -> None:
    read_all(data)


LINES = st.lists(
    st.one_of(
        st.sampled_from(INVITE.split(b"\r\n\r\n", maxsplit=1)[0].split(b"\r\n")),
        st.sampled_from(
            [b" folded", b"\tfolded", b"Contact: *", b"Route: <sip:a;lr>,<tel:+1>", b"v: SIP/2.0/UDP [::1", b""]
        ),
        st.binary(max_size=30).map(lambda raw: b"To: " + raw),
        st.binary(max_size=30).map(lambda raw: b"Via: SIP/2.0/UDP h;" + raw),
        st.text('<>";,@:?%&=sipab12[]\\ ', max_size=30).map(lambda text: b"From: " + text.encode()),
    ),
    max_size=12,
)


@given(LINES)
def test_any_lines_parse_or_raise_peer_error(lines: list[bytes]) -> None:
    read_all(b"\r\n".join([b"INVITE sip:a@b SIP/2.0", *lines, b"", b""]))
    read_all(b"\r\n".join([b"SIP/2.0 200 OK", *lines, b"", b""]))


def read_all(data: bytes) -> None:
    """Read everything there is to read; only PeerError may come out."""
    try:
        message = parse_message(data)
    except PeerError as exc:
        if exc.message is not None:
            build_response(exc.message, exc.status, to_tag="t").serialise()
        return
    message.serialise()
    readers: list[Callable[[], object]] = [
        lambda: validate_request(message) if isinstance(message, Request) else validate_response(message),
        lambda: message.vias,
        lambda: message.from_,
        lambda: message.to,
        lambda: message.contacts,
        lambda: message.cseq,
        lambda: message.expires,
        lambda: message.addresses("route"),
        lambda: message.top_via.rport,
    ]
    for reader in readers:
        with contextlib.suppress(PeerError):
            reader()
    if isinstance(message, Request):
        parse_message(build_response(message, 400, to_tag="t").serialise())


@pytest.mark.parametrize(
    "unit",
    [
        b'"',
        b'\\"',
        b"<",
        b";",
        b" ",
        b",",
        b"\r\n ",
        b"a;",
        b'"\\',
        b"(",
        b"SIP/2.0 ",
        b"sip:",
        b"[",
        b"%",
        b";a=",
        b":",
        b"@",
    ],
)
@pytest.mark.parametrize(
    "name", [b"From: ", b"Via: SIP/2.0/UDP h;", b"Via: SIP ", b"Contact: ", b"CSeq: 1", b"To: <sip:"]
)
def test_hostile_values_take_linear_time(unit: bytes, name: bytes) -> None:
    started = time.process_time()
    read_all(b"INVITE sip:a@b SIP/2.0\r\n" + name + unit * (60_000 // len(unit)) + b"x\r\n\r\n")
    read_all(b"INVITE " + unit * (60_000 // len(unit)) + b" SIP/2.0\r\n" + name + b"\r\n\r\n")
    assert time.process_time() - started < 1.0


def test_a_response_keeps_its_reason() -> None:
    message = parse_message(Response(486, "Besetzt – später", {}).serialise())
    assert isinstance(message, Response)
    assert (message.status, message.reason) == (486, "Besetzt – später")
