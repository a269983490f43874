"""One UDP socket of the endpoint."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol, cast

from adapters.sip.transactions.transaction import Flow
from adapters.sip.transports.stun import answer_binding, is_stun


class Receiver(Protocol):
    """Who takes the messages."""

    counters: Counter[str]

    def on_message(self, data: bytes, flow: Flow) -> None: ...


class Datagrams(asyncio.DatagramProtocol):
    """Carries datagrams.

    Args:
        owner: gets the messages.
        index: number of the listener, for flows.
    """

    def __init__(self, owner: Receiver, index: int) -> None:
        self._owner = owner
        self._index = index
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # uvloop's transports do not derive from it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) <= 4:
            return  # keep-alive (RFC 5626 3.5.1 and older habits)
        if addr[1] == 0:
            self._owner.counters["sip_unanswerable_total"] += 1
            return
        if data[0] < 0x40 and is_stun(data):
            self._on_stun(data, addr)
            return
        self._owner.on_message(data, Flow("udp", self._index, addr[0], addr[1]))

    def _on_stun(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = answer_binding(data, addr[0], addr[1])
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    def error_received(self, exc: Exception) -> None:  # an ICMP error names no datagram: timers decide
        del exc
        self._owner.counters["sip_udp_errors_total"] += 1
