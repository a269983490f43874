"""Session descriptions of real phones, and the offer/answer model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.syntax.sdp import (
    AudioFormat,
    NegotiatedAudio,
    SessionDescription,
    make_answer,
    make_offer,
    read_answer,
)

BARESIP = """v=0
o=- 3471250837 1213470223 IN IP4 192.0.2.10
s=-
c=IN IP4 192.0.2.10
t=0 0
a=tool:baresip 1.0.0
m=audio 17620 RTP/AVP 96 0 8 101
b=AS:125
a=rtpmap:96 opus/48000/2
a=fmtp:96 stereo=1;sprop-stereo=1
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-15
a=rtcp:17621
a=sendrecv
a=label:1
a=rtcp-rsize
a=ssrc:2849112783 cname:sip:a@192.0.2.10
a=ptime:20
"""

LINPHONE = """v=0
o=alice 1213 3410 IN IP4 192.0.2.20
s=Talk
c=IN IP4 192.0.2.20
t=0 0
a=rtcp-xr:rcvr-rtt=all:10000 stat-summary=loss,dup,jitt,TTL voip-metrics
m=audio 7078 RTP/AVPF 96 97 98 0 8 18 99 100
a=rtpmap:96 opus/48000/2
a=fmtp:96 useinbandfec=1
a=rtpmap:97 speex/16000
a=fmtp:97 vbr=on
a=rtpmap:98 speex/8000
a=fmtp:98 vbr=on
a=fmtp:18 annexb=yes
a=rtpmap:99 telephone-event/48000
a=rtpmap:100 telephone-event/8000
a=rtcp-fb:* trr-int 5000
m=video 9078 RTP/AVPF 96
a=rtpmap:96 VP8/90000
"""

PJSUA = """v=0
o=- 3900000001 3900000001 IN IP4 192.0.2.30
s=pjmedia
b=AS:84
t=0 0
a=X-nat:0
m=audio 4000 RTP/AVP 8 0 101
c=IN IP4 192.0.2.31
b=TIAS:64000
a=rtcp:4005 IN IP4 192.0.2.31
a=sendrecv
a=rtpmap:8 PCMA/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-16
a=ssrc:1804289383 cname:2c9f5d5b
"""

ASTERISK = """v=0
o=- 1729838201 1729838201 IN IP4 192.0.2.40
s=Asterisk
c=IN IP4 192.0.2.40
t=0 0
m=audio 10044 RTP/AVP 0 8 101
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-16
a=ptime:20
a=maxptime:150
a=sendrecv
"""

# SIPp's built-in scenario: PCMU by its number alone.
SIPP = """v=0
o=user1 53655765 2353687637 IN IP4 127.0.0.1
s=-
c=IN IP4 127.0.0.1
t=0 0
m=audio 6000 RTP/AVP 0
a=rtpmap:0 PCMU/8000
"""

BARE = "v=0\r\no=- 1 1 IN IP4 192.0.2.50\r\ns=-\r\nc=IN IP4 192.0.2.50\r\nt=0 0\r\nm=audio 5004 RTP/AVP 18 8\r\n"


def parse(text: str) -> SessionDescription:
    return SessionDescription.parse(text.replace("\r\n", "\n").replace("\n", "\r\n").encode())


def answer(text: str, codecs: tuple[str, ...] = ("PCMU", "PCMA"), direction: str = "sendrecv") -> NegotiatedAudio:
    return make_answer(parse(text), "198.51.100.1", 20000, codecs, session_id=7, version=1, direction=direction)[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BARESIP, NegotiatedAudio("PCMU", 0, 0, 101, 101, 20, "192.0.2.10", 17620, 17621, "sendrecv", held=False)),
        (LINPHONE, NegotiatedAudio("PCMU", 0, 0, 100, 100, 20, "192.0.2.20", 7078, None, "sendrecv", held=False)),
        (PJSUA, NegotiatedAudio("PCMU", 0, 0, 101, 101, 20, "192.0.2.31", 4000, 4005, "sendrecv", held=False)),
        (ASTERISK, NegotiatedAudio("PCMU", 0, 0, 101, 101, 20, "192.0.2.40", 10044, None, "sendrecv", held=False)),
        (SIPP, NegotiatedAudio("PCMU", 0, 0, None, None, 20, "127.0.0.1", 6000, None, "sendrecv", held=False)),
        (BARE, NegotiatedAudio("PCMA", 8, 8, None, None, 20, "192.0.2.50", 5004, None, "sendrecv", held=False)),
    ],
    ids=["baresip", "linphone", "pjsua", "asterisk", "sipp", "bare"],
)
def test_offers_of_real_phones(text: str, expected: NegotiatedAudio) -> None:
    assert answer(text) == expected


def test_our_order_of_codecs_decides() -> None:
    assert answer(ASTERISK, ("PCMA", "PCMU")).codec == "PCMA"
    assert answer(ASTERISK, ("G722", "PCMA")).codec == "PCMA"


def test_the_answer_keeps_the_order_of_streams_and_declines_the_others() -> None:
    ours, audio = make_answer(parse(LINPHONE), "198.51.100.1", 20000, ["PCMA"], session_id=7, version=3)
    assert ours.serialise() == (
        b"v=0\r\n"
        b"o=- 7 3 IN IP4 198.51.100.1\r\n"
        b"s=-\r\n"
        b"c=IN IP4 198.51.100.1\r\n"
        b"t=0 0\r\n"
        b"m=audio 20000 RTP/AVPF 8 100\r\n"
        b"a=rtpmap:8 PCMA/8000\r\n"
        b"a=rtpmap:100 telephone-event/8000\r\n"
        b"a=fmtp:100 0-16\r\n"
        b"a=ptime:20\r\n"
        b"a=sendrecv\r\n"
        b"m=video 0 RTP/AVPF 96\r\n"
    )
    assert audio.codec == "PCMA"
    video_first = BARE.replace("m=audio", "m=video 9 RTP/SAVPF 96\r\nm=audio 0 RTP/AVP 0\r\nm=audio")
    ours, audio = make_answer(parse(video_first), "::1", 20000, ["PCMA"], session_id=7, version=3)
    assert [media.port for media in ours.media] == [0, 0, 20000]
    assert (audio.codec, audio.port) == ("PCMA", 5004)
    assert b"c=IN IP6 ::1\r\n" in ours.serialise()


def test_payload_types_of_the_peer_are_used_when_they_are_dynamic() -> None:
    text = SIPP.replace("RTP/AVP 0", "RTP/AVP 118 119").replace(
        "a=rtpmap:0 PCMU/8000", "a=rtpmap:118 pcmu/8000/1\na=rtpmap:119 Telephone-Event/8000"
    )
    audio = answer(text)
    assert (audio.codec, audio.payload_type, audio.dtmf_payload_type) == ("PCMU", 118, 119)


def test_a_number_that_the_peer_mapped_to_something_else_is_not_taken() -> None:
    with pytest.raises(PeerError):
        answer(SIPP.replace("PCMU/8000", "PCMU/16000"))


def test_offer_and_answer_between_two_of_us() -> None:
    offer = make_offer("192.0.2.1", 4000, ["PCMU", "PCMA"], session_id=1, version=1)
    read = SessionDescription.parse(offer.serialise())
    ours, seen_by_answerer = make_answer(read, "192.0.2.2", 6000, ["PCMA"], session_id=2, version=1)
    seen_by_offerer = read_answer(offer, SessionDescription.parse(ours.serialise()))
    assert seen_by_answerer == NegotiatedAudio(
        "PCMA", 8, 8, 101, 101, 20, "192.0.2.1", 4000, None, "sendrecv", held=False
    )
    assert seen_by_offerer == NegotiatedAudio(
        "PCMA", 8, 8, 101, 101, 20, "192.0.2.2", 6000, None, "sendrecv", held=False
    )


def test_each_side_sends_with_the_numbers_of_the_other() -> None:
    offer = make_offer("192.0.2.1", 4000, ["PCMU"], session_id=1, version=1)
    theirs = SIPP.replace("RTP/AVP 0", "RTP/AVP 97 96").replace(
        "a=rtpmap:0 PCMU/8000", "a=rtpmap:96 telephone-event/8000\na=rtpmap:97 PCMU/8000"
    )
    audio = read_answer(offer, parse(theirs))
    assert (audio.payload_type, audio.receive_payload_type) == (97, 0)
    assert (audio.dtmf_payload_type, audio.receive_dtmf_payload_type) == (96, 101)


@pytest.mark.parametrize(
    "theirs",
    [
        SIPP.replace("audio 6000", "audio 0"),
        SIPP.replace("RTP/AVP 0", "RTP/SAVP 0"),
        SIPP.replace("RTP/AVP 0", "RTP/AVP 9"),
        SIPP.replace("m=audio", "m=video"),
        SIPP.partition("m=")[0],
        SIPP.replace("c=IN IP4 127.0.0.1\n", ""),
    ],
)
def test_an_answer_that_declines_is_488(theirs: str) -> None:
    offer = make_offer("192.0.2.1", 4000, ["PCMU", "PCMA"], session_id=1, version=1)
    with pytest.raises(PeerError) as caught:
        read_answer(offer, parse(theirs))
    assert caught.value.status == 488


@pytest.mark.parametrize(
    "text",
    [
        SIPP.replace("audio 6000", "audio 0"),
        SIPP.replace("RTP/AVP 0", "RTP/SAVP 0"),
        SIPP.replace("RTP/AVP 0", "RTP/AVP 18"),
        SIPP.partition("m=")[0],
        SIPP.replace("c=IN IP4 127.0.0.1", "c=IN IP4 224.2.1.1/127"),
        SIPP.replace("c=IN IP4 127.0.0.1", "c=IN IP4 255.255.255.255"),
        SIPP.replace("c=IN IP4 127.0.0.1", "c=IN IP4 media.example.com"),
        SIPP.replace("c=IN IP4 127.0.0.1", "c=IN IP6 fe80::1%eth0"),
    ],
)
def test_an_offer_without_anything_for_us_is_488(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        answer(text)
    assert caught.value.status == 488


@pytest.mark.parametrize(
    ("theirs", "wish", "direction", "held"),
    [
        ("sendrecv", "sendrecv", "sendrecv", False),
        ("sendonly", "sendrecv", "recvonly", True),
        ("recvonly", "sendrecv", "sendonly", False),
        ("inactive", "sendrecv", "inactive", True),
        ("sendrecv", "sendonly", "sendonly", False),
        ("sendonly", "sendonly", "inactive", True),
        ("sendrecv", "inactive", "inactive", False),
    ],
)
def test_directions(theirs: str, wish: str, direction: str, held: bool) -> None:
    for text in (SIPP + f"a={theirs}\n", SIPP.replace("t=0 0\n", f"t=0 0\na={theirs}\n")):
        audio = answer(text, direction=wish)
        assert (audio.direction, audio.held) == (direction, held)
        ours, _ = make_answer(parse(text), "::1", 2, ["PCMU"], session_id=1, version=1, direction=wish)
        assert ours.direction_of(ours.media[0]) == direction
        offer = make_offer("192.0.2.1", 4000, ["PCMU"], session_id=1, version=1, direction=wish)
        assert read_answer(offer, parse(text)).direction == direction


def test_hold_by_address_zero() -> None:
    audio = answer(SIPP.replace("c=IN IP4 127.0.0.1", "c=IN IP4 0.0.0.0"))
    assert (audio.address, audio.direction, audio.held) == ("0.0.0.0", "recvonly", True)


@pytest.mark.parametrize(
    ("lines", "ptime_ms"),
    [
        ("a=ptime:30", 30),
        ("a=ptime:0", 20),
        ("a=ptime:7", 20),
        ("a=ptime:20.0", 20),
        ("a=ptime:99999999", 20),
        ("a=ptime:60\na=maxptime:40", 40),
        ("a=maxptime:15", 10),
        ("a=maxptime:0", 10),
        ("a=rtcp:", 20),
    ],
)
def test_packet_times(lines: str, ptime_ms: int) -> None:
    assert answer(SIPP + lines + "\n").ptime_ms == ptime_ms


@pytest.mark.parametrize("port", ["", "x", "0", "70000", "-1", " "])
def test_a_bad_rtcp_port_is_ignored(port: str) -> None:
    assert answer(SIPP + f"a=rtcp:{port}\n").rtcp_port is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v=1\n",
        "o=- 1 1 IN IP4 h\nv=0\n",
        "v=0\n",
        "v=0\no=-\n",
        "v=0\no=- 1 1 IN IP4 h\nm=audio\n",
        "v=0\no=- 1 1 IN IP4 h\nm=audio 70000 RTP/AVP 0\n",
        "v=0\no=- 1 1 IN IP4 h\nm=audio -1 RTP/AVP 0\n",
        "v=0\no=- 1 1 IN IP4 h\nm =audio 1 RTP/AVP 0\n",
        "v=0\no=- 1 1 IN IP4 h\nc=IN IP4\n",
        "v=0\no=- 1 1 IN IP4 h\nc=ATM NSAP x\n",
        "v=0\no=- 1 1 IN IP4 h\nno equals\n",
        "v=0\no=- 1 1 IN IP4 h\ns=a\0b\n",
        "v=0\no=- 1 1 IN IP4 h\n" + "m=audio 1 RTP/AVP 0\n" * 33,
        "v=0\no=- 1 1 IN IP4 h\n" + "a=x\n" * 3000,
    ],
)
def test_malformed_is_400(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        SessionDescription.parse(text.encode())
    assert caught.value.status == 400


def test_careless_descriptions_are_read() -> None:
    # Bare LF, no s= nor t=, a port count, lines of no meaning to us, a strange payload type.
    text = (
        "v=0\no=- 1 1 IN IP4 h\nz=0 0\nk=x\nm=audio 5004/2 RTP/AVP 0 x 999 200\n"
        "c=IN IP4 192.0.2.1/127\na=rtpmap:x\na=rtpmap:200 A/1\n\n"
    )
    description = SessionDescription.parse(text.encode())
    assert description.media[0].audio_formats() == [AudioFormat(0, "PCMU", 8000)]
    assert description.address_of(description.media[0]) == "192.0.2.1"


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from((BARESIP + LINPHONE + PJSUA).splitlines()), max_size=20).map("\n".join).map(str.encode)
)
def test_any_bytes_parse_and_negotiate_or_raise_peer_error(data: bytes) -> None:
    try:
        description = SessionDescription.parse(data)
        assert SessionDescription.parse(description.serialise()) == description
        ours, audio = make_answer(description, "192.0.2.1", 4000, ["PCMU", "PCMA"], session_id=1, version=1)
    except PeerError:
        return
    assert len(ours.media) == len(description.media)
    assert sum(media.port != 0 for media in ours.media) == 1
    assert SessionDescription.parse(ours.serialise()) == ours
    assert 0 < audio.port < 65536
    assert 10 <= audio.ptime_ms <= 60
    assert 0 <= audio.payload_type < 128


def test_wrong_arguments_are_our_bug() -> None:
    with pytest.raises(UsageError):
        make_offer("192.0.2.1", 4000, ["speex"], session_id=1, version=1)
    with pytest.raises(UsageError):
        make_offer("localhost", 4000, ["PCMU"], session_id=1, version=1)
    with pytest.raises(UsageError):
        make_offer("192.0.2.1", 4000, ["PCMU"], session_id=1, version=1, direction="both")
