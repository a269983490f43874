"""Telephone events (RFC 4733): digits out of packets and packets out of digits."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from media.rtp import CLOCK_RATE_HZ

DIGITS: Final = "0123456789*#ABCD"
MAX_QUEUED: Final = 64

_EVENT: Final = struct.Struct("!BBH")
_END: Final = 0x80
_VOLUME: Final = 10  # -10 dBm0
_LOST_END_S: Final = 0.2  # an event whose packets stop for this long has ended
_HISTORY: Final = 5 * CLOCK_RATE_HZ  # older than this, a timestamp is a restarted clock
_FULL: Final = 0xFFFF  # a longer event goes on in a new segment (RFC 4733 2.5.1.3)
_END_PACKETS: Final = 3
_GAP_MS: Final = 60


@dataclass(frozen=True, slots=True)
class Digit:
    """One key press."""

    digit: str
    duration_ms: int


class DtmfDecoder:
    """Turns event packets of one stream into digits, each once.

    Lost, repeated and reordered packets are normal: an event is known by its
    timestamp, and ends by an end packet, a next event, or 0.2 s without packets.
    """

    __slots__ = ("_active", "_before", "_digit", "_duration", "_finished", "_heard_at", "_timestamp")

    def __init__(self) -> None:
        self._active = False
        self._digit = ""
        self._timestamp = 0
        self._duration = 0
        self._before = 0  # duration of earlier segments of the same event
        self._heard_at = 0.0
        self._finished: int | None = None  # timestamp of the last event that ended

    @property
    def pending(self) -> bool:
        """An event has begun and its end is not known yet: `on_time` will tell."""
        return self._active

    def on_packet(self, timestamp: int, payload: bytes, now: float) -> list[Digit]:
        """Take one event packet; events that are not digits, and short ones, are passed over."""
        if len(payload) < _EVENT.size:
            return []
        event, flags, duration = _EVENT.unpack_from(payload)
        if event >= len(DIGITS):
            return []
        digits: list[Digit] = []
        if self._active and timestamp != self._timestamp:
            if self._is_old(timestamp, self._timestamp):
                return []
            if DIGITS[event] == self._digit and (timestamp - self._timestamp) & 0xFFFFFFFF == _FULL:
                self._before += _FULL
                self._duration = 0
                self._timestamp = timestamp
            else:
                digits += self._finish()
        if not self._active:
            if self._finished is not None and self._is_old(timestamp, self._finished):
                return digits
            self._active = True
            self._digit = DIGITS[event]
            self._timestamp = timestamp
            self._duration = 0
            self._before = 0
        self._heard_at = now
        self._duration = max(self._duration, duration)
        if flags & _END:
            digits += self._finish(ended=True)
        return digits

    def on_time(self, now: float) -> list[Digit]:
        """End an event whose end packets were all lost."""
        if self._active and now - self._heard_at >= _LOST_END_S:
            return self._finish()
        return []

    def reset(self) -> list[Digit]:
        """The stream changed (new SSRC): its timestamps say nothing about the next one."""
        digits = self._finish() if self._active else []
        self._finished = None
        return digits

    def _finish(self, *, ended: bool = False) -> list[Digit]:
        """End the event. One that never lasted was no key: some senders fill pauses with such packets."""
        self._active = False
        self._finished = self._timestamp
        duration = self._before + self._duration
        return [Digit(self._digit, duration * 1000 // CLOCK_RATE_HZ)] if duration or ended else []

    @staticmethod
    def _is_old(timestamp: int, than: int) -> bool:
        return (than - timestamp) & 0xFFFFFFFF < _HISTORY


@dataclass(frozen=True, slots=True)
class EventPacket:
    """One packet to send; `offset` is the event's timestamp after the first event's, in samples."""

    payload: bytes
    marker: bool
    begins: bool  # first packet of a digit: take a new timestamp


class DtmfSender:
    """A queue of digits, played out one packet every `packet_ms` (RFC 4733 2.5)."""

    __slots__ = ("_digits", "_duration", "_ends", "_event", "_gap_ms", "_length")

    def __init__(self) -> None:
        self._digits: deque[tuple[int, int]] = deque()  # event, length in samples
        self._event = -1
        self._length = 0
        self._duration = 0
        self._ends = 0
        self._gap_ms = 0

    def press(self, digits: str, duration_ms: int) -> int:
        """Queue digits; returns how many were taken (unknown ones and what exceeds the queue are not)."""
        length = max(40, min(8000, duration_ms)) * CLOCK_RATE_HZ // 1000
        taken = 0
        for digit in digits.upper():
            if digit in DIGITS and len(self._digits) < MAX_QUEUED:
                self._digits.append((DIGITS.index(digit), length))
                taken += 1
        return taken

    @property
    def active(self) -> bool:
        """Something is still to be sent, or the pause after a digit is running."""
        return self._event >= 0 or self._gap_ms > 0 or bool(self._digits)

    def next_packet(self, packet_ms: int) -> EventPacket | None:
        """What to send now; None in the pause between digits."""
        if self._gap_ms > 0:
            self._gap_ms = max(0, self._gap_ms - packet_ms)
            return None
        begins = False
        if self._event < 0:
            if not self._digits:
                return None
            self._event, self._length = self._digits.popleft()
            self._duration = 0
            self._ends = 0
            begins = True
        self._duration = min(self._length, self._duration + packet_ms * CLOCK_RATE_HZ // 1000)
        ending = self._duration >= self._length
        payload = _EVENT.pack(self._event, _VOLUME | (_END if ending else 0), self._duration)
        if ending:
            self._ends += 1
            if self._ends >= _END_PACKETS:
                self._event = -1
                self._gap_ms = _GAP_MS
        return EventPacket(payload, begins, begins)
