"""Offer and answer of one leg: between session descriptions and the worker's SetRemote."""

from __future__ import annotations

from adapters.sip.errors import PeerError
from adapters.sip.syntax.sdp import NegotiatedAudio, SessionDescription, is_usable, make_answer, make_offer, read_answer
from media.client import Codec, Direction, SetRemote

CODECS = ("PCMU", "PCMA")

_CODEC = {"PCMU": Codec.PCMU, "PCMA": Codec.PCMA}
_DIRECTION = {
    "sendrecv": Direction.SENDRECV,
    "sendonly": Direction.SENDONLY,
    "recvonly": Direction.RECVONLY,
    "inactive": Direction.INACTIVE,
}
_UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - the old way to say "on hold", not a bind address


class LegAudio:
    """What one leg has offered, was offered and agreed to.

    Args:
        session_id: of our descriptions, the same through the dialog.

    Attributes:
        agreed: the last agreement, None before the first.
    """

    __slots__ = ("_last_address", "_offer", "_session_id", "_version", "agreed")

    def __init__(self, session_id: int) -> None:
        self.agreed: NegotiatedAudio | None = None
        self._session_id = session_id
        self._version = 0
        self._offer: SessionDescription | None = None
        self._last_address: tuple[str, int] | None = None

    @property
    def codec(self) -> str | None:
        """Codec agreed on, or None."""
        return None if self.agreed is None else self.agreed.codec

    def offer(self, address: str, port: int, preferred: str | None) -> bytes:
        """Our offer, `preferred` codec first; `read` takes the answer."""
        self._version += 1
        self._offer = make_offer(
            address, port, preferring(preferred), session_id=self._session_id, version=self._version
        )
        return self._offer.serialise()

    def read(self, body: bytes) -> None:
        """Take the answer to our last offer.

        Raises:
            PeerError: malformed, or nothing in common.
        """
        if self._offer is None:
            raise PeerError("answer without an offer", status=488)
        self._agree(read_answer(self._offer, SessionDescription.parse(body)))

    def answer(self, offer: SessionDescription, address: str, port: int, preferred: str | None) -> bytes:
        """Our answer, `preferred` codec first.

        Raises:
            PeerError: 488, nothing in common.
        """
        description, agreed = make_answer(
            offer, address, port, preferring(preferred), session_id=self._session_id, version=self._version + 1
        )
        self._version += 1  # of what is sent: an offer that we refuse counts nothing
        self._agree(agreed)
        return description.serialise()

    def remote(self, leg_id: str) -> SetRemote:
        """The agreement, for the worker."""
        agreed = self.agreed
        assert agreed is not None
        assert self._last_address is not None
        address, port = self._last_address
        return SetRemote(
            leg_id,
            address,
            port,
            _CODEC[agreed.codec],
            agreed.payload_type,
            agreed.dtmf_payload_type,
            agreed.ptime_ms,
            _DIRECTION[agreed.direction],
            agreed.rtcp_port,
        )

    def _agree(self, agreed: NegotiatedAudio) -> None:
        # A hold by address 0.0.0.0 says nothing of where the phone is: keep what is known.
        if agreed.address not in _UNSPECIFIED or self._last_address is None:
            self._last_address = (agreed.address, agreed.port)
        self.agreed = agreed


def preferring(codec: str | None) -> tuple[str, ...]:
    """Our codecs with one of them first."""
    return CODECS if codec is None or codec == CODECS[0] else (codec, *(name for name in CODECS if name != codec))


def first_common(offer: SessionDescription) -> str | None:
    """The codec that the author of an offer likes best among ours, None if `answer` would find none."""
    for media in offer.media:
        if is_usable(offer, media):
            for fmt in media.audio_formats():
                if fmt.encoding.upper() in CODECS and fmt.clock_rate_hz == 8000:
                    return fmt.encoding.upper()
    return None
