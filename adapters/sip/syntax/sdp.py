"""Session descriptions and the offer/answer model (RFC 8866, RFC 3264).

As much as telephony needs: one audio stream is negotiated, every other stream
of an offer is declined in its place. Lines without a meaning for us are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from adapters.sip.errors import PeerError, UsageError

CONTENT_TYPE = "application/sdp"
DTMF_PAYLOAD_TYPE = 101  # what we offer for telephone-event (RFC 4733)
DEFAULT_PTIME_MS = 20

_MAX_MEDIA = 32
_MAX_FORMATS = 128  # as many as there are payload types
_MAX_LINES = 2048
_CACHED_LENGTH = 80  # no rtpmap or address is longer
_PTIMES_MS = frozenset({10, 20, 30, 40, 50, 60})
_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_MIRRORED = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
# Feedback profile too: it is RTP/AVP for who sends no feedback (RFC 4585).
_PROFILES = frozenset({"RTP/AVP", "RTP/AVPF"})
_TELEPHONE_EVENT = "TELEPHONE-EVENT"


class AudioFormat(NamedTuple):
    """An RTP payload format (RFC 3551, a=rtpmap)."""

    payload_type: int
    encoding: str
    clock_rate_hz: int
    channels: int = 1

    def is_like(self, other: AudioFormat) -> bool:
        """Whether both are the same format, whatever its payload type here and there."""
        return (self.encoding.upper(), self.clock_rate_hz, self.channels) == (
            other.encoding.upper(),
            other.clock_rate_hz,
            other.channels,
        )


# Payload types that need no rtpmap (RFC 3551 6). G722 says 8000 for historical reasons.
_STATIC = {
    fmt.payload_type: fmt
    for fmt in (
        AudioFormat(0, "PCMU", 8000),
        AudioFormat(3, "GSM", 8000),
        AudioFormat(4, "G723", 8000),
        AudioFormat(8, "PCMA", 8000),
        AudioFormat(9, "G722", 8000),
        AudioFormat(10, "L16", 44100, 2),
        AudioFormat(11, "L16", 44100),
        AudioFormat(13, "CN", 8000),
        AudioFormat(15, "G728", 8000),
        AudioFormat(18, "G729", 8000),
    )
}
_BY_NAME = {"PCMU": _STATIC[0], "PCMA": _STATIC[8], "G722": _STATIC[9]}
_DTMF = AudioFormat(DTMF_PAYLOAD_TYPE, "telephone-event", 8000)


class Origin(NamedTuple):
    """The o= line. Numbers stay text: peers send more than 64 bits."""

    username: str
    session_id: str
    version: str
    address: str


class MediaDescription(NamedTuple):
    """An m= line and what follows it.

    Attributes:
        kind: "audio", "video" and so on.
        port: 0 when declined.
        formats: payload types, for RTP profiles.
        address: from its own c= line, None if it has none.
        attributes: name and value; None for a flag.
    """

    kind: str
    port: int
    profile: str
    formats: tuple[str, ...]
    address: str | None = None
    attributes: tuple[tuple[str, str | None], ...] = ()

    def audio_formats(self) -> list[AudioFormat]:
        """Formats that can be told, in the order of the m= line."""
        mapped = {}
        for name, value in self.attributes:
            if name == "rtpmap" and value is not None:
                fmt = _read_rtpmap(value)
                if fmt is not None:
                    mapped[fmt.payload_type] = fmt
        numbers = [int(text) for text in self.formats if text.isascii() and text.isdigit() and len(text) <= 3]
        return [fmt for number in numbers if number < 128 and (fmt := mapped.get(number) or _STATIC.get(number))]


class SessionDescription(NamedTuple):
    """A session description.

    Attributes:
        address: from the session's c= line, None if it has none.
        attributes: of the session; name and value, None for a flag.
    """

    origin: Origin
    address: str | None
    media: tuple[MediaDescription, ...]
    name: str = "-"
    attributes: tuple[tuple[str, str | None], ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> SessionDescription:
        """Read a description. Missing s= and t= lines, bare LF and unknown lines are let pass.

        Raises:
            PeerError: 400, malformed. Nothing else escapes.
        """
        text = data.decode("utf-8", "surrogateescape")
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        if len(lines) > _MAX_LINES:
            raise PeerError("overlong session description")
        reader = _Reader()
        for line in lines:
            if line.strip():
                reader.read(line)
        return reader.finish()

    def serialise(self) -> bytes:
        """Write the description."""
        origin = self.origin
        lines = [
            "v=0",
            f"o={origin.username} {origin.session_id} {origin.version} {_network(origin.address)}",
            f"s={self.name}",
        ]
        if self.address is not None:
            lines.append(f"c={_network(self.address)}")
        lines.append("t=0 0")
        lines += map(_write_attribute, self.attributes)
        for media in self.media:
            lines.append(f"m={media.kind} {media.port} {media.profile} {' '.join(media.formats)}")
            if media.address is not None:
                lines.append(f"c={_network(media.address)}")
            lines += map(_write_attribute, media.attributes)
        return ("\r\n".join(lines) + "\r\n").encode("utf-8", "surrogateescape")

    def direction_of(self, media: MediaDescription) -> str:
        """Direction of a stream as its author sees it (RFC 3264 5.1); sendrecv by default."""
        for attributes in (media.attributes, self.attributes):
            for name, _ in attributes:
                if name in _MIRRORED:
                    return name
        return "sendrecv"

    def address_of(self, media: MediaDescription) -> str | None:
        """Where the stream is wanted, None if no c= line says."""
        return self.address if media.address is None else media.address


class NegotiatedAudio(NamedTuple):
    """What offer and answer agreed on.

    Attributes:
        codec: "PCMU", "PCMA" or "G722".
        payload_type: to put on packets we send.
        receive_payload_type: on the packets we get.
        dtmf_payload_type: of telephone-events we send; None if not agreed.
        receive_dtmf_payload_type: of those we get; None if not agreed.
        ptime_ms: audio in each packet we send.
        address: IP address to send to; "0.0.0.0" or "::" in an old-style hold,
            and direction then forbids sending.
        port: RTP port to send to.
        rtcp_port: None for port + 1.
        direction: as seen from us: "sendrecv", "sendonly" (we only send),
            "recvonly", "inactive".
        held: the peer put us on hold.
    """

    codec: str
    payload_type: int
    receive_payload_type: int
    dtmf_payload_type: int | None
    receive_dtmf_payload_type: int | None
    ptime_ms: int
    address: str
    port: int
    rtcp_port: int | None
    direction: str
    held: bool


def make_offer(
    address: str,
    port: int,
    codecs: Sequence[str],
    *,
    session_id: int,
    version: int,
    direction: str = "sendrecv",
    ptime_ms: int = DEFAULT_PTIME_MS,
) -> SessionDescription:
    """Offer one audio stream with telephone-events.

    Args:
        address: our IP address for RTP.
        port: our RTP port; RTCP is at the next one.
        codecs: names, preferred first.
        session_id: stays the same through a dialog.
        version: one more with each changed description of the dialog.
        direction: as seen from us.
        ptime_ms: audio per packet that we like to get.

    Raises:
        UsageError: unknown codec, direction, or an address that is none.
    """
    formats = (*_formats(codecs), _DTMF)
    media = _audio(port, "RTP/AVP", formats, _checked_direction(direction), ptime_ms)
    return _ours(address, session_id, version, (media,))


def make_answer(
    offer: SessionDescription,
    address: str,
    port: int,
    codecs: Sequence[str],
    *,
    session_id: int,
    version: int,
    direction: str = "sendrecv",
) -> tuple[SessionDescription, NegotiatedAudio]:
    """Answer with one codec (and telephone-events), declining all streams but one.

    Args:
        offer: the peer's.
        address: our IP address for RTP.
        port: our RTP port; RTCP is at the next one.
        codecs: names, preferred first; our order decides.
        session_id: stays the same through a dialog.
        version: one more with each changed description of the dialog.
        direction: what we would like; the offer may narrow it.

    Raises:
        PeerError: 488, nothing in the offer that we can do.
        UsageError: unknown codec, direction, or an address that is none.
    """
    wanted = _formats(codecs)
    _checked_direction(direction)
    for theirs in offer.media:
        if is_usable(offer, theirs):
            formats = theirs.audio_formats()
            codec = _first_common(wanted, formats)
            if codec is not None:
                break
    else:
        raise PeerError("no audio stream in common", status=488)
    dtmf = _dtmf_of(formats)
    audio = _negotiated(offer, theirs, codec, codec.payload_type, dtmf, dtmf, direction)
    answered = (codec,) if dtmf is None else (codec, AudioFormat(dtmf, "telephone-event", 8000))
    media_lines = tuple(
        _audio(port, theirs.profile, answered, audio.direction, audio.ptime_ms)
        if media is theirs
        else MediaDescription(media.kind, 0, media.profile, media.formats)
        for media in offer.media
    )
    return _ours(address, session_id, version, media_lines), audio


def read_answer(offer: SessionDescription, answer: SessionDescription) -> NegotiatedAudio:
    """Read the peer's answer to an offer of make_offer.

    The first of the answer's codecs that we offered is the one.

    Raises:
        PeerError: 488, the stream was declined or has nothing that we offered.
    """
    if not answer.media:
        raise PeerError("answer without media", status=488)
    ours, theirs = offer.media[0], answer.media[0]
    if not is_usable(answer, theirs):
        raise PeerError("audio was declined", status=488)
    offered = [fmt for fmt in ours.audio_formats() if fmt.encoding.upper() != _TELEPHONE_EVENT]
    formats = theirs.audio_formats()
    for codec in formats:
        for own in offered:
            if codec.is_like(own):
                dtmf = _dtmf_of(formats)
                own_dtmf = None if dtmf is None else _dtmf_of(ours.audio_formats())
                return _negotiated(answer, theirs, codec, own.payload_type, dtmf, own_dtmf, offer.direction_of(ours))
    raise PeerError("no codec in common", status=488)


def _negotiated(
    description: SessionDescription,
    media: MediaDescription,
    codec: AudioFormat,
    receive_payload_type: int,
    dtmf: int | None,
    receive_dtmf: int | None,
    wish: str,
) -> NegotiatedAudio:
    """Put together what the peer's stream and our wish for the direction give."""
    address, unspecified, _ = _address(description.address_of(media) or "")
    theirs = description.direction_of(media)
    mirrored = _MIRRORED[theirs]
    # Old phones hold with the address 0.0.0.0 (RFC 3264 8.4): there is nowhere to send to.
    sends = mirrored in ("sendrecv", "sendonly") and wish in ("sendrecv", "sendonly") and not unspecified
    receives = mirrored in ("sendrecv", "recvonly") and wish in ("sendrecv", "recvonly")
    return NegotiatedAudio(
        codec=codec.encoding.upper(),
        payload_type=codec.payload_type,
        receive_payload_type=receive_payload_type,
        dtmf_payload_type=dtmf,
        receive_dtmf_payload_type=receive_dtmf,
        ptime_ms=_ptime(media),
        address=address,
        port=media.port,
        rtcp_port=_rtcp_port(media),
        direction=_DIRECTIONS[(not sends) * 2 + (not receives)],
        held=unspecified or theirs in ("sendonly", "inactive"),
    )


def is_usable(description: SessionDescription, media: MediaDescription) -> bool:
    """Whether this is an audio stream that we could serve, codecs aside."""
    if media.kind != "audio" or media.port == 0 or media.profile.upper() not in _PROFILES:
        return False
    try:
        return _address(description.address_of(media) or "").single
    except PeerError:
        return False


class _Address(NamedTuple):
    """An IP address in its usual form; `single`: a stream to many is a way to make us flood others."""

    text: str
    unspecified: bool
    single: bool


@lru_cache(maxsize=4096)
def _read_address(text: str) -> _Address:
    address = ip_address(text)
    return _Address(
        str(address), address.is_unspecified, not address.is_multicast and str(address) != "255.255.255.255"
    )


def _address(text: str) -> _Address:
    try:
        # A peer's zone means nothing here.
        return _read_address("" if "%" in text or len(text) > _CACHED_LENGTH else text)
    except ValueError:
        raise PeerError("not an IP address", status=488) from None


def _first_common(wanted: Sequence[AudioFormat], formats: Sequence[AudioFormat]) -> AudioFormat | None:
    """The peer's format for the first of ours that it has."""
    return next((fmt for own in wanted for fmt in formats if fmt.is_like(own)), None)


def _dtmf_of(formats: Sequence[AudioFormat]) -> int | None:
    return next((fmt.payload_type for fmt in formats if fmt.is_like(_DTMF)), None)


def _ptime(media: MediaDescription) -> int:
    """Audio per packet that the peer likes, kept to what is usual."""
    values = {"ptime": DEFAULT_PTIME_MS, "maxptime": max(_PTIMES_MS)}
    for name, value in media.attributes:
        if name in values and value is not None and value.isascii() and value.isdigit() and len(value) <= 4:
            values[name] = int(value)
    ptime_ms = values["ptime"] if values["ptime"] in _PTIMES_MS else DEFAULT_PTIME_MS
    return max(min(ptime_ms, values["maxptime"] // 10 * 10), min(_PTIMES_MS))


def _rtcp_port(media: MediaDescription) -> int | None:
    """Port of a=rtcp (RFC 3605); an address there is ignored, as it is never another one."""
    for name, value in media.attributes:
        if name == "rtcp" and value:
            port = value.split()[0] if value.split() else ""
            if port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536:
                return int(port)
    return None


def _formats(codecs: Sequence[str]) -> tuple[AudioFormat, ...]:
    try:
        return tuple([_BY_NAME[name] for name in codecs])
    except KeyError as exc:
        raise UsageError(f"unknown codec: {exc.args[0]!r}") from None


def _checked_direction(direction: str) -> str:
    if direction not in _MIRRORED:
        raise UsageError(f"not a direction: {direction!r}")
    return direction


def _audio(
    port: int, profile: str, formats: tuple[AudioFormat, ...], direction: str, ptime_ms: int
) -> MediaDescription:
    numbers, attributes = _audio_lines(formats, direction, ptime_ms)
    return MediaDescription("audio", port, profile, numbers, None, attributes)


@lru_cache(maxsize=256)
def _audio_lines(
    formats: tuple[AudioFormat, ...], direction: str, ptime_ms: int
) -> tuple[tuple[str, ...], tuple[tuple[str, str | None], ...]]:
    """Payload types and attributes, which are the same in nearly all calls."""
    attributes: list[tuple[str, str | None]] = []
    for fmt in formats:
        channels = f"/{fmt.channels}" if fmt.channels > 1 else ""
        attributes.append(("rtpmap", f"{fmt.payload_type} {fmt.encoding}/{fmt.clock_rate_hz}{channels}"))
        if fmt.encoding.upper() == _TELEPHONE_EVENT:
            attributes.append(("fmtp", f"{fmt.payload_type} 0-16"))
    attributes += [("ptime", str(ptime_ms)), (direction, None)]
    return tuple(str(fmt.payload_type) for fmt in formats), tuple(attributes)


def _ours(address: str, session_id: int, version: int, media: tuple[MediaDescription, ...]) -> SessionDescription:
    try:
        _read_address(address)
    except ValueError:
        raise UsageError(f"not an IP address: {address!r}") from None
    return SessionDescription(Origin("-", str(session_id), str(version), address), address, media)


def _network(address: str) -> str:
    return f"IN {'IP6' if ':' in address else 'IP4'} {address}"


def _write_attribute(attribute: tuple[str, str | None]) -> str:
    name, value = attribute
    return f"a={name}" if value is None else f"a={name}:{value}"


def _read_rtpmap(value: str) -> AudioFormat | None:
    """Read `payload encoding/clock[/channels]`; None if it is not that."""
    return _read_rtpmap_cached(value) if len(value) <= _CACHED_LENGTH else None


@lru_cache(maxsize=1024)
def _read_rtpmap_cached(value: str) -> AudioFormat | None:
    number, _, rest = value.strip().partition(" ")
    encoding, _, rest = rest.strip().partition("/")
    clock, _, channels = rest.partition("/")
    numbers = (number, clock, channels or "1")
    if not encoding or not all(text.isascii() and text.isdigit() and len(text) <= 6 for text in numbers):
        return None
    return AudioFormat(int(number), encoding, int(clock), int(channels or "1"))


@dataclass(slots=True)
class _Reader:
    """Collects the lines of a description."""

    origin: Origin | None = None
    name: str = "-"
    address: str | None = None
    attributes: list[tuple[str, str | None]] = field(default_factory=list)
    media: list[MediaDescription] = field(default_factory=list)
    versioned: bool = False
    _m_line: str | None = None
    _m_address: str | None = None
    _m_attributes: list[tuple[str, str | None]] = field(default_factory=list)

    def read(self, line: str) -> None:
        kind, equals, value = line[:1], line[1:2], line[2:]
        if equals != "=" or not (kind.isascii() and kind.islower()) or "\r" in value or "\0" in value:
            raise PeerError("malformed line in session description")
        if not self.versioned:
            if kind != "v" or value.strip() != "0":
                raise PeerError("session description does not begin with v=0")
            self.versioned = True
        elif kind == "o" and self._m_line is None:
            self.origin = _read_origin(value)
        elif kind == "s" and self._m_line is None:
            self.name = value
        elif kind == "c":
            if self._m_line is None:
                self.address = _read_connection(value)
            elif self._m_address is None:  # the first of several layers
                self._m_address = _read_connection(value)
        elif kind == "m":
            self._end_media()
            self._m_line = value
        elif kind == "a":
            name, colon, text = value.partition(":")
            attribute = (name.strip(), text.strip() if colon else None)
            (self.attributes if self._m_line is None else self._m_attributes).append(attribute)

    def finish(self) -> SessionDescription:
        self._end_media()
        if self.origin is None:
            raise PeerError("session description without o=")
        return SessionDescription(self.origin, self.address, tuple(self.media), self.name, tuple(self.attributes))

    def _end_media(self) -> None:
        if self._m_line is None:
            return
        parts = self._m_line.split()
        if not 4 <= len(parts) <= 3 + _MAX_FORMATS or len(self.media) >= _MAX_MEDIA:
            raise PeerError("malformed m= line, or too many")
        port = parts[1].partition("/")[0]
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536):
            raise PeerError("malformed port in m= line")
        self.media.append(
            MediaDescription(
                parts[0].lower(), int(port), parts[2], tuple(parts[3:]), self._m_address, tuple(self._m_attributes)
            )
        )
        self._m_line = self._m_address = None
        self._m_attributes = []


def _read_origin(value: str) -> Origin:
    parts = value.split()
    if len(parts) != 6:
        raise PeerError("malformed o= line")
    return Origin(parts[0], parts[1], parts[2], parts[5])


def _read_connection(value: str) -> str:
    parts = value.split()
    if len(parts) != 3 or parts[0].upper() != "IN" or parts[1].upper() not in ("IP4", "IP6"):
        raise PeerError("malformed c= line")
    address = parts[2].partition("/")[0]
    if not address:
        raise PeerError("malformed c= line")
    return address
