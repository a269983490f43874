"""SIP, SIPS and tel URIs (RFC 3261 19.1, RFC 3966)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address
from urllib.parse import quote, unquote

from adapters.sip.errors import PeerError, UsageError

# Characters that each part may hold unescaped besides letters, digits and "_.-~" (RFC 3261 25.1).
_USER_SAFE = "!*'()&=+$,;?/"
_AFTER_COLON_SAFE = "!*'()&=+$,"
_PARAM_SAFE = "!*'()[]/:&+$"
_HEADERS_SAFE = "!*'()[]/?:+$&=%"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_SIP_URI = re.compile(
    r"(?i:(sips?)):"
    # Visible ASCII only. Phones send "#" and others unescaped: read them, never write them.
    r"(?:([!#-9;=?A-Z\[-~]+)(?::([!#-;=?A-Z\[-~]*))?@)?"
    r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::([0-9]{1,5}))?"
    r"((?:;[^;?@\s<>\"]+)*)(?:\?([^@\s<>\"]+))?"
)
_TEL_URI = re.compile(r"(?i:tel):([+]?[0-9A-Fa-f*#\-.()]+)((?:;[^;?@\s<>\"]+)*)")
_TEL_NUMBER = re.compile(r"[+]?[0-9A-Fa-f*#\-.()]+")
_HOST = re.compile(r"[A-Za-z0-9._\-]+")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_VISUAL_SEPARATORS = str.maketrans("", "", "-.()")

# A parameter of these names in only one of two URIs makes them different (RFC 3261 19.1.4).
_SIGNIFICANT = ("user", "ttl", "method", "maddr", "transport")

_CACHED_LENGTH = 160  # longer URIs are rare; not keeping them bounds the memory of the cache


def escape(text: str, safe: str = _USER_SAFE) -> str:
    """Escape everything but letters, digits, `_.-~` and `safe` as %HH of its UTF-8 bytes."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "replace")
    return quote(data, safe=safe)


def unescape(text: str) -> str:
    """Undo `escape`; bytes that are not UTF-8 become lone surrogates."""
    return unquote(text, errors="surrogateescape") if "%" in text else text


@dataclass(frozen=True, slots=True)
class SipUri:
    """A sip:, sips: or tel: URI with its parts unescaped.

    Values given by callers are escaped when written, so no value can end the
    URI early. A parsed URI is written as it came.

    Attributes:
        scheme: "sip", "sips" or "tel".
        user: user part, or the number of a tel URI; None if absent. It may hold
            any character, NUL too, when the peer escaped it.
        host: name or address, IPv6 without brackets; "" in a tel URI.
        port: None if not given.
        params: names in lower case; None for a parameter without value.
        headers: all behind "?", as it came.

    Raises:
        UsageError: scheme, host, port or a parameter name cannot stand in a URI.
    """

    scheme: str
    user: str | None
    password: str | None = None
    host: str = ""
    port: int | None = None
    params: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    headers: str = ""
    _text: str = field(default="", init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.scheme == "tel":
            if not _TEL_NUMBER.fullmatch(self.user or "") or self.host:
                raise UsageError("a tel URI has a number and no host")
        elif self.scheme not in ("sip", "sips"):
            raise UsageError(f"not a SIP scheme: {self.scheme!r}")
        elif not _HOST.fullmatch(self.host):
            try:
                IPv6Address(self.host)
            except ValueError:
                raise UsageError(f"not a host: {self.host!r}") from None
        if self.port is not None and not 0 < self.port < 65536:
            raise UsageError(f"not a port: {self.port}")
        if "" in self.params:
            raise UsageError("a parameter needs a name")

    @classmethod
    def parse(cls, text: str) -> SipUri:
        """Read a URI.

        Raises:
            PeerError: 416 for a scheme other than sip, sips and tel; 400 for
                anything malformed. Nothing else escapes.
        """
        return _parse_cached(text) if len(text) <= _CACHED_LENGTH else _parse(text)

    @property
    def secure(self) -> bool:
        """Whether the URI asks for TLS on every hop."""
        return self.scheme == "sips"

    def equivalent(self, other: SipUri) -> bool:
        """Compare as RFC 3261 19.1.4 does (tel: RFC 3966 5).

        Unlike the RFC, an escaped reserved character equals the same character
        unescaped: phones differ in what they escape, and mean the same user.
        """
        if self.scheme != other.scheme:
            return False
        if self.scheme == "tel":
            mine, theirs = self.user or "", other.user or ""
            if mine.translate(_VISUAL_SEPARATORS).lower() != theirs.translate(_VISUAL_SEPARATORS).lower():
                return False
            return _folded(self.params) == _folded(other.params)
        if (self.user, self.password, self.port) != (other.user, other.password, other.port):
            return False
        if self.host.lower() != other.host.lower():
            return False
        mine_params, their_params = _folded(self.params), _folded(other.params)
        for name in mine_params.keys() | their_params.keys():
            if name in mine_params and name in their_params:
                if mine_params[name] != their_params[name]:
                    return False
            elif name in _SIGNIFICANT:
                return False
        return _header_set(self.headers) == _header_set(other.headers)

    def __str__(self) -> str:
        return self._text or self._format()

    def _format(self) -> str:
        parts = [self.scheme, ":"]
        if self.scheme == "tel":
            parts.append(self.user or "")
        else:
            if self.user is not None:
                parts.append(escape(self.user))
                if self.password is not None:
                    parts += (":", escape(self.password, _AFTER_COLON_SAFE))
                parts.append("@")
            parts.append(f"[{self.host}]" if ":" in self.host else self.host)
            if self.port is not None:
                parts.append(f":{self.port}")
        for name, value in self.params.items():
            parts += (";", escape(name, _PARAM_SAFE))
            if value is not None:
                parts += ("=", escape(value, _PARAM_SAFE))
        if self.headers:
            parts += ("?", escape(self.headers, _HEADERS_SAFE))
        return "".join(parts)


def scheme_of(text: str) -> str | None:
    """Scheme of a URI in lower case, or None if there is none."""
    match = _SCHEME.match(text)
    return match.group(1).lower() if match else None


def parse_host(text: str) -> str:
    """Check a host and strip the brackets of an IPv6 address.

    Raises:
        PeerError: 400, not a host.
    """
    if text.startswith("["):
        address = text[1:-1]
        if ":::" in address and "." in address:
            address = address.replace(":::", "::")  # the grammar of RFC 3261 had one colon too many (RFC 5118 4.10)
        try:
            IPv6Address(address)
        except ValueError:
            raise PeerError("malformed IPv6 address") from None
        return address
    if not _HOST.fullmatch(text):
        raise PeerError("malformed host")
    return text


def parse_port(text: str) -> int:
    """Read a port number.

    Raises:
        PeerError: 400, not within 1-65535.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise PeerError("port out of range")
    return int(text)


def _parse(text: str) -> SipUri:
    if "%" in text and _BAD_ESCAPE.search(text):
        raise PeerError("malformed escape in URI")
    if not text.isprintable():
        raise PeerError("control character in URI")  # such a URI could not be written again
    match = _SIP_URI.fullmatch(text)
    if match is not None:
        scheme, user, password, host, port, params, headers = match.groups()
        uri = SipUri(
            scheme.lower(),
            None if user is None else unescape(user),
            None if password is None else unescape(password),
            parse_host(host) if host.startswith("[") else host,
            None if port is None else parse_port(port),
            _parse_params(params),
            headers or "",
        )
    elif (match := _TEL_URI.fullmatch(text)) is not None:
        uri = SipUri("tel", match.group(1), params=_parse_params(match.group(2)))
    else:
        scheme = scheme_of(text)
        if scheme is None or scheme in ("sip", "sips", "tel"):
            raise PeerError("malformed URI")
        raise PeerError("unknown URI scheme", status=416)
    object.__setattr__(uri, "_text", text)
    return uri


_parse_cached = lru_cache(maxsize=2048)(_parse)


def _parse_params(text: str) -> dict[str, str | None]:
    if not text:
        return {}
    params: dict[str, str | None] = {}
    for part in text[1:].split(";"):
        name, equals, value = part.partition("=")
        name = unescape(name).lower()
        if not name or name in params:
            raise PeerError("malformed URI parameter")
        params[name] = unescape(value) if equals else None
    return params


def _folded(params: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.lower(): None if value is None else value.lower() for name, value in params.items()}


def _header_set(headers: str) -> list[tuple[str, str]]:
    pairs = (part.partition("=") for part in headers.split("&") if part)
    return sorted((unescape(name).lower(), unescape(value)) for name, _, value in pairs)
