"""Messages out of a byte stream."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError
from adapters.sip.syntax.message import MAX_MESSAGE, parse_message
from adapters.sip.transports.stream import KeepAlive, Ping, StreamFramer

INVITE = b"INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP h\r\nContent-Length: 4\r\n\r\nv=0\n"
BYE = b"BYE sip:a@b SIP/2.0\r\nl:0\r\n\r\n"


def cut(data: bytes, *sizes: int) -> list[bytes | KeepAlive]:
    """Feed `data` in pieces of these sizes, repeated."""
    framer = StreamFramer()
    items: list[bytes | KeepAlive] = []
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        items += framer.feed(data[position : position + size])
        position += size
        turn += 1
    return items


def test_messages_are_cut_by_content_length() -> None:
    assert cut(INVITE + BYE + INVITE) == [INVITE, BYE, INVITE]
    for item in cut(INVITE + BYE):
        assert isinstance(item, bytes)
        parse_message(item)


@given(
    st.lists(st.sampled_from([INVITE, BYE, b"\r\n\r\n"]), max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
def test_the_pieces_do_not_matter(parts: list[bytes], sizes: list[int]) -> None:
    messages = [part for part in parts if part != b"\r\n\r\n"]
    items = cut(b"".join(parts), *sizes)
    assert [item for item in items if item is not Ping] == messages
    pings = items.count(Ping)
    runs = sum(part == b"\r\n\r\n" and (at == 0 or parts[at - 1] != part) for at, part in enumerate(parts))
    assert runs <= pings <= parts.count(b"\r\n\r\n")


def test_two_line_ends_are_a_ping_and_one_is_not() -> None:
    framer = StreamFramer()
    assert framer.feed(b"\r\n\r\n") == [Ping]
    assert framer.feed(b"\r\n") == []
    assert framer.feed(BYE) == [BYE]
    assert framer.feed(b"\r") == []
    assert framer.feed(b"\n\r") == []
    assert framer.feed(b"\n") == [Ping]
    assert framer.feed(b"\r\n\r\n" + BYE + b"\r\n\r\n") == [Ping, BYE, Ping]


def test_a_flood_of_pings_is_one_ping() -> None:
    assert StreamFramer().feed(b"\r\n" * 30_000) == [Ping]


@pytest.mark.parametrize(
    ("data", "status", "answerable"),
    [
        (b"BYE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP h\r\n\r\n", 400, True),
        (b"BYE sip:a@b SIP/2.0\r\nl: -1\r\n\r\n", 400, True),
        (b"BYE sip:a@b SIP/2.0\r\nl: 0\r\nContent-Length: 5\r\n\r\n", 400, True),
        (b"BYE sip:a@b SIP/2.0\r\nl: 999999\r\n\r\n", 513, True),
        (b"BYE sip:a@b SIP/2.0\r\nl: 99999999999999999999\r\n\r\n", 400, True),
        (b"BYE sip:a@b SIP/2.0\r\nl: 0\r\n 5\r\n\r\n", 400, True),
        (b"BYE sip:a@b SIP/2.0\r\nl: 0\r\nl: x\r\n\r\n", 400, True),
        (b"ACK sip:a@b SIP/2.0\r\n\r\n", 400, False),
        (b"SIP/2.0 200 OK\r\n\r\n", 400, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, False),
        (b"X" * (MAX_MESSAGE + 1), 513, False),
    ],
)
def test_a_stream_that_cannot_be_cut_is_refused(data: bytes, status: int, answerable: bool) -> None:
    framer = StreamFramer()
    with pytest.raises(PeerError) as caught:
        framer.feed(data)
    assert caught.value.status == status
    assert (caught.value.message is not None) == answerable
    with pytest.raises(PeerError):
        framer.feed(BYE)


def test_what_was_complete_before_a_fault_is_delivered_first() -> None:
    framer = StreamFramer()
    assert framer.feed(BYE + b"BYE sip:a@b SIP/2.0\r\n\r\n") == [BYE]
    assert framer.fault is not None
    with pytest.raises(PeerError):
        framer.feed(b"")


@given(st.lists(st.binary(max_size=50) | st.sampled_from([INVITE, BYE, b"\r\n", b"l: 3\r\n\r\n"]), max_size=8))
def test_any_bytes_are_cut_or_refused(chunks: list[bytes]) -> None:
    framer = StreamFramer()
    try:
        for chunk in chunks:
            for item in framer.feed(chunk):
                assert item is Ping or isinstance(item, bytes)
    except PeerError:
        assert framer.fault is not None


LENGTHS = st.lists(
    st.sampled_from(
        [b"l: 3", b"L :3 ", b"l:", b" 3", b"Content-Length:\t3", b"Content-Length: x", b"X: l: 4", b"l: 03", b"\t"]
    ),
    max_size=4,
)


@given(LENGTHS)
def test_framer_and_parser_agree_on_where_a_message_ends(lines: list[bytes]) -> None:
    data = b"\r\n".join([b"BYE sip:a@b SIP/2.0", *lines, b"", b"abcdef"])
    try:
        first = StreamFramer().feed(data)[0]
        assert isinstance(first, bytes)
        message = parse_message(first)
    except PeerError:
        return
    assert first.endswith(b"\r\n\r\n" + message.body)
    assert parse_message(data).body == message.body


def test_cutting_takes_linear_time() -> None:
    started = time.process_time()
    big = b"MESSAGE sip:a@b SIP/2.0\r\nX: " + b"y" * 60_000 + b"\r\nl: 0\r\n\r\n"
    assert cut(big, 1) == [big]
    small = b"\r\nBYE sip:a@b SIP/2.0\r\nl:0\r\n\r\n"
    assert len(cut(small * 8_000)) == 8_000
    with pytest.raises(PeerError):
        cut(b"\r\nx" * MAX_MESSAGE, 3)
    assert time.process_time() - started < 3.0
