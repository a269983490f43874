"""Token buckets per key in bounded memory, against password guessing."""

from __future__ import annotations

import math
from collections import OrderedDict

from engine.api.settings import Rate


class RateLimiter:
    """One token bucket per key; times are monotonic seconds.

    At most `capacity` keys are kept. A bucket that has refilled is forgotten;
    beyond that the one used longest ago goes first.
    """

    def __init__(self, rate: Rate, *, capacity: int = 10_000) -> None:
        self._rate = rate
        self._per_s = rate.burst / rate.period_s
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key → tokens, as of

    def __len__(self) -> int:
        return len(self._buckets)

    def _tokens(self, key: str, now: float) -> float:
        tokens, since = self._buckets.get(key, (float(self._rate.burst), now))
        return min(float(self._rate.burst), tokens + max(0.0, now - since) * self._per_s)

    def wait_s(self, key: str, now: float) -> int:
        """Whole seconds until `take` will succeed; 0 when it would now."""
        tokens = self._tokens(key, now)
        # The tolerance absorbs float error, so that waiting what we said is always enough.
        return 0 if tokens >= 1 - 1e-9 else math.ceil((1 - tokens) / self._per_s - 1e-9)

    def take(self, key: str, now: float) -> None:
        """Use one token up (call when `wait_s` says 0)."""
        self._store(key, self._tokens(key, now) - 1, now)

    def give_back(self, key: str, now: float) -> None:
        """Undo one `take`: what it was taken for turned out to be fine."""
        self._store(key, self._tokens(key, now) + 1, now)

    def _store(self, key: str, tokens: float, now: float) -> None:
        if tokens >= self._rate.burst:
            self._buckets.pop(key, None)
            return
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
