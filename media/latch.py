"""Which source address a leg's audio is taken from (symmetric RTP).

A phone behind NAT sends from an address other than the one in its SDP, so we
follow what arrives: the signalled address is believed at once, another one
after a few packets in sequence. Once a source is latched, others are ignored
(nobody can take over a call by sending to its port), with two exceptions: the
latched source fell silent, or the signalled address itself begins to send.
"""

from __future__ import annotations

from typing import Final

Address = tuple[str, int]

PROBATION: Final = 3  # packets in sequence from one new source
SILENCE_S: Final = 2.0  # after this much silence of the latched source another may latch


class Latch:
    """Decides whether a stranger becomes the peer. Times are monotonic seconds."""

    __slots__ = ("_candidate", "_count", "_next", "_ssrc", "latched", "signalled")

    def __init__(self, signalled: Address) -> None:
        self.signalled = signalled
        self.latched = False  # a valid packet has come from the current peer
        self._candidate: Address | None = None
        self._ssrc = 0
        self._next = 0
        self._count = 0

    def on_stranger(self, source: Address, ssrc: int, sequence: int, silent_s: float) -> bool:
        """A valid packet from another address than the peer's: True when that source takes over.

        Args:
            source: where it came from.
            ssrc: its SSRC.
            sequence: its sequence number.
            silent_s: time since the peer's last packet.
        """
        if self.latched and silent_s < SILENCE_S and source != self.signalled:
            self._candidate = None
            return False
        if source == self._candidate and ssrc == self._ssrc and sequence == self._next:
            self._count += 1
        else:
            self._candidate = source
            self._ssrc = ssrc
            self._count = 1
        self._next = (sequence + 1) & 0xFFFF
        if self._count < PROBATION:
            return False
        self._candidate = None
        self.latched = True
        return True
