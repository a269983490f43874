"""What can go wrong in SIP: the peer's faults and ours, kept apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.sip.syntax.message import Request


class SipError(Exception):
    """Base of all errors of the SIP stack."""


class PeerError(SipError):
    """The peer broke the protocol; answer with `status` (400-699).

    Attributes:
        status: SIP status for the answer. A broken response is just dropped.
        message: the request to answer, as far as it could be read, or None
            when nothing may be answered (a response, an ACK, plain noise).
    """

    def __init__(self, reason: str, *, status: int = 400, message: Request | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.message = message


class UsageError(SipError):
    """We asked for what the protocol forbids: our bug, never the peer's."""
