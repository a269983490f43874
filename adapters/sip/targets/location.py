"""Where a request goes (RFC 3263): a URI and DNS records in, targets in the order in which to try them out.

Nothing here asks a name server. What is not known yet is named; the caller
looks it up and asks again. At most three rounds are needed: NAPTR and SRV, the
SRV records that NAPTR named, addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from adapters.sip.syntax.uri import SipUri

MAX_TARGETS = 16
MAX_RECORDS = 16  # of one answer that are followed

DEFAULT_PORTS = {"udp": 5060, "tcp": 5060, "tls": 5061}
_SERVICES = {"sip+d2u": "udp", "sip+d2t": "tcp", "sips+d2t": "tls"}  # RFC 3263 4.1
_SRV_PREFIXES = {"udp": "_sip._udp.", "tcp": "_sip._tcp.", "tls": "_sips._tcp."}


class Kind(StrEnum):
    """Types of DNS records."""

    NAPTR = "NAPTR"
    SRV = "SRV"
    A = "A"
    AAAA = "AAAA"


class Question(NamedTuple):
    """What to look up.

    Attributes:
        name: in lower case, without the last dot.
        kind: of record.
    """

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Naptr:
    """RFC 3403 4.1; names without the last dot."""

    order: int
    preference: int
    flags: str
    service: str
    replacement: str


@dataclass(frozen=True, slots=True)
class Srv:
    """RFC 2782; `target` is a name without the last dot, "" where the service is not offered."""

    priority: int
    weight: int
    port: int
    target: str


Record = Naptr | Srv | str  # an address is text
Known = Callable[[Question], Sequence[Record] | None]
Way = tuple[str, int]  # transport and IP version


class Target(NamedTuple):
    """Where to send.

    Attributes:
        transport: "udp", "tcp" or "tls".
        host: IP address.
        port: of it.
        name: host of the URI: whom a TLS certificate has to name, whatever DNS said (RFC 5922 4).
    """

    transport: str
    host: str
    port: int
    name: str


@dataclass(frozen=True, slots=True)
class Missing:
    """What must be looked up first."""

    questions: tuple[Question, ...]


@lru_cache(maxsize=4096)
def is_address(host: str) -> bool:
    """Whether this is an IP address (also one with a zone), so that nothing needs to be looked up."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def transport_of(uri: SipUri) -> str | None:
    """Transport that a URI asks for, None if it leaves the choice to us; "" for one that we do not have.

    `sips:` and the older `transport=tls` both mean TLS (RFC 3261 26.2.2).
    """
    named = uri.params.get("transport")
    transport = None if named is None else named.lower()
    if uri.scheme == "sips":
        return "tls" if transport in (None, "tcp", "tls") else ""
    if uri.scheme != "sip":
        return ""
    return transport if transport is None or transport in DEFAULT_PORTS else ""


def locate(
    uri: SipUri, known: Known, ways: Sequence[Way], random: Callable[[int], int]
) -> tuple[Target, ...] | Missing:
    """Find where a request to `uri` may be sent.

    Args:
        uri: the next hop: the first Route, else the Request-URI.
        known: records of a question, empty where there are none; None: not looked up yet.
        ways: what our sockets can do, most wanted first.
        random: an equally distributed number from 0 to below its argument.

    Returns:
        Targets in the order in which to try them, none if nothing leads there;
        or what to look up first.

    Source: RFC 3263 4, RFC 2782.
    """
    asked = transport_of(uri)
    host = (uri.params.get("maddr") or uri.host).lower().rstrip(".").strip("[]")
    if asked == "" or not host:
        return ()
    search = _Search(known, ways, random, uri.host)
    if is_address(host):
        transport = asked or "udp"
        search.add(transport, host, uri.port or DEFAULT_PORTS[transport])
    elif uri.port is not None:
        search.follow([(asked or "udp", host, uri.port)])
    else:
        search.follow(search.services(host, asked or "udp", own_choice="transport" not in uri.params))
    if search.missing:
        return Missing(tuple(dict.fromkeys(search.missing)))
    return tuple(dict.fromkeys(search.targets))[:MAX_TARGETS]


class _Search:
    """One pass over what is known."""

    def __init__(self, known: Known, ways: Sequence[Way], random: Callable[[int], int], name: str) -> None:
        self.targets: list[Target] = []
        self.missing: list[Question] = []
        self._known = known
        self._ways = ways
        self._random = random
        self._name = name

    def _ask(self, name: str, kind: Kind) -> Sequence[Record]:
        question = Question(name.lower(), kind)
        found = self._known(question)
        if found is None:
            self.missing.append(question)
            return ()
        return found

    def services(self, domain: str, default: str, *, own_choice: bool) -> list[tuple[str, str, int]]:
        """Transport, host name and port of each server of a domain, in order (RFC 3263 4.1, 4.2).

        Args:
            domain: of the URI.
            default: transport of the URI, else of its scheme.
            own_choice: the URI names no transport.
        """
        usable = [default]
        if own_choice and default != "tls":  # else sips:
            usable = list(dict.fromkeys(transport for transport, _ in self._ways))
        servers: list[tuple[str, str, int]] = []
        if own_choice:
            for transport, name in self._named_services(domain, usable):
                servers += self._servers(transport, self._srv(name))
        if servers:
            return servers
        refused = False
        for transport in usable:
            records = self._srv(_SRV_PREFIXES[transport] + domain)
            refused = refused or bool(records)
            servers += self._servers(transport, records)
        if servers or self.missing or refused:  # refused: the domain says that it has no such service
            return servers
        return [(default, domain, DEFAULT_PORTS[default])]

    def _named_services(self, domain: str, usable: Sequence[str]) -> list[tuple[str, str]]:
        """Transport and SRV name of each NAPTR record that we can use."""
        records = [record for record in self._ask(domain, Kind.NAPTR) if isinstance(record, Naptr)]
        records.sort(key=lambda record: (record.order, record.preference))
        named = []
        for record in records[:MAX_RECORDS]:
            transport = _SERVICES.get(record.service.lower())
            if record.flags.lower() == "s" and record.replacement and transport is not None and transport in usable:
                named.append((transport, record.replacement))
        return named

    def _srv(self, name: str) -> list[Srv]:
        records = [record for record in self._ask(name, Kind.SRV) if isinstance(record, Srv)]
        records.sort(key=lambda record: record.priority)
        return records[:MAX_RECORDS]

    def _servers(self, transport: str, records: Sequence[Srv]) -> list[tuple[str, str, int]]:
        return [
            (transport, record.target, record.port)
            for record in by_weight(records, self._random)
            if record.target and record.port
        ]

    def follow(self, servers: Iterable[tuple[str, str, int]]) -> None:
        """Find the addresses of servers."""
        for transport, name, port in servers:
            for own, version in self._ways:
                if own != transport:
                    continue
                if is_address(name):  # against RFC 2782, but it happens and is clear
                    self.add(transport, name, port)
                    continue
                for address in self._ask(name, Kind.A if version == 4 else Kind.AAAA)[:MAX_RECORDS]:
                    if isinstance(address, str):
                        self.add(transport, address, port)

    def add(self, transport: str, host: str, port: int) -> None:
        """Add a target, if our sockets can reach it."""
        if (transport, 6 if ":" in host else 4) in self._ways:
            self.targets.append(Target(transport, host, port, self._name))


def by_weight(records: Iterable[Srv], random: Callable[[int], int]) -> list[Srv]:
    """Put SRV records in order: by priority, within one by chance, as their weights say (RFC 2782)."""
    ordered: list[Srv] = []
    left = sorted(records, key=lambda record: (record.priority, record.weight))
    while left:
        priority = left[0].priority
        group = [record for record in left if record.priority == priority]
        left = left[len(group) :]
        while group:  # those of weight 0 are first and so have a small chance
            chosen = random(sum(record.weight for record in group) + 1)
            passed = 0
            for index, record in enumerate(group):
                passed += record.weight
                if passed >= chosen:
                    ordered.append(group.pop(index))
                    break
    return ordered


class Avoided:
    """Targets that failed lately: others go first for a while; where there are none, they are tried anyway.

    Args:
        limit: of targets; beyond it the one noted first is forgotten.
    """

    def __init__(self, limit: int = 1024) -> None:
        self._until: dict[tuple[str, str, int], float] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self._until)

    def avoid(self, transport: str, host: str, port: int, until: float) -> None:
        """Put a target behind others until a time (monotonic seconds)."""
        self._until.pop((transport, host, port), None)
        if len(self._until) >= self._limit:
            del self._until[next(iter(self._until))]
        self._until[transport, host, port] = until

    def forgive(self, transport: str, host: str, port: int) -> None:
        """It works again."""
        self._until.pop((transport, host, port), None)

    def is_avoided(self, transport: str, host: str, port: int, now: float) -> bool:
        """Whether a target failed lately."""
        until = self._until.get((transport, host, port))
        if until is None:
            return False
        if until <= now:
            del self._until[transport, host, port]
            return False
        return True

    def order(self, targets: Iterable[Target], now: float) -> list[Target]:
        """Targets in their order, but those that failed lately behind the others."""
        if not self._until:
            return list(targets)
        return sorted(targets, key=lambda target: self.is_avoided(target.transport, target.host, target.port, now))
