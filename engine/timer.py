"""One event-loop timer for a core that has many deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class DeadlineTimer:
    """Calls `action` when the deadline that was set last has come.

    A deadline that moves later costs nothing: the timer already running fires,
    finds that it is early, and is set anew. So a core may announce its deadline
    after every event without a timer being made and cancelled each time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        self._loop = loop
        self._action = action
        self._deadline: float | None = None
        self._handle: asyncio.Handle | None = None
        self._handle_at = 0.0  # kept here: what uvloop returns for a time in the past has no when()

    def set(self, deadline: float | None) -> None:
        """Be due at `deadline` (the loop's monotonic seconds), or never."""
        self._deadline = deadline
        if deadline is None:
            return
        if self._handle is not None:
            if self._handle_at <= deadline:
                return
            self._handle.cancel()
        self._start(deadline)

    def cancel(self) -> None:
        """Stop for good."""
        self._deadline = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _start(self, at: float) -> None:
        self._handle = self._loop.call_at(at, self._fire)
        self._handle_at = at

    def _fire(self) -> None:
        self._handle = None
        deadline = self._deadline
        if deadline is None:
            return
        if deadline > self._loop.time():
            self._start(deadline)
            return
        self._deadline = None
        self._action()
