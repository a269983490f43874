"""Who calls and what was dialled, in text that people, logs, databases and other phones can take."""

from __future__ import annotations

from adapters.sip.errors import PeerError
from adapters.sip.headers import NameAddr
from adapters.sip.message import Request
from adapters.sip.uri import SipUri
from engine.events import Party

MAX_TEXT = 128  # characters of a number or a name


def caller_of(request: Request, *, trusted: bool) -> Party:
    """Number and name of the caller; a trunk's P-Asserted-Identity counts more than From (RFC 3325).

    Raises:
        PeerError: 400, an address is malformed.
    """
    address = request.from_
    if trusted and request.has("p-asserted-identity"):
        address = next(iter(request.addresses("p-asserted-identity")), address)
    return Party(_readable(_user_of(address)), _readable(address.display_name or ""))


def dialled_by(request: Request) -> str:
    """The user part of the Request-URI.

    Raises:
        PeerError: 404, there is none, or nobody can dial it; 414, too long.
    """
    return number_of(request.parsed_uri)


def number_of(uri: SipUri) -> str:
    """The number that a URI dials.

    Raises:
        PeerError: 404, there is none, or nobody can dial it; 414, too long.
    """
    dialled = uri.user
    if not dialled or not dialled.isprintable():
        raise PeerError("no number dialled", status=404)
    if len(dialled) > MAX_TEXT:
        raise PeerError("number too long", status=414)
    return dialled


def called_on_line(request: Request) -> str:
    """What was dialled, of a call to the contact that we registered, which is no number itself.

    Carriers name the number in P-Called-Party-ID (RFC 7315) or in To; a call to
    the account as such has its user name there.

    Raises:
        PeerError: 400, an address is malformed; 404 and 414 as above.
    """
    address = next(iter(request.addresses("p-called-party-id")), request.to)
    dialled = _user_of(address)
    if not dialled or not dialled.isprintable():
        raise PeerError("no number dialled", status=404)
    if len(dialled) > MAX_TEXT:
        raise PeerError("number too long", status=414)
    return dialled


def _user_of(address: NameAddr) -> str:
    return address.uri.user or "" if isinstance(address.uri, SipUri) else ""


def _readable(text: str) -> str:
    """At most MAX_TEXT characters; bytes that were no UTF-8 as Latin-1, control characters as spaces."""
    if not text.isprintable():
        data = text.encode("utf-8", "surrogateescape")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("latin-1")  # old gateways
        text = "".join(character if character.isprintable() else " " for character in text)
    return text[:MAX_TEXT]
