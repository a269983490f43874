"""The two times that long-lived objects need, in one thing that a test can step."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Intervals use monotonic time; records use UTC."""

    def monotonic(self) -> float: ...
    def utc(self) -> datetime: ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def utc(self) -> datetime:
        return datetime.now(UTC)
