"""SIP messages: split at once, understood on demand (RFC 3261 7, 8.2, 20).

Parsing a message only separates its lines; header values are read when somebody
asks, and kept. Names of headers are in lower case and long form throughout:
"call-id", "via". Most messages of a call need a handful of their headers.

Text that is not UTF-8 is kept byte for byte (surrogateescape).
"""

from __future__ import annotations

import re
from typing import Any

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.syntax.headers import CSeq, NameAddr, Via, clean, is_token, parse_number, split_list
from adapters.sip.syntax.names import CASING, COMPACT_FORMS, LISTS, REASONS, SPELLINGS, usual_casing
from adapters.sip.syntax.uri import SipUri

__all__ = [
    "KNOWN_METHODS",
    "MAX_HEADER_LINES",
    "MAX_MESSAGE",
    "REASONS",
    "Message",
    "Request",
    "Response",
    "build_response",
    "parse_message",
    "validate_request",
    "validate_response",
]

MAX_MESSAGE = 65536  # bytes, headers and body
MAX_HEADER_LINES = 256
MAX_ADDRESSES = 100  # of one header: as many as hops are allowed, and more than a phone registers
MAX_EXPIRES = 2**32 - 1

# Headers that a message may carry once (RFC 3261 7.3.1).
_SINGLE = (
    "from",
    "to",
    "call-id",
    "cseq",
    "max-forwards",
    "content-type",
    "expires",
    "event",
    "refer-to",
    "replaces",
    "session-expires",
)

# Requests whose Contact we act on; only REGISTER may have several.
_WITH_CONTACT = frozenset({"INVITE", "REGISTER", "SUBSCRIBE", "NOTIFY", "REFER", "UPDATE"})

KNOWN_METHODS = frozenset(
    {"INVITE", "ACK", "CANCEL", "BYE", "OPTIONS", "INFO", "UPDATE", "REGISTER"}
    | {"PRACK", "SUBSCRIBE", "NOTIFY", "REFER", "MESSAGE", "PUBLISH"}
)

_BLANKS = frozenset({" ", "\t"})
_VERSION = re.compile(r"SIP/[0-9]+\.[0-9]+", re.IGNORECASE)
_STATUS_LINE = re.compile(r"SIP/2\.0 ([1-6][0-9][0-9])(?: (.*))?", re.IGNORECASE | re.DOTALL)


class Message:
    """What requests and responses share.

    Attributes:
        headers: values as they came, blanks around them too, by name, in the
            order of the first of each name. Change it only through the methods,
            which keep the parsed values in step; they never alter a list in
            place, so messages may share lists.
        body: bytes behind the headers.
    """

    __slots__ = ("_parsed", "body", "headers")

    def __init__(self, headers: dict[str, list[str]] | None = None, body: bytes = b"") -> None:
        self.headers: dict[str, list[str]] = {} if headers is None else headers
        self.body = body
        self._parsed: dict[str, Any] = {}  # by name, each of one type

    # --- raw values ---------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the header is there."""
        return name in self.headers

    def get(self, name: str) -> str | None:
        """First value of a header, or None; for list headers the first item."""
        values = self.headers.get(name)
        if not values:
            return None
        value = values[0]
        if "," in value and name in LISTS:
            return next(iter(split_list(value)), "")
        return value.strip(" \t")

    def get_all(self, name: str) -> list[str]:
        """All values of a header in order; those of list headers split at their commas."""
        values = self.headers.get(name)
        if not values:
            return []
        if name in LISTS:
            return [item for value in values for item in split_list(value)]
        return [value.strip(" \t") for value in values]

    def set(self, name: str, value: object) -> None:
        """Put one value in place of all there are.

        Here and below, `value` is written by str(), and CR, LF and NUL in it
        become spaces: no value can start a header line of its own.

        Raises:
            UsageError: the name is not a token in lower case.
        """
        if name not in CASING:
            _check_name(name)
        text = value if isinstance(value, str) else str(value)
        self.headers[name] = [text if text.isprintable() else clean(text)]
        self._parsed.pop(name, None)

    def add(self, name: str, value: object) -> None:
        """Append a value behind those there are."""
        _check_name(name)
        self.headers[name] = [*self.headers.get(name, ()), clean(str(value))]
        self._parsed.pop(name, None)

    def prepend(self, name: str, value: object) -> None:
        """Insert a value before those there are."""
        _check_name(name)
        self.headers[name] = [clean(str(value)), *self.headers.get(name, ())]
        self._parsed.pop(name, None)

    def replace_first(self, name: str, value: object) -> None:
        """Put a value in place of the first one; later ones stay (for the top Via)."""
        _check_name(name)
        rest = self.get_all(name)[1:]
        self.headers[name] = [clean(str(value)), *rest]
        self._parsed.pop(name, None)

    def remove(self, name: str) -> None:
        """Drop a header with all its values, if it is there."""
        self.headers.pop(name, None)
        self._parsed.pop(name, None)

    # --- parsed values ------------------------------------------------------------------

    @property
    def call_id(self) -> str:
        """SIP Call-ID. Raises PeerError if absent or empty."""
        found: str | None = self._parsed.get("call-id")
        if found is None:
            found = self._only("call-id")
            if not found or " " in found or "\t" in found:
                raise PeerError("malformed Call-ID")
            self._parsed["call-id"] = found
        return found

    @property
    def cseq(self) -> CSeq:
        """Raises PeerError if absent or malformed."""
        found: CSeq | None = self._parsed.get("cseq")
        if found is None:
            found = self._parsed["cseq"] = CSeq.parse(self._only("cseq"))
        return found

    @property
    def from_(self) -> NameAddr:
        """Raises PeerError if absent or malformed."""
        found: NameAddr | None = self._parsed.get("from")
        return self._name_addr("from") if found is None else found

    @property
    def to(self) -> NameAddr:
        """Raises PeerError if absent or malformed."""
        found: NameAddr | None = self._parsed.get("to")
        return self._name_addr("to") if found is None else found

    @property
    def vias(self) -> list[Via]:
        """All Via values, top first. Raises PeerError if one is malformed."""
        return [self.top_via, *map(Via.parse, self.get_all("via")[1:])]

    @property
    def top_via(self) -> Via:
        """First Via value. Raises PeerError if absent or malformed."""
        found: Via | None = self._parsed.get("via")
        if found is None:
            value = self.get("via")
            if value is None:
                raise PeerError("Via is missing")
            found = self._parsed["via"] = Via.parse(value)
        return found

    @property
    def contacts(self) -> list[NameAddr]:
        """All Contact values; `[]` without any. Raises PeerError if one is malformed."""
        return self.addresses("contact")

    def addresses(self, name: str) -> list[NameAddr]:
        """All values of an address list such as route, record-route or p-asserted-identity.

        Raises:
            PeerError: 400, one of them is malformed, or they are too many.
        """
        found: tuple[NameAddr, ...] | None = self._parsed.get(name)
        if found is None:
            values = self.get_all(name)
            if len(values) > MAX_ADDRESSES:
                raise PeerError("too many addresses")
            found = self._parsed[name] = tuple(map(NameAddr.parse, values))
        return list(found)

    @property
    def max_forwards(self) -> int | None:
        """None if absent. Raises PeerError beyond 0-255."""
        return self._number("max-forwards", 255)

    @property
    def expires(self) -> int | None:
        """Seconds, None if absent. Raises PeerError if malformed or beyond 32 bits."""
        return self._number("expires", MAX_EXPIRES)

    @property
    def content_length(self) -> int | None:
        """The header as received, None if absent. Raises PeerError if malformed."""
        return self._number("content-length", 10**9)

    @property
    def content_type(self) -> str | None:
        """Media type in lower case without its parameters, None if absent."""
        value = self.get("content-type")
        return None if value is None else value.partition(";")[0].strip().lower()

    def _only(self, name: str) -> str:
        values = self.headers.get(name)
        if not values:
            raise PeerError(f"{usual_casing(name)} is missing")
        if len(values) > 1:
            raise PeerError(f"{usual_casing(name)} is repeated")
        return values[0].strip(" \t")

    def _name_addr(self, name: str) -> NameAddr:
        found = self._parsed[name] = NameAddr.parse(self._only(name))
        return found

    def _number(self, name: str, highest: int) -> int | None:
        return parse_number(self._only(name), highest) if name in self.headers else None

    # --- wire form ----------------------------------------------------------------------

    def _write(self, start_line: str) -> bytes:
        lines = [start_line]
        for name, values in self.headers.items():
            if name != "content-length":
                prefix = f"{CASING.get(name) or usual_casing(name)}: "
                lines.append(prefix + f"\r\n{prefix}".join(values))
        lines.append(f"Content-Length: {len(self.body)}\r\n\r\n")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + self.body


class Request(Message):
    """A request.

    Attributes:
        method: as sent; methods are case-sensitive.
        uri: the Request-URI as raw text.
    """

    __slots__ = ("method", "uri")

    def __init__(self, method: str, uri: str, headers: dict[str, list[str]] | None = None, body: bytes = b"") -> None:
        super().__init__(headers, body)
        self.method = method
        self.uri = uri

    @classmethod
    def build(
        cls,
        method: str,
        uri: SipUri | str,
        *,
        via: Via | str,
        from_: NameAddr | str,
        to: NameAddr | str,
        call_id: str,
        cseq: int,
        max_forwards: int = 70,
    ) -> Request:
        """Make a request with the headers each one needs (RFC 3261 8.1.1).

        Raises:
            UsageError: the method is not a token or the URI cannot stand in a start line.
        """
        uri = str(uri)
        if not is_token(method) or not uri.isprintable() or " " in uri or not uri:
            raise UsageError("method or URI does not fit a start line")
        request = cls(method, uri)
        request.set("via", via)
        request.set("max-forwards", max_forwards)
        request.set("from", from_)
        request.set("to", to)
        request.set("call-id", call_id)
        request.set("cseq", f"{cseq} {method}")
        return request

    @property
    def parsed_uri(self) -> SipUri:
        """The Request-URI. Raises PeerError: 416 for an unknown scheme, 400 if malformed."""
        return SipUri.parse(self.uri)

    def serialise(self) -> bytes:
        """Write the message; Content-Length always tells the true length of the body."""
        return self._write(f"{self.method} {self.uri} SIP/2.0")

    def __repr__(self) -> str:
        return f"<Request {self.method}>"


class Response(Message):
    """A response.

    Attributes:
        status: 100-699.
        reason: free text, may be empty.
    """

    __slots__ = ("reason", "status")

    def __init__(
        self, status: int, reason: str, headers: dict[str, list[str]] | None = None, body: bytes = b""
    ) -> None:
        super().__init__(headers, body)
        self.status = status
        self.reason = reason

    @property
    def retry_after_s(self) -> float | None:
        """Seconds for which the peer wants to be left alone; None: it does not say, or not in digits (20.33)."""
        text = (self.get("retry-after") or "").partition(";")[0].partition("(")[0].strip()
        return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

    def serialise(self) -> bytes:
        """Write the message; Content-Length always tells the true length of the body."""
        return self._write(f"SIP/2.0 {self.status} {self.reason}")

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


def parse_message(data: bytes) -> Request | Response:
    """Read one message from a datagram, or from a block that a StreamFramer cut.

    The body ends where Content-Length says; what follows is ignored. Without
    Content-Length it is all the rest.

    Raises:
        PeerError: 400, malformed; 505, another version of SIP; 513, too large.
            Its `message` holds the request, as far as it could be split, when
            it wants an answer. Nothing else escapes, whatever the bytes.
    """
    if len(data) > MAX_MESSAGE:
        raise PeerError("message too large", status=513)
    head, blank, body = data.partition(b"\r\n\r\n")
    if head[:2] == b"\r\n" or not head:
        # Empty lines before the start line are to be ignored (RFC 3261 7.5).
        head, blank, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    text = head.decode("utf-8", "surrogateescape")
    fault: PeerError | None = None
    if not blank:
        fault = PeerError("no empty line behind the headers")
        text = text.removesuffix("\r\n")
    lines = text.split("\r\n")
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
        raise PeerError("stray CR or LF")
    if len(lines) > MAX_HEADER_LINES + 1:
        raise PeerError("too many header lines", status=513)

    start_line = lines[0]
    del lines[0]
    headers: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        spelling, _, value = line.partition(": ")
        try:
            name = SPELLINGS[spelling]
        except KeyError:
            if line[:1] in _BLANKS and name:
                headers[name][-1] += " " + line.strip(" \t")  # a folded line (RFC 3261 7.3.1)
                continue
            spelling, colon, value = line.partition(":")
            spelling = spelling.rstrip(" \t").lower()
            if not colon or not is_token(spelling):
                fault = fault or PeerError("malformed header line")
                continue
            name = COMPACT_FORMS.get(spelling, spelling)
            value = value.removeprefix(" ")
        if name in headers:
            headers[name].append(value)
        else:
            headers[name] = [value]

    lengths = headers.get("content-length")
    if lengths is not None:
        length = lengths[0].strip(" \t")
        if len(lengths) > 1 or not (length.isascii() and length.isdigit() and len(length) < 10):
            fault = fault or PeerError("malformed or repeated Content-Length")
        elif int(length) > len(body):
            fault = fault or PeerError("body shorter than Content-Length")
        elif int(length) < len(body):
            body = body[: int(length)]

    message = _from_start_line(start_line, headers, body)
    if fault is not None:
        raise PeerError(str(fault), status=fault.status, message=_answerable(message))
    return message


def _from_start_line(line: str, headers: dict[str, list[str]], body: bytes) -> Request | Response:
    parts = line.split(" ")
    if len(parts) == 3 and (parts[2] == "SIP/2.0" or parts[2].upper() == "SIP/2.0"):
        method, uri, _ = parts
        if (method in KNOWN_METHODS or is_token(method)) and uri and uri[0] != "<" and "\t" not in uri:
            return Request(method, uri, headers, body)
    status_line = _STATUS_LINE.fullmatch(line)
    if status_line is not None:
        return Response(int(status_line.group(1)), status_line.group(2) or "", headers, body)
    parts = line.split()
    if len(parts) < 3 or not _VERSION.fullmatch(parts[-1]) or not is_token(parts[0]):
        raise PeerError("neither a request nor a response")
    request = _answerable(Request(parts[0], " ".join(parts[1:-1]), headers, body))
    if parts[-1].upper() != "SIP/2.0":
        raise PeerError("another version of SIP", status=505, message=request)
    raise PeerError("malformed request line", message=request)


def _answerable(message: Request | Response) -> Request | None:
    """The request, if it may be answered: an ACK never is (RFC 3261 17.1)."""
    return message if isinstance(message, Request) and message.method != "ACK" else None


def validate_request(request: Request) -> None:
    """Check what every request must satisfy before it is acted on (RFC 3261 8.1.1, 8.2, 16.3).

    Not demanded, because equipment of RFC 2543 leaves it out: Max-Forwards, the
    From tag, the branch cookie, Contact.

    Raises:
        PeerError: 416 for a Request-URI of unknown scheme, else 400. `message`
            is the request if it may be answered.
    """
    try:
        _check_request(request)
    except PeerError as exc:
        exc.message = _answerable(request)
        raise


def _check_request(request: Request) -> None:
    _check_common(request)
    if request.cseq.method != request.method:
        raise PeerError("CSeq is of another method")
    uri = request.parsed_uri
    if uri.headers:
        raise PeerError("headers in the Request-URI")
    _ = request.max_forwards, request.expires
    if "contact" in request.headers and request.method in _WITH_CONTACT:
        contacts = request.contacts
        if request.method != "REGISTER" and (len(contacts) != 1 or contacts[0].uri == "*"):
            raise PeerError("exactly one Contact is needed")


def validate_response(response: Response) -> None:
    """Check what every response must satisfy; drop it if it does not (RFC 3261 8.1.3, 18.1.2).

    Raises:
        PeerError: malformed, or with a second Via: it is not for us.
    """
    _check_common(response)
    vias = response.headers["via"]
    if len(vias) > 1 or len(response.get_all("via")) > 1:
        raise PeerError("response with more than one Via")


def _check_common(message: Message) -> None:
    headers = message.headers
    for name in _SINGLE:
        values = headers.get(name)
        if values is not None and len(values) > 1:
            raise PeerError(f"{usual_casing(name)} is repeated")
    _ = message.top_via, message.call_id, message.cseq, message.from_, message.to


def build_response(request: Request, status: int, reason: str | None = None, *, to_tag: str | None = None) -> Response:
    """Make a response with the headers that a request determines (RFC 3261 8.2.6).

    What is missing or malformed in the request is left out or copied as it is,
    so a bad request can be answered too.

    Args:
        request: what is answered.
        status: 100-699.
        reason: None for the usual phrase.
        to_tag: our tag, added to To unless it has one. Not used for a 100.

    Raises:
        UsageError: the status is out of range or the tag is not a token.
    """
    if not 100 <= status <= 699:
        raise UsageError(f"not a status: {status}")
    headers: dict[str, list[str]] = {}
    for name in ("via", "from", "to", "call-id", "cseq"):
        values = request.headers.get(name)
        if values:
            headers[name] = list(values)
    if status == 100:
        if "timestamp" in request.headers:
            headers["timestamp"] = list(request.headers["timestamp"])
    elif to_tag is not None and "to" in headers:
        if not is_token(to_tag):
            raise UsageError("not a tag")
        if _lacks_tag(request):
            headers["to"][0] = f"{headers['to'][0].rstrip()};tag={to_tag}"
    if reason is None:
        reason = REASONS.get(status) or REASONS[status // 100 * 100]
    return Response(status, clean(reason), headers)


def _lacks_tag(request: Request) -> bool:
    try:
        return request.to.tag is None
    except PeerError:
        return False


def _check_name(name: str) -> None:
    if name not in CASING and (not is_token(name) or name != name.lower()):
        raise UsageError(f"not a header name in lower case: {name!r}")
