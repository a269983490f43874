"""Keys pressed, as phones without RFC 4733 tell them: in the body of an INFO request."""

from __future__ import annotations

import re

_RELAY_SIGNAL = re.compile(rb"(?im)^\s*signal\s*=\s*([0-9*#A-D]|1[0-5])\s*$")
_RELAY_DURATION = re.compile(rb"(?im)^\s*duration\s*=\s*(\d{1,5})\s*$")
_PLAIN_SIGNAL = re.compile(rb"(?i)\s*([0-9*#A-D]|1[0-5])\s*")
_EVENTS = {"10": "*", "11": "#", "12": "A", "13": "B", "14": "C", "15": "D"}


def parse_dtmf(content_type: str, body: bytes) -> tuple[str, int] | None:
    """Key and duration in milliseconds from the body of an INFO, None if there is none.

    Both spellings of star and hash occur: the character, and its RFC 4733 event number.
    """
    duration_ms = 160
    if content_type == "application/dtmf":
        match = _PLAIN_SIGNAL.fullmatch(body[:64])
    else:
        body = body[:512].replace(b"\r", b"")
        match = _RELAY_SIGNAL.search(body)
        duration = _RELAY_DURATION.search(body)
        if duration is not None:
            duration_ms = int(duration.group(1))
    if match is None:
        return None
    digit = match.group(1).decode().upper()
    return _EVENTS.get(digit, digit), duration_ms
