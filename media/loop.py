"""A bare epoll loop for packets.

Each descriptor has one handler, called with the time of the round. Under load the
loop **paces** itself: it sleeps a millisecond after a round, so that one wake-up
serves the packets that came meanwhile. One wake-up per packet costs about as much as
the packet; but at a low rate there is nothing to share, so pacing starts and stops
with the measured rate. The price is about 0.6 ms of delay (design section 5).
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("murima.media.loop")

Handler = Callable[[float], None]

PACE_S: Final = 0.001
PACED_ABOVE: Final = 2500.0  # ready descriptors a second
UNPACED_BELOW: Final = 1500.0
_MEASURE_S: Final = 0.1
_EVENTS: Final = 512
_ERRORS_LOGGED: Final = 20


class Pacing:
    """Whether to pace, from the rate of ready descriptors; with hysteresis."""

    __slots__ = ("_count", "_since", "on")

    def __init__(self) -> None:
        self.on = False
        self._count = 0
        self._since = 0.0

    def on_round(self, ready: int, now: float) -> None:
        """Count a round; decide anew every 0.1 s."""
        self._count += ready
        passed = now - self._since
        if passed >= _MEASURE_S:
            self.on = self._count / passed > (UNPACED_BELOW if self.on else PACED_ABOVE)
            self._count = 0
            self._since = now


class Loop:
    """Descriptors, their handlers, and one deadline."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: list[Handler | None] = []  # by descriptor: fewer cold cache lines than a dict
        self._stopped = False
        self._errors = 0

    def watch(self, fd: int, handler: Handler, *, write: bool = False) -> None:
        """Call the handler when `fd` can be read (or also written)."""
        mask = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        handlers = self._handlers
        if fd >= len(handlers):
            handlers.extend([None] * (fd + 64 - len(handlers)))
        if handlers[fd] is None:
            self._epoll.register(fd, mask)
        else:
            self._epoll.modify(fd, mask)
        handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed."""
        if fd < len(self._handlers) and self._handlers[fd] is not None:
            self._handlers[fd] = None
            self._epoll.unregister(fd)

    def stop(self) -> None:
        """Leave `run` after this round, or at once when it has not begun yet."""
        self._stopped = True

    def run(self, on_time: Callable[[float], float]) -> None:
        """Serve until `stop`.

        Args:
            on_time: called with the time after each round; does what is due and returns
                monotonic seconds of the next deadline.
        """
        poll = self._epoll.poll
        handlers = self._handlers
        pacing = Pacing()
        monotonic = time.monotonic
        deadline = on_time(monotonic())
        while not self._stopped:
            events = poll(max(0.0, deadline - monotonic()), _EVENTS)
            now = monotonic()
            for fd, _ in events:
                handler = handlers[fd]
                if handler is not None:
                    try:
                        handler(now)
                    except Exception as exc:  # noqa: BLE001 - a fault in one leg must not stop the others
                        self._on_fault(exc)
            pacing.on_round(len(events), now)
            deadline = self._on_time(on_time, now)
            if pacing.on:
                time.sleep(PACE_S)

    def _on_time(self, on_time: Callable[[float], float], now: float) -> float:
        try:
            return on_time(now)
        except Exception as exc:  # noqa: BLE001 - as above: keep everybody's audio
            self._on_fault(exc)
            return now + 0.01

    def _on_fault(self, exc: Exception) -> None:
        self._errors += 1
        if self._errors <= _ERRORS_LOGGED:
            log.error("media.fault", exc_info=exc, extra={"faults": self._errors})

    @property
    def faults(self) -> int:
        """Exceptions that a handler let escape: our bugs."""
        return self._errors

    def close(self) -> None:
        """Release the epoll descriptor."""
        self._epoll.close()
