"""Why a request was sent, in the peer's words (RFC 3326)."""

from __future__ import annotations

from adapters.sip.syntax.message import Message

MAX_TEXT = 200


def reason_of(message: Message) -> str:
    """The Reason values of a message as one readable line, "" without any."""
    values = message.headers.get("reason")
    if values is None:
        return ""
    text = ", ".join(values)[:MAX_TEXT]
    return "".join(character if character.isprintable() else " " for character in text)
