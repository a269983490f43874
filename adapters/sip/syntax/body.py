"""What a message body holds: the session description among other parts (RFC 3261 7.4, 20.11, RFC 5621, RFC 2046).

Most bodies are one session description, and cost one look here. Carriers put
it into a multipart body beside ISUP (RFC 3204, SIP-I), emergency calls beside a
location (RFC 6442) or data of the vehicle (RFC 7852).
"""

from __future__ import annotations

import binascii
import quopri
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import is_token, parse_params, split_list, unquoted
from adapters.sip.syntax.message import Message
from adapters.sip.syntax.names import COMPACT_FORMS

SDP = "application/sdp"
ACCEPTED_ENCODING = "identity"

MAX_PARTS = 32  # of one multipart body
MAX_DEPTH = 4  # multipart within multipart
MAX_PART_HEADERS = 32
MAX_ACCEPTED = 64  # types in one Accept value that are looked at

_SDP_ALONE = [SDP]
_NO_ENCODING = frozenset({"", "identity"})
# Signalling of the telephone network (RFC 3204): let pass, unless it says that we must act on it.
_TRUNK_SIGNALLING = frozenset({"application/isup", "application/qsig"})
# What emergency calls carry (RFC 6442, RFC 7852, RFC 8147): no such call fails because we do not act on it.
_LOCATION = "application/pidf+xml"
_EMERGENCY_DATA = "application/emergencycalldata."


@dataclass(frozen=True, slots=True)
class MediaType:
    """A Content-Type value.

    Attributes:
        name: "application/sdp", in lower case; "" if it is none.
        params: names in lower case, values without quotes.
    """

    name: str
    params: Mapping[str, str | None]

    @classmethod
    def parse(cls, value: str) -> MediaType:
        """Read a value. Parameters that cannot be read are left out: the type still counts."""
        name, semicolon, rest = value.partition(";")
        params: Mapping[str, str | None] = {}
        if semicolon:
            try:
                params = parse_params(rest.strip())
            except PeerError:
                params = {}
        kind, _, subtype = "".join(name.split()).lower().partition("/")
        return cls(f"{kind}/{subtype}" if is_token(kind) and is_token(subtype) else "", params)


@dataclass(frozen=True, slots=True)
class Part:
    """One body, or one part of a multipart body.

    Attributes:
        type: what it is.
        disposition: "session", "render", ... in lower case; by default "session" for SDP (RFC 3261 20.11).
        required: the sender wants the request refused by who does not understand this part.
        encoded: it has a Content-Encoding that we do not undo.
        content_id: without its `<>`; "" if it has none.
        content: the bytes, a transfer encoding undone.
    """

    type: MediaType
    disposition: str
    required: bool
    encoded: bool
    content_id: str
    content: bytes


def part_of(message: Message) -> Part:
    """The body of a message as a whole."""
    return _part(
        {name: values[0] for name, values in message.headers.items() if name.startswith("content-") and values},
        message.body,
    )


def split_multipart(part: Part) -> list[Part]:
    """Parts of a multipart body, in order.

    Raises:
        PeerError: 400, no proper boundary, or too many parts. Nothing else escapes.
    """
    boundary = part.type.params.get("boundary") or ""
    if not 0 < len(boundary) <= 70 or boundary.endswith(" "):  # RFC 2046 5.1.1
        raise PeerError("multipart body without a proper boundary")
    return [_read_part(block) for block in _blocks(part.content, boundary.encode("utf-8", "surrogateescape"))]


def session_description(part: Part, depth: int = 0) -> bytes | None:
    """The session description in a body.

    Returns:
        None if there is none. Of several the first.

    Raises:
        PeerError: 415, a part that must be understood is not; 400, a malformed
            multipart body. Nothing else escapes.
    """
    kind = part.type.name
    if not part.encoded:
        if (kind == SDP or (not kind and part.content.startswith(b"v=0"))) and part.disposition == "session":
            return part.content
        if kind.startswith("multipart/"):
            if depth >= MAX_DEPTH:
                raise PeerError("multipart bodies nested too deep")
            return _session_in(kind, part, split_multipart(part), depth + 1)
    if part.required:
        raise PeerError("a body that must be understood is unknown", status=415)
    return None


def keep_session_description(message: Message) -> None:
    """Leave only the session description in the body; nothing, if the body holds none and may be ignored.

    A message without a body, or with SDP alone, is left as it is.

    Raises:
        PeerError: as `session_description`.
    """
    headers = message.headers
    if not message.body or (
        headers.get("content-type") == _SDP_ALONE
        and "content-disposition" not in headers
        and "content-encoding" not in headers
    ):
        return
    found = session_description(part_of(message))
    for name in ("content-disposition", "content-encoding", "content-type"):
        message.remove(name)
    message.body = found or b""
    if found is not None:
        message.set("content-type", SDP)


def accepts(message: Message, kind: str) -> bool:
    """Whether the sender takes bodies of a type in answer; without Accept it takes SDP (RFC 3261 20.1)."""
    values = message.headers.get("accept")
    if values is None:
        return kind == SDP
    if values == [kind]:
        return True
    wanted = (kind, f"{kind.partition('/')[0]}/*", "*/*")
    for value in values:
        for item in split_list(value)[:MAX_ACCEPTED]:
            media = MediaType.parse(item)
            if media.name in wanted and not _is_zero(media.params.get("q")):
                return True
    return False


def _is_zero(q: str | None) -> bool:
    return q is not None and q.startswith("0") and not q.strip("0.")


def _session_in(kind: str, whole: Part, parts: list[Part], depth: int) -> bytes | None:
    """The session description among the parts of a multipart body, by what kind of multipart it is."""
    if kind == "multipart/alternative":
        return _last_understood(whole, parts, depth)
    if kind == "multipart/related":
        start = unquoted(whole.type.params.get("start") or "").strip("<>")
        parts = [next((part for part in parts if start and part.content_id == start), parts[0])]
    elif kind == "multipart/signed":
        parts = parts[:1]  # RFC 1847: what is signed; the rest is the signature
    found: bytes | None = None
    for part in parts:
        description = session_description(part, depth)
        if found is None:
            found = description
    return found


def _last_understood(whole: Part, parts: list[Part], depth: int) -> bytes | None:
    """RFC 2046 5.1.4: of alternatives the last one that we understand."""
    refusal: PeerError | None = None
    for part in reversed(parts):
        try:
            found = session_description(part, depth)
        except PeerError as exc:
            if exc.status != 415:
                raise
            refusal = exc
            continue
        if found is not None:
            return found
    if refusal is not None and whole.required:
        raise refusal
    return None


def _blocks(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """What lies between the lines with the boundary. A missing last one is let pass."""
    marker = b"--" + boundary
    start = -1
    found = 0
    position = body.find(marker)
    while position >= 0:
        end = position + len(marker)
        next_line = body.find(b"\n", end)
        rest = body[end : len(body) if next_line < 0 else next_line].strip(b" \t\r") if next_line - end < 200 else b"?"
        if rest in (b"", b"--") and (position == 0 or body[position - 1 : position] == b"\n"):
            if start >= 0:
                found += 1
                if found > MAX_PARTS:
                    raise PeerError("too many parts in a multipart body")
                yield _without_line_end(body[start:position])
            if rest == b"--" or next_line < 0:
                start = len(body)
                break
            start = next_line + 1
        position = body.find(marker, end)
    if start < 0:
        raise PeerError("the boundary of a multipart body is not in it")
    if start < len(body):
        found += 1
        yield body[start:]
    if not found:
        raise PeerError("a multipart body without parts")


def _without_line_end(block: bytes) -> bytes:
    """The line end before a boundary belongs to the boundary (RFC 2046 5.1.1)."""
    return block.removesuffix(b"\n").removesuffix(b"\r")


def _read_part(block: bytes) -> Part:
    headers: dict[str, str] = {}
    start = 0
    name = ""
    for _ in range(MAX_PART_HEADERS + 1):
        end = block.find(b"\n", start)
        line = block[start : len(block) if end < 0 else end].removesuffix(b"\r").decode("utf-8", "surrogateescape")
        start = len(block) if end < 0 else end + 1
        if not line:
            break
        if line[0] in " \t" and name:
            headers[name] += " " + line.strip()
            continue
        spelling, colon, value = line.partition(":")
        spelling = spelling.rstrip(" \t").lower()
        if not colon or not is_token(spelling):
            raise PeerError("malformed header in a multipart body")
        name = COMPACT_FORMS.get(spelling, spelling)
        headers[name] = value.strip()
    else:
        raise PeerError("too many headers in a multipart body")
    return _part(headers, block[start:])


def _part(headers: Mapping[str, str], content: bytes) -> Part:
    kind = MediaType.parse(headers.get("content-type", ""))
    value = headers.get("content-disposition")
    disposition, handling = _disposition(value)
    if value is None:
        disposition = "session" if kind.name in (SDP, "") else "render"
    if kind.name == _LOCATION or kind.name.startswith(_EMERGENCY_DATA):
        required = False
    elif handling is None:  # RFC 3261 20.11: required, but for what a header field that we do not read refers to
        required = kind.name not in _TRUNK_SIGNALLING and disposition != "by-reference"
    else:
        required = handling != "optional"
    encodings = {item.lower() for item in split_list(headers.get("content-encoding", ""))}
    content, decoded = _without_transfer_encoding(headers.get("content-transfer-encoding", "").strip().lower(), content)
    return Part(
        kind,
        disposition,
        required,
        not decoded or bool(encodings - _NO_ENCODING),
        headers.get("content-id", "").strip().strip("<>"),
        content,
    )


def _disposition(value: str | None) -> tuple[str, str | None]:
    """Type and `handling` of a Content-Disposition value."""
    if value is None:
        return "", None
    disposition, semicolon, rest = value.partition(";")
    params: Mapping[str, str | None] = {}
    if semicolon:
        try:
            params = parse_params(rest.strip())
        except PeerError:
            params = {}
    handling = params.get("handling")
    return disposition.strip().lower(), None if handling is None else handling.lower()


def _without_transfer_encoding(encoding: str, content: bytes) -> tuple[bytes, bool]:
    """Content with a transfer encoding undone, and whether that was possible (RFC 2045 6)."""
    if encoding in ("", "binary", "8bit", "7bit"):
        return content, True
    try:
        if encoding == "base64":
            return binascii.a2b_base64(content), True
        if encoding == "quoted-printable":
            return quopri.decodestring(content), True
    except (binascii.Error, ValueError):
        pass
    return content, False
