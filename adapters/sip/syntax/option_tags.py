"""Option tags: what a message says its sender can do, and what it demands (RFC 3261 19.2)."""

from __future__ import annotations

from adapters.sip.syntax.message import Message

RELIABLE = "100rel"  # RFC 3262
TIMER = "timer"  # RFC 4028


def supports(message: Message, tag: str) -> bool:
    """Whether Supported or Require names an extension."""
    return _names(message, "supported", tag) or _names(message, "require", tag)


def requires(message: Message, tag: str) -> bool:
    """Whether Require names an extension."""
    return _names(message, "require", tag)


def _names(message: Message, header: str, tag: str) -> bool:
    return header in message.headers and any(item.lower() == tag for item in message.get_all(header))
