"""Bans as operators see them, and a log line for each that does not become a flood itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from adapters.sip.protection.guard import Ban, Guard
from engine.operations import BanView, NotFoundError

log = logging.getLogger("murima.sip")

LINES_A_MINUTE = 10


class BanBook:
    """Implements `engine.operations.Bans`. `report` is for the guard.

    Args:
        guard: decides; None until it is made.
        clock: monotonic seconds, as the guard is told them.
        utc: the time of day.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.guard: Guard | None = None
        self._clock = clock
        self._utc = utc
        self._minute = float("-inf")
        self._lines = 0
        self._unsaid = 0

    def report(self, ban: Ban) -> None:
        """Log a ban; of many at once the first ones, and later how many there were."""
        if ban.since - self._minute >= 60.0:
            if self._unsaid:
                log.warning("sip.banned_more", extra={"bans": self._unsaid})
            self._minute, self._lines, self._unsaid = ban.since, 0, 0
        if self._lines >= LINES_A_MINUTE:
            self._unsaid += 1
            return
        self._lines += 1
        length_s = round(ban.until - ban.since)
        log.warning("sip.banned", extra={"source": ban.source, "reason": str(ban.reason), "ban_s": length_s})

    def bans(self) -> Sequence[BanView]:
        if self.guard is None:
            return ()
        now, utc = self._clock(), self._utc()
        return [
            BanView(
                address=ban.source,
                reason=ban.reason,
                since=utc - timedelta(seconds=now - ban.since),
                until=utc + timedelta(seconds=ban.until - now),
                dropped=ban.dropped,
            )
            for ban in self.guard.bans(now)
        ]

    def lift_ban(self, address: str) -> None:
        if self.guard is None or not self.guard.lift(address):
            raise NotFoundError("this address is not banned")
