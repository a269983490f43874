"""The documents of event packages (RFC 4235, RFC 3863 with RFC 4480, RFC 3842, RFC 3680).

Pure: facts in, bytes out. Everything that callers can influence is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

DIALOG_INFO = "application/dialog-info+xml"
PIDF = "application/pidf+xml"
MESSAGE_SUMMARY = "application/simple-message-summary"
REGINFO = "application/reginfo+xml"

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
# What XML 1.0 cannot hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


Progress = Literal["trying", "early", "confirmed"]


@dataclass(frozen=True, slots=True)
class DialogFacts:
    """One call of a phone, as others see it.

    Attributes:
        dialog_id: a name, stable through the dialog.
        direction: initiator: the phone called.
        state: early: it rings.
        remote: URI of the other party; `remote_name`: its display name.
        sip_call_id, local_tag, remote_tag: the phone's dialog, for those who may pick it up; "" hides it.
    """

    dialog_id: str
    direction: Literal["initiator", "recipient"]
    state: Progress
    remote: str
    remote_name: str = ""
    sip_call_id: str = ""
    local_tag: str = ""
    remote_tag: str = ""


def dialog_info(entity: str, dialogs: Sequence[DialogFacts], version: int) -> bytes:
    """All calls of a phone; an entity without any has no dialog element."""
    parts = [
        _HEAD,
        f'<dialog-info xmlns="urn:ietf:params:xml:ns:dialog-info" version="{version}" state="full" '
        f"entity={_attribute(entity)}>\n",
    ]
    for dialog in dialogs:
        names = ""
        if dialog.sip_call_id:
            names = (
                f" call-id={_attribute(dialog.sip_call_id)} local-tag={_attribute(dialog.local_tag)}"
                f" remote-tag={_attribute(dialog.remote_tag)}"
            )
        name = f" display={_attribute(dialog.remote_name)}" if dialog.remote_name else ""
        parts.append(
            f'<dialog id={_attribute(dialog.dialog_id)} direction="{dialog.direction}"{names}>'
            f"<state>{dialog.state}</state>"
            f"<local><identity>{_text(entity)}</identity><target uri={_attribute(entity)}/></local>"
            f"<remote><identity{name}>{_text(dialog.remote)}</identity>"
            f"<target uri={_attribute(dialog.remote)}/></remote></dialog>\n"
        )
    parts.append("</dialog-info>\n")
    return "".join(parts).encode()


Activity = Literal["on-the-phone", "away", "busy"]


def presence(entity: str, name: str, *, is_open: bool, activity: Activity | None, note: str) -> bytes:
    """One person's presence: whether calls are taken, what the person does, and a word for people."""
    basic = "open" if is_open else "closed"
    activities = "" if activity is None else f"<rpid:activities><rpid:{activity}/></rpid:activities>"
    return (
        f'{_HEAD}<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" '
        f'xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid" entity={_attribute(entity)}>\n'
        f"<tuple id={_attribute(name)}><status><basic>{basic}</basic></status>"
        f"<contact>{_text(entity)}</contact><note>{_text(note)}</note></tuple>\n"
        f'<note>{_text(note)}</note>\n<dm:person id="person">{activities}</dm:person>\n</presence>\n'
    ).encode()


def message_summary(account: str, new: int, old: int) -> bytes:
    """How many voice messages wait, new and old; none of them urgent."""
    waiting = "yes" if new else "no"
    return (
        f"Messages-Waiting: {waiting}\r\nMessage-Account: {account}\r\nVoice-Message: {new}/{old} (0/0)\r\n"
    ).encode()


def reginfo(aor: str, contacts: Sequence[tuple[str, str, float]], version: int) -> bytes:
    """The registrations of an address of record (RFC 3680).

    Args:
        aor: its URI.
        contacts: name, URI and seconds left of each.
        version: of this subscription's documents.
    """
    state = "active" if contacts else "terminated"
    found = "".join(
        f'<contact id={_attribute(name)} state="active" event="registered" expires="{max(0, round(left_s))}">'
        f"<uri>{_text(uri)}</uri></contact>"
        for name, uri, left_s in contacts
    )
    return (
        f'{_HEAD}<reginfo xmlns="urn:ietf:params:xml:ns:reginfo" version="{version}" state="full">\n'
        f'<registration aor={_attribute(aor)} id="aor" state="{state}">{found}</registration>\n</reginfo>\n'
    ).encode()


def _text(text: str) -> str:
    return escape(_NOT_XML.sub(" ", text))


def _attribute(text: str) -> str:
    return quoteattr(_NOT_XML.sub(" ", text))
