"""Keeps the last SIP messages for `murima sip trace`, within a bound of bytes.

The hot path appends one tuple a message. Everything else - which messages
belong to which call, what must be hidden - happens when somebody asks, in a
thread.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from time import time

from adapters.sip.transactions.transaction import Flow
from engine.tracing import Address, Findings, TracedCall, TracedMessage

DEFAULT_BYTES = 32 << 20

_CALLS = 20_000
_OVERHEAD = 300  # bytes that an entry takes beside its message

_Entry = tuple[float, bool, Flow, bytes]

_CALL_ID = re.compile(rb"\n(?:call-id|i)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_USER = re.compile(rb"(?:sips?|tel):([^@:;>\s]+)", re.IGNORECASE)
_PARTY = re.compile(rb"\n(from|f|to|t|p-asserted-identity|referred-by|refer-to|r)[ \t]*:([^\r\n]*)", re.IGNORECASE)
_CSEQ = re.compile(rb"\ncseq[ \t]*:[ \t]*([0-9]+)[ \t]+([^\s]+)", re.IGNORECASE)
# Each takes time linear in the length of a message, whatever a stranger has put into it.
_CREDENTIALS = re.compile(
    rb"(\n(?:(?:proxy-)?authorization|(?:proxy-)?authentication-info)[ \t]*+:[ \t]*+)((?:[^\r\n]|\r?\n[ \t])*+)",
    re.IGNORECASE,
)
_PROOF = re.compile(rb'((?:response|rspauth)[ \t]*+=[ \t]*+"?+)([^",\s]++)', re.IGNORECASE)
_AFTER_SCHEME = re.compile(rb"([^\s]*+[ \t]*+)(.*+)", re.DOTALL)
_CRYPTO = re.compile(rb"\na=crypto:[^\r\n]*+", re.IGNORECASE)
_KEY = re.compile(rb"(inline:)([^\s|;]++)", re.IGNORECASE)
_LINES = re.compile(rb"(\n(?:signal[ \t]*+=[ \t]*+|a=key-mgmt:|k=))([^\r\n]++)", re.IGNORECASE)
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_KEY_IN_BODY = re.compile(rb"\n(?:content-type|c)[ \t]*+:\s*+application/dtmf(?![-\w])", re.IGNORECASE)


class SipTrace:
    """A ring of messages. `record` and `link` belong to the event loop's thread.

    Args:
        local: our own address on a flow.
        max_bytes: how much to keep; 0: nothing.
    """

    def __init__(self, local: Callable[[Flow], Address], max_bytes: int = DEFAULT_BYTES) -> None:
        self._local = local
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: deque[_Entry] = deque()
        self._calls: OrderedDict[str, str] = OrderedDict()  # ours by SIP Call-ID

    def on_received(self, flow: Flow, data: bytes) -> None:
        """Keep a message that came."""
        self._entries.append((time(), True, flow, data))
        self._make_room(len(data))

    def on_sent(self, flow: Flow, data: bytes) -> None:
        """Keep a message that went."""
        self._entries.append((time(), False, flow, data))
        self._make_room(len(data))

    def _make_room(self, size: int) -> None:
        self._bytes += size + _OVERHEAD
        entries = self._entries
        while self._bytes > self._max_bytes and entries:
            self._bytes -= len(entries.popleft()[3]) + _OVERHEAD

    def link(self, sip_call_id: str, call_id: str) -> None:
        """Note that a dialog belongs to a call of ours."""
        calls = self._calls
        calls[sip_call_id] = call_id
        if len(calls) > _CALLS:
            calls.popitem(last=False)

    async def find(self, *, call: str | None = None, number: str | None = None, limit: int) -> Findings:
        """See `engine.tracing.TraceSource`."""
        entries, calls = list(self._entries), dict(self._calls)
        found = (await asyncio.to_thread(_grouped, entries, calls, call, number))[-limit:]
        local = {flow: self._local(flow) for flow in {entry[2] for group in found for entry in group}}
        return Findings(entries[0][0] if entries else None, await asyncio.to_thread(_as_calls, found, calls, local))


def _as_calls(
    groups: Sequence[Sequence[_Entry]], calls: Mapping[str, str], local: Mapping[Flow, Address]
) -> tuple[TracedCall, ...]:
    return tuple(_as_call(group, calls, local) for group in groups)


def _as_call(group: Sequence[_Entry], calls: Mapping[str, str], local: Mapping[Flow, Address]) -> TracedCall:
    ids = tuple(dict.fromkeys(_call_id(entry[3]) for entry in group))
    summary, outcome = _described([entry[3] for entry in group])
    return TracedCall(
        next((calls[name] for name in ids if name in calls), None),
        ids,
        summary,
        outcome,
        tuple(
            TracedMessage(at, incoming, flow.transport, local[flow], (flow.host, flow.port), hidden(data))
            for at, incoming, flow, data in group
        ),
    )


def hidden(data: bytes) -> bytes:
    """A message without credentials, keys pressed and SRTP keys; its length stays."""
    data = _CREDENTIALS.sub(_without_credentials, data)
    data = _LINES.sub(_starred, _CRYPTO.sub(lambda found: _KEY.sub(_starred, found[0]), data))
    end = _BLANK_LINE.search(data)
    if end is not None and _KEY_IN_BODY.search(data, 0, end.start()):
        data = data[: end.end()] + b"*" * (len(data) - end.end())
    return data


def _without_credentials(found: re.Match[bytes]) -> bytes:
    name, value = found[1], found[2]
    if b"info" in name.lower() or value[:6].lower() == b"digest":
        return name + _PROOF.sub(_starred, value)
    return name + _AFTER_SCHEME.sub(_starred, value)


def _starred(found: re.Match[bytes]) -> bytes:
    return found[1] + b"*" * len(found[2])


def _grouped(
    entries: Sequence[_Entry], calls: Mapping[str, str], call: str | None, number: str | None
) -> list[list[_Entry]]:
    """Messages by call, in the order in which the calls began."""
    groups: dict[str, list[_Entry]] = {}
    wanted: set[str] = set()
    for entry in entries:
        sip_call_id = _call_id(entry[3])
        key = calls.get(sip_call_id, sip_call_id)
        groups.setdefault(key, []).append(entry)
        if (call is not None and call in (key, sip_call_id)) or (
            number is not None and key not in wanted and _concerns(entry[3], number)
        ):
            wanted.add(key)
    everything = call is None and number is None
    return [group for key, group in groups.items() if everything or key in wanted]


def _call_id(data: bytes) -> str:
    found = _CALL_ID.search(data)
    return found[1].strip().decode("utf-8", "replace") if found else ""


def _concerns(data: bytes, number: str) -> bool:
    """Whether a message names a number as a party; a national form finds the international one."""
    plain = number.lstrip("+").encode()
    return any(user == plain or (len(plain) >= 5 and user.endswith(plain)) for user in _users(data))


def _users(data: bytes) -> list[bytes]:
    head = data.partition(b"\r\n\r\n")[0]
    places = [head.partition(b"\n")[0], *(found[2] for found in _PARTY.finditer(head))]
    return [found[1].lstrip(b"+") for place in places for found in _USER.finditer(place)]


def _described(messages: Sequence[bytes]) -> tuple[str, str]:
    """The first request with its parties, and its last final response."""
    request = next((data for data in messages if not data.startswith(b"SIP/2.0")), b"")
    first = request.partition(b"\n")[0].split()
    if not first:
        return "", ""
    parties = {found[1].lower()[:1]: found[2] for found in reversed(list(_PARTY.finditer(request)))}
    caller, called = _shown(parties.get(b"f", b"")), _shown(first[1] if len(first) > 1 else b"")
    if first[0] == b"REGISTER":
        called = _shown(parties.get(b"t", b""))
    cseq = _CSEQ.search(request)
    finals = [
        data
        for data in messages
        if data.startswith(b"SIP/2.0 ") and data[8:9] in b"23456" and _same(_CSEQ.search(data), cseq)
    ]
    outcome = finals[-1].partition(b"\r")[0][8:].decode("utf-8", "replace") if finals else ""
    method = first[0].decode("utf-8", "replace")
    return (f"{method} {caller} → {called}" if caller != called else f"{method} {called}"), outcome


def _same(one: re.Match[bytes] | None, other: re.Match[bytes] | None) -> bool:
    return one is not None and other is not None and one[2] == other[2]


def _shown(value: bytes) -> str:
    found = _USER.search(value)
    if found is not None:
        return found[1].decode("utf-8", "replace")
    return value.strip().decode("utf-8", "replace") or "?"
