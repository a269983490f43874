"""The torture messages of RFC 4475 and RFC 5118, put to an endpoint: what it answers, and what comes of them.

The 49 files of `rfc4475/` are the RFC's. Those of `rfc5118/` are the RFC's messages
with the line ends and the Content-Length that SIP wants (its archive has bare LF).
Beside each message stands its outcome with the section that asks for it. A
number is the final response; ACCEPTED is 100 and a call for the application;
MATCHED is a response taken by the transaction it belongs to; DROPPED is neither
an answer nor anything kept.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapters.sip.dialogs.session import SessionAnswered, SessionProgress
from adapters.sip.endpoint import RegistrationChanged, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Admitted, Trunk
from adapters.sip.registration.registrar import Registrar
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.message import Request, Response, parse_message
from adapters.sip.syntax.sdp import SessionDescription, is_usable
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow, Send
from tests.sip_link import SDP, Link, Node

HERE = Path(__file__).parent
ACCEPTED, MATCHED, DROPPED = "accepted", "matched", "dropped"


@dataclass(frozen=True)
class Outcome:
    """What a message leads to.

    Attributes:
        what: status of the final response, or one of the words above.
        headers: values that the response has, by name; "" for any value.
        why: section, and the reason where the RFC leaves a choice.
    """

    what: int | str
    why: str
    headers: dict[str, str] = field(default_factory=dict)


RFC4475 = {
    # 3.1.1 valid messages
    "wsinv": Outcome(481, "3.1.1.1: well-formed, but To has a tag and there is no such dialog (RFC 3261 12.2.2)"),
    "intmeth": Outcome(501, "3.1.1.2: well-formed, the method is unknown", {"allow": ""}),
    "esc01": Outcome(ACCEPTED, "3.1.1.3"),
    "escnull": Outcome(
        200, "3.1.1.4: two bindings, told apart", {"contact": "<sip:%00@host5.example.com>;expires=3600"}
    ),
    "esc02": Outcome(501, "3.1.1.5: the % in the method is no escape, so this is not REGISTER", {"allow": ""}),
    "lwsdisp": Outcome(200, "3.1.1.6", {"allow": ""}),
    "longreq": Outcome(ACCEPTED, "3.1.1.7"),
    "dblreq": Outcome(200, "3.1.1.8: the REGISTER is answered, the INVITE behind its end is ignored", {"contact": ""}),
    "semiuri": Outcome(200, "3.1.1.9"),
    "transports": Outcome(200, "3.1.1.10: unknown transports in lower Via values do not matter"),
    "mpart01": Outcome(405, "3.1.1.11: well-formed; we serve no MESSAGE", {"allow": ""}),
    "unreason": Outcome(MATCHED, "3.1.1.12"),
    "noreason": Outcome(MATCHED, "3.1.1.13"),
    # 3.1.2 invalid messages
    "badinv01": Outcome(400, "3.1.2.1: the answer goes to the source, as Via names no place"),
    "clerr": Outcome(400, "3.1.2.2"),
    "ncl": Outcome(400, "3.1.2.3"),
    "scalar02": Outcome(400, "3.1.2.4"),
    "scalarlg": Outcome(DROPPED, "3.1.2.5"),
    "quotbal": Outcome(400, "3.1.2.6"),
    "ltgtruri": Outcome(400, "3.1.2.7"),
    "lwsruri": Outcome(400, "3.1.2.8"),
    "lwsstart": Outcome(400, "3.1.2.9: leniency is allowed, but not needed by any peer that we know"),
    "trws": Outcome(400, "3.1.2.10: likewise"),
    "escruri": Outcome(400, "3.1.2.11: or ignore the headers; we refuse"),
    "baddate": Outcome(ACCEPTED, "3.1.2.12: or 400; we do not use Date, so we do not read it"),
    "regbadct": Outcome(400, "3.1.2.13"),
    "badaspec": Outcome(400, "3.1.2.14"),
    "baddn": Outcome(400, "3.1.2.15: this file lacks its empty line; with it we take the name, see below"),
    "badvers": Outcome(505, "3.1.2.16"),
    "mismatch01": Outcome(400, "3.1.2.17"),
    "mismatch02": Outcome(400, "3.1.2.18: or 501; the fault in the message comes first"),
    "bigcode": Outcome(DROPPED, "3.1.2.19"),
    # 3.2 transaction layer
    "badbranch": Outcome(200, "3.2.1: each one is answered, see below"),
    # 3.3 application layer
    "insuf": Outcome(400, "3.3.1"),
    "unkscm": Outcome(416, "3.3.2"),
    "novelsc": Outcome(416, "3.3.3"),
    "unksm2": Outcome(400, "3.3.4: nobody can be called at this Contact"),
    "bext01": Outcome(420, "3.3.5", {"unsupported": "nothingSupportsThis, nothingSupportsThisEither"}),
    "invut": Outcome(415, "3.3.6", {"accept": ""}),
    "regaut01": Outcome(401, "3.3.7: the scheme is not ours, so we ask with ours", {"www-authenticate": ""}),
    "multi01": Outcome(400, "3.3.8"),
    "mcl01": Outcome(400, "3.3.9"),
    "bcast": Outcome(DROPPED, "3.3.10: a second Via, so it is not for us"),
    "zeromf": Outcome(200, "3.3.11: OPTIONS for us is answered, others get 483, see below"),
    "cparam01": Outcome(200, "3.3.12", {"contact": "<sip:+19725552222@gw1.example.net>;expires=3600"}),
    "cparam02": Outcome(200, "3.3.13", {"contact": "<sip:+19725552222@gw1.example.net;unknownparam>;expires=3600"}),
    "regescrt": Outcome(
        200, "3.3.14", {"contact": "<sip:user@example.com?Route=%3Csip:sip.example.com%3E>;expires=3600"}
    ),
    "sdp01": Outcome(406, "3.3.15: we have nothing but SDP to answer with"),
    # 3.4 backward compatibility
    "inv2543": Outcome(ACCEPTED, "3.4.1"),
}

RFC5118 = {
    "ipv6-good": Outcome(200, "4.1", {"contact": "<sip:caller@[2001:db8::1]>;expires=3600"}),
    "ipv6-bad": Outcome(400, "4.2: no brackets around the address"),
    "port-ambiguous": Outcome(200, "4.3: all of it is the address", {"contact": ""}),
    "port-unambiguous": Outcome(200, "4.4", {"contact": ""}),
    "via-received-param-with-delim": Outcome(481, "4.5: either form is read; the dialog is unknown"),
    "via-received-param-no-delim": Outcome(200, "4.5"),
    "ipv6-in-sdp": Outcome(ACCEPTED, "4.6"),
    "mult-ip-in-header": Outcome(481, "4.7: either kind of address is read; the dialog is unknown"),
    "mult-ip-in-sdp": Outcome(ACCEPTED, "4.8"),
    "ipv4-mapped-ipv6": Outcome(ACCEPTED, "4.9"),
    "ipv6-bug-abnf-3-colons": Outcome(200, "4.10: written by who follows the grammar of RFC 3261; read as meant"),
    "ipv6-correct-abnf-2-colons": Outcome(200, "4.10"),
}

CASES = [("rfc4475", name) for name in RFC4475] + [("rfc5118", name) for name in RFC5118]
OUTCOMES = {("rfc4475", name): outcome for name, outcome in RFC4475.items()} | {
    ("rfc5118", name): outcome for name, outcome in RFC5118.items()
}


class Open(AccessPolicy):
    """Takes everybody's REGISTER at its word, so that the registrar is reached without a password."""

    def admit_registration(self, request: Request, *_: object, **__: object) -> Admitted:
        uri = request.to.uri
        return Admitted(user=(uri.user or "" if isinstance(uri, SipUri) else uri))


def read(folder: str, name: str) -> bytes:
    return (HERE / folder / f"{name}.dat").read_bytes()


class Bench:
    """An endpoint that takes calls from the peer as a trunk's."""

    def __init__(self, folder: str, *, open_registrar: bool = True) -> None:
        self.peer = "192.0.2.1" if folder == "rfc4475" else "2001:db8::9:1"
        here = "192.0.2.2" if folder == "rfc4475" else "2001:db8::10"
        self.node = Node(here, trunks={"carrier": self.peer}, passwords={"user": "x"}, registrar=Registrar())
        if open_registrar:
            trunk = Trunk("carrier", (ipaddress.ip_network(self.peer),))
            self.node.endpoint.policy = Open([trunk], {}, self.node.endpoint.policy._verifier)
        self.link = Link(self.node)

    def put(self, data: bytes, port: int = 5060) -> list[Response]:
        """What the peer gets back for these bytes; it must go to where they came from."""
        before = len(self.link.sent)
        self.node.carry_out(self.node.endpoint.on_message(data, Flow("udp", 0, self.peer, port), self.link.now))
        sent = [send for _, send in self.link.sent[before:]]
        assert all(send.flow.host == self.peer for send in sent)
        answers = [parse_message(send.data) for send in sent]
        assert all(isinstance(answer, Response) for answer in answers)
        return [answer for answer in answers if isinstance(answer, Response)]


def bench(folder: str, name: str) -> Bench:
    return Bench(folder, open_registrar=name != "regaut01")


@pytest.mark.parametrize("folder", ["rfc4475", "rfc5118"])
def test_every_torture_message_has_its_outcome_here(folder: str) -> None:
    names = {path.stem for path in (HERE / folder).glob("*.dat")}
    assert names == {name for where, name in CASES if where == folder}
    assert len(names) == {"rfc4475": 49, "rfc5118": 12}[folder]


@pytest.mark.parametrize(("folder", "name"), [case for case in CASES if isinstance(OUTCOMES[case].what, int)])
def test_torture_requests_get_their_answer(folder: str, name: str) -> None:
    outcome = OUTCOMES[folder, name]
    rig = bench(folder, name)
    (answer,) = rig.put(read(folder, name))
    assert answer.status == outcome.what
    for header, value in outcome.headers.items():
        assert answer.has(header)
        if value:
            assert ", ".join(answer.get_all(header)).startswith(value)
    assert answer.has("via")
    assert not [event for event in rig.node.events if not isinstance(event, RegistrationChanged)]
    assert rig.node.endpoint.sessions == 0
    assert rig.node.names() == (["RegistrationChanged"] if answer.has("contact") else [])
    rig.link.run(rig.link.now + 40)
    assert rig.node.endpoint.transactions == 0


@pytest.mark.parametrize(("folder", "name"), [case for case in CASES if OUTCOMES[case].what == ACCEPTED])
def test_torture_calls_are_accepted_and_can_be_answered(folder: str, name: str) -> None:
    rig = bench(folder, name)
    (trying,) = rig.put(read(folder, name))
    assert trying.status == 100
    (event,) = rig.node.take()
    assert isinstance(event, SessionIncoming)
    effects = rig.node.endpoint.answer(event.session, SDP, rig.link.now)
    (ok,) = [parse_message(effect.data) for effect in effects if isinstance(effect, Send)]
    assert isinstance(ok, Response)
    assert (ok.status, ok.to.tag) == (200, event.session.local_tag)
    rig.node.carry_out(rig.node.endpoint.hang_up(event.session, rig.link.now))
    rig.link.run(200)  # nobody acknowledges: it ends all the same
    assert (rig.node.endpoint.sessions, rig.node.endpoint.transactions) == (0, 0)
    assert rig.node.names() == ["SessionEnded"]


@pytest.mark.parametrize(("folder", "name"), [case for case in CASES if OUTCOMES[case].what == DROPPED])
def test_torture_responses_that_are_wrong_are_dropped_and_counted(folder: str, name: str) -> None:
    rig = bench(folder, name)
    assert rig.put(read(folder, name)) == []
    assert rig.node.endpoint.counters == {'sip_rejected_total{status="400"}': 1}
    assert (rig.node.endpoint.transactions, rig.node.events) == (0, [])


@pytest.mark.parametrize(("name", "event"), [("unreason", SessionAnswered), ("noreason", SessionProgress)])
def test_torture_responses_that_are_right_reach_the_call(name: str, event: type) -> None:
    """Their start lines, in answer to an INVITE of ours."""
    rig = bench("rfc4475", name)
    target = SipUri("sip", "a", host=rig.peer)
    _, effects = rig.node.endpoint.invite(target, SDP, from_="<sip:b@x>", now=0.0)
    (invite,) = [parse_message(effect.data) for effect in effects if isinstance(effect, Send)]
    start, _, _ = read("rfc4475", name).partition(b"\r\n")
    answer = Response(200, "")
    for header in ("via", "from", "to", "call-id", "cseq"):
        answer.set(header, invite.headers[header][0])
    answer.set("to", f"{answer.get('to')};tag=t")
    answer.set("contact", f"<sip:a@{rig.peer}>")
    _, _, rest = answer.serialise().partition(b"\r\n")
    rig.node.carry_out(rig.node.endpoint.on_message(start + b"\r\n" + rest, Flow("udp", 0, rig.peer, 5060), 0.0))
    (happened,) = rig.node.take()
    assert isinstance(happened, event)


def test_badinv01_is_answered_to_its_source() -> None:
    rig = bench("rfc4475", "badinv01")
    before = len(rig.link.sent)
    rig.put(read("rfc4475", "badinv01"), port=40000)
    assert rig.link.sent[before][1].flow.port == 40000


def test_baddn_with_its_empty_line_is_taken() -> None:
    """3.1.2.15: "either reject or accept": every phone book has a dot or a comma in a name."""
    rig = bench("rfc4475", "baddn")
    data = read("rfc4475", "baddn")
    (answer,) = rig.put(data.rstrip(b"\r\n") + b"\r\n\r\n")
    assert answer.status == 200
    assert answer.from_.display_name == "Bell, Alexander"


def test_badbranch_twice_is_two_transactions() -> None:
    """3.2.1: the bare cookie tells nothing apart, so requests of two Call-IDs are two."""
    rig = bench("rfc4475", "badbranch")
    data = read("rfc4475", "badbranch")
    first, second = rig.put(data), rig.put(data.replace(b"Call-ID: badbranch", b"Call-ID: other"))
    assert (first[0].call_id, second[0].call_id) == ("badbranch.sadonfo23i420jv0as0derf3j3n", second[0].call_id)
    assert first[0].call_id != second[0].call_id
    assert [reply.serialise() for reply in rig.put(data)] == [first[0].serialise()]  # the same one again


def test_zeromf_of_another_method_is_483() -> None:
    """3.3.11: "483", or 200 where we are the target of an OPTIONS."""
    rig = bench("rfc4475", "zeromf")
    (answer,) = rig.put(read("rfc4475", "zeromf").replace(b"OPTIONS", b"INVITE"))
    assert answer.status == 483


def test_inv2543_is_called_back_by_its_record_route() -> None:
    rig = bench("rfc4475", "inv2543")
    rig.put(read("rfc4475", "inv2543"))
    (event,) = rig.node.take()
    assert isinstance(event, SessionIncoming)
    dialog = event.session.dialog
    assert dialog is not None
    bye = dialog.request("BYE", "SIP/2.0/UDP 192.0.2.2")
    assert bye.uri == "sip:UserB@example.com;maddr=ss1.example.com"  # a strict router (RFC 3261 12.2.1.1)
    assert bye.get("route") == "<sip:+13035551111@ift.client.example.net;user=phone>"


def test_ipv6_addresses_are_read_as_they_are_meant() -> None:
    ambiguous, clear = (parse_message(read("rfc5118", f"port-{name}")) for name in ("ambiguous", "unambiguous"))
    assert isinstance(ambiguous, Request)
    assert isinstance(clear, Request)
    assert (ambiguous.parsed_uri.host, ambiguous.parsed_uri.port) == ("2001:db8::10:5070", None)
    assert (clear.parsed_uri.host, clear.parsed_uri.port) == ("2001:db8::10", 5070)
    for name in ("with-delim", "no-delim"):
        assert parse_message(read("rfc5118", f"via-received-param-{name}")).top_via.received == "2001:db8::9:255"
    vias = parse_message(read("rfc5118", "mult-ip-in-header")).vias
    assert [(via.host, via.port, via.received) for via in vias] == [
        ("2001:db8::9:1", 6050, None),
        ("192.0.2.1", None, None),
        ("2001:db8::9:255", None, "192.0.2.200"),
    ]
    for colons in ("bug-abnf-3", "correct-abnf-2"):
        options = parse_message(read("rfc5118", f"ipv6-{colons}-colons"))
        assert isinstance(options, Request)
        assert options.parsed_uri.host == "2001:db8::192.0.2.1"
        assert isinstance(options.to.uri, SipUri)
        assert NameAddr.parse(str(options.to)) == options.to


def test_ipv6_session_descriptions_of_the_torture_messages() -> None:
    description = SessionDescription.parse(parse_message(read("rfc5118", "ipv6-in-sdp")).body)
    assert description.address == "2001:db8::20"
    description = SessionDescription.parse(parse_message(read("rfc5118", "mult-ip-in-sdp")).body)
    assert [description.address_of(media) for media in description.media] == ["192.0.2.1", "2001:db8::1"]
    assert is_usable(description, description.media[0])
    description = SessionDescription.parse(parse_message(read("rfc5118", "ipv4-mapped-ipv6")).body)
    assert description.address == "::ffff:192.0.2.2"


def test_answer_over_ipv6_goes_to_the_source_and_notes_it() -> None:
    rig = bench("rfc5118", "via-received-param-no-delim")
    (answer,) = rig.put(read("rfc5118", "via-received-param-no-delim").replace(b"[2001:db8::9:1]", b"[2001:db8::7]", 1))
    assert answer.top_via.received == rig.peer
