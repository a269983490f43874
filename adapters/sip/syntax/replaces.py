"""The Replaces header (RFC 3891): a call that wants the place of another one."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import parse_params
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.uri import SipUri, unescape

REPLACES = "replaces"
"""Option tag and name of the header."""

MAX_URI_HEADERS = 1024  # characters behind the "?" of a Refer-To that are looked at


@dataclass(frozen=True, slots=True)
class Replaces:
    """Names a dialog of whoever receives it.

    Attributes:
        to_tag: the receiver's own tag.
        from_tag: the tag of the receiver's partner.
        early_only: replace it only while it rings.
    """

    sip_call_id: str
    to_tag: str
    from_tag: str
    early_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Replaces:
        """Read a header value.

        Raises:
            PeerError: 400, malformed. Nothing else escapes.
        """
        call_id, semicolon, rest = text.strip(" \t").partition(";")
        call_id = call_id.rstrip(" \t")
        if not semicolon or not call_id or " " in call_id or "\t" in call_id:
            raise PeerError("malformed Replaces")
        params = parse_params(rest)
        to_tag, from_tag = params.get("to-tag"), params.get("from-tag")
        if not to_tag or not from_tag:
            raise PeerError("Replaces without tags")
        return cls(call_id, to_tag, from_tag, "early-only" in params)

    @classmethod
    def of(cls, request: Request) -> Replaces | None:
        """The header of an INVITE, or None.

        Raises:
            PeerError: 400, malformed or repeated.
        """
        values = request.headers.get(REPLACES)
        if not values:
            return None
        if len(values) > 1:
            raise PeerError("Replaces is repeated")
        return cls.parse(values[0])

    @classmethod
    def in_uri(cls, uri: SipUri) -> Replaces | None:
        """The header in the URI of a Refer-To, or None.

        Raises:
            PeerError: 400, malformed or repeated.
        """
        if not uri.headers:
            return None
        if len(uri.headers) > MAX_URI_HEADERS:
            raise PeerError("too many headers in a URI")
        pairs = [part.partition("=") for part in uri.headers.split("&")]
        found = [unescape(value) for name, _, value in pairs if unescape(name).lower() == REPLACES]
        if len(found) > 1:
            raise PeerError("Replaces is repeated")
        return cls.parse(found[0]) if found else None

    def __str__(self) -> str:
        return f"{self.sip_call_id};to-tag={self.to_tag};from-tag={self.from_tag}" + (
            ";early-only" if self.early_only else ""
        )

    def uri_header(self) -> str:
        """The header as it stands behind the "?" of a URI (RFC 3261 19.1.1)."""
        return f"Replaces={quote(str(self), safe='')}"
