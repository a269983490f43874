"""What is written reads back the same, for every value that has a type, and nothing leaves its place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.protection.digest import Challenge, Credentials
from adapters.sip.syntax.body import MediaType
from adapters.sip.syntax.headers import CSeq, NameAddr, Via, format_params, parse_params
from adapters.sip.syntax.message import Message, Request, Response, build_response, parse_message
from adapters.sip.syntax.names import CASING, COMPACT_FORMS, LISTS, SPELLINGS
from adapters.sip.syntax.sdp import MediaDescription, Origin, SessionDescription, make_offer
from adapters.sip.syntax.uri import SipUri

TOKEN = st.text("abcXYZ019-.!%*_+`'~", min_size=1, max_size=10)
NAME = TOKEN.map(str.lower)
PRINTABLE = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
ANYTHING = st.text(max_size=30)
HOST = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,4})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
PORT = st.none() | st.integers(1, 65535)
PARAMS = st.dictionaries(NAME, st.none() | PRINTABLE, max_size=4)
URI_PARAMS = st.dictionaries(
    st.text("abcdef-_.", min_size=1, max_size=6), st.none() | PRINTABLE.filter(bool), max_size=3
)
URIS = st.builds(
    lambda scheme, user, password, host, port, params: SipUri(
        scheme, user or None, password if user else None, host, port, params
    ),
    st.sampled_from(["sip", "sips"]),
    ANYTHING.filter(lambda text: text.isprintable()),
    st.none() | PRINTABLE,
    HOST,
    PORT,
    URI_PARAMS,
)
TELS = st.builds(lambda number: SipUri("tel", number), st.from_regex(r"\+?[0-9]{1,15}", fullmatch=True))
ADDRESSES = st.builds(NameAddr, st.none() | PRINTABLE.filter(bool), URIS | TELS, PARAMS)
VIAS = st.builds(Via, TOKEN.map(str.upper), HOST, PORT, PARAMS)


@given(URIS | TELS)
def test_uris(uri: SipUri) -> None:
    read = SipUri.parse(str(uri))
    assert read == uri
    assert (read.params, read.equivalent(uri)) == (uri.params, True)
    assert str(SipUri.parse(str(read))) == str(read)


@given(ADDRESSES)
def test_addresses(address: NameAddr) -> None:
    read = NameAddr.parse(str(address))
    assert (read, read.params) == (address, address.params)


@given(VIAS)
def test_vias(via: Via) -> None:
    read = Via.parse(str(via))
    assert (read, read.params) == (via, via.params)
    assert read.branch == via.params.get("branch")


@given(st.integers(0, 2**31 - 1), TOKEN)
def test_cseqs(number: int, method: str) -> None:
    assert CSeq.parse(str(CSeq(number, method))) == CSeq(number, method)


@given(PARAMS)
def test_params(params: dict[str, str | None]) -> None:
    assert parse_params(format_params(params)[1:]) == params if params else format_params(params) == ""


@given(TOKEN, TOKEN, PARAMS)
def test_media_types(kind: str, subtype: str, params: dict[str, str | None]) -> None:
    read = MediaType.parse(f"{kind.upper()}/{subtype}{format_params(params)}")
    assert (read.name, read.params) == (f"{kind}/{subtype}".lower(), params)


@given(
    st.builds(
        Challenge,
        PRINTABLE,
        PRINTABLE.filter(bool),
        TOKEN.map(str.upper),
        st.just(("auth",)),
        st.none() | PRINTABLE,
        st.booleans(),
    )
)
def test_challenges(challenge: Challenge) -> None:
    assert Challenge.parse(str(challenge)) == challenge


@given(PRINTABLE, PRINTABLE, PRINTABLE, PRINTABLE, st.text("0123456789abcdef", min_size=1), PRINTABLE.filter(bool))
def test_credentials(username: str, realm: str, nonce: str, uri: str, response: str, cnonce: str) -> None:
    credentials = Credentials(username, realm, nonce, uri, response, "SHA-256", "auth", "0000000a", cnonce)
    assert Credentials.parse(str(credentials)) == credentials


WORD = st.text("abcXYZ0189-/.+", min_size=1, max_size=8)
ATTRIBUTES = st.lists(
    st.tuples(
        st.text("abcdefz-", min_size=1, max_size=8), st.none() | st.text("abc 019:/;=.+", max_size=20).map(str.strip)
    ),
    max_size=4,
).map(tuple)
MEDIA = st.builds(
    MediaDescription,
    st.sampled_from(["audio", "video", "image", "message"]),
    st.integers(0, 65535),
    st.sampled_from(["RTP/AVP", "RTP/SAVP", "UDP/TLS/RTP/SAVPF", "udptl"]),
    st.lists(WORD, min_size=1, max_size=5).map(tuple),
    st.none() | st.ip_addresses().map(str),
    ATTRIBUTES,
)
DESCRIPTIONS = st.builds(
    SessionDescription,
    st.builds(Origin, WORD, WORD, WORD, st.ip_addresses().map(str)),
    st.none() | st.ip_addresses().map(str),
    st.lists(MEDIA, max_size=4).map(tuple),
    st.text("abc xyz'!", min_size=1, max_size=12),
    ATTRIBUTES,
)


@given(DESCRIPTIONS)
def test_session_descriptions(description: SessionDescription) -> None:
    assert SessionDescription.parse(description.serialise()) == description


@given(st.ip_addresses().map(str), st.integers(1, 65535), st.sampled_from(["sendrecv", "sendonly", "inactive"]))
def test_offers_of_ours(address: str, port: int, direction: str) -> None:
    offer = make_offer(address, port, ["PCMA", "PCMU"], session_id=7, version=2, direction=direction)
    read = SessionDescription.parse(offer.serialise())
    assert read == offer
    assert (read.direction_of(read.media[0]), read.address_of(read.media[0])) == (direction, address)


HEADER_NAMES = st.sampled_from(sorted(set(CASING) - {"content-length", "via"})) | NAME.filter(
    lambda name: name not in COMPACT_FORMS and name not in ("content-length", "via")
)
VALUES = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30).map(str.strip)


@given(
    TOKEN,
    URIS.filter(lambda uri: " " not in str(uri)),
    st.lists(st.tuples(HEADER_NAMES, VALUES), max_size=6),
    st.binary(max_size=40),
)
def test_requests(method: str, uri: SipUri, headers: list[tuple[str, str]], body: bytes) -> None:
    request = Request(method, str(uri))
    for name, value in headers:
        request.add(name, value)
    request.body = body
    read = parse_message(request.serialise())
    assert isinstance(read, Request)
    assert (read.method, read.parsed_uri, read.body) == (method, uri, body)
    assert {name: read.get_all(name) for name in request.headers} == {
        name: request.get_all(name) for name in request.headers
    }
    assert read.serialise() == request.serialise()


@given(
    st.integers(100, 699),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20),
    st.lists(VIAS, min_size=1, max_size=3),
    st.binary(max_size=40),
)
def test_responses(status: int, reason: str, vias: list[Via], body: bytes) -> None:
    response = Response(status, reason)
    for via in vias:
        response.add("via", via)
    response.body = body
    read = parse_message(response.serialise())
    assert isinstance(read, Response)
    assert (read.status, read.reason, read.vias, read.body) == (status, reason, vias, body)


HOSTILE = st.text(st.sampled_from('\r\n\0\x0b\x85\u2028\ud800\udc80 :;,<>"\\ab'), max_size=20)


@given(HOSTILE, st.sampled_from(["set", "add", "prepend", "replace_first"]), HOSTILE)
def test_no_setter_lets_text_leave_its_header(text: str, setter: str, reason: str) -> None:
    """Names and numbers of callers get into headers by these alone; none can end a line or add one."""
    request = Request.build("INVITE", "sip:a@b", via="v", from_="<sip:a@b>", to="<sip:c@d>", call_id="c", cseq=1)
    lines = request.serialise().count(b"\r\n")
    getattr(request, setter)("subject", text)
    written = request.serialise()
    assert written.count(b"\r\n") == lines + 1
    assert written.count(b"\n") == written.count(b"\r") == lines + 1
    read = parse_message(written)
    assert set(read.headers) == {*request.headers, "content-length"}
    response = build_response(request, 486, reason, to_tag="t")
    assert set(parse_message(response.serialise()).headers) == {*response.headers, "content-length"}


@given(HOSTILE, HOSTILE, st.dictionaries(NAME, HOSTILE, max_size=2))
def test_no_name_user_or_parameter_leaves_its_address(name: str, user: str, params: dict[str, str | None]) -> None:
    address = NameAddr(name, SipUri("sip", user or "u", host="h"), params)
    message = Message()
    message.set("from", address)
    message.add("contact", address)
    assert message.contacts[0].uri == message.from_.uri
    assert len(message.contacts) == 1
    assert message.from_.params.keys() == params.keys()


def test_every_compact_form_is_read_and_written_long() -> None:
    for short, name in COMPACT_FORMS.items():
        for spelling in (short, short.upper()):
            head = "INVITE sip:a@b SIP/2.0\r\n" if name != "content-length" else "OPTIONS sip:a@b SIP/2.0\r\n"
            message = parse_message(f"{head}{spelling}: 0\r\n\r\n".encode())
            assert message.get(name) == "0"
            assert f"\r\n{CASING.get(name, name)}: 0\r\n".lower() in message.serialise().decode().lower()
    assert {len(short) for short in COMPACT_FORMS} == {1}


def test_every_list_header_and_spelling_is_known_in_lower_case() -> None:
    assert all(name == name.lower() for name in LISTS | set(SPELLINGS.values()))
