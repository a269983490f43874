"""End causes and SIP statuses: one table for each way (docs/sip.md shows both)."""

from __future__ import annotations

from adapters.sip.answers import RETRY_AFTER_S
from adapters.sip.dialogs.session import EndReason
from engine.events import EndCause

# What we answer to an INVITE that we refuse for this cause.
STATUS = {
    EndCause.NORMAL: 480,
    EndCause.CANCELLED: 480,
    EndCause.BUSY: 486,
    EndCause.NO_ANSWER: 480,
    EndCause.REJECTED: 603,
    EndCause.UNREACHABLE: 480,
    EndCause.NOT_FOUND: 404,
    EndCause.FORBIDDEN: 403,
    EndCause.UNSUPPORTED: 488,
    EndCause.MEDIA_LOST: 480,
    EndCause.TAKEN: 480,
    EndCause.BROKEN: 502,
    EndCause.OVERLOADED: 503,
    EndCause.SHUTDOWN: 503,
    EndCause.FAILED: 500,
}

# What a final response to our INVITE means.
_CAUSES = {
    403: EndCause.REJECTED,
    404: EndCause.NOT_FOUND,
    408: EndCause.UNREACHABLE,
    410: EndCause.NOT_FOUND,
    415: EndCause.UNSUPPORTED,
    480: EndCause.NO_ANSWER,
    484: EndCause.NOT_FOUND,
    486: EndCause.BUSY,
    487: EndCause.CANCELLED,
    488: EndCause.UNSUPPORTED,
    503: EndCause.OVERLOADED,
    504: EndCause.UNREACHABLE,
    600: EndCause.BUSY,
    603: EndCause.REJECTED,
    604: EndCause.NOT_FOUND,
    606: EndCause.UNSUPPORTED,
    607: EndCause.REJECTED,
    608: EndCause.REJECTED,
}

_REASONS = {
    EndReason.BYE: EndCause.NORMAL,
    EndReason.CANCELLED: EndCause.CANCELLED,
    EndReason.RING_TIMEOUT: EndCause.NO_ANSWER,
    EndReason.NO_RESPONSE: EndCause.UNREACHABLE,
    EndReason.UNREACHABLE: EndCause.UNREACHABLE,
    EndReason.NO_ACK: EndCause.FAILED,
    EndReason.LOST: EndCause.FAILED,
    EndReason.LOCAL: EndCause.NORMAL,
    EndReason.BROKEN: EndCause.BROKEN,
}


# Why we hang up, cancel or refuse, in the causes of the telephone network (RFC 3326, ITU-T Q.850).
_Q850 = {
    EndCause.NORMAL: (16, "Normal call clearing"),
    EndCause.BUSY: (17, "User busy"),
    EndCause.NO_ANSWER: (19, "No answer from user"),
    EndCause.REJECTED: (21, "Call rejected"),
    EndCause.UNREACHABLE: (20, "Subscriber absent"),
    EndCause.NOT_FOUND: (1, "Unallocated number"),
    EndCause.FORBIDDEN: (21, "Call rejected"),
    EndCause.UNSUPPORTED: (88, "Incompatible destination"),
    EndCause.MEDIA_LOST: (102, "Recovery on timer expiry"),
    EndCause.BROKEN: (127, "Interworking"),
    EndCause.OVERLOADED: (42, "Switching equipment congestion"),
    EndCause.SHUTDOWN: (41, "Temporary failure"),
    EndCause.FAILED: (41, "Temporary failure"),
}
_ELSEWHERE = 'SIP;cause=200;text="Call completed elsewhere"'  # phones show no missed call then
_REASON_HEADERS = {
    cause: (("reason", f'Q.850;cause={number};text="{text}"'),) for cause, (number, text) in _Q850.items()
} | {EndCause.TAKEN: (("reason", _ELSEWHERE),)}


def reason_headers(cause: EndCause) -> tuple[tuple[str, str], ...]:
    """The Reason of a BYE, CANCEL or refusal; a call that its caller gave up needs none."""
    return _REASON_HEADERS.get(cause, ())


def status_of(cause: EndCause) -> int:
    """Status with which an incoming leg is refused for `cause`."""
    return STATUS[cause]


def refusal_headers(status: int) -> tuple[tuple[str, str], ...]:
    """Headers that belong to a refusal: who is told to come back later is told when (RFC 3261 21.5.4)."""
    return (("retry-after", RETRY_AFTER_S),) if status == 503 else ()


def cause_of(reason: EndReason, status: int | None) -> EndCause:
    """Cause for the end of a session.

    A redirection is not followed and means that this phone was not reached.
    """
    if reason is not EndReason.REFUSED or status is None:
        return _REASONS.get(reason, EndCause.FAILED)
    found = _CAUSES.get(status)
    if found is not None:
        return found
    if status < 400:
        return EndCause.UNREACHABLE
    return EndCause.REJECTED if status >= 600 else EndCause.FAILED
