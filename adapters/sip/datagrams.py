"""One UDP socket of the endpoint."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol

from adapters.sip.transaction import Flow


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

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) <= 4:
            return  # keep-alive (RFC 5626 3.5.1 and older habits)
        if addr[1] == 0:
            self._owner.counters["sip_unanswerable_total"] += 1
            return
        self._owner.on_message(data, Flow("udp", self._index, addr[0], addr[1]))

    def error_received(self, exc: Exception) -> None:  # an ICMP error names no datagram: timers decide
        del exc
        self._owner.counters["sip_udp_errors_total"] += 1
