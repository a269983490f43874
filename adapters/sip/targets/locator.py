"""Finds where to send, with the records that a resolver keeps: RFC 3263 on the running event loop.

The only place where the transports learn an address from a name.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from secrets import randbelow

from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets.dns import DnsSettings, Resolver
from adapters.sip.targets.location import Kind, Missing, Question, Record, Target, Way, locate

MAX_SEARCHES = 1000  # at once
_ROUNDS = 6  # three suffice, unless an answer expires meanwhile


class Locator:
    """Names to targets and addresses.

    Args:
        counters: where failures are counted.
        settings: whom to ask.
        random: see `locate`.

    Attributes:
        ways: transports and IP versions of our sockets, most wanted first.
    """

    def __init__(
        self,
        counters: Counter[str],
        settings: DnsSettings | None = None,
        random: Callable[[int], int] = randbelow,
    ) -> None:
        self.ways: Sequence[Way] = ()
        self._counters = counters
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(settings or DnsSettings(), clock=self._loop.time, counters=counters)
        self._searches: set[asyncio.Task[None]] = set()

    @property
    def asked(self) -> int:
        """How many questions are under way."""
        return self._resolver.asked

    def locate(self, uri: SipUri, then: Callable[[Sequence[Target]], None]) -> None:
        """Find the targets of a URI; `then` gets them, at once if they are known. None is never told at once."""
        found = locate(uri, self._resolver.known, self.ways, self._random)
        if isinstance(found, Missing):
            self._begin(self._search(uri, found, then), partial(self._loop.call_soon, then, ()))
        elif found:
            then(found)
        else:
            self._loop.call_soon(then, ())

    def known(self, host: str) -> str | None:
        """An address of a host, while it may still be used."""
        for version in (4, 6):
            for record in self._resolver.known(_question(host, version)) or ():
                if isinstance(record, str):
                    return record
        return None

    def find(self, host: str, version: int, then: Callable[[str | None], None]) -> None:
        """Find the address of a host, without a look at its services.

        Args:
            host: the name.
            version: 4 or 6, as the listener that will send.
            then: gets the address, None if there is none; never at once.
        """
        self._begin(self._find(_question(host, version), then), partial(self._loop.call_soon, then, None))

    async def close(self) -> None:
        """Forget all questions."""
        for task in list(self._searches):
            task.cancel()
        await asyncio.gather(*self._searches, return_exceptions=True)
        await self._resolver.close()

    # --- work -----------------------------------------------------------------------------

    def _begin(self, work: Coroutine[None, None, None], refuse: Callable[[], object]) -> None:
        if len(self._searches) >= MAX_SEARCHES:
            work.close()
            self._counters["sip_lookups_failed_total"] += 1
            refuse()
            return
        task = self._loop.create_task(work)
        self._searches.add(task)
        task.add_done_callback(self._searches.discard)

    async def _search(self, uri: SipUri, missing: Missing, then: Callable[[Sequence[Target]], None]) -> None:
        for _ in range(_ROUNDS):
            await self._resolver.ask(missing.questions)
            found = locate(uri, self._resolver.known, self.ways, self._random)
            if not isinstance(found, Missing):
                then(found)
                return
            missing = found
        then(())

    async def _find(self, question: Question, then: Callable[[str | None], None]) -> None:
        await self._resolver.ask([question])
        records: Sequence[Record] = self._resolver.known(question) or ()
        then(next((record for record in records if isinstance(record, str)), None))


def _question(host: str, version: int) -> Question:
    return Question(host.lower().rstrip("."), Kind.A if version == 4 else Kind.AAAA)
