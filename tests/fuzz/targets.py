"""What the fuzzer drives: each target takes any bytes and raises only if the stack broke its word.

The word of a parser is "PeerError, nothing else", that what it read can be
written and reads back the same, and that it holds no more than it says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from adapters.native.parties import called_on_line, caller_of, dialled_by, forwarded_by, forwarded_headers
from adapters.sip.dialogs.reliable import RAck
from adapters.sip.dialogs.session_timer import SessionExpires, agreed
from adapters.sip.errors import PeerError, UsageError
from adapters.sip.protection.digest import Challenge, Credentials, DigestResult, DigestVerifier, answer_challenge
from adapters.sip.syntax.body import keep_session_description, part_of, session_description
from adapters.sip.syntax.headers import CSeq, NameAddr, Via, format_params, parse_params, split_list
from adapters.sip.syntax.info_dtmf import parse_dtmf
from adapters.sip.syntax.message import (
    MAX_MESSAGE,
    Message,
    Request,
    Response,
    build_response,
    parse_message,
    validate_request,
    validate_response,
)
from adapters.sip.syntax.reason import reason_of
from adapters.sip.syntax.refer import EventName, ReferTo, is_terminated, read_sipfrag
from adapters.sip.syntax.replaces import Replaces
from adapters.sip.syntax.sdp import SessionDescription, make_answer, make_offer, read_answer
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.stateless import is_absorbed
from adapters.sip.transports.stream import StreamFramer
from adapters.sip.transports.stun import answer_binding, is_stun
from tests.fuzz.dialogs import dialogs

Target = Callable[[bytes], None]

ADDRESSES = (
    *("contact", "route", "record-route", "diversion", "history-info", "refer-to", "path"),
    *("p-asserted-identity", "p-called-party-id"),
)
OFFER = make_offer("192.0.2.1", 4000, ["PCMU", "PCMA", "G722"], session_id=1, version=1)
VERIFIER = DigestVerifier("pbx.test", b"k" * 16, algorithms=("SHA-256", "MD5"), random_bytes=bytes)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def message(data: bytes) -> None:
    """A datagram: split, every header read, answered, written and read again."""
    try:
        found = parse_message(data)
    except PeerError as exc:
        if exc.message is not None:
            answer(exc.message, exc.status)
        return
    try:
        if isinstance(found, Request):
            validate_request(found)
        else:
            validate_response(found)
    except PeerError as exc:
        if exc.message is not None:
            answer(exc.message, exc.status)
    read_all(found)
    read_extensions(found)
    again = parse_message(found.serialise())
    assert again.serialise() == found.serialise()
    assert again.body == found.body
    if isinstance(found, Request):
        answer(found, 200)


def answer(request: Request, status: int) -> None:
    """An answer can be built to whatever came, and can be read."""
    answered = parse_message(build_response(request, status, to_tag="t").serialise())
    assert isinstance(answered, Response)
    assert answered.status == status


def read_all(found: Message) -> None:
    """All that the stack reads of a message."""
    for name in found.headers:
        found.get(name)
        found.get_all(name)
    for name in ADDRESSES:
        with suppress(PeerError):
            for address in found.addresses(name):
                rewritten(address)
    for read in (
        lambda: found.call_id,
        lambda: found.cseq,
        lambda: rewritten(found.from_),
        lambda: rewritten(found.to),
        lambda: found.vias,
        lambda: found.max_forwards,
        lambda: found.expires,
        lambda: found.content_length,
        lambda: found.content_type,
    ):
        with suppress(PeerError):
            read()


def read_extensions(found: Message) -> None:
    """What transfers, timers, subscriptions and trunks read."""
    reason_of(found)
    for read in (SessionExpires.of, lambda message: RAck.parse(message.get("rack"))):
        with suppress(PeerError):
            read(found)
    if isinstance(found, Response):
        agreed(found)
        _ = found.retry_after_s
        return
    assert isinstance(found, Request)
    for part in (ReferTo.of, EventName.of, Replaces.of, dialled_by, called_on_line):
        with suppress(PeerError):
            part(found)
    for trusted in (True, False):
        with suppress(PeerError):
            caller = caller_of(found, trusted=trusted)
            assert (caller.number + caller.name).isprintable()
    told = Request("INVITE", "sip:a@b")
    for name, value in forwarded_headers(forwarded_by(found), "pbx.test"):
        told.set(name, value)
    assert parse_message(told.serialise()).headers.keys() == {*told.headers, "content-length"}
    is_terminated(found)
    read_sipfrag(found.body)


def rewritten(address: NameAddr) -> None:
    """What is written reads back the same, but for control characters, which became spaces."""
    again = NameAddr.parse(str(address))
    assert again.uri == address.uri
    assert again.params.keys() == address.params.keys()
    assert NameAddr.parse(str(again)) == again


def stream(data: bytes) -> None:
    """A TCP stream in pieces; the first bytes say how long they are."""
    framer = StreamFramer()
    sizes, rest = data[:4] or b"\1", data[4:]
    position = step = 0
    with suppress(PeerError):
        while position < len(rest):
            size = sizes[step % len(sizes)] * 7 + 1
            for block in framer.feed(rest[position : position + size]):
                if isinstance(block, bytes):
                    assert len(block) <= MAX_MESSAGE
                    message(block)
            assert len(framer._buffer) <= MAX_MESSAGE + size + 4
            position += size
            step += 1


def sdp(data: bytes) -> None:
    """A session description: as offer, as answer, written and read again."""
    try:
        found = SessionDescription.parse(data)
    except PeerError:
        return
    again = SessionDescription.parse(found.serialise())
    assert again == SessionDescription.parse(again.serialise())
    with suppress(PeerError):
        ours, _ = make_answer(found, "192.0.2.2", 5000, ["PCMA", "PCMU"], session_id=2, version=1)
        assert SessionDescription.parse(ours.serialise()).media[0].formats == ours.media[0].formats
    with suppress(PeerError):
        read_answer(OFFER, found)


def digest(data: bytes) -> None:
    """Challenges and credentials."""
    value = text_of(data)
    with suppress(PeerError):
        challenge = Challenge.parse(value)
        made = answer_challenge([challenge], method="INVITE", uri="sip:a@b", username="a", password="b", cnonce="c")
        if made is not None:
            Credentials.parse(made)
    with suppress(PeerError, UsageError):  # what is no token we would refuse to write
        Credentials.parse(str(Credentials.parse(value)))
    with suppress(PeerError, UsageError):
        Challenge.parse(str(Challenge.parse(value)))
    with suppress(PeerError):
        result, _ = VERIFIER.check([value], "INVITE", lambda _user, _algorithm: None, 0.0)
        assert result is not DigestResult.OK


def values(data: bytes) -> None:
    """Addresses, URIs, Via, parameters and the rest of structured values."""
    text = text_of(data)
    with suppress(PeerError):
        uri = SipUri.parse(text)
        assert SipUri.parse(str(uri)) == uri
        assert uri.equivalent(uri)
    with suppress(PeerError):
        address = NameAddr.parse(text)
        rewritten(address)
    with suppress(PeerError):
        via = Via.parse(text)
        again = Via.parse(str(via))
        assert (again.transport, again.host, again.port) == (via.transport, via.host, via.port)
        _ = via.received, via.branch, via.rport
    with suppress(PeerError):
        params = parse_params(text)
        assert parse_params(format_params(params)[1:]).keys() == params.keys()
    with suppress(PeerError):
        assert CSeq.parse(str(CSeq.parse(text))).number >= 0
    assert all(split_list(text))
    parse_dtmf("application/dtmf-relay", data)
    parse_dtmf("application/dtmf", data)
    is_absorbed(data)
    if is_stun(data):
        answer_binding(data, "192.0.2.4", 5060)


def body(data: bytes) -> None:
    """A body behind its Content-Type and other headers, one a line, up to an empty line."""
    head, _, content = data.partition(b"\n\n")
    request = Request("INVITE", "sip:a@b", {}, content)
    for line in text_of(head).split("\n")[:4]:
        name, _, value = line.partition(":")
        with suppress(Exception):  # a name that is none is refused before any parsing
            request.add(name, value)
    with suppress(PeerError):
        found = session_description(part_of(request))
        assert found is None or len(found) <= len(content)
    with suppress(PeerError):
        keep_session_description(request)
        assert len(request.body) <= len(content)


TARGETS: dict[str, Target] = {
    "message": message,
    "stream": stream,
    "values": values,
    "sdp": sdp,
    "digest": digest,
    "body": body,
    "dialogs": dialogs,
}
