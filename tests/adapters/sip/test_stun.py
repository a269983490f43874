from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.transports.stun import answer_binding, is_stun

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
COOKIE = b"\x21\x12\xa4\x42"
REQUEST = b"\x00\x01\x00\x00" + COOKIE + TRANSACTION


def test_answers_of_rfc_5769() -> None:
    # The addresses of the sample responses, 2.2 and 2.3.
    v4 = answer_binding(REQUEST, "192.0.2.1", 32853)
    assert v4 == b"\x01\x01\x00\x0c" + COOKIE + TRANSACTION + bytes.fromhex("002000080001a147e112a643")
    v6 = answer_binding(REQUEST, "2001:db8:1234:5678:11:2233:4455:6677", 32853)
    expected = bytes.fromhex("002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9")
    assert v6 == b"\x01\x01\x00\x18" + COOKIE + TRANSACTION + expected


def test_mapped_addresses_are_shown_as_ipv4() -> None:
    assert answer_binding(REQUEST, "::ffff:192.0.2.1", 32853) == answer_binding(REQUEST, "192.0.2.1", 32853)


def test_requests_with_attributes_are_answered_and_others_are_not() -> None:
    software = b"\x80\x22\x00\x04test"
    assert answer_binding(b"\x00\x01\x00\x08" + COOKIE + TRANSACTION + software, "192.0.2.1", 5)
    indication = b"\x00\x11\x00\x00" + COOKIE + TRANSACTION
    response = b"\x01\x01\x00\x00" + COOKIE + TRANSACTION
    truncated = b"\x00\x01\x00\x08" + COOKIE + TRANSACTION
    for data in (indication, response, truncated):
        assert is_stun(data)
        assert answer_binding(data, "192.0.2.1", 5) is None


def test_sip_is_no_stun() -> None:
    assert not is_stun(b"OPTIONS sip:x SIP/2.0\r\n\r\n")
    assert not is_stun(b"\r\n\r\n")


@given(st.binary(max_size=60), st.integers(0, 65535))
def test_anything_is_answered_or_dropped(data: bytes, port: int) -> None:
    for datagram in (data, b"\x00\x01" + data[:2] + COOKIE + data):
        if is_stun(datagram):
            answer = answer_binding(datagram, "192.0.2.9", port)
            assert answer is None or len(answer) == 32
