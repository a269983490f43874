"""Which RTP ports are free.

RTP takes an even port, RTCP the odd one above it (RFC 3550 11). A freed pair goes
to the end of the line, so late packets of an old call rarely meet a new one.
"""

from __future__ import annotations

from collections import deque


class PortPool:
    """Even ports of a range, handed out in turn from a given start.

    Raises:
        ValueError: no pair fits into the range.
    """

    def __init__(self, low: int, high: int, start: int = 0) -> None:
        evens = range(low + low % 2, high, 2)
        if not 0 < low <= high <= 65535 or len(evens) == 0:
            raise ValueError(f"no even port with an odd one above it in {low}-{high}")
        self._free = deque(evens)
        self._free.rotate(-(start % len(evens)))
        self._taken: set[int] = set()

    def __len__(self) -> int:
        """Pairs that are free."""
        return len(self._free)

    def take(self) -> int | None:
        """The even port that has been free the longest; None: exhausted."""
        if not self._free:
            return None
        port = self._free.popleft()
        self._taken.add(port)
        return port

    def give_back(self, port: int) -> None:
        """Free a pair. Giving back what was not taken is a bug.

        Raises:
            ValueError: the port is not taken.
        """
        if port not in self._taken:
            raise ValueError(f"port {port} is not taken")
        self._taken.remove(port)
        self._free.append(port)
