"""What a session tells its owner: its states, how it ends, and everything in between."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.sip.dialogs.session import Session


class SessionState(Enum):
    """Where a session stands."""

    INCOMING = "incoming"  # their INVITE waits for our final answer
    ANSWERED = "answered"  # our 2xx is out, their ACK is not here yet
    CALLING = "calling"  # our INVITE waits for their final answer
    CONFIRMED = "confirmed"
    CLOSING = "closing"  # over for the owner; a CANCEL, BYE or late ACK is still on the way
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a session ended."""

    BYE = "bye"  # they hung up
    CANCELLED = "cancelled"  # they gave up before the answer
    REFUSED = "refused"  # their final response; see status
    RING_TIMEOUT = "ring_timeout"
    NO_RESPONSE = "no_response"
    UNREACHABLE = "unreachable"  # the transport could not carry our INVITE
    NO_ACK = "no_ack"
    LOST = "lost"  # the far side says that the dialog is gone
    LOCAL = "local"  # we ended it
    BROKEN = "broken"  # their answer makes no sense


# --- events to the owner ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionProgress:
    """A provisional response to our INVITE; a body is early media of the branch that sent it."""

    session: Session
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionAnswered:
    """Our INVITE was accepted."""

    session: Session
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionAcked:
    """The ACK to our 2xx came; with a body if our 2xx held an offer."""

    session: Session
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionOffered:
    """A re-INVITE or UPDATE: answer with `accept_offer` or `refuse_offer`.

    An empty body asks us to offer; the answer then comes with SessionAcked.
    """

    session: Session
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionReoffered:
    """Outcome of our own re-INVITE or UPDATE; a status of 300 and above leaves all as it was.

    After a 491 (their offer crossed ours) SessionOfferWanted follows.
    """

    session: Session
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionOfferWanted:
    """Time to offer anew by `reinvite`: the session must be refreshed, or an offer crossed one of theirs."""

    session: Session


@dataclass(frozen=True, slots=True)
class SessionDtmf:
    """A key came in an INFO."""

    session: Session
    digit: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class SessionProbed:
    """Outcome of `probe`: whether the far side still knows the dialog."""

    session: Session
    alive: bool
    status: int | None


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The last event of a session."""

    session: Session
    reason: EndReason
    status: int | None = None
    detail: str = ""
    retry_after_s: float | None = None  # with a refusal: they want no more calls for so long


SessionEvent = (
    SessionProgress
    | SessionAnswered
    | SessionAcked
    | SessionOffered
    | SessionReoffered
    | SessionOfferWanted
    | SessionDtmf
    | SessionProbed
    | SessionEnded
)
