"""Asks name servers (dnspython), and keeps what they say as long as they allow, within bounds.

Names of `/etc/hosts` and names without a dot go to the system's own resolver,
as does what the name servers of resolv.conf do not know (mDNS, search lists);
a server list in the configuration replaces those.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdata
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.NAPTR
import dns.rdtypes.IN.SRV
import dns.resolver

from adapters.sip.targets.location import Kind, Naptr, Question, Record, Srv

MIN_TTL_S = 5.0
MAX_TTL_S = 3600.0
MAX_NEGATIVE_TTL_S = 300.0
FAILED_TTL_S = 5.0  # no name server answered
SYSTEM_TTL_S = 60.0  # the system's resolver tells no lifetime
STALE_S = 3600.0  # how long what has expired still serves while no name server answers (RFC 8767)
MAX_ANSWERS = 4096
MAX_RECORDS = 64  # kept of one answer
PARALLEL = 32
MAX_WAITING = 1000

_HOSTS = Path("/etc/hosts")
_RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """Whom to ask.

    Attributes:
        servers: addresses with ports; none: those of the system.
        timeout_s: for each question, over all servers.
    """

    servers: tuple[tuple[str, int], ...] = ()
    timeout_s: float = 3.0


@dataclass(slots=True)
class _Answer:
    records: tuple[Record, ...]
    expires_at: float
    stale_until: float  # serves till then while no name server answers


class DnsError(Exception):
    """No name server gave an answer."""


class Resolver:
    """A cache before the name servers.

    Args:
        settings: whom to ask.
        clock: monotonic seconds.
        counters: `sip_dns_queries_total`, `sip_lookups_failed_total`, `sip_dns_faults_total`.
    """

    def __init__(
        self,
        settings: DnsSettings,
        *,
        clock: Callable[[], float],
        counters: Counter[str],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._counters = counters
        self._answers: dict[Question, _Answer] = {}
        self._asking: dict[Question, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(PARALLEL)
        self._dns: dns.asyncresolver.Resolver | None = None
        self._dns_of = 0.0
        self._threads: ThreadPoolExecutor | None = None
        self._hosts: frozenset[str] = frozenset()
        self._hosts_of = 0.0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def asked(self) -> int:
        """How many questions are under way."""
        return len(self._asking)

    def known(self, question: Question) -> Sequence[Record] | None:
        """Records that are still valid, empty where there are none; None: `ask` first."""
        answer = self._answers.get(question)
        return None if answer is None or answer.expires_at <= self._clock() else answer.records

    async def ask(self, questions: Iterable[Question]) -> None:
        """Look all of them up, side by side; afterwards each is known. A failure counts as no records."""
        tasks = []
        for question in questions:
            if self.known(question) is not None:
                continue
            task = self._asking.get(question)
            if task is None:
                if len(self._asking) >= MAX_WAITING:
                    self._fail(question)
                    continue
                task = asyncio.get_running_loop().create_task(self._answer(question))
                self._asking[question] = task
            tasks.append(task)
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Ask no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, question: Question) -> None:
        try:
            async with self._slots:
                self._counters["sip_dns_queries_total"] += 1
                async with asyncio.timeout(self._settings.timeout_s):
                    records, ttl_s = await self._look_up(question)
        except (DnsError, TimeoutError):
            self._fail(question)
        except Exception:  # noqa: BLE001 - whatever a hostile answer makes the library raise
            self._counters["sip_dns_faults_total"] += 1
            self._fail(question)
        else:
            self._keep(question, records, min(max(ttl_s, MIN_TTL_S), MAX_TTL_S))
        finally:
            self._asking.pop(question, None)

    def _fail(self, question: Question) -> None:
        self._counters["sip_lookups_failed_total"] += 1
        now = self._clock()
        old = self._answers.get(question)
        if old is not None and old.records and now < old.stale_until:
            old.expires_at = now + FAILED_TTL_S
        else:
            self._keep(question, (), FAILED_TTL_S)

    def _keep(self, question: Question, records: tuple[Record, ...], ttl_s: float) -> None:
        self._answers.pop(question, None)
        if len(self._answers) >= MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        expires_at = self._clock() + ttl_s
        self._answers[question] = _Answer(records, expires_at, expires_at + STALE_S)

    async def _look_up(self, question: Question) -> tuple[tuple[Record, ...], float]:
        """Records and their lifetime in seconds.

        Raises:
            DnsError: nobody answered.
        """
        host = question.name
        while host.startswith("_"):  # _sip._udp.example.com
            host = host.partition(".")[2]
        if host == "invalid" or host.endswith(".invalid"):
            return (), MAX_NEGATIVE_TTL_S  # RFC 6761 6.4; browsers name themselves so in Contact
        addresses = question.kind in (Kind.A, Kind.AAAA)
        if self._is_local(host):
            return (await self._ask_system(question) if addresses else ()), SYSTEM_TTL_S
        records, ttl_s = await self._ask_servers(question)
        if not records and addresses and not self._settings.servers:
            records = await self._ask_system(question)
            ttl_s = SYSTEM_TTL_S if records else ttl_s
        return records, ttl_s

    # --- name servers ---------------------------------------------------------------------

    async def _ask_servers(self, question: Question) -> tuple[tuple[Record, ...], float]:
        servers = self._servers()
        if servers is None:
            return (), FAILED_TTL_S
        try:
            name = dns.name.from_text(question.name)
        except (dns.exception.DNSException, ValueError):  # an empty label, or one that is too long
            return (), MAX_NEGATIVE_TTL_S
        try:
            answer = await servers.resolve(name, question.kind.value, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as exc:
            return (), _negative_ttl(exc)
        except (dns.exception.DNSException, OSError, ValueError) as exc:
            raise DnsError(str(exc)) from exc
        ttl_s = float(answer.chaining_result.minimum_ttl)
        if answer.rrset is None:
            return (), min(ttl_s, MAX_NEGATIVE_TTL_S)
        found = (_record(data) for data in islice(answer.rrset, MAX_RECORDS))
        return tuple(record for record in found if record is not None), ttl_s

    def _servers(self) -> dns.asyncresolver.Resolver | None:
        """Who knows; None: no name server is configured. Follows changes of resolv.conf."""
        changed_at = 0.0 if self._settings.servers else _changed_at(_RESOLV_CONF)
        if self._dns is not None and changed_at == self._dns_of:
            return self._dns
        try:
            servers = dns.asyncresolver.Resolver(configure=not self._settings.servers)
        except dns.exception.DNSException:
            return None
        if self._settings.servers:
            servers.nameservers = [dns.nameserver.Do53Nameserver(*server) for server in self._settings.servers]
        servers.lifetime = self._settings.timeout_s
        servers.timeout = self._settings.timeout_s / 3  # a lost datagram is asked again in time
        self._dns, self._dns_of = servers, changed_at
        return servers

    # --- the system's resolver ------------------------------------------------------------

    def _is_local(self, host: str) -> bool:
        if host == "localhost" or host.endswith(".localhost"):
            return True
        if "." not in host and not self._settings.servers:
            return True
        changed_at = _changed_at(_HOSTS)
        if changed_at != self._hosts_of:
            self._hosts_of = changed_at
            self._hosts = _names_of(_HOSTS)
        return host in self._hosts

    async def _ask_system(self, question: Question) -> tuple[Record, ...]:
        """Addresses from getaddrinfo, which knows /etc/hosts and whatever nsswitch.conf says."""
        if self._threads is None:  # few of its own: a stuck look-up must not hold up other work in threads
            self._threads = ThreadPoolExecutor(4, "sip-names")
        family = socket.AF_INET6 if question.kind is Kind.AAAA else socket.AF_INET
        ask = partial(socket.getaddrinfo, question.name, None, family, socket.SOCK_DGRAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except (OSError, ValueError):  # ValueError: what can be no name
            return ()
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def _record(data: dns.rdata.Rdata) -> Record | None:
    if isinstance(data, dns.rdtypes.IN.NAPTR.NAPTR):
        flags, service = (part.decode("ascii", "replace") for part in (data.flags, data.service))
        return Naptr(data.order, data.preference, flags, service, _text(data.replacement))
    if isinstance(data, dns.rdtypes.IN.SRV.SRV):
        return Srv(data.priority, data.weight, data.port, _text(data.target))
    if isinstance(data, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA):
        return str(data.address)
    return None


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _negative_ttl(exc: dns.resolver.NXDOMAIN) -> float:
    """How long a name may be taken as not existing (RFC 2308 5)."""
    with suppress(dns.exception.DNSException):
        lifetimes = [response.resolve_chaining().minimum_ttl for response in _responses(exc)]
        return float(min([*lifetimes, MAX_NEGATIVE_TTL_S]))
    return MIN_TTL_S


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _names_of(path: Path) -> frozenset[str]:
    """Host names of a hosts file, in lower case."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    return frozenset(name.lower() for line in text.splitlines() for name in line.partition("#")[0].split()[1:])


def _responses(exc: dns.resolver.NXDOMAIN) -> Iterable[dns.message.QueryMessage]:
    found: Mapping[dns.name.Name, dns.message.QueryMessage] = exc.kwargs["responses"]
    return found.values()
