"""Who calls and what was dialled, in text that people, logs, databases and other phones can take."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.uri import SipUri, escape
from engine.events import NOTHING_FORWARDED, Forwarded, Party

MAX_TEXT = 128  # characters of a number or a name
MAX_DATA = 512  # of User-to-User; ISDN carries 128 octets, written as hexadecimal digits, and an encoding
ANONYMOUS = '"Anonymous" <sip:anonymous@anonymous.invalid>'  # RFC 3323 4.1.1.3

_FORWARDED = frozenset({"diversion", "history-info", "user-to-user", "privacy"})
_PRIVATE = frozenset({"id", "user", "header"})


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


def forwarded_by(request: Request) -> Forwarded:
    """What an INVITE says that whoever is called for it is told, too; what is malformed is left out.

    Source: RFC 5806 (Diversion: the last one diverted first), RFC 7044
    (History-Info: the first entry was called first), RFC 7433, RFC 3323, RFC 3325.
    """
    headers = request.headers
    if _FORWARDED.isdisjoint(headers):
        return NOTHING_FORWARDED
    diverted_from = ""
    if "diversion" in headers:
        diverted_from = _number_in(request.get_all("diversion")[-1:])
    elif "history-info" in headers:
        entries = request.get_all("history-info")
        diverted_from = _number_in(entries[:1]) if len(entries) > 1 else ""
    data = request.get("user-to-user") or ""
    withheld = any(value.strip().lower() in _PRIVATE for value in (request.get("privacy") or "").split(";"))
    return Forwarded(diverted_from, data if data.isprintable() and len(data) <= MAX_DATA else "", withheld)


def forwarded_headers(forwarded: Forwarded, domain: str) -> list[tuple[str, str]]:
    """The headers that tell an agent's phone."""
    headers = []
    if forwarded.diverted_from:
        headers.append(("diversion", f"<sip:{escape(forwarded.diverted_from)}@{domain}>;reason=unknown"))
    if forwarded.user_to_user:
        headers.append(("user-to-user", forwarded.user_to_user))
    if forwarded.withheld:
        headers.append(("privacy", "id"))
    return headers


def _number_in(values: Sequence[str]) -> str:
    """User part of the first address, "" if there is none."""
    try:
        return next((_readable(_user_of(NameAddr.parse(value))) for value in values), "")
    except PeerError:
        return ""


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
