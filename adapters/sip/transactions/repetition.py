"""Responses that their sender repeats itself until the other side has acknowledged them."""

from __future__ import annotations

from adapters.sip.transactions.transaction import T1, TIMEOUT, Flow


class Repetition:
    """A 2xx to an INVITE (RFC 3261 13.3.1.4), or a reliable provisional response (RFC 3262 3).

    It is repeated after 0.5 s, then at doubling intervals, for 32 s, whatever the transport.

    Args:
        flow: where it goes.
        data: the response.
        number: CSeq or RSeq that its acknowledgement names.
        now: monotonic seconds, when it was sent first.
        longest_s: the interval grows no further.

    Attributes:
        at: when it is due again.
    """

    __slots__ = ("_end_at", "_interval", "_longest_s", "at", "data", "flow", "number")

    def __init__(self, flow: Flow, data: bytes, number: int, now: float, longest_s: float) -> None:
        self.flow = flow
        self.data = data
        self.number = number
        self.at = now + T1
        self._interval = T1
        self._longest_s = longest_s
        self._end_at = now + TIMEOUT

    def is_over(self, now: float) -> bool:
        """Whether the acknowledgement has not come in time."""
        return now >= self._end_at

    def move_on(self, now: float) -> None:
        """It was sent again."""
        self._interval = min(self._interval * 2, self._longest_s)
        self.at = min(now + self._interval, self._end_at)
