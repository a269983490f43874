"""What must not stand in a log: phone numbers, keys pressed, transcripts and credentials.

Pure text work. Numbers keep their last two digits, so that two records can be
matched by eye; extensions of up to four digits stay, for they name no person.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache

HIDDEN = "***"

_MAX_TEXT = 2_000
_CACHED_LENGTH = 64
_MAX_ITEMS = 50
_MAX_DEPTH = 4
_KEPT_DIGITS = 2
_EXTENSION_DIGITS = 4

# Names of fields whose whole value is secret, or whose digits are a person's.
_SECRET = re.compile(
    r"passw|secret|token|authorization|credential|cookie|api_?key|ticket|\bha1|_ha1|argon2|private_?key|\bauth\b"
    r"|^digits?$|dtmf|transcript|utterance",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"caller|callee|called|dialled|dialed|number|phone|msisdn|contact|from|^to$|^uri$|aor", re.IGNORECASE
)
_IDENTITY = frozenset({"call_id", "leg_id", "event_id", "play_id", "pid", "port", "line", "status"})

_CREDENTIALS = re.compile(
    r"(?P<header>(?:proxy-)?authorization|(?:set-)?cookie|x-api-key)(?P<colon>['\"]?\s*[:=]\s*)[^\r\n]+"
    r"|(?P<scheme>\b(?:bearer|basic|digest)\s+)(?=[^\s,;]*[=._0-9+/\"])[^\r\n]+"
    r"|(?P<key>\b[\w-]*(?:password|passwd|secret|token|ticket|api_?key|ha1|md5|sha256|argon2id|digits?|dtmf)['\"]?\s*[:=]\s*)"
    r"(?P<value>'(?:[^'\\\r\n]|\\.)*'?|\"(?:[^\"\\\r\n]|\\.)*\"?|[^\s,;&)}\]]+)"
    r"|(?P<userinfo>[a-z][a-z0-9+.-]*://[^\s/@:]*:)[^\s/@]+(?=@)"
    r"|\$argon2[a-z]*\$[^\s'\"]+",
    re.IGNORECASE,
)
_SIP_USER = re.compile(
    r"(?P<scheme>\b(?:sips?|tel):)(?P<user>\+?[0-9*#().-]*[0-9][0-9*#().-]*)(?![A-Za-z_])", re.IGNORECASE
)
_PHONE = re.compile(
    r"(?<![\w.])\+[0-9](?:[ ()/.-]{0,2}[0-9]){4,17}"  # international, perhaps with separators
    r"|(?<![\w.])[0-9]{2,5}[ /-][0-9]{5,12}(?![\w])"  # area code and number
    r"|(?<![\w.])[0-9]{7,}(?![\w])"
)
_DIGIT = re.compile(r"[0-9]")


def mask_number(text: str) -> str:
    """Hide the digits of a phone number but the last two; extensions stay."""
    count = len(_DIGIT.findall(text))
    if count <= _EXTENSION_DIGITS:
        return text
    hidden = count - _KEPT_DIGITS
    return _DIGIT.sub("*", text, count=hidden)


def mask(text: str) -> str:
    """Hide credentials, SIP users that are numbers, and phone numbers within a text."""
    return _mask_cached(text) if len(text) <= _CACHED_LENGTH else _mask(text)


def _mask(text: str) -> str:
    text = _CREDENTIALS.sub(_hide, text)
    text = _SIP_USER.sub(lambda found: found["scheme"] + mask_number(found["user"]), text)
    return _PHONE.sub(lambda found: mask_number(found[0]), text)


_mask_cached = lru_cache(maxsize=2048)(_mask)  # event names, agents and queues come again and again


def mask_field(name: str, value: object, depth: int = 0) -> object:
    """A field of a record as it may be logged: JSON-ready, bounded, masked by name and by content."""
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str and len(value) <= _CACHED_LENGTH:
        return value if name in _IDENTITY else _mask_short(name, value)
    if _is_secret(name):
        return HIDDEN
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, int | float):
        return mask_number(str(value)) if isinstance(value, int) and _is_number(name) else value
    if isinstance(value, str):
        return _mask_text(name, value)
    if depth >= _MAX_DEPTH:
        return mask(str(value)[:_MAX_TEXT])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        pairs = list(value.items())[:_MAX_ITEMS]
        return {mask(str(key)): mask_field(str(key), item, depth + 1) for key, item in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask_field(name, item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    return mask(str(value)[:_MAX_TEXT])


@lru_cache(maxsize=2048)
def _mask_short(name: str, text: str) -> str:
    return HIDDEN if _is_secret(name) else _mask_text(name, text)


def _mask_text(name: str, text: str) -> str:
    text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    if name in _IDENTITY:
        return text
    return mask(_mask_digits(text)) if _is_number(name) else mask(text)


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return _SECRET.search(name) is not None


@lru_cache(maxsize=1024)
def _is_number(name: str) -> bool:
    return name not in _IDENTITY and _NUMBER.search(name) is not None


def _mask_digits(text: str) -> str:
    """Mask a field that holds a number or a SIP address; host and port stay."""
    user, at, host = text.partition("@")
    return mask_number(user) + at + host


def _hide(found: re.Match[str]) -> str:
    if found["header"]:
        return f"{found['header']}{found['colon']}{HIDDEN}"
    prefix = found["scheme"] or found["key"] or found["userinfo"] or ""
    return f"{prefix}{HIDDEN}"
