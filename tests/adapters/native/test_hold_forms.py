"""Every way in which phones put a call on hold and take it back."""

from __future__ import annotations

import pytest

from adapters.native.audio import LegAudio
from adapters.sip.errors import PeerError
from adapters.sip.syntax.sdp import SessionDescription
from media.client import Direction

PHONE = "192.0.2.7"


def described(*media: str, address: str = PHONE) -> SessionDescription:
    version = "6" if ":" in address else "4"
    lines = ["v=0", f"o=- 1 1 IN IP4 {PHONE}", "s=-", f"c=IN IP{version} {address}", "t=0 0", *media]
    return SessionDescription.parse("\r\n".join(lines).encode())


AUDIO = "m=audio 4000 RTP/AVP 0"


def talking() -> LegAudio:
    audio = LegAudio(1)
    audio.answer(described(AUDIO), "198.51.100.1", 20000, None)
    assert audio.remote("leg").direction is Direction.SENDRECV
    return audio


@pytest.mark.parametrize(
    ("offer", "direction", "held", "answered"),
    [
        (described(AUDIO, "a=sendonly"), Direction.RECVONLY, True, b"a=recvonly"),
        (described(AUDIO, "a=inactive"), Direction.INACTIVE, True, b"a=inactive"),
        (described(AUDIO, "a=recvonly"), Direction.SENDONLY, False, b"a=sendonly"),  # it listens: music can be heard
        (described("a=sendonly", AUDIO), Direction.RECVONLY, True, b"a=recvonly"),
        (described(AUDIO, address="0.0.0.0"), Direction.RECVONLY, True, b"a=recvonly"),
        (described(AUDIO, address="::"), Direction.RECVONLY, True, b"a=recvonly"),
        (described(AUDIO, "c=IN IP4 0.0.0.0"), Direction.RECVONLY, True, b"a=recvonly"),
        (described(AUDIO, "c=IN IP4 0.0.0.0", "a=inactive"), Direction.INACTIVE, True, b"a=inactive"),
        (described("m=video 5000 RTP/AVP 96", AUDIO, "a=sendonly"), Direction.RECVONLY, True, b"a=recvonly"),
        (described("m=audio 0 RTP/AVP 0", AUDIO, "a=inactive"), Direction.INACTIVE, True, b"a=inactive"),
    ],
)
def test_hold_is_understood_and_resumed(
    offer: SessionDescription, direction: Direction, held: bool, answered: bytes
) -> None:
    audio = talking()
    answer = audio.answer(offer, "198.51.100.1", 20000, "PCMU")
    assert audio.agreed is not None
    assert audio.agreed.held is held
    remote = audio.remote("leg")
    assert remote.direction is direction
    assert (remote.address, remote.port) == (PHONE, 4000)  # an address that is none moves nothing
    assert answered in answer
    assert len(SessionDescription.parse(answer).media) == len(offer.media)
    back = audio.answer(described(AUDIO), "198.51.100.1", 20000, "PCMU")
    assert not audio.agreed.held
    assert audio.remote("leg").direction is Direction.SENDRECV
    versions = [SessionDescription.parse(body).origin.version for body in (answer, back)]
    assert versions == ["2", "3"]  # one more each time (RFC 3264 8)


def test_phone_held_by_its_own_answer_is_resumed_by_it() -> None:
    audio = talking()
    for lines, held in (((AUDIO, "a=inactive"), True), ((AUDIO,), False)):
        audio.offer("198.51.100.1", 20000, "PCMU")
        audio.read(described(*lines).serialise())
        assert audio.agreed is not None
        assert audio.agreed.held is held


def test_declined_audio_is_refused_and_changes_nothing() -> None:
    audio = talking()
    for offer in (described("m=audio 0 RTP/AVP 0"), described(), described("m=video 5000 RTP/AVP 96")):
        with pytest.raises(PeerError) as caught:
            audio.answer(offer, "198.51.100.1", 20000, "PCMU")
        assert caught.value.status == 488
    assert audio.remote("leg").direction is Direction.SENDRECV
    answer = audio.answer(described(AUDIO), "198.51.100.1", 20000, "PCMU")
    assert SessionDescription.parse(answer).origin.version == "2"
