"""The trace keeps what it may, finds calls, and shows no secret."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.trace import SipTrace, hidden
from adapters.sip.transactions.transaction import Flow
from engine.tracing import TracedCall

CALLER = Flow("udp", 0, "127.0.0.4", 5070)
AGENT = Flow("udp", 0, "127.0.0.2", 7000)


def message(
    first: str, sip_call_id: str, *, cseq: str = "1 INVITE", caller: str = "1001", called: str = "500"
) -> bytes:
    return (
        f"{first}\r\nVia: SIP/2.0/UDP 127.0.0.4\r\nFrom: <sip:{caller}@h>;tag=1\r\nTo: <sip:{called}@h>\r\n"
        f"Call-ID: {sip_call_id}\r\nCSeq: {cseq}\r\n\r\n"
    ).encode()


def trace(max_bytes: int = 1 << 20) -> SipTrace:
    return SipTrace(lambda _: ("127.0.0.1", 5060), max_bytes)


def filled() -> SipTrace:
    made = trace()
    made.link("a", "CALL1")
    made.on_received(CALLER, message("INVITE sip:500@h SIP/2.0", "a"))
    made.on_sent(CALLER, message("SIP/2.0 200 OK", "a"))
    made.link("b", "CALL1")
    made.on_sent(AGENT, message("INVITE sip:a0001@h SIP/2.0", "b", called="a0001"))
    made.on_received(CALLER, message("REGISTER sip:h SIP/2.0", "c", cseq="1 REGISTER", caller="a2", called="a2"))
    made.link("d", "CALL2")
    made.on_received(CALLER, message("INVITE sip:600@h SIP/2.0", "d", caller="+254711000222", called="600"))
    made.on_sent(CALLER, message("SIP/2.0 486 Busy Here", "d", caller="+254711000222", called="600"))
    return made


async def test_legs_of_a_call_are_found_together() -> None:
    found = await filled().find(limit=10)
    assert [(call.call_id, call.sip_call_ids, call.summary, call.outcome) for call in found.calls] == [
        ("CALL1", ("a", "b"), "INVITE 1001 → 500", "200 OK"),
        (None, ("c",), "REGISTER a2", ""),
        ("CALL2", ("d",), "INVITE +254711000222 → 600", "486 Busy Here"),
    ]
    first = found.calls[0].messages
    assert [(m.incoming, m.remote) for m in first] == [
        (True, ("127.0.0.4", 5070)),
        (False, ("127.0.0.4", 5070)),
        (False, ("127.0.0.2", 7000)),
    ]
    assert {m.local for m in first} == {("127.0.0.1", 5060)}
    assert found.since == first[0].at


@pytest.mark.parametrize("call", ["CALL1", "a", "b"])
async def test_a_call_is_found_by_our_id_and_by_its_call_ids(call: str) -> None:
    assert [item.call_id for item in (await filled().find(call=call, limit=10)).calls] == ["CALL1"]


@pytest.mark.parametrize(
    ("number", "calls"),
    [("500", ["CALL1"]), ("1001", ["CALL1"]), ("+254711000222", ["CALL2"]), ("0711000222"[1:], ["CALL2"]), ("00", [])],
)
async def test_calls_are_found_by_number(number: str, calls: list[str]) -> None:
    assert [item.call_id for item in (await filled().find(number=number, limit=10)).calls] == calls


async def test_only_the_newest_calls_are_given() -> None:
    assert [call.call_id for call in (await filled().find(limit=1)).calls] == ["CALL2"]


async def test_memory_is_bounded() -> None:
    kept = trace(max_bytes=10_000)
    for number in range(1000):
        kept.on_received(CALLER, message("OPTIONS sip:h SIP/2.0", f"c{number}", cseq="1 OPTIONS"))
    found: list[TracedCall] = list((await kept.find(limit=500)).calls)
    assert 10 <= len(found) <= 30
    assert found[-1].sip_call_ids == ("c999",)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('REGISTER sip:h SIP/2.0\r\nAuthorization: Digest username="a", response="c0ffee", uri="x"\r\n\r\n', "c0ffee"),
        ("INVITE sip:h SIP/2.0\r\nproxy-authorization : Digest response=c0ffee,nc=1\r\n\r\n", "c0ffee"),
        ("INFO sip:h SIP/2.0\r\nContent-Type: application/dtmf-relay\r\n\r\nSignal=7\r\nDuration=100\r\n", "=7"),
        ("INFO sip:h SIP/2.0\r\nContent-Type: application/dtmf\r\nX: y\r\n\r\n7", "\n7"),
        ("INVITE sip:h SIP/2.0\r\n\r\nv=0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:c2VjcmV0|2^20\r\n", "c2Vj"),
        ("INVITE sip:h SIP/2.0\r\n\r\na=crypto:1 A inline:c2Vj|2^20|1:4;inline:c2Vj|2^20|2:4\r\n", "c2Vj"),
        ("INVITE sip:h SIP/2.0\r\n\r\nv=0\r\nk=base64:c2Vj\r\n", "c2Vj"),
        ('REGISTER sip:h SIP/2.0\r\nAuthorization: Digest username="a",\r\n\tresponse="c0ffee"\r\n\r\n', "c0ffee"),
        ('REGISTER sip:h SIP/2.0\r\nAuthorization: Digest x="a,response=y", response="c0ffee"\r\n\r\n', "c0ffee"),
        ("REGISTER sip:h SIP/2.0\r\nAuthorization: Bearer c0ffee\r\n\r\n", "c0ffee"),
        ('SIP/2.0 200 OK\r\nAuthentication-Info: qop=auth, rspauth="c0ffee"\r\n\r\n', "c0ffee"),
        ("INFO sip:h SIP/2.0\r\nc: application/dtmf\r\n\r\n7", "\n7"),
        ("INFO sip:h SIP/2.0\r\nContent-Type:\r\n application/dtmf;x=y\r\n\r\n7", "\n7"),
    ],
)
def test_secrets_are_hidden_and_the_length_stays(text: str, secret: str) -> None:
    shown = hidden(text.encode())
    assert secret.encode() not in shown
    assert len(shown) == len(text)


@given(st.lists(st.binary(max_size=200), max_size=20))
async def test_whatever_came_can_be_shown(messages: list[bytes]) -> None:
    kept = trace()
    for data in messages:
        kept.on_received(CALLER, data)
    found = await kept.find(limit=100)
    assert sum(len(call.messages) for call in found.calls) == len(messages)


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Type: application/dtmf\r\n",
        b"Authorization: Digest response=\r\n",
        b"Authorization: , a, a, a, a, a\r\n ",
        b"a=crypto:1 inline:\r\n",
        b"From: sip:sip:sip:sip:",
        b"signal = \r\n",
    ],
)
async def test_what_strangers_repeat_takes_no_time_to_hide(line: bytes) -> None:
    """Expressions that try each start and each end would take minutes here, and all calls wait for them."""
    data = (b"INVITE sip:h SIP/2.0\r\nCall-ID: 1\r\n" + line * 3000)[:64_000]
    kept = trace(10 << 20)
    for _ in range(20):
        kept.on_received(CALLER, data)
    began = process_time()
    assert len((await kept.find(limit=10)).calls) == 1
    assert process_time() - began < 5
