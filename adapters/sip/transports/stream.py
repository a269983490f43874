"""Messages out of a TCP or TLS stream (RFC 3261 18.3, RFC 5626 3.5.1)."""

from __future__ import annotations

import re
from enum import Enum

from adapters.sip.errors import PeerError
from adapters.sip.syntax.message import MAX_MESSAGE, Request, parse_message

PING = b"\r\n\r\n"
PONG = b"\r\n"

_LINE_ENDS = re.compile(rb"[\r\n]*+")
# The value is left out when it is no number, so that a second, broken header is counted too.
_LENGTH = re.compile(rb"\r\n(?:content-length|l)[ \t]*:((?:\r\n)?[ \t]*[0-9]{1,9}[ \t]*(?=\r\n[^ \t]))?", re.IGNORECASE)


class KeepAlive(Enum):
    """What a stream carries between messages."""

    PING = "ping"  # answer it with PONG


Ping = KeepAlive.PING


class StreamFramer:
    """Cuts a byte stream into messages, in time linear in its length.

    Holds at most one unfinished message of MAX_MESSAGE bytes.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # no end of headers begins before this offset
        self._needed = 0  # length of the message whose headers are complete, or 0
        self._half_ping = False
        self._fault: PeerError | None = None

    def feed(self, data: bytes) -> list[bytes | KeepAlive]:
        """Take received bytes.

        Returns:
            What they completed, in order: whole messages for parse_message, and
            Ping once for each run of keep-alives.

        Raises:
            PeerError: where the next message begins cannot be told: answer its
                `message`, if there is one, and close the connection. Messages
                completed by the same bytes are returned first; then the next
                call raises (see `fault`). Nothing else escapes.
        """
        if self._fault is not None:
            raise self._fault
        self._buffer += data
        complete: list[bytes | KeepAlive] = []
        try:
            while (item := self._next()) is not None:
                if item is not Ping or not complete or complete[-1] is not Ping:
                    complete.append(item)
        except PeerError as exc:
            self._fault = exc
            self._buffer.clear()
            if not complete:
                raise
        return complete

    @property
    def held(self) -> int:
        """Bytes of a message that is not complete yet."""
        return len(self._buffer)

    @property
    def fault(self) -> PeerError | None:
        """Why the stream cannot go on, None while it can."""
        return self._fault

    def _next(self) -> bytes | KeepAlive | None:
        buffer = self._buffer
        if not self._needed:
            if self._searched == 0 and buffer.startswith((b"\r", b"\n")):
                ping = self._skip_line_ends()
                if ping is not None:
                    return ping
            if not buffer:
                return None
            end = buffer.find(b"\r\n\r\n", self._searched)
            if end < 0:
                if len(buffer) > MAX_MESSAGE:
                    raise PeerError("endless headers", status=513)
                if not buffer.startswith(b"\r"):
                    self._half_ping = False
                    self._searched = max(0, len(buffer) - 3)
                return None
            self._half_ping = False
            self._needed = self._length(end)
        if len(buffer) < self._needed:
            return None
        message = bytes(buffer[: self._needed])
        del buffer[: self._needed]
        self._needed = self._searched = 0
        return message

    def _skip_line_ends(self) -> KeepAlive | None:
        """Drop CRLFs before a message; two in a row are a ping, also across calls."""
        buffer = self._buffer
        match = _LINE_ENDS.match(buffer)
        end = match.end() if match else 0
        if end == len(buffer) and buffer.endswith(b"\r"):
            end -= 1  # the LF is still on its way
        line_ends = buffer.count(b"\r\n", 0, end) + self._half_ping
        del buffer[:end]
        self._half_ping = bool(line_ends % 2)
        return Ping if line_ends >= 2 else None

    def _length(self, end: int) -> int:
        """Length in bytes of the message whose headers stop at `end`."""
        head = bytes(self._buffer[: end + 4])
        lengths = _LENGTH.findall(head)
        if len(lengths) != 1 or not lengths[0]:
            raise PeerError("Content-Length is missing, malformed or repeated", message=_request(head))
        total = end + 4 + int(lengths[0])
        if total > MAX_MESSAGE:
            raise PeerError("message too large", status=513, message=_request(head))
        return total


def _request(head: bytes) -> Request | None:
    """The request with these headers, if it can be read and wants an answer."""
    try:
        message = parse_message(head)
    except PeerError as exc:
        return exc.message
    return message if isinstance(message, Request) and message.method != "ACK" else None
