"""Keeps scanners, guessers and floods off: bans with expiry, and a limit for those who prove nothing.

A source is an IPv4 address or an IPv6 /64 network. What a source sends costs it
a token, a right password gives the token back: any number of phones behind one
address never runs dry, a scanner soon does. Failed log-ins and scanner traits
add to a score that leaks away over a window; a source whose score is full is
banned, each time for twice as long. Failures that come too slowly for the
window are still counted until somebody there gets it right.

The source of a datagram can be forged. Failed log-ins only count when they
answer a challenge that the source received (`adapters.sip.protection.digest` sees to
that). For what proves nothing, floods and scanners' names, a source that has
lately proved itself is limited, never banned.

Pure: the time goes in. Memory is bounded: tables have a size, the entry longest
unused makes room.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

IpNetwork = IPv4Network | IPv6Network

LOOPBACK: tuple[IpNetwork, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

SCANNERS = (
    "elite",
    "friendly-request",
    "friendly-scanner",
    "iwar",
    "pplsip",
    "sip-scan",
    "siparmyknife",
    "sipcli",
    "sipscan",
    "sipvicious",
    "sivus",
    "smap",
    "sundayddr",
    "vaxsipuseragent",
)
"""How the user agents of tools begin that look for open doors, in lower case."""

KNOWN_S = 7200.0  # the longest registration: a phone that is still there has proved itself again by then
PATIENCE = 10  # what a source with working phones may do in excess of others, before it is limited or banned
_SCANNER_POINTS = 5
_SLOW = 10  # failures without any success count for good: this many times those of a window
_MAX_SOURCES = 20_000
_MAX_BANS = 20_000
_SWEEP_S = 10.0
_FORGET_S = 2 * 86_400.0  # longer than the longest ban: who comes back is remembered


class Reason(StrEnum):
    """What a source was banned for."""

    PASSWORDS = "passwords"
    SCANNER = "scanner"
    FLOOD = "flood"


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Limits.

    Attributes:
        trusted: networks that are neither limited nor banned.
        failures: failed log-ins in a row that ban a source.
        window_s: after this time so many failures are forgotten, evenly.
        ban_s: length of the first ban; each further one is twice as long.
        max_ban_s: of the longest.
        rate: requests per second that a source may send without proving itself.
        burst: how many of them at once; as many again while it is limited ban it.
        scanners: beginnings of User-Agent values, in lower case.
    """

    trusted: tuple[IpNetwork, ...] = LOOPBACK
    failures: int = 20
    window_s: float = 600.0
    ban_s: float = 600.0
    max_ban_s: float = 86_400.0
    rate: float = 50.0
    burst: int = 1000
    scanners: tuple[str, ...] = SCANNERS


@dataclass(slots=True)
class Ban:
    """A source whose packets are dropped unread.

    Attributes:
        source: IPv4 address, or IPv6 network.
        since, until: monotonic seconds.
        dropped: how many messages and connections.
    """

    source: str
    reason: Reason
    since: float
    until: float
    dropped: int = 0


class _Source:
    """What is remembered of one source."""

    __slots__ = ("at", "bans", "excess", "failed", "known_until", "score", "tokens")

    def __init__(self, tokens: float, now: float) -> None:
        self.at = now
        self.tokens = tokens
        self.excess = 0.0  # requests dropped since it last had a token to spare
        self.score = 0.0
        self.failed = 0  # log-ins, since the last right one
        self.bans = 0
        self.known_until = now


def _ignore(_: Ban) -> None:
    """Nobody wants to hear of bans."""


class Guard:
    """The doorkeeper of one endpoint.

    Args:
        settings: limits; see `configure`.
        exempt: whether a host is a trunk's, never limited and never banned.
        report: hears of each ban.

    Attributes:
        counters: what was dropped and banned, by reason.
    """

    def __init__(
        self,
        settings: GuardSettings | None = None,
        *,
        exempt: Callable[[str], bool] = lambda _: False,
        report: Callable[[Ban], None] = _ignore,
        max_sources: int = _MAX_SOURCES,
        max_bans: int = _MAX_BANS,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._settings = settings or GuardSettings()
        self._exempt = exempt
        self._report = report
        self._max_sources = max_sources
        self._max_bans = max_bans
        # Least recently used first. A flood of strangers cannot drive out those who proved themselves.
        self._strangers: OrderedDict[str, _Source] = OrderedDict()
        self._known: OrderedDict[str, _Source] = OrderedDict()
        self._bans: OrderedDict[str, Ban] = OrderedDict()
        self._swept_at = float("-inf")
        self._is_trusted = lru_cache(maxsize=4096)(self._look_up_trusted)

    def configure(self, settings: GuardSettings) -> None:
        """Put other limits in force; bans stay, except of those who are trusted now."""
        self._settings = settings
        self._is_trusted.cache_clear()
        for source in [source for source in self._bans if self._is_trusted(source.partition("/")[0])]:
            del self._bans[source]

    @property
    def sources(self) -> int:
        """How many sources are remembered."""
        return len(self._strangers) + len(self._known)

    # --- the door -------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether anybody is banned at all: if not, `blocks` need not be asked."""
        return bool(self._bans)

    def blocks(self, host: str, now: float) -> bool:
        """Whether a message or connection from an IP address is to be dropped unread."""
        ban = self._bans.get(source_of(host))
        if ban is None:
            return False
        if now >= ban.until:
            del self._bans[ban.source]
            return False
        if self._exempt(host) or self._is_trusted(host):  # in the /64 network of a scanner
            return False
        ban.dropped += 1
        self.counters['sip_guard_dropped_total{reason="banned"}'] += 1
        return True

    def origin(self, host: str) -> str:
        """Where a challenge is valid: the neighbourhood that it was sent to, or "" for everywhere.

        Providers give their customers addresses of one /24 in turn; those who are
        trusted may be proxies that share their work.
        """
        if self._is_trusted(host):
            return ""
        return source_of(host) if ":" in host else host.rpartition(".")[0]

    # --- requests that nobody vouches for ---------------------------------------------------

    def admits(self, host: str, user_agent: str | None, now: float, *, proof: bool = False) -> bool:
        """Whether to serve a request that belongs to no dialog; False: drop it without a word.

        Args:
            host: IP address that it came from.
            user_agent: what it says it is.
            now: monotonic seconds.
            proof: it carries a password, which is looked at even if the source has no token left.
        """
        if self._exempt(host) or self._is_trusted(host):
            return True
        settings = self._settings
        if user_agent is not None and user_agent.lower().startswith(settings.scanners):
            self.counters['sip_guard_dropped_total{reason="scanner"}'] += 1
            source = self._source(host, now)
            if source.known_until <= now:
                self._blame(host, source, _SCANNER_POINTS, Reason.SCANNER, now)
            return False
        return self._spend(host, now) or proof

    def on_junk(self, host: str, now: float) -> bool:
        """A message that cannot be read; returns whether to answer it."""
        return self._exempt(host) or self._is_trusted(host) or self._spend(host, now)

    def on_success(self, host: str, now: float) -> None:
        """A right password."""
        if self._exempt(host) or self._is_trusted(host):
            return
        source = self._source(host, now)
        source.failed = 0
        source.excess = 0.0
        source.tokens += 2  # for the request, and for the one before it that was challenged
        if source.known_until <= now:
            key = source_of(host)
            self._strangers.pop(key, None)
            self._known[key] = source
            if len(self._known) > self._max_sources:
                self._known.popitem(last=False)
        source.known_until = now + KNOWN_S

    def on_failure(self, host: str, now: float) -> None:
        """A wrong password or an unknown user, in answer to a challenge that this source received."""
        if self._exempt(host) or self._is_trusted(host):
            return
        source = self._source(host, now)
        source.failed += 1
        self._blame(host, source, 1, Reason.PASSWORDS, now)

    def _spend(self, host: str, now: float) -> bool:
        """Take a token; without one, whoever goes on for as long again is banned."""
        source = self._source(host, now)
        if source.tokens >= 1:
            source.tokens -= 1
            return True
        self.counters['sip_guard_dropped_total{reason="limited"}'] += 1
        if source.known_until <= now:
            source.excess += 1
            if source.excess > self._settings.burst:
                self._ban(host, source, Reason.FLOOD, now)
        return False

    def _blame(self, host: str, source: _Source, points: float, reason: Reason, now: float) -> None:
        source.score += points
        limit = self._settings.failures * (PATIENCE if source.known_until > now else 1)
        # What has leaked away since the first of a quick series does not save the last.
        if source.score > limit - 1 or source.failed >= limit * _SLOW:
            self._ban(host, source, reason, now)

    def _source(self, host: str, now: float) -> _Source:
        """The entry of a source, brought up to date."""
        key = source_of(host)
        settings = self._settings
        source = self._known.get(key)
        if source is not None:
            self._known.move_to_end(key)
            burst, rate = settings.burst * PATIENCE, settings.rate * PATIENCE
            if source.known_until <= now:
                del self._known[key]
                self._remember(key, source, now)
        else:
            burst, rate = settings.burst, settings.rate
            source = self._strangers.get(key)
            if source is None:
                source = _Source(burst, now)
                self._remember(key, source, now)
            else:
                self._strangers.move_to_end(key)
        passed = now - source.at
        if passed > 0:
            source.at = now
            source.tokens = min(source.tokens + passed * rate, float(burst))
            source.score = max(0.0, source.score - passed * settings.failures / settings.window_s)
            source.excess = max(0.0, source.excess - passed * rate)
        return source

    def _remember(self, key: str, source: _Source, now: float) -> None:
        strangers = self._strangers
        strangers[key] = source
        # Two at a time: what is old goes faster than new comes.
        for _ in range(2):
            oldest = next(iter(strangers.values()))
            if len(strangers) > self._max_sources or oldest.at < now - _FORGET_S:
                strangers.popitem(last=False)

    def _look_up_trusted(self, host: str) -> bool:
        address = _address(host)
        return any(address in network for network in self._settings.trusted)

    # --- bans -----------------------------------------------------------------------------

    def _ban(self, host: str, source: _Source, reason: Reason, now: float) -> None:
        settings = self._settings
        length_s = min(settings.ban_s * 2 ** min(source.bans, 20), settings.max_ban_s)
        source.bans += 1
        source.score = source.excess = 0.0
        source.failed = 0
        ban = Ban(source_of(host), reason, now, now + length_s)
        if now - self._swept_at >= _SWEEP_S:
            self._sweep(now)
        self._bans.pop(ban.source, None)
        self._bans[ban.source] = ban
        if len(self._bans) > self._max_bans:
            self._bans.popitem(last=False)
        self.counters[f'sip_guard_bans_total{{reason="{reason}"}}'] += 1
        self._report(ban)

    def bans(self, now: float) -> list[Ban]:
        """Who is banned, the last one first."""
        self._sweep(now)
        return list(reversed(self._bans.values()))

    def lift(self, source: str) -> bool:
        """End a ban early and forget what led to it; `source` is an address, or a network as in `Ban`.

        Returns:
            Whether there was one.
        """
        try:
            key = source if source in self._bans else source_of(source.partition("/")[0])
        except ValueError:
            return False
        self._strangers.pop(key, None)
        return self._bans.pop(key, None) is not None

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        for source in [source for source, ban in self._bans.items() if ban.until <= now]:
            del self._bans[source]

    def figures(self) -> dict[str, float]:
        """Counters and gauges by metric name."""
        return {
            **self.counters,
            "sip_guard_banned": float(len(self._bans)),
            "sip_guard_sources": float(self.sources),
        }


def _address(host: str) -> object:
    address = ip_address(host.partition("%")[0])
    return (address.ipv4_mapped or address) if address.version == 6 else address


def source_of(host: str) -> str:
    """What addresses count as one: an IPv4 address, an IPv6 /64 network.

    Raises:
        ValueError: not an IP address.
    """
    return _network_of(host) if ":" in host else host


@lru_cache(maxsize=4096)
def _network_of(host: str) -> str:
    address = ip_address(host.partition("%")[0])
    if address.version == 4 or address.ipv4_mapped is not None:
        return str(getattr(address, "ipv4_mapped", None) or address)
    if address.is_link_local:  # one network for all neighbours
        return str(address)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))
