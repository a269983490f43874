"""REFER and what is told about it (RFC 3515, RFC 4488): reading and writing, no state.

Referred-By (RFC 3892) is not read: who refers is known by the dialog.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import NameAddr, parse_params
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.names import REASONS
from adapters.sip.syntax.replaces import Replaces
from adapters.sip.syntax.uri import SipUri

NO_SUBSCRIPTION = "norefersub"
"""Option tag: a REFER may come without a subscription (RFC 4488)."""

SIPFRAG = "message/sipfrag"

_STATUS_LINE = re.compile(rb"SIP/2\.0[ \t]+([1-6][0-9][0-9])(?:[ \t]|\r|\n|\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ReferTo:
    """What a REFER asks for.

    Attributes:
        target: whom to call.
        replaces: the call whose place the new one is to take, or None.
        notify: the sender wants to be told how it goes.
    """

    target: SipUri
    replaces: Replaces | None
    notify: bool

    @classmethod
    def of(cls, request: Request) -> ReferTo:
        """Read a REFER.

        Raises:
            PeerError: 400, malformed; 416, not a SIP or tel URI; 501, another method than INVITE is wanted.
        """
        values = request.headers.get("refer-to", ())
        if len(values) != 1:  # RFC 3515 2.4.2
            raise PeerError("exactly one Refer-To is needed")
        uri = NameAddr.parse(values[0].strip(" \t")).uri
        if not isinstance(uri, SipUri):
            raise PeerError("Refer-To is no SIP URI", status=416)
        method = uri.params.get("method")
        if method is not None and method.upper() != "INVITE":
            raise PeerError("only calls can be referred to", status=501)
        wish = request.get("refer-sub")
        return cls(
            uri,
            Replaces.in_uri(uri),
            notify=wish is None or wish.partition(";")[0].strip().lower() != "false",
        )


def sipfrag(status: int) -> bytes:
    """The body of a NOTIFY that tells how a referred call goes."""
    reason = REASONS.get(status) or REASONS[status // 100 * 100]
    return f"SIP/2.0 {status} {reason}\r\n".encode()


def read_sipfrag(body: bytes) -> int | None:
    """The status that a NOTIFY tells, or None if it tells none."""
    match = _STATUS_LINE.match(body)
    return None if match is None else int(match[1])


@dataclass(frozen=True, slots=True)
class EventName:
    """The Event header (RFC 6665 8.2.1): a package, and an id to tell several subscriptions apart."""

    package: str
    event_id: str | None = None

    @classmethod
    def of(cls, request: Request) -> EventName:
        """Read it.

        Raises:
            PeerError: 489, there is none (RFC 6665 7.2.1); 400, malformed.
        """
        value = request.get("event")
        if not value:
            raise PeerError("no Event", status=489)
        package, semicolon, rest = value.partition(";")
        params = parse_params(rest) if semicolon else {}
        return cls(package.strip().lower(), params.get("id"))

    def __str__(self) -> str:
        return self.package if self.event_id is None else f"{self.package};id={self.event_id}"


def is_terminated(request: Request) -> bool:
    """Whether a NOTIFY is the last of its subscription."""
    state = request.get("subscription-state") or ""
    return state.partition(";")[0].strip().lower() == "terminated"
