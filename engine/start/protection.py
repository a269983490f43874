"""What protects SIP: guard, admission control and their settings, joined."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from adapters.sip.endpoint import Endpoint
from adapters.sip.protection.bans import BanBook
from adapters.sip.protection.congestion import Watch
from adapters.sip.protection.guard import SCANNERS, Guard, GuardSettings
from adapters.sip.protection.overload import Admission, OverloadSettings
from config.schema import Document, Listener, Transport


class Protection:
    """Guard and admission control of one endpoint.

    Attributes:
        bans: for operators.
    """

    def __init__(self, endpoint: Endpoint, document: Document, clock: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self.bans = BanBook(clock=clock)
        self._guard = Guard(exempt=lambda host: endpoint.policy.trunk_at(host) is not None, report=self.bans.report)
        self.bans.guard = self._guard
        self._admission = Admission(random=secrets.SystemRandom().random)
        self._watch: Watch | None = None
        self.configure(document)

    def configure(self, document: Document) -> None:
        """Put a configuration in force; before the endpoint's policy is made."""
        sip = document.sip
        self._guard.configure(
            GuardSettings(
                trusted=sip.guard.trusted,
                failures=sip.guard.failures,
                window_s=float(sip.guard.window_s),
                ban_s=float(sip.guard.ban_s),
                rate=float(sip.guard.requests_per_s),
                burst=sip.guard.burst,
                scanners=(*SCANNERS, *(name.lower() for name in sip.guard.scanners)),
            )
        )
        most = sip.overload.max_calls_per_s
        self._admission.configure(
            OverloadSettings(
                max_calls_per_s=None if most is None else float(most), emergency=frozenset(sip.overload.emergency)
            )
        )
        self._endpoint.guard = self._guard if sip.guard.enabled else None
        self._endpoint.admission = self._admission if sip.overload.enabled else None

    def watch(self, udp: Iterable[socket.socket]) -> None:
        """Look at the load of these sockets and of the running loop from now on."""
        self._watch = Watch(self._admission, udp, lambda: self._endpoint.handled)

    def close(self) -> None:
        """Stop looking."""
        if self._watch is not None:
            self._watch.close()

    def figures(self) -> Mapping[str, float]:
        """Counters and gauges by metric name."""
        return {**self._guard.figures(), **self._admission.figures()}


def listener_algorithms(bound: Sequence[Listener], document: Document) -> dict[int, tuple[str, ...]]:
    """Digest algorithms by index of the listener (`Flow.local`), where it names its own.

    Args:
        bound: the listeners that this process was started with.
        document: says what they offer now.
    """
    offered = {str(item): item.digest for item in document.sip.listen}
    # The transport counts UDP first, then TCP, then TLS.
    ordered = [item for transport in Transport for item in bound if item.transport is transport]
    found = {index: offered.get(str(item)) for index, item in enumerate(ordered)}
    return {index: tuple(map(str, algorithms)) for index, algorithms in found.items() if algorithms is not None}
