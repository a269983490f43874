"""RTP packets (RFC 3550 section 5) and what is counted of a received stream (appendix A)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

CLOCK_RATE_HZ: Final = 8000  # of every codec, telephone-event and comfort noise that we carry
HEADER: Final = struct.Struct("!BBHII")
HEADER_BYTES: Final = HEADER.size
MARKER: Final = 0x80
PLAIN: Final = 0x80  # first byte: version 2, no padding, no extension, no contributing sources
COMFORT_NOISE: Final = 13  # RFC 3389

_MAX_DROPOUT: Final = 3000
_MAX_MISORDER: Final = 100

# What `Reception.on_packet` says about a packet's place in its stream.
ADVANCED: Final = 0
LATE: Final = 1
RESTARTED: Final = 2


class RtpError(ValueError):
    """The bytes are not an RTP packet."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A parsed header and where the payload lies in the datagram."""

    payload_type: int
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    start: int
    end: int


def parse(data: bytes | bytearray, size: int) -> Packet:
    """Parse the first `size` bytes of `data`.

    Raises:
        RtpError: wrong version, too short, or lengths that do not fit. Nothing else.
    """
    if size < HEADER_BYTES or size > len(data):
        raise RtpError("shorter than an RTP header")
    first, second, sequence, timestamp, ssrc = HEADER.unpack_from(data)
    if first >> 6 != 2:
        raise RtpError("not version 2")
    start = HEADER_BYTES + 4 * (first & 0x0F)
    if first & 0x10:
        if start + 4 > size:
            raise RtpError("extension header cut off")
        start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
    end = size
    if first & 0x20:
        padding = data[size - 1]
        if padding == 0:
            raise RtpError("padding of length zero")
        end -= padding
    if start > end:
        raise RtpError("lengths exceed the packet")
    return Packet(second & 0x7F, bool(second & MARKER), sequence, timestamp, ssrc, start, end)


class Reception:
    """Counts of one received stream: sequence (A.1), loss (A.3), jitter (A.8).

    Streams follow each other when the SSRC changes or a sender restarts; the
    totals carry on. `last_arrival` is monotonic seconds, 0.0 before the first packet.
    """

    __slots__ = (
        "_bad_next",
        "_base",
        "_cycles",
        "_expected_before",
        "_highest",
        "_interval_expected",
        "_interval_received",
        "_jitter",
        "_started",
        "_transit",
        "last_arrival",
        "received",
    )

    def __init__(self) -> None:
        self.received = 0
        self.last_arrival = 0.0
        self._started = False
        self._highest = 0
        self._cycles = 0
        self._base = 0
        self._bad_next = -1
        self._expected_before = 0  # of streams that have ended
        self._interval_expected = 0
        self._interval_received = 0
        self._transit = 0.0
        self._jitter = 0.0  # timestamp units

    def begin(self, sequence: int) -> None:
        """A new stream (SSRC) starts; its first packet has this sequence number."""
        if self._started:
            self._expected_before += self._cycles + self._highest - self._base + 1
        self._started = True
        self._base = sequence
        self._highest = (sequence - 1) & 0xFFFF
        # The first packet makes `highest` wrap from 65535 to 0; that is no cycle.
        self._cycles = -0x10000 if sequence == 0 else 0
        self._bad_next = -1
        self._transit = 0.0

    def on_packet(self, sequence: int, timestamp: int, now: float) -> int:
        """Count one packet of the current stream: ADVANCED, LATE (or repeated) or RESTARTED.

        Part of the relay's hot path: the usual packet takes the first branch.
        """
        self.received += 1
        self.last_arrival = now
        transit = now * 8000.0 - timestamp
        change = transit - self._transit
        self._transit = transit
        if change < 0.0:
            change = -change
        # A change of seconds is a wrapped or restarted clock, not jitter.
        if change < 80000.0:
            self._jitter += (change - self._jitter) * 0.0625
        step = (sequence - self._highest) & 0xFFFF
        if step == 1:
            self._highest = sequence
            if sequence == 0:
                self._cycles += 0x10000
            return ADVANCED
        return self._on_step(sequence, step)

    def _on_step(self, sequence: int, step: int) -> int:
        if 0 < step < _MAX_DROPOUT:
            if sequence < self._highest:
                self._cycles += 0x10000
            self._highest = sequence
            return ADVANCED
        if step == 0 or step > 0x10000 - _MAX_MISORDER:
            return LATE
        if sequence == self._bad_next:  # two in a row far away: the sender restarted
            self.begin(sequence)
            self._expected_before += 1  # the first of the two, counted as received already
            self._highest = sequence
            self._cycles = 0
            return RESTARTED
        self._bad_next = (sequence + 1) & 0xFFFF
        return LATE

    @property
    def extended_highest(self) -> int:
        """Highest sequence number received, with its cycles, for report blocks (32 bits)."""
        return (self._cycles + self._highest) & 0xFFFFFFFF

    @property
    def expected(self) -> int:
        """Packets that the sequence numbers say were sent, over all streams."""
        if not self._started:
            return 0
        return self._expected_before + self._cycles + self._highest - self._base + 1

    @property
    def lost(self) -> int:
        """Expected minus received; duplicates can make it less than the real loss (A.3)."""
        return self.expected - self.received

    @property
    def jitter(self) -> float:
        """Interarrival jitter in timestamp units."""
        return self._jitter

    @property
    def jitter_ms(self) -> float:
        """Interarrival jitter in milliseconds."""
        return self._jitter * 1000.0 / CLOCK_RATE_HZ

    def take_fraction_lost(self) -> int:
        """Loss since the last call as a fraction of 256 (A.3)."""
        expected, received = self.expected, self.received
        expected_now = expected - self._interval_expected
        lost_now = expected_now - (received - self._interval_received)
        self._interval_expected, self._interval_received = expected, received
        if expected_now <= 0 or lost_now <= 0:
            return 0
        return min(255, (lost_now << 8) // expected_now)
