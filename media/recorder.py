"""Where recorded packets belong in time: the pure part of recording.

Each channel places its packets by RTP timestamp, anchored at the arrival of the first,
so jitter does not move audio and loss is silence. The anchor is set anew when the
stream changes or its clock and the arrivals no longer agree (a jump, or slow drift).
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
import numpy.typing as npt

from media import g711
from media.g711 import Samples
from media.leg import Tap
from media.protocol import Codec
from media.rtp import CLOCK_RATE_HZ, HEADER_BYTES

LAG_S: Final = 1.0  # written this much after the event: late packets still find their place
_JUMP: Final = 2400  # samples (0.3 s) by which timestamp and arrival may step apart between packets
_DRIFT: Final = 640  # samples (80 ms) by which a whole batch may lie apart from its arrivals
_MAX_AHEAD: Final = 10 * CLOCK_RATE_HZ

Span = tuple[int, Samples]
"""A position in samples since the start of the recording, and the audio that begins there."""


class Channel:
    """One side of a recording."""

    def __init__(self) -> None:
        self._ssrc = -1
        self._timestamp = 0  # a timestamp of the stream, and
        self._position = 0.0  # the position that it stands for

    def place(self, packets: Tap, codec: Codec, start: float) -> list[Span]:
        """Give each packet of a batch (in order of arrival) its place.

        Args:
            packets: arrival in monotonic seconds, packet with a 12-byte header.
            codec: how the payload is encoded.
            start: monotonic seconds of position 0.
        """
        if not packets:
            return []
        headers = np.frombuffer(b"".join(packet[:HEADER_BYTES] for _, packet in packets), dtype=np.uint8)
        fields = headers.reshape(-1, HEADER_BYTES)
        timestamps = fields[:, 4:8].copy().view(">u4").ravel().astype(np.int64)
        ssrcs = fields[:, 8:12].copy().view(">u4").ravel().astype(np.int64)
        arrivals = (np.array([arrival for arrival, _ in packets]) - start) * CLOCK_RATE_HZ
        # A new run begins where the stream changes or its clock jumps against the arrivals.
        steps = _signed(np.diff(timestamps))
        breaks = (np.diff(ssrcs) != 0) | (np.abs(steps - np.diff(arrivals)) > _JUMP)
        bounds = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(packets)]
        spans: list[Span] = []
        for first, last in itertools.pairwise(bounds):
            positions = self._anchor(timestamps[first:last], int(ssrcs[first]), arrivals[first:last])
            spans += _join(positions, packets[first:last], codec)
        return spans

    def _anchor(
        self, timestamps: npt.NDArray[np.int64], ssrc: int, arrivals: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Positions of one run; moves the anchor when the run does not fit the one before."""
        positions = self._position + _signed(timestamps - self._timestamp)
        # The packet that was delayed the least tells where the stream really is.
        apart = float(np.min(arrivals - positions))
        if ssrc != self._ssrc:
            positions = positions + float(arrivals[0] - positions[0])
        elif abs(apart) > _DRIFT:
            positions = positions + apart
        self._ssrc = ssrc
        self._timestamp = int(timestamps[-1])
        self._position = float(positions[-1])
        rounded: npt.NDArray[np.int64] = np.rint(positions).astype(np.int64)
        return rounded


def _signed(differences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Differences of 32-bit timestamps, the short way round."""
    wrapped: npt.NDArray[np.int64] = ((differences + 0x80000000) & 0xFFFFFFFF) - 0x80000000
    return wrapped


def _join(positions: npt.NDArray[np.int64], packets: Tap, codec: Codec) -> list[Span]:
    """Decode; packets that follow each other without a gap become one span."""
    spans: list[Span] = []
    parts: list[bytes] = []
    begin = end = 0
    for position, (_, packet) in zip(positions.tolist(), packets, strict=True):
        if not parts or position != end:
            if parts:
                spans.append((begin, g711.decode(b"".join(parts), codec)))
                parts = []
            begin = end = position
        parts.append(packet[HEADER_BYTES:])
        end += len(packet) - HEADER_BYTES
    spans.append((begin, g711.decode(b"".join(parts), codec)))
    return spans


class Timeline:
    """Two channels between what is written and what may still arrive."""

    def __init__(self) -> None:
        self._written = 0  # samples
        self._pending = np.zeros((0, 2), dtype=np.int16)

    def put(self, channel: int, spans: list[Span]) -> None:
        """Lay spans over one channel (0 left, 1 right); what is written already stays as it is."""
        for position, samples in spans:
            offset = position - self._written
            if offset < 0:
                samples = samples[-offset:]  # noqa: PLW2901 - the part that is not too late
                offset = 0
            end = offset + len(samples)
            if len(samples) == 0 or end > _MAX_AHEAD:
                continue
            self._grow(end)
            self._pending[offset:end, channel] = samples

    def _grow(self, size: int) -> None:
        if size > len(self._pending):
            grown = np.zeros((size, 2), dtype=np.int16)
            grown[: len(self._pending)] = self._pending
            self._pending = grown

    def take(self, until: int) -> Samples:
        """All samples up to position `until` that were not taken yet; int16, shape (n, 2)."""
        size = until - self._written
        if size <= 0:
            return np.zeros((0, 2), dtype=np.int16)
        self._grow(size)
        return self._cut(size)

    def take_all(self, until: int) -> Samples:
        """The rest, to position `until` at least: the last packets may end a little after it."""
        self._grow(until - self._written)
        return self._cut(len(self._pending))

    def _cut(self, size: int) -> Samples:
        ready, self._pending = self._pending[:size], self._pending[size:].copy()
        self._written += size
        return ready
