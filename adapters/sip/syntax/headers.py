"""Values of structured header fields (RFC 3261 20 and 25.1).

Parsing is tolerant where phones in the field are careless and no harm follows.
Writing is strict: whatever a caller puts into a value, it cannot leave its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.syntax.uri import SipUri, parse_host, parse_port

MAX_CSEQ = 2**31 - 1  # RFC 3261 8.1.1.5
MAX_PARAMS = 100  # of one value; phones send ten at most

_CACHED_LENGTH = 200  # longer addresses are rare; not keeping them bounds the memory of the cache

_TOKEN = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]+")
# What a parameter value may hold without quotes: a token or a host.
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9\-.!%*_+`'~:\[\]]+")
# Read more than that: gateways leave out quotes.
_UNQUOTED_VALUE = re.compile(r"[^\s\"<>;,\x00-\x1f\x7f]+")
# The usual case, checked at once: nothing quoted and no spaces.
_PLAIN_PARAM = r"[A-Za-z0-9\-.!%*_+`'~]+(?:=[^\s\"<>;,\x00-\x1f\x7f]+)?"
_PLAIN_PARAMS = re.compile(f"{_PLAIN_PARAM}(?:;{_PLAIN_PARAM})*+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# Quoted strings and <...> hide the separators inside them; an unterminated one hides all that follows.
_COMMAS = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|$)|<[^>]*+>?|,', re.DOTALL)
_SEMICOLONS = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|$)|;', re.DOTALL)
_NAME_ADDR = re.compile(r'(?:("(?:[^"\\]|\\.)*+")\s*|([^"<>]*+))<([^<>]*+)>\s*(?:;(.*))?', re.DOTALL)
_VIA = re.compile(
    r"(?i:SIP)\s*/\s*2\.0\s*/\s*([A-Za-z0-9\-.!%*_+`'~]+)\s+"
    r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)\s*(?::\s*([0-9]{1,5})\s*)?(?:;(.*))?",
    re.DOTALL,
)
_CSEQ = re.compile(r"([0-9]{1,12})\s+([A-Za-z0-9\-.!%*_+`'~]+)")
# What would end a header line, or could not be encoded.
_UNSAFE = re.compile("[\x00\r\n\ud800-\udc7f\udd00-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")
_WHITESPACE_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f]")
_NOT_IN_URI = re.compile(r"[\s\x00-\x1f\x7f<>\"]")


def is_token(text: str) -> bool:
    """Whether `text` is a token (RFC 3261 25.1)."""
    return _TOKEN.fullmatch(text) is not None


def clean(text: str) -> str:
    """Replace by spaces what must not stand in a header line: CR, LF, NUL, stray surrogates."""
    return _UNSAFE.sub(" ", text) if _UNSAFE.search(text) else text


def quoted(text: str) -> str:
    """Write a quoted string; control characters become spaces."""
    text = _CONTROL.sub(" ", text)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unquoted(text: str) -> str:
    """Read a quoted string, quotes and all; other text comes back as it is."""
    if len(text) >= 2 and text[0] == '"' and text[-1] == '"':
        text = text[1:-1]
        return _ESCAPED.sub(r"\1", text) if "\\" in text else text
    return text


def split_list(value: str) -> list[str]:
    """Split a header value at its commas, but not within quotes or `<>`; empty items are left out."""
    if "," not in value:
        stripped = value.strip()
        return [stripped] if stripped else []
    plain = '"' not in value and "<" not in value
    items = value.split(",") if plain else _split(_COMMAS, ",", value)
    return [item for item in map(str.strip, items) if item]


def parse_params(text: str) -> dict[str, str | None]:
    """Read `name=value;name;...` (without a leading semicolon).

    Returns:
        Names in lower case; values without quotes and escapes; None for a
        parameter without value.

    Raises:
        PeerError: 400 for an empty, malformed or repeated parameter, or too many.
    """
    if text.count(";") >= MAX_PARAMS:
        raise PeerError("too many parameters")
    params: dict[str, str | None] = {}
    if _PLAIN_PARAMS.fullmatch(text):
        parts = text.split(";")
        for part in parts:
            name, equals, value = part.partition("=")
            params[name.lower()] = value if equals else None
        if len(params) != len(parts):
            raise PeerError("repeated parameter")
        return params
    for part in _split(_SEMICOLONS, ";", text):
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if name in params or not _TOKEN.fullmatch(name):
            raise PeerError("malformed or repeated parameter")
        if not equals:
            params[name] = None
            continue
        value = value.strip()
        if _UNQUOTED_VALUE.fullmatch(value):
            params[name] = value
        elif _QUOTED.fullmatch(value):
            params[name] = unquoted(value)
        else:
            raise PeerError("malformed parameter value")
    return params


def format_params(params: Mapping[str, str | None]) -> str:
    """Write parameters, each with its leading semicolon, quoting where needed.

    Raises:
        UsageError: a name is not a token.
    """
    parts = []
    for name, value in params.items():
        if not _TOKEN.fullmatch(name):
            raise UsageError(f"not a parameter name: {name!r}")
        if value is None:
            parts.append(f";{name}")
        else:
            parts.append(f";{name}={value if _PLAIN_VALUE.fullmatch(value) else quoted(value)}")
    return "".join(parts)


def _split(pattern: re.Pattern[str], separator: str, text: str) -> list[str]:
    parts = []
    start = 0
    for match in pattern.finditer(text):
        if match.group() == separator:
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return parts


@dataclass(frozen=True, slots=True)
class NameAddr:
    """An address with display name and parameters: From, To, Contact, Route and the like.

    Attributes:
        display_name: without quotes and escapes; None if absent.
        uri: the raw text if the scheme is not sip, sips or tel; "*" for the
            wildcard Contact of a REGISTER.
        params: of the header, not of the URI; names in lower case.
    """

    display_name: str | None
    uri: SipUri | str
    params: Mapping[str, str | None] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str) -> NameAddr:
        """Read one address.

        Raises:
            PeerError: 400, malformed. Nothing else escapes.
        """
        return _parse_cached(text) if len(text) <= _CACHED_LENGTH else _parse_name_addr(text)

    @property
    def tag(self) -> str | None:
        """Value of the tag parameter."""
        return self.params.get("tag")

    def with_tag(self, tag: str) -> NameAddr:
        """Copy with another tag."""
        return replace(self, params={**self.params, "tag": tag})

    def __str__(self) -> str:
        if self.uri == "*":
            return "*"
        if isinstance(self.uri, str) and _NOT_IN_URI.search(self.uri):
            raise UsageError("not a URI")
        name = f"{quoted(self.display_name)} " if self.display_name else ""
        return f"{name}<{self.uri}>{format_params(self.params)}"


def _parse_name_addr(text: str) -> NameAddr:
    match = _NAME_ADDR.fullmatch(text)
    if match is not None:
        quoted_name, plain_name, uri_text, params_text = match.groups()
        name = (unquoted(quoted_name) if quoted_name else (plain_name or "").strip()) or None
    else:
        # Without <> all parameters are the header's, and "?" or "," is not allowed (RFC 3261 20.10).
        name = None
        uri_text, semicolon, rest = text.partition(";")
        uri_text = uri_text.strip()
        params_text = rest if semicolon else None
        if "?" in uri_text or "," in uri_text:
            raise PeerError("address needs angle brackets")
    params = {} if params_text is None else parse_params(params_text)
    if match is None and uri_text == "*":
        return NameAddr(None, "*")  # nothing may follow it (RFC 3261 20.10)
    return NameAddr(name, _parse_any_uri(uri_text), params)


# From, To and Contact are the same in all messages of a dialog.
_parse_cached = lru_cache(maxsize=4096)(_parse_name_addr)


def _parse_any_uri(text: str) -> SipUri | str:
    try:
        return SipUri.parse(text)
    except PeerError as exc:
        if exc.status != 416:
            raise
    if _NOT_IN_URI.search(text):
        raise PeerError("malformed URI")
    return text


class Via(NamedTuple):
    """One hop of the way back (RFC 3261 20.42).

    Attributes:
        transport: upper case: "UDP", "TCP", "TLS", "WS", "WSS" or another token.
        host: sent-by; IPv6 without brackets.
        port: None if not given.
        params: names in lower case.
    """

    transport: str
    host: str
    port: int | None = None
    params: Mapping[str, str | None] = MappingProxyType({})

    @classmethod
    def parse(cls, text: str) -> Via:
        """Read one Via value.

        Raises:
            PeerError: 400, malformed. Nothing else escapes.
        """
        match = _VIA.fullmatch(text)
        if match is None:
            raise PeerError("malformed Via")
        transport, host, port, params = match.groups()
        return cls(
            transport.upper(),
            parse_host(host) if host.startswith("[") else host,
            None if port is None else parse_port(port),
            {} if params is None else parse_params(params),
        )

    @property
    def branch(self) -> str | None:
        """Value of the branch parameter."""
        return self.params.get("branch")

    @property
    def has_rport(self) -> bool:
        """Whether the sender asks for an answer to the source port (RFC 3581)."""
        return "rport" in self.params

    @property
    def rport(self) -> int | None:
        """Source port that the server saw; None if absent or not filled in."""
        value = self.params.get("rport")
        return None if not value else parse_port(value)

    @property
    def received(self) -> str | None:
        """Source address that the server saw, without brackets."""
        value = self.params.get("received")
        return None if value is None else value.strip("[]")

    def with_params(self, params: Mapping[str, str | None]) -> Via:
        """Copy with `params` added or replaced."""
        return self._replace(params={**self.params, **params})

    def __str__(self) -> str:
        if not _TOKEN.fullmatch(self.transport):
            raise UsageError("not a transport")
        host = f"[{self.host}]" if ":" in self.host else self.host
        if _WHITESPACE_OR_CONTROL.search(host) or set(host) & set(';,"<>'):
            raise UsageError("not a host")
        port = "" if self.port is None else f":{self.port}"
        return f"SIP/2.0/{self.transport} {host}{port}{format_params(self.params)}"


class CSeq(NamedTuple):
    """Sequence number and method (RFC 3261 20.16)."""

    number: int
    method: str

    @classmethod
    def parse(cls, text: str) -> CSeq:
        """Read a CSeq value.

        Raises:
            PeerError: 400, malformed or the number is out of range.
        """
        match = _CSEQ.fullmatch(text)
        if match is None:
            raise PeerError("malformed CSeq")
        number = int(match.group(1))
        if number > MAX_CSEQ:
            raise PeerError("CSeq number out of range")
        return cls(number, match.group(2))

    def __str__(self) -> str:
        return f"{self.number} {self.method}"


def parse_number(text: str, highest: int) -> int:
    """Read a decimal number of at most `highest`.

    Raises:
        PeerError: 400, not a number or out of range.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or int(text) > highest:
        raise PeerError("malformed or overlarge number")
    return int(text)
