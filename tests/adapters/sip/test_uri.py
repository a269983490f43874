"""SIP, SIPS and tel URIs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.syntax.uri import SipUri, unescape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sip:example.com", SipUri("sip", None, host="example.com")),
        ("SIP:Alice@Example.com", SipUri("sip", "Alice", host="Example.com")),
        ("sips:alice:secret@h:5061", SipUri("sips", "alice", "secret", "h", 5061)),
        ("sip:alice:@h", SipUri("sip", "alice", "", "h")),
        ("sip:a@[2001:db8::1]:5070;lr", SipUri("sip", "a", None, "2001:db8::1", 5070, {"lr": None})),
        (
            "sip:+1;ext=9@h;user=phone;TRANSPORT=tcp?Subject=x&y=z",
            SipUri("sip", "+1;ext=9", None, "h", None, {"user": "phone", "transport": "tcp"}, "Subject=x&y=z"),
        ),
        ("sip:*72#@h", SipUri("sip", "*72#", host="h")),
        ("sip:j%c3%bcrgen%20x@h;p=%41", SipUri("sip", "jürgen x", host="h", params={"p": "A"})),
        ("tel:+1-201-555-0123", SipUri("tel", "+1-201-555-0123")),
        ("tel:*72#", SipUri("tel", "*72#")),
        ("tel:7042;phone-context=example.com", SipUri("tel", "7042", params={"phone-context": "example.com"})),
    ],
)
def test_parse(text: str, expected: SipUri) -> None:
    uri = SipUri.parse(text)
    assert uri == expected
    assert str(uri) == text  # as it came
    assert SipUri.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sip:",
        "alice",
        "sip:@h",
        "sip:a@",
        "sip:a@b@c",
        "sip:a b@c",
        " sip:a@b",
        "sip:a@b ",
        "sip:a@b;",
        "sip:a@b;=x",
        "sip:a@b;x;X=1",
        "sip:a@b:0",
        "sip:a@b:65536",
        "sip:a@b:port",
        "sip:a@[::1",
        "sip:a@[1.2.3.4]",
        "sip:a@::1",
        "sip:100%@h",
        "sip:%zz@h",
        "sip:ü@h",
        "sip:a@b\r\nX: y",
        "sip:a@b\n",
        "sip:a<b@c",
        "tel:",
        "tel:phone",
    ],
)
def test_malformed_is_400(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        SipUri.parse(text)
    assert caught.value.status == 400


@pytest.mark.parametrize("text", ["http://x/", "urn:service:sos", "soap.beep://192.0.2.103:3002", "mailto:a@b"])
def test_other_schemes_are_416(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        SipUri.parse(text)
    assert caught.value.status == 416


@given(
    user=st.text(min_size=1, max_size=20),
    password=st.none() | st.text(max_size=10),
    host=st.sampled_from(["h", "example.com", "127.0.0.1", "2001:db8::1"]),
    port=st.none() | st.integers(1, 65535),
    params=st.dictionaries(st.text("abc;=@ %ü", min_size=1, max_size=5), st.none() | st.text(max_size=8), max_size=3),
)
def test_whatever_a_caller_puts_in_comes_out_in_its_place(
    user: str, password: str | None, host: str, port: int | None, params: dict[str, str | None]
) -> None:
    uri = SipUri("sip", user, password, host, port, params)
    text = str(uri)
    assert text.isascii()
    assert text.isprintable()
    assert not set(text) & set(' <>"')
    read = SipUri.parse(text)
    if any("\ud800" <= char <= "\udfff" for char in user + (password or "") + str(params)):
        return
    assert read == uri


@given(st.text(max_size=60) | st.text("sip:;@%?=&[]ab1.~ ", max_size=40).map("sip:".__add__))
def test_any_text_parses_or_raises_peer_error(text: str) -> None:
    try:
        uri = SipUri.parse(text)
    except PeerError:
        return
    assert SipUri.parse(str(uri)) == uri
    assert uri.equivalent(uri)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
        ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;newparam=5"),
        (
            "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
            "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
        ),
        (
            "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
            "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
        ),
        ("tel:+1-201-555-0123", "tel:+1(201)5550123"),
    ],
)
def test_equivalent_as_in_rfc_3261_19_1_4(one: str, other: str) -> None:
    assert SipUri.parse(one).equivalent(SipUri.parse(other))
    assert SipUri.parse(other).equivalent(SipUri.parse(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
        ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
        ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
        ("sip:a@h", "sips:a@h"),
        ("sip:a@h", "sip:a:b@h"),
        ("tel:+1", "tel:+2"),
        ("tel:7042;phone-context=a", "tel:7042"),
    ],
)
def test_not_equivalent_as_in_rfc_3261_19_1_4(one: str, other: str) -> None:
    assert not SipUri.parse(one).equivalent(SipUri.parse(other))
    assert not SipUri.parse(other).equivalent(SipUri.parse(one))


def test_a_uri_that_cannot_be_written_is_our_bug() -> None:
    makers: list[Callable[[], SipUri]] = [
        lambda: SipUri("http", "a", host="h"),
        lambda: SipUri("sip", "a"),
        lambda: SipUri("sip", "a", host="h>\r\n"),
        lambda: SipUri("sip", "a", host="h", port=0),
        lambda: SipUri("sip", "a", host="h", params={"": "x"}),
        lambda: SipUri("tel", None),
        lambda: SipUri("tel", "1;x"),
        lambda: SipUri("tel", "1", host="h"),
    ]
    for make in makers:
        with pytest.raises(UsageError):
            make()


def test_uris_can_be_keys() -> None:
    assert len({SipUri.parse("sip:a@h;x=1"), SipUri.parse("sip:a@h;x=1"), SipUri.parse("sip:b@h")}) == 2
    assert unescape("%41%ff") == "A\udcff"
