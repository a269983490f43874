"""Messages between the engine and a media worker.

A stream socket carries frames: four bytes of length (big-endian), then one
MessagePack array `[tag, field, …]`. New fields go at the end of a message with
a default, so an older side ignores them and a newer side fills them in. A change that
breaks this raises `VERSION`; the two sides compare it in Hello and Welcome and
a worker refuses (Refused, then close) an engine whose version it does not speak.

Only one engine is connected at a time: a newer connection replaces an older
one. While none is, a worker buffers up to `EVENT_BACKLOG` events and carries on.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

VERSION = 2
MAX_FRAME = 1 << 20
EVENT_BACKLOG = 10_000


class Codec(IntEnum):
    """Codecs by their static RTP payload type where one exists (RFC 3551)."""

    PCMU = 0
    PCMA = 8


class Direction(IntEnum):
    """What the far side wants of the stream, seen from us (RFC 3264)."""

    SENDRECV = 0
    SENDONLY = 1  # we send, it does not: it put us on hold with music, or listens only
    RECVONLY = 2  # it sends, we do not
    INACTIVE = 3


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


# --- engine → worker ----------------------------------------------------------------------


class Hello(_Message, frozen=True):
    version: int
    engine: str  # a name for the logs


class LoadPrompt(_Message, frozen=True):
    """Read an audio file (off the loop) and keep it encoded per codec; a repeated name replaces."""

    prompt: str
    path: str


class OpenLeg(_Message, frozen=True):
    """Reserve an RTP/RTCP port pair for a leg; LegOpened or LegFailed follows."""

    leg: str
    call: str


class SetRemote(_Message, frozen=True):
    """Where and how to send to a leg. May be repeated (re-INVITE)."""

    leg: str
    address: str
    port: int
    codec: Codec
    payload_type: int
    dtmf_payload_type: int | None = None  # RFC 4733 telephone-event, None: not negotiated
    ptime_ms: int = 20
    direction: Direction = Direction.SENDRECV
    rtcp_port: int | None = None  # None: port + 1


class CloseLeg(_Message, frozen=True):
    """Release a leg's ports; LegClosed with its figures follows."""

    leg: str


class MoveLeg(_Message, frozen=True):
    """Make a leg part of another call; its audio and its bridge stay as they are."""

    leg: str
    call: str


class Bridge(_Message, frozen=True):
    a: str
    b: str


class Unbridge(_Message, frozen=True):
    a: str
    b: str


class Play(_Message, frozen=True):
    leg: str
    play: str
    prompt: str
    loop: bool = False


class StopPlay(_Message, frozen=True):
    leg: str


class Echo(_Message, frozen=True):
    leg: str
    on: bool


class SendDtmf(_Message, frozen=True):
    leg: str
    digits: str
    duration_ms: int = 100


class StartRecording(_Message, frozen=True):
    """Record two legs into one stereo WAV at `path` (left, right)."""

    call: str
    left: str
    right: str
    path: str


class StopRecording(_Message, frozen=True):
    call: str


class PutSnapshot(_Message, frozen=True):
    """Keep the engine's opaque state of a call for the next engine."""

    call: str
    data: bytes


class ReleaseCall(_Message, frozen=True):
    """Close whatever is left of a call and forget its snapshot."""

    call: str


class AskStatistics(_Message, frozen=True):
    """WorkerStatistics follows."""


class Quit(_Message, frozen=True):
    """Finish recordings, close everything and exit."""


# --- worker → engine ----------------------------------------------------------------------


class KeptCall(msgspec.Struct, frozen=True, array_like=True):
    """A call that the worker carried on for an engine that went away."""

    call: str
    legs: list[str]
    snapshot: bytes


class Welcome(_Message, frozen=True):
    version: int
    worker: str
    pid: int
    calls: list[KeptCall]
    more: int = 0  # frames of KeptCalls that follow, where the calls exceed one frame


class KeptCalls(_Message, frozen=True):
    """The rest of a Welcome's calls."""

    calls: list[KeptCall]


class Refused(_Message, frozen=True):
    reason: str


class PromptLoaded(_Message, frozen=True):
    prompt: str
    duration_ms: int


class PromptFailed(_Message, frozen=True):
    prompt: str
    reason: str


class LegOpened(_Message, frozen=True):
    leg: str
    port: int  # RTP; RTCP is port + 1


class LegFailed(_Message, frozen=True):
    leg: str
    reason: str


class LegStatistics(msgspec.Struct, frozen=True, array_like=True):
    """Figures of one leg; `MediaStatistics` of engine.events, on the wire."""

    codec: str
    packets_received: int
    packets_sent: int
    packets_lost: int
    packets_discarded: int
    jitter_ms: float
    remote_packets_lost: int | None
    remote_jitter_ms: float | None
    round_trip_ms: float | None


class LegClosed(_Message, frozen=True):
    leg: str
    call: str
    statistics: LegStatistics


class PlayEnded(_Message, frozen=True):
    leg: str
    play: str
    completed: bool


class Dtmf(_Message, frozen=True):
    leg: str
    digit: str
    duration_ms: int


class MediaSilent(_Message, frozen=True):
    """RTP (and RTCP) from a leg had been flowing and has stopped for `silent_ms`; sent once per stop."""

    leg: str
    silent_ms: int


class MediaResumed(_Message, frozen=True):
    leg: str


class RecordingEnded(_Message, frozen=True):
    call: str
    path: str
    duration_ms: int
    size_bytes: int
    sha256: str
    error: str = ""


class OrphanEnded(_Message, frozen=True):
    """No engine claimed this call, and its audio stopped: the worker closed it."""

    call: str


class WorkerStatistics(_Message, frozen=True):
    legs: int
    calls: int
    ports_free: int
    packets_received: int
    packets_sent: int
    packets_discarded: int
    events_dropped: int  # lost while no engine was connected and the backlog was full
    commands_ignored: int = 0  # of unknown legs or prompts, or with values that make no sense
    faults: int = 0  # exceptions that a handler let escape: bugs


Command = (
    Hello
    | LoadPrompt
    | OpenLeg
    | SetRemote
    | CloseLeg
    | MoveLeg
    | Bridge
    | Unbridge
    | Play
    | StopPlay
    | Echo
    | SendDtmf
    | StartRecording
    | StopRecording
    | PutSnapshot
    | ReleaseCall
    | AskStatistics
    | Quit
)
Event = (
    Welcome
    | KeptCalls
    | Refused
    | PromptLoaded
    | PromptFailed
    | LegOpened
    | LegFailed
    | LegClosed
    | PlayEnded
    | Dtmf
    | MediaSilent
    | MediaResumed
    | RecordingEnded
    | OrphanEnded
    | WorkerStatistics
)
