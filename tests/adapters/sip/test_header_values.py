"""Structured header values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.syntax.headers import (
    CSeq,
    NameAddr,
    Via,
    format_params,
    is_token,
    parse_number,
    parse_params,
    quoted,
    split_list,
    unquoted,
)
from adapters.sip.syntax.uri import SipUri

TEXT = st.text(max_size=30)
TOKEN = st.text("abcXYZ019-.!%*_+`'~", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("", []),
        (" a ", ["a"]),
        ("a, b ,c", ["a", "b", "c"]),
        ("a,,b,", ["a", "b"]),
        ('"x, y" <sip:a@b>, <sip:c,d@e>', ['"x, y" <sip:a@b>', "<sip:c,d@e>"]),
        (r'"x\", y" <sip:a@b>,c', [r'"x\", y" <sip:a@b>', "c"]),
        ('"open, <sip:a@b>, c', ['"open, <sip:a@b>, c']),
        ("<sip:a@b, c", ["<sip:a@b, c"]),
        ('a;x="1,2",b', ['a;x="1,2"', "b"]),
    ],
)
def test_split_list(value: str, items: list[str]) -> None:
    assert split_list(value) == items


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("tag=1", {"tag": "1"}),
        ("a;B=c;d=E", {"a": None, "b": "c", "d": "E"}),
        (" a = b ; c ", {"a": "b", "c": None}),
        (r'q="x;\"y\"";z', {"q": 'x;"y"', "z": None}),
        ("received=2001:db8::1;rport=5060", {"received": "2001:db8::1", "rport": "5060"}),
        ('+sip.instance="<urn:uuid:1>";reg-id=1', {"+sip.instance": "<urn:uuid:1>", "reg-id": "1"}),
        ('a=""', {"a": ""}),
    ],
)
def test_parse_params(text: str, params: dict[str, str | None]) -> None:
    assert parse_params(text) == params
    assert parse_params(format_params(params)[1:]) == params


@pytest.mark.parametrize(
    "text", ["", ";", "a;", ";a", "a;;b", "a;A", "=x", "a=", "a=b c", 'a="b', 'a="b"c', "a b", "a=<b>", "ä=1"]
)
def test_malformed_params(text: str) -> None:
    with pytest.raises(PeerError):
        parse_params(text)


@given(st.dictionaries(TOKEN.map(str.lower), st.none() | TEXT))
def test_params_come_back(params: dict[str, str | None]) -> None:
    text = format_params(params)
    assert text.isprintable() or any(value and not value.isprintable() for value in params.values())
    assert not set(text) & set("\r\n\0")
    read = parse_params(text[1:]) if params else {}
    expected = {name: None if value is None else printable(value) for name, value in params.items()}
    assert read == expected


def printable(text: str) -> str:
    """As quoted strings hold it: control characters became spaces."""
    return "".join(" " if char < " " or char == "\x7f" else char for char in text)


def test_a_parameter_name_that_is_none_is_our_bug() -> None:
    with pytest.raises(UsageError):
        format_params({"a b": "c"})


@given(TEXT)
def test_quoted_strings_come_back(text: str) -> None:
    assert unquoted(quoted(text)) == printable(text)


@pytest.mark.parametrize(
    ("text", "name", "uri", "params"),
    [
        ("sip:a@b;tag=1", None, "sip:a@b", {"tag": "1"}),
        ("<sip:a@b;lr>;tag=1", None, "sip:a@b;lr", {"tag": "1"}),
        ("Alice <sip:a@b>", "Alice", "sip:a@b", {}),
        ("Alice B. <sip:a@b>", "Alice B.", "sip:a@b", {}),
        ("Bell, Alexander <sip:a@b>", "Bell, Alexander", "sip:a@b", {}),  # not allowed, yet met
        ('"A \\"B\\" \\\\ C"<sip:a@b> ; tag = 1', 'A "B" \\ C', "sip:a@b", {"tag": "1"}),
        ('"" <sip:a@b>', None, "sip:a@b", {}),
        ("Jürgen <sip:a@b>", "Jürgen", "sip:a@b", {}),
        ("<tel:+1234>;tag=x", None, "tel:+1234", {"tag": "x"}),
        ("<urn:service:sos>", None, "urn:service:sos", {}),
        ("*", None, "*", {}),
        ("<sip:anonymous@anonymous.invalid>;tag=1", None, "sip:anonymous@anonymous.invalid", {"tag": "1"}),
    ],
)
def test_name_addr(text: str, name: str | None, uri: str, params: dict[str, str | None]) -> None:
    address = NameAddr.parse(text)
    assert (address.display_name, str(address.uri), address.params) == (name, uri, params)
    assert NameAddr.parse(str(address)) == address
    assert address.tag == params.get("tag")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<>",
        "<sip:a@b",
        "sip:a@b>",
        '"Alice <sip:a@b>',
        'Alice "B" <sip:a@b>',
        "< sip:a@b >",
        "<sip:a@b> junk",
        "<sip:a@b>;",
        "<sip:a@b>;;tag=1",
        "<sip:a@b>;tag=1;tag=2",
        "sip:a@b?x=y",
        "sip:a,c@b",
        "<no scheme>",
        "<noscheme>",
        "<urn:a b>",
    ],
)
def test_malformed_name_addr(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        NameAddr.parse(text)
    assert caught.value.status == 400


@given(TEXT, TEXT.filter(bool), TOKEN)
def test_a_display_name_or_user_cannot_leave_its_place(name: str, user: str, tag: str) -> None:
    text = str(NameAddr(name, SipUri("sip", user, host="h")).with_tag(tag))
    assert not set(text) & set("\r\n\0")
    read = NameAddr.parse(text)
    assert isinstance(read.uri, SipUri)
    assert (read.display_name or "", read.uri.user, read.tag) == (printable(name), user, tag)
    assert split_list(f"{text}, {text}") == [text, text]


def test_text_that_is_no_uri_is_not_written() -> None:
    for uri in ("urn:x>\r\nA: b", "urn:x y", 'urn:"'):
        with pytest.raises(UsageError):
            str(NameAddr(None, uri))


@pytest.mark.parametrize(
    ("text", "via"),
    [
        ("SIP/2.0/UDP h;branch=z9hG4bK1", Via("UDP", "h", None, {"branch": "z9hG4bK1"})),
        ("SIP / 2.0 / tcp  h : 5060 ; branch = x ; rport", Via("TCP", "h", 5060, {"branch": "x", "rport": None})),
        ("SIP/2.0/WSS df7jal23ls0d.invalid", Via("WSS", "df7jal23ls0d.invalid")),
        (
            "SIP/2.0/TLS [2001:db8::9]:5061;received=2001:db8::8;rport=7",
            Via("TLS", "2001:db8::9", 5061, {"received": "2001:db8::8", "rport": "7"}),
        ),
    ],
)
def test_via(text: str, via: Via) -> None:
    assert Via.parse(text) == via
    assert Via.parse(str(via)) == via
    assert via.branch == via.params.get("branch")
    assert via.has_rport == ("rport" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SIP/2.0/UDP",
        "SIP/2.0/UDP ",
        "SIP/3.0/UDP h",
        "SIP/2.0 h",
        "SIP/2.0/UDP h;",
        "SIP/2.0/UDP h:0",
        "SIP/2.0/UDP [h]",
        "SIP/2.0/UDP h x",
    ],
)
def test_malformed_via(text: str) -> None:
    with pytest.raises(PeerError):
        Via.parse(text)


def test_via_writes_only_what_fits() -> None:
    assert Via.parse("SIP/2.0/UDP h;received=[2001:db8::1];rport=5").received == "2001:db8::1"
    assert Via("UDP", "h").with_params({"rport": "5"}).rport == 5
    with pytest.raises(PeerError):
        _ = Via("UDP", "h", None, {"rport": "x"}).rport
    for via in (Via("U P", "h"), Via("UDP", "h\r\nX: y"), Via("UDP", "h;x"), Via("UDP", "h", None, {"a b": None})):
        with pytest.raises(UsageError):
            str(via)


def test_cseq_and_numbers() -> None:
    assert CSeq.parse("0009   INVITE") == CSeq(9, "INVITE")
    assert str(CSeq(4, "BYE")) == "4 BYE"
    for text in ("", "1", "INVITE", "-1 INVITE", "2147483648 INVITE", "1 IN VITE", "1 INV@TE", "٣ BYE"):
        with pytest.raises(PeerError):
            CSeq.parse(text)
    assert parse_number("0068", 255) == 68
    for text in ("", "-1", "256", "1e1", "٣", "9" * 5000):
        with pytest.raises(PeerError):
            parse_number(text, 255)
    assert is_token("z9hG4bK-.!%*_+`'~")
    assert not is_token("a b")
    assert not is_token("a\n")
