"""One 10 ms clock for everything that a worker sends by itself: prompts, music, digits.

All senders share the ticks, so a hundred callers hearing music cost a hundred
wake-ups a second together, not five thousand. Deadlines are absolute; a worker
that comes late catches up by at most `CATCH_UP_S` and drops the rest.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

TICK_S: Final = 0.010
TICK_MS: Final = 10
CATCH_UP_S: Final = 0.1


class Sender(Protocol):
    """Something that sends in time."""

    def on_tick(self, now: float) -> int:
        """Send what is due; returns ticks until the next time, 0: nothing more."""


class Clock:
    """A wheel of ticks. `now` is monotonic seconds throughout."""

    def __init__(self) -> None:
        self._epoch = 0.0
        self._next = 0  # tick to run next
        self._slots: dict[int, list[Sender]] = {}

    def add(self, sender: Sender, now: float) -> None:
        """Call the sender at the next tick and then as often as it says."""
        if not self._slots:
            self._epoch = now
            self._next = 0
        tick = max(self._next, math.ceil((now - self._epoch) / TICK_S))
        self._slots.setdefault(tick, []).append(sender)

    def deadline(self) -> float | None:
        """When `run` is due, None: nobody sends."""
        return self._epoch + self._next * TICK_S if self._slots else None

    def run(self, now: float) -> None:
        """Run the ticks that are due."""
        slots = self._slots
        if not slots:
            return
        late = now - (self._epoch + self._next * TICK_S)
        if late > CATCH_UP_S:
            self._epoch += late
        while slots and self._epoch + self._next * TICK_S <= now:
            tick = self._next
            self._next += 1
            for sender in slots.pop(tick, ()):
                ticks = sender.on_tick(now)
                if ticks > 0:
                    later = slots.get(tick + ticks)
                    if later is None:
                        slots[tick + ticks] = [sender]
                    else:
                        later.append(sender)
