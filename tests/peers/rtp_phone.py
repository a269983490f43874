"""Bare RTP endpoints for load and for measuring gaps: G.711 on plain sockets, paced at 20 ms, arrivals timed.

One thread (`RtpBank`) serves any number of phones, their packets spread
evenly over the 20 ms, as those of real phones are.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from tests import g711
from tests.audio import Samples
from tests.ports import free_port

PTIME_S = 0.020
FRAME = 160  # samples of a packet at 8 kHz
_HEADER = struct.Struct("!BBHII")
_EVENT = struct.Struct("!BBH")
_EVENT_PT = 101
_DIGITS = "0123456789*#ABCD"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet that came in."""

    at_s: float  # monotonic
    marker: bool
    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


class RtpPhone:
    """One RTP socket: sends what `say` and `press` queued, silence otherwise, and keeps what arrives."""

    def __init__(self, address: str = "127.0.0.1", *, payload_type: int = 0) -> None:
        self.address = address
        self.port = free_port(address, span=2, align=2)
        self.payload_type = payload_type
        self.remote: tuple[str, int] | None = None  # nothing is sent before it is known
        self.sending = True
        self.sent = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((address, self.port))
        self.socket.setblocking(False)
        self._arrivals: list[tuple[float, bytes]] = []
        self._queue: deque[bytes] = deque()
        self._silence = g711.encode(np.zeros(FRAME, dtype=np.int16), payload_type)
        self._digits: deque[tuple[bytes, bool, int]] = deque()
        self._sequence = random.randrange(1 << 15)
        self._timestamp = random.randrange(1 << 31)
        self._ssrc = random.randrange(1 << 32)

    def say(self, samples: Samples) -> None:
        """Queue speech, 8 kHz; it follows what is queued already."""
        padded = np.concatenate([samples, np.zeros(-samples.size % FRAME, dtype=np.int16)])
        octets = g711.encode(padded, self.payload_type)
        self._queue.extend(octets[at : at + FRAME] for at in range(0, len(octets), FRAME))

    def press(self, digits: str) -> None:
        """Queue digits (RFC 4733, payload type 101): 160 ms each, the end three times, 40 ms pause."""
        packets: list[tuple[bytes, bool, int]] = []
        for digit in digits:
            event = _DIGITS.index(digit.upper())
            packets += [(_EVENT.pack(event, 10, count * FRAME), count == 1, count - 1) for count in range(1, 9)]
            packets += [(_EVENT.pack(event, 0x80 | 10, 8 * FRAME), False, count) for count in (8, 9, 10)]
            packets += [(b"", False, 0)] * 2
        self._digits.extend(packets)

    async def until_quiet(self, timeout_s: float = 30.0) -> None:
        """Wait until everything queued has been sent, and 100 ms more for the last packets to travel.

        Raises:
            TimeoutError: it was not sent in time.
        """
        async with asyncio.timeout(timeout_s):
            while self._queue or self._digits:  # noqa: ASYNC110  # the bank's thread knows no event loop
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)

    def send_next(self) -> None:
        """Send the packet of this 20 ms; called by the bank."""
        self._timestamp = (self._timestamp + FRAME) & 0xFFFFFFFF
        if self.remote is None or not self.sending:
            return
        marker, payload_type, timestamp = False, self.payload_type, self._timestamp
        payload = b""
        if self._digits:
            payload, marker, age = self._digits.popleft()
            if payload:
                payload_type = _EVENT_PT
                timestamp = (timestamp - age * FRAME) & 0xFFFFFFFF
        if not payload:
            payload = self._queue.popleft() if self._queue else self._silence
        self._sequence = (self._sequence + 1) & 0xFFFF
        header = _HEADER.pack(0x80, marker << 7 | payload_type, self._sequence, timestamp, self._ssrc)
        try:
            self.socket.sendto(header + payload, self.remote)
        except OSError:  # refused by a peer that is gone: real phones send on
            return
        self.sent += 1

    def receive(self) -> None:
        """Take in all that waits in the socket; called by the bank."""
        try:
            while True:
                self._arrivals.append((time.monotonic(), self.socket.recv(2048)))
        except OSError:  # empty, or an ICMP error of a peer that is gone
            return

    @property
    def received(self) -> int:
        return len(self._arrivals)

    def arrivals(self) -> list[Arrival]:
        """Return the packets that came in, in order of arrival; RTCP and what is no RTP left out."""
        found = []
        for at_s, packet in tuple(self._arrivals):
            if len(packet) < 12 or packet[0] >> 6 != 2:
                continue
            first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(packet)
            start = 12 + 4 * (first & 15)
            arrival = Arrival(at_s, bool(second >> 7), second & 127, sequence, timestamp, ssrc, packet[start:])
            found.append(arrival)
        return found

    def heard(self) -> Samples:
        """Return the sound that came in, 8 kHz: each packet at its timestamp, silence where one is missing.

        A new source (SSRC) goes on where its first packet arrived.
        """
        voice = [arrival for arrival in self.arrivals() if arrival.payload_type in (0, 8)]
        if not voice:
            return np.zeros(0, dtype=np.int16)
        begin_s = voice[0].at_s
        offsets: dict[int, int] = {}
        placed = []
        for arrival in voice:
            if arrival.ssrc not in offsets:
                offsets[arrival.ssrc] = round((arrival.at_s - begin_s) * 8000) - arrival.timestamp
            at = (offsets[arrival.ssrc] + arrival.timestamp + (1 << 31)) % (1 << 32) - (1 << 31)
            if at >= 0:
                placed.append((at, g711.decode(arrival.payload, arrival.payload_type)))
        sound = np.zeros(max(at + piece.size for at, piece in placed), dtype=np.int16)
        for at, piece in placed:
            sound[at : at + piece.size] = piece
        return sound

    def lost(self) -> int:
        """Count the packets missing between the first and the last sequence number of each source."""
        missing = 0
        for _, group in itertools.groupby(self.arrivals(), key=lambda arrival: arrival.ssrc):
            numbers = [arrival.sequence for arrival in group]
            unwrapped = np.unwrap(np.array(numbers, dtype=np.float64), period=65536)
            missing += int(unwrapped.max() - unwrapped.min()) + 1 - len(set(unwrapped.tolist()))
        return missing

    def longest_gap_ms(self, since_s: float = 0.0, until_s: float = math.inf) -> float:
        """Return the longest time between two arrivals from `since_s` to `until_s` (monotonic), in ms.

        The time from `since_s` to the first arrival counts, too.
        """
        times = [arrival.at_s for arrival in self.arrivals() if since_s <= arrival.at_s <= until_s]
        if since_s > 0.0:
            times.insert(0, since_s)
        return float(np.diff(times).max() * 1000) if len(times) > 1 else 0.0

    def digits(self) -> str:
        """Return the digits that came in (RFC 4733): one for each event that lasted, however often it was repeated."""
        events = dict.fromkeys(
            (arrival.ssrc, arrival.timestamp, arrival.payload[0])
            for arrival in self.arrivals()
            if arrival.payload_type == _EVENT_PT and len(arrival.payload) >= 4 and any(arrival.payload[2:4])
        )
        return "".join(_DIGITS[event] for _, _, event in events if event < len(_DIGITS))


class RtpBank:
    """The thread that sends and receives for its phones; `with RtpBank() as bank`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, RtpPhone]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rtp-bank", daemon=True)
        self.latest_ms = 0.0  # how late the latest packet was sent: the bank's own share of any gap

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for key in tuple(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def add(self, phone: RtpPhone) -> RtpPhone:
        """Serve this phone from now on."""
        number = next(self._numbers)
        # Golden-ratio steps spread any number of phones evenly over the 20 ms.
        phase = number * 0.618 % 1.0 * PTIME_S
        with self._lock:
            heapq.heappush(self._due, (time.monotonic() + PTIME_S + phase, number, phone))
            self._selector.register(phone.socket, selectors.EVENT_READ, phone)
        return phone

    def remove(self, phone: RtpPhone) -> None:
        """Serve it no longer and close its socket; what it heard stays."""
        with self._lock:
            self._due = [entry for entry in self._due if entry[2] is not phone]
            heapq.heapify(self._due)
            self._selector.unregister(phone.socket)
            phone.socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                now = time.monotonic()
                while self._due and self._due[0][0] <= now:
                    due, number, phone = self._due[0]
                    heapq.heapreplace(self._due, (due + PTIME_S, number, phone))
                    phone.send_next()
                    self.latest_ms = max(self.latest_ms, (now - due) * 1000)
                wait = self._due[0][0] - time.monotonic() if self._due else PTIME_S
                ready = self._selector.select(0)
                for key, _ in ready:
                    key.data.receive()
            if not ready and wait > 0:
                # The lock is free meanwhile, so phones can come and go.
                self._selector.select(min(wait, PTIME_S))
