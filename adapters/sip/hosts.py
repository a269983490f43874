"""Host names to IP addresses, kept for a while; questions for the same name are asked once.

The only place where the transports learn an address from a name.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

LIFETIME_S = 60.0
_REMEMBERED = 4096
_WAITING = 100  # for one name at a time

Found = Callable[[str | None], None]


class HostNames:
    """Looks names up on the running event loop.

    Args:
        counters: where failures are counted.
    """

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._literal: dict[str, bool] = {}
        self._known: dict[str, tuple[str, float]] = {}
        self._waiting: dict[str, list[Found]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def asked(self) -> int:
        """How many names are being looked up."""
        return len(self._waiting)

    def is_literal(self, host: str) -> bool:
        """Whether this is an IP address already (also one with a zone)."""
        known = self._literal.get(host)
        if known is None:
            try:
                ip_address(host.partition("%")[0])
                known = True
            except ValueError:
                known = False
            if len(self._literal) >= _REMEMBERED:
                self._literal.clear()
            self._literal[host] = known
        return known

    def known(self, host: str) -> str | None:
        """The address found last, while it may still be used."""
        found = self._known.get(host)
        return None if found is None or found[1] < self._loop.time() else found[0]

    def find(self, host: str, version: int, then: Found) -> None:
        """Look a name up, and say what was found; None: nothing.

        Args:
            host: the name.
            version: 4 or 6, as the listener that will send.
            then: gets the address.
        """
        if host.lower().endswith(".invalid"):  # what browsers call themselves (RFC 7118 5.2, RFC 6761 6.4)
            self._loop.call_soon(then, None)
            return
        waiting = self._waiting.get(host)
        if waiting is not None:
            if len(waiting) < _WAITING:
                waiting.append(then)
            return
        self._waiting[host] = [then]
        task = self._loop.create_task(self._look_up(host, version))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Forget all questions."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_up(self, host: str, version: int) -> None:
        address: str | None = None
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        try:
            found = await self._loop.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
            address = str(found[0][4][0])
        except (OSError, ValueError):  # ValueError: what can be no name, such as one with an empty label
            self._counters["sip_lookups_failed_total"] += 1
        if address is not None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[host] = (address, self._loop.time() + LIFETIME_S)
        for then in self._waiting.pop(host):
            then(address)
