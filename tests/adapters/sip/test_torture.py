"""The torture messages of RFC 4475, as far as the syntax layer decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.sip.errors import PeerError
from adapters.sip.protection.digest import Credentials, DigestResult, DigestVerifier
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.message import (
    Request,
    Response,
    build_response,
    parse_message,
    validate_request,
    validate_response,
)
from adapters.sip.syntax.sdp import SessionDescription
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transports.stream import Ping, StreamFramer

FOLDER = Path(__file__).parent / "rfc4475"

# What the application decides later (unknown options, methods, media types, hops left) is "ok" here.
OK = None
DROP = 0
OUTCOME = {
    # 3.1.1 valid
    "wsinv": OK,
    "intmeth": OK,
    "esc01": OK,
    "escnull": OK,
    "esc02": OK,
    "lwsdisp": OK,
    "longreq": OK,
    "dblreq": OK,
    "semiuri": OK,
    "transports": OK,
    "mpart01": OK,
    "unreason": OK,
    "noreason": OK,
    # 3.1.2 invalid
    "badinv01": 400,
    "clerr": 400,
    "ncl": 400,
    "scalar02": 400,
    "scalarlg": DROP,
    "quotbal": 400,
    "ltgtruri": 400,
    "lwsruri": 400,
    "lwsstart": 400,
    "trws": 400,
    "escruri": 400,
    "baddate": OK,  # we do not use Date
    "regbadct": 400,
    "badaspec": 400,
    "baddn": 400,  # this file lacks the empty line too
    "badvers": 505,
    "mismatch01": 400,
    "mismatch02": 400,
    "bigcode": DROP,
    # 3.2 transactions
    "badbranch": OK,
    # 3.3 application
    "insuf": 400,
    "unkscm": 416,
    "novelsc": 416,
    "unksm2": OK,
    "bext01": OK,
    "invut": OK,
    "regaut01": OK,
    "multi01": 400,
    "mcl01": 400,
    "bcast": DROP,
    "zeromf": OK,
    "cparam01": OK,
    "cparam02": OK,
    "regescrt": OK,
    "sdp01": OK,
    # 3.4 backward compatibility
    "inv2543": OK,
}


def read(name: str) -> bytes:
    return (FOLDER / f"{name}.dat").read_bytes()


def accept(data: bytes) -> None:
    message = parse_message(data)
    if isinstance(message, Request):
        validate_request(message)
    else:
        validate_response(message)


def request(name: str) -> Request:
    message = parse_message(read(name))
    assert isinstance(message, Request)
    validate_request(message)
    return message


def test_every_torture_message_has_its_outcome_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.dat")} == set(OUTCOME)


@pytest.mark.parametrize("name", OUTCOME)
def test_torture(name: str) -> None:
    outcome = OUTCOME[name]
    if outcome is OK:
        accept(read(name))
        return
    with pytest.raises(PeerError) as caught:
        accept(read(name))
    if outcome == DROP:
        assert caught.value.message is None
    else:
        assert caught.value.status == outcome
        refused = caught.value.message
        assert refused is not None
        # The refusal can be built whatever was wrong, and is itself well-formed SIP.
        answer = parse_message(build_response(refused, outcome, to_tag="t1").serialise())
        assert isinstance(answer, Response)
        assert answer.status == outcome
        assert answer.get_all("via")


def test_wsinv_reads_through_folding_blanks_and_compact_names() -> None:
    message = request("wsinv")
    assert message.call_id == "wsinv.ndaksdj@192.0.2.1"
    assert (message.cseq.number, message.cseq.method) == (9, "INVITE")
    assert message.max_forwards == 68
    assert message.to.tag == "1918181833n"
    assert message.from_.display_name == 'J Rosenberg \\"'
    assert message.from_.tag == "98asjd8"
    assert [(via.transport, via.host, via.branch) for via in message.vias] == [
        ("UDP", "192.0.2.2", "390skdjuw"),
        ("TCP", "spindle.example.com", "z9hG4bK9ikj8"),
        ("UDP", "192.168.255.111", "z9hG4bK30239"),
    ]
    (contact,) = message.contacts
    assert contact.display_name == 'Quoted string ""'
    assert contact.params == {"newparam": "newvalue", "secondparam": None, "q": "0.33"}
    assert message.get("newfangledheader") == "newfangled value continued newfangled value"
    assert message.get("subject") == ""
    assert len(message.body) == 150


def test_intmeth_keeps_every_legal_character() -> None:
    message = request("intmeth")
    assert message.method == "!interesting-Method0123456789_*+`.%indeed'~"
    assert message.parsed_uri.user == "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*"
    assert message.parsed_uri.password == "&it+has=1,weird!*pas$wo~d_too.(doesn't-it)"
    assert message.to.display_name == "BEL:\x07 NUL:\x00 DEL:\x7f"
    assert message.from_.display_name == "token1~` token2'+_ token3*%!.-"
    assert message.from_.params["fromparam''~+*_!.-%"] == "работающий"
    assert message.max_forwards == 255


def test_esc01_and_escnull_unescape_where_it_is_meant() -> None:
    message = request("esc01")
    assert message.parsed_uri.user == "sips:user@example.com"
    assert message.to.uri == SipUri("sip", "user", host="example.com")
    assert isinstance(message.contacts[0].uri, SipUri)
    assert message.contacts[0].uri.params == {"lr": None, "name": "value%41"}
    assert [str(c.uri) for c in request("escnull").contacts] == [
        "sip:%00@host5.example.com",
        "sip:%00%00@host5.example.com",
    ]


def test_esc02_does_not_unescape_tokens() -> None:
    message = request("esc02")
    assert message.method == "RE%47IST%45R"
    assert message.from_.display_name == "%Z%45"
    assert len(message.get_all("contact")) == 2
    assert message.top_via.branch == "z9hG4bK209%fzsnel234"


def test_dblreq_ends_at_content_length_in_a_datagram_and_gives_two_messages_on_a_stream() -> None:
    message = request("dblreq")
    assert (message.method, message.body) == ("REGISTER", b"")
    blocks = StreamFramer().feed(read("dblreq"))
    methods = [block.split(b" ")[0] for block in blocks if isinstance(block, bytes)]
    assert methods == [b"REGISTER", b"INVITE"]
    assert blocks.count(Ping) <= 1


def test_semiuri_keeps_parameters_in_the_user_part() -> None:
    uri = request("semiuri").parsed_uri
    assert (uri.user, uri.host, dict(uri.params)) == ("user;par=u@example.net", "example.com", {})


def test_longreq_has_all_its_vias() -> None:
    assert len(request("longreq").vias) == 34


def test_mpart01_body_is_kept_byte_for_byte() -> None:
    message = request("mpart01")
    assert len(message.body) == 553
    assert message.content_type == "multipart/mixed"
    assert message.body.startswith(b"--7a9cbec02ceef655\r\n")


def test_unreason_and_noreason() -> None:
    message = parse_message(read("unreason"))
    assert isinstance(message, Response)
    assert message.reason.endswith("простое")
    message = parse_message(read("noreason"))
    assert isinstance(message, Response)
    assert (message.status, message.reason) == (100, "")


def test_unksm2_keeps_unknown_schemes_as_text() -> None:
    message = request("unksm2")
    assert (message.to.uri, message.from_.uri) == ("isbn:2983792873", "http://www.example.com")
    assert message.contacts[0].uri == "name:John_Smith"


def test_cparam_tells_uri_parameters_from_header_parameters() -> None:
    (outside,) = request("cparam01").contacts
    (inside,) = request("cparam02").contacts
    assert isinstance(outside.uri, SipUri)
    assert isinstance(inside.uri, SipUri)
    assert (dict(outside.uri.params), dict(outside.params)) == ({}, {"unknownparam": None})
    assert (dict(inside.uri.params), dict(inside.params)) == ({"unknownparam": None}, {})


def test_regescrt_keeps_the_escaped_header() -> None:
    (contact,) = request("regescrt").contacts
    assert isinstance(contact.uri, SipUri)
    assert contact.uri.headers == "Route=%3Csip:sip.example.com%3E"
    assert NameAddr.parse(str(contact)) == contact


def test_regaut01_scheme_is_not_taken_for_digest() -> None:
    message = request("regaut01")
    verifier = DigestVerifier("example.com", b"k" * 16, random_bytes=bytes)
    values = message.get_all("authorization")
    assert verifier.check(values, "REGISTER", lambda _user, _algorithm: None, 0.0) == (DigestResult.MISSING, None)
    with pytest.raises(PeerError):
        Credentials.parse(values[0])


def test_inv2543_has_neither_tag_nor_branch() -> None:
    message = request("inv2543")
    assert message.from_.tag is None
    assert message.top_via.branch is None
    assert message.to.params == {"user": "phone"}


@pytest.mark.parametrize("name", ["wsinv", "inv2543", "longreq", "sdp01", "mismatch02"])
def test_torture_sdp_bodies_are_read(name: str) -> None:
    message = parse_message(read(name))
    description = SessionDescription.parse(message.body)
    assert description.media[0].port == 49217
