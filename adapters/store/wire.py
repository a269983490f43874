"""Log events as JSON: for the journal, for the events table, and back.

The JSON of an event holds its common fields and its facts side by side; its
name stands beside it. The table keeps the common fields in columns of their own.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import fields, is_dataclass

import msgspec

from casebridge.interactions import Interaction
from engine.events import CallId, LogEvent

_encoder = msgspec.json.Encoder(enc_hook=str)  # an unforeseen value in an explanation must not cost the event


def encode(event: LogEvent) -> bytes:
    """The event without its name, as one line of JSON that PostgreSQL takes as jsonb."""
    return _json(event)


def decode(name: str, body: str | bytes) -> LogEvent | None:
    """The event again; None for a name or a shape that this program does not know."""
    decoder = _decoders().get(name)
    if decoder is None:
        return None
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError:
        return None


class _Identity(msgspec.Struct):
    call_id: str | None = None


_identities = msgspec.json.Decoder(_Identity)


def identity(body: str) -> CallId | None:
    """The call that an encoded event belongs to."""
    try:
        call_id = _identities.decode(body).call_id
    except msgspec.MsgspecError:
        return None
    return None if call_id is None else CallId(call_id)


def encode_interactions(interactions: list[Interaction]) -> str:
    """A JSON array, as the upsert statement takes it."""
    return _json(interactions).decode()


@functools.cache
def _decoders() -> dict[str, msgspec.json.Decoder[LogEvent]]:
    found: dict[str, msgspec.json.Decoder[LogEvent]] = {}
    kinds = list(LogEvent.__subclasses__())
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        # A dataclass with slots is a second class; the first one lingers as a subclass for a while.
        if getattr(sys.modules[kind.__module__], kind.__name__, None) is kind:
            found[kind.name] = msgspec.json.Decoder(kind)
    return found


def _json(value: object) -> bytes:
    try:
        body = _encoder.encode(value)
    except UnicodeEncodeError:  # lone surrogates, from bytes on the wire that were no UTF-8
        body = _encoder.encode(_clean(value))
    # jsonb cannot hold NUL; a display name may.
    return body.replace(b"\\u0000", b"\\ufffd") if b"\\u0000" in body else body


def _clean(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _clean(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return value
