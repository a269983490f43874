"""Is a gateway alive? Asked by OPTIONS (RFC 3261 11), judged with patience.

Any final response means that somebody is there, but for 408 (a proxy in
between got none) and 503. Two failures in a row take a gateway out of service,
one answer puts it back.
"""

from __future__ import annotations

from collections.abc import Callable

FAILURES_TO_GO_DOWN = 2
ANSWER_S = 4.0  # time for four sendings over UDP
DEAD = frozenset({408, 503})


class HealthCheck:
    """One gateway's health. No I/O: send OPTIONS when `on_time` says so, and tell what came of it.

    Args:
        interval_s: pause between two questions.
        draw: a random number from 0 up to 1: gateways are not all asked at once.
        now: monotonic seconds.

    Attributes:
        alive: as far as we know; a gateway never asked counts as alive.
        error: why it is not.
    """

    def __init__(self, interval_s: float, draw: Callable[[], float], now: float) -> None:
        self.interval_s = interval_s
        self.alive = True
        self.error = ""
        self._draw = draw
        self._failures = 0
        self._asking = False
        self._next_at = now + draw() * min(interval_s, 2.0)

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due; None while an answer is awaited."""
        return None if self._asking else self._next_at

    def on_time(self, now: float) -> bool:
        """Whether to ask now; the outcome must be told."""
        if self._asking or now < self._next_at:
            return False
        self._asking = True
        return True

    def on_outcome(self, status: int | None, now: float) -> bool:
        """A final response, or None for no answer. Says whether `alive` has changed."""
        self._asking = False
        before = self.alive
        if status is None or status in DEAD:
            self._failures += 1
            self.error = "no answer to OPTIONS" if status is None else f"OPTIONS answered with {status}"
            if self._failures >= FAILURES_TO_GO_DOWN:
                self.alive = False
        else:
            self._failures = 0
            self.error = ""
            self.alive = True
        # The second question follows soon: one lost answer should not take half a minute to be found out.
        soon = 0 < self._failures < FAILURES_TO_GO_DOWN
        self._next_at = now + (min(1.0, self.interval_s) if soon else self.interval_s * (0.9 + 0.2 * self._draw()))
        return self.alive != before
