"""Session timers (RFC 4028): a call that nobody refreshes has ended, though its BYE was lost."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import parse_number, parse_params
from adapters.sip.syntax.message import Message, Request, Response
from adapters.sip.syntax.option_tags import TIMER, supports

LEAST_S = 90  # RFC 4028 4: nobody may ask for less
LONGEST_S = 2**32 - 1


@dataclass(frozen=True, slots=True)
class TimerSettings:
    """What we ask for and accept, in seconds.

    Attributes:
        expires_s: a session of ours expires after this without a refresh; 0: we ask for no timer.
        min_s: who asks for less is told so (422).
    """

    expires_s: int = 1800
    min_s: int = LEAST_S


class IntervalTooSmallError(PeerError):
    """422: the answer names the shortest interval in Min-SE."""

    def __init__(self, min_s: int, message: Request) -> None:
        super().__init__("session interval too small", status=422, message=message)
        self.min_s = min_s


@dataclass(frozen=True, slots=True)
class SessionExpires:
    """A Session-Expires value. `refresher` is "uac", "uas" or None."""

    seconds: int
    refresher: str | None

    @classmethod
    def of(cls, message: Message) -> SessionExpires | None:
        """That of a message; None if there is none.

        Raises:
            PeerError: 400, malformed.
        """
        value = message.get("session-expires")
        if value is None:
            return None
        seconds, semicolon, rest = value.partition(";")
        refresher = (parse_params(rest.strip()).get("refresher") or "").lower() if semicolon else ""
        return cls(parse_number(seconds.strip(), LONGEST_S), refresher if refresher in ("uac", "uas") else None)

    def __str__(self) -> str:
        return str(self.seconds) if self.refresher is None else f"{self.seconds};refresher={self.refresher}"


@dataclass(frozen=True, slots=True)
class SessionTimer:
    """What both sides agreed on.

    Attributes:
        expires_s: without a refresh the session ends this long after the last one.
        ours: we refresh.
    """

    expires_s: int
    ours: bool

    @property
    def due_s(self) -> float:
        """Seconds after the last refresh at which we act: refresh at half time, or hang up shortly before the end."""
        if self.ours:
            return self.expires_s / 2
        return self.expires_s - min(32.0, self.expires_s / 3)

    @property
    def end_s(self) -> float:
        """Seconds after the last refresh at which the session ends, whoever should have refreshed it."""
        return self.expires_s - min(32.0, self.expires_s / 3)


def check(request: Request, settings: TimerSettings) -> SessionExpires | None:
    """The timer that an INVITE or UPDATE asks for.

    Raises:
        IntervalTooSmallError: it is below ours, and its sender knows what that answer means.
        PeerError: 400, malformed.
    """
    wanted = SessionExpires.of(request)
    if wanted is not None and wanted.seconds < settings.min_s and supports(request, TIMER):
        raise IntervalTooSmallError(settings.min_s, request)
    return wanted


def accept(request: Request, response: Response, settings: TimerSettings) -> SessionTimer | None:
    """Answer the timer of an INVITE or UPDATE in our 2xx (RFC 4028 9).

    A peer that knows timers refreshes itself unless it asks us to; for one
    that does not (a proxy put the header in) we do.
    """
    wanted = SessionExpires.of(request)
    if wanted is None or wanted.seconds < LEAST_S:
        return None
    able = supports(request, TIMER)
    refresher = wanted.refresher or "uac" if able else "uas"
    seconds = wanted.seconds
    if settings.expires_s < seconds:  # it may be shortened, never lengthened
        least = max(settings.expires_s or seconds, settings.min_s, _seconds(request.get("min-se") or ""))
        seconds = min(seconds, least)
    response.set("session-expires", SessionExpires(seconds, refresher))
    if able:
        response.add("require", TIMER)
    return SessionTimer(seconds, ours=refresher == "uas")


def ask(request: Request, settings: TimerSettings) -> None:
    """Ask for a timer in the first INVITE."""
    if settings.expires_s:
        request.set("session-expires", settings.expires_s)
        if settings.min_s > LEAST_S:
            request.set("min-se", settings.min_s)


def ask_again(timer: SessionTimer, settings: TimerSettings) -> list[tuple[str, str]]:
    """Headers of a re-INVITE or UPDATE of ours: the same timer, refreshed by the same side."""
    headers = [("session-expires", str(SessionExpires(timer.expires_s, "uac" if timer.ours else "uas")))]
    if settings.min_s > LEAST_S:
        headers.append(("min-se", str(settings.min_s)))
    return headers


def agreed(response: Response) -> SessionTimer | None:
    """What a 2xx to a request of ours says (RFC 4028 7.2); None: no timer, or a malformed one."""
    try:
        found = SessionExpires.of(response)
    except PeerError:
        return None
    if found is None:
        return None
    # Without a refresher it is us: nobody minds one refresh too many.
    return SessionTimer(max(found.seconds, LEAST_S), ours=found.refresher != "uas")


def retry_after_422(request: Request, response: Response) -> bool:
    """Ask for no less than a 422 says (RFC 4028 7.3); False if it says nothing usable."""
    least = _seconds(response.get("min-se") or "")
    asked = SessionExpires.of(request)
    if asked is None or not asked.seconds < least:
        return False
    request.set("session-expires", least)
    request.set("min-se", least)
    return True


def longer(timer: SessionTimer, response: Response) -> SessionTimer:
    """The timer, as long as a 422 to a refresh of ours wants it."""
    return SessionTimer(max(timer.expires_s, _seconds(response.get("min-se") or "")), timer.ours)


def _seconds(text: str) -> int:
    """Of a Min-SE value, 0 if it is malformed."""
    try:
        return parse_number(text.partition(";")[0].strip(), LONGEST_S)
    except PeerError:
        return 0
