from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError
from adapters.sip.syntax.event_documents import DialogFacts, dialog_info, message_summary, presence, reginfo
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.refer import EventName, ReferTo, is_terminated, read_sipfrag, sipfrag
from adapters.sip.syntax.replaces import Replaces
from adapters.sip.syntax.uri import SipUri

tokens = st.text("abcXYZ019-.!%*_+`'~", min_size=1, max_size=12)
call_ids = st.text("abcXYZ019-.!%*_+`'~()<>:\\\"/[]?{}@", min_size=1, max_size=20)


def request(**headers: str) -> Request:
    made = Request.build(
        "REFER",
        "sip:a@b",
        via="SIP/2.0/UDP h;branch=z9hG4bK1",
        from_="<sip:a@b>;tag=1",
        to="<sip:c@d>;tag=2",
        call_id="c",
        cseq=1,
    )
    for name, value in headers.items():
        made.headers[name.replace("_", "-")] = [value]
    return made


@given(call_ids, tokens, tokens, st.booleans())
def test_replaces_is_read_as_written_in_a_header_and_in_a_uri(call_id: str, to: str, from_: str, early: bool) -> None:
    replaces = Replaces(call_id, to, from_, early)
    assert Replaces.parse(str(replaces)) == replaces
    uri = SipUri.parse(f"sip:x@y?{replaces.uri_header()}&Other=1")
    assert Replaces.in_uri(uri) == replaces
    wish = ReferTo.of(request(refer_to=f"<{uri}>"))
    assert wish.replaces == replaces


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(PeerError):
        Replaces.parse(text)
    with suppress(PeerError):
        ReferTo.of(request(refer_to=text))
    with suppress(PeerError):
        EventName.of(request(event=text))
    is_terminated(request(subscription_state=text))


@given(st.binary(max_size=60))
def test_any_fragment_is_read_or_tells_nothing(body: bytes) -> None:
    status = read_sipfrag(body)
    assert status is None or 100 <= status <= 699


@pytest.mark.parametrize("status", [100, 180, 200, 299, 486, 603, 699])
def test_fragments_are_read_as_written(status: int) -> None:
    assert read_sipfrag(sipfrag(status)) == status
    assert read_sipfrag(sipfrag(status).rstrip()) == status


@pytest.mark.parametrize(
    "text",
    ["", "a", "a;to-tag=b", "a;from-tag=b", "a b;to-tag=b;from-tag=c", ";to-tag=b;from-tag=c", "a;to-tag=;from-tag=c"],
)
def test_replaces_without_its_parts_is_malformed(text: str) -> None:
    with pytest.raises(PeerError):
        Replaces.parse(text)


def test_replaces_comes_once() -> None:
    one = Replaces("a", "b", "c").uri_header()
    with pytest.raises(PeerError):
        Replaces.in_uri(SipUri.parse(f"sip:x@y?{one}&{one}"))
    with pytest.raises(PeerError):
        Replaces.in_uri(SipUri.parse(f"sip:x@y?X={'1' * 2000}"))
    invite = request()
    assert Replaces.of(invite) is None
    invite.headers["replaces"] = ["a;to-tag=b;from-tag=c"] * 2
    with pytest.raises(PeerError):
        Replaces.of(invite)


def test_referrals_as_phones_write_them() -> None:
    for target in ("sip:500@pbx.test", "<sip:500@pbx.test;user=phone>", '"Bob" <sip:500@pbx.test;method=INVITE>;x=1'):
        wish = ReferTo.of(request(refer_to=target, referred_by="<sip:a@b>"))
        assert (wish.target.user, wish.replaces, wish.notify) == ("500", None, True)
    assert ReferTo.of(request(refer_to="<tel:+4930123>")).target.user == "+4930123"
    assert not ReferTo.of(request(refer_to="sip:a@b", refer_sub="False ;x")).notify
    assert ReferTo.of(request(refer_to="sip:a@b", refer_sub="true")).notify


def test_events_and_their_ids() -> None:
    assert EventName.of(request(event="Refer;id=93809824")) == EventName("refer", "93809824")
    assert str(EventName("refer", "7")) == "refer;id=7"
    assert str(EventName("dialog")) == "dialog"
    assert is_terminated(request(subscription_state="Terminated;reason=noresource"))
    assert not is_terminated(request(subscription_state="active;expires=60"))
    assert not is_terminated(request())


anything = st.text(max_size=30)


@given(anything, anything, anything)
def test_documents_are_well_formed_whatever_callers_put_into_them(one: str, two: str, three: str) -> None:
    dialog = DialogFacts(one, "recipient", "early", two, three, one or "x", two, three)
    for document in (
        dialog_info(one, [dialog, DialogFacts(two, "initiator", "trying", one)], 1),
        presence(one, two, is_open=True, activity="away", note=three),
        reginfo(one, [(two, three, 5.0)], 2),
    ):
        ET.fromstring(document)


def test_messages_are_counted() -> None:
    assert b"Messages-Waiting: yes\r\n" in message_summary("sip:a@b", 2, 1)
    assert b"Voice-Message: 2/1 (0/0)\r\n" in message_summary("sip:a@b", 2, 1)
