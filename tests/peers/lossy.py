"""A network that loses, reorders and repeats UDP datagrams between murima and a phone, in both directions."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import TracebackType
from typing import Self

from tests.ports import free_port, loopback_address

Address = tuple[str, int]


class LossyLink:
    """Stands between murima and a phone like a NAT that knows SIP: `async with LossyLink(murima, phone, seed=1)`.

    Each side sees the other at an address of the link's, also within the headers, so that nothing goes
    around it.

    Args:
        murima: where murima listens.
        phone: where the phone listens.
        seed: for what happens to the datagrams.
        loss: part of the datagrams that are lost.
        late: part of the others that are held up, so that later ones overtake them.
        late_s: for at most so long.
        twice: part that arrives twice.

    Attributes:
        phone_seen: where murima finds the phone.
        murima_seen: where the phone finds murima.
        counts: datagrams `sent`, `lost`, `late` and `twice`.
        dialogs: Call-IDs of the INVITEs from the phone and from murima.
    """

    def __init__(
        self,
        murima: Address,
        phone: Address,
        *,
        seed: int,
        loss: float = 0.2,
        late: float = 0.2,
        late_s: float = 0.3,
        twice: float = 0.02,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.dialogs: dict[str, set[bytes]] = {"phone": set(), "murima": set()}
        self._random = random.Random(seed)
        self._loss, self._late, self._late_s, self._twice = loss, late, late_s, twice
        self._murima, self._phone = murima, phone
        here = loopback_address()
        port = free_port(here, span=2)
        self.phone_seen, self.murima_seen = (here, port), (here, port + 1)
        self._transports: list[asyncio.DatagramTransport] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for address, side in ((self.phone_seen, "murima"), (self.murima_seen, "phone")):
            transport, _ = await loop.create_datagram_endpoint(lambda side=side: _Side(self, side), address)  # type: ignore[misc]  # mypy does not know default arguments here
            self._transports.append(transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for transport in self._transports:
            transport.close()
        self._transports.clear()
        await asyncio.sleep(0)

    def on_datagram(self, side: str, data: bytes) -> None:
        """One came from a side."""
        chance, counts = self._random, self.counts
        counts["sent"] += 1
        if data.startswith(b"INVITE"):
            self.dialogs[side].add(_call_id(data))
        if chance.random() < self._loss:
            counts["lost"] += 1
            return
        delays = [0.0]
        if chance.random() < self._late:
            counts["late"] += 1
            delays[0] = chance.uniform(0.001, self._late_s)
        if chance.random() < self._twice:
            counts["twice"] += 1
            delays.append(chance.uniform(0.001, self._late_s))
        for delay_s in delays:
            if delay_s:
                asyncio.get_running_loop().call_later(delay_s, self._pass, side, data)
            else:
                self._pass(side, data)

    def _pass(self, side: str, data: bytes) -> None:
        if not self._transports:
            return
        head, blank, body = data.partition(b"\r\n\r\n")
        if side == "phone":
            pairs = ((self._phone, self.phone_seen), (self.murima_seen, self._murima))
            transport, to = self._transports[0], self._murima
        else:
            pairs = ((self._murima, self.murima_seen), (self.phone_seen, self._phone))
            transport, to = self._transports[1], self._phone
        for old, new in pairs:
            head = head.replace(_written(old), _written(new))
        transport.sendto(head + blank + body, to)


class _Side(asyncio.DatagramProtocol):
    def __init__(self, link: LossyLink, side: str) -> None:
        self._link = link
        self._side = side

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._link.on_datagram(self._side, data)


def _written(address: Address) -> bytes:
    return f"{address[0]}:{address[1]}".encode()


def _call_id(data: bytes) -> bytes:
    line = next(line for line in data.split(b"\r\n") if line.lower().startswith(b"call-id:"))
    return line.partition(b":")[2].strip()
