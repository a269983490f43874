"""What the SIP trace shows: recent messages, grouped by call. The face of whoever records them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Address = tuple[str, int]
"""IP address and port."""


@dataclass(frozen=True, slots=True)
class TracedMessage:
    """One SIP message that came or went.

    Attributes:
        at: UNIX time in seconds.
        incoming: it came to us.
        transport: udp, tcp, tls, ws or wss.
        local, remote: our address and the peer's.
        data: the message, with credentials, keys pressed and SRTP keys replaced
            by as many asterisks.
    """

    at: float
    incoming: bool
    transport: str
    local: Address
    remote: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class TracedCall:
    """The messages of one call, oldest first.

    Attributes:
        call_id: ours; None for what belongs to no call, such as a registration.
        sip_call_ids: the Call-ID headers of its dialogs.
        summary: the first request with its parties, like `INVITE 1001 → 500`.
        outcome: the last final response to that request, like `200 OK`; empty while there is none.
    """

    call_id: str | None
    sip_call_ids: tuple[str, ...]
    summary: str
    outcome: str
    messages: tuple[TracedMessage, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a search found.

    Attributes:
        since: UNIX time of the oldest message kept; None: there is none.
        calls: the newest last.
    """

    since: float | None
    calls: tuple[TracedCall, ...]


class TraceSource(Protocol):
    """Recent SIP messages, within bounded memory."""

    async def find(self, *, call: str | None = None, number: str | None = None, limit: int) -> Findings:
        """Search.

        Args:
            call: only the call with this id, ours or a Call-ID header.
            number: only calls from or to this number.
            limit: at most so many, the newest ones.
        """
